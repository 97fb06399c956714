"""A model as a LiteRT file (`.tflite`), from waveforms to probabilities, for telephones and boards.

A zip at its end has `labels.txt`, where LiteRT's tools look for the words, and `kws.json`.
"""

import io
import json
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kws import files
from kws.model import formats
from kws.preprocess.audio import Waveform

if TYPE_CHECKING:
    from kws.model.bundle import Recognizer

ABOUT, LABELS = "kws.json", "labels.txt"


def export(recognizer: "Recognizer", path: Path, int8: bool = False, beside: Path | None = None) -> dict[str, float]:
    """Writes a model for LiteRT, atomically; it hears one clip at a time. See `formats.Format.export`; no figures.

    With int8, the model's matrices and convolutions have 8 bits, and activations at run time (dynamic quantization).

    Raises:
        ValueError: litert-torch is not installed.
    """
    import torch

    from kws.model.whole import WaveformToWords

    try:
        import litert_torch
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as error:
        raise formats.missing("litert-torch", "litert") from error
    logging.getLogger().setLevel(logging.WARNING)  # the converter tells each of its passes
    module = WaveformToWords(recognizer).eval()
    with torch.inference_mode():
        content = litert_torch.convert(module, (torch.zeros(1, recognizer.features.num_samples),)).model_content()
    if int8:
        # Not the mel spectrogram, whose powers span too many decades.
        rules = [rule | {"regex": ".*AudioTransformer.*"} for rule in recipe.dynamic_wi8_afp32()]
        small = quantizer.Quantizer(bytearray(content), rules)
        content = bytes(small.quantize().quantized_model or b"")
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a") as packed:
        packed.writestr(LABELS, "\n".join(recognizer.words))
        packed.writestr(ABOUT, json.dumps(formats.describe(recognizer, int8)))
    files.write(path, whole.getbuffer())
    return {}


def load(path: Path, num_threads: int = 0) -> formats.Exported:
    """Reads a file that `export` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or of another program, or ai-edge-litert is not installed.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            about = packed.read(ABOUT)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"model must be a .tflite file of kws export, got {path}") from error
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise formats.missing("ai-edge-litert", "litert") from error
    try:
        interpreter = Interpreter(str(path), num_threads=num_threads or None)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"model must be a .tflite file of kws export, got {path}, which is damaged") from error
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def hear(waveform: Waveform) -> npt.NDArray[np.float32]:
        interpreter.set_tensor(given["index"], waveform[None])
        interpreter.invoke()
        return np.array(interpreter.get_tensor(answer["index"])[0])

    return formats.Exported.described(about, path, hear)
