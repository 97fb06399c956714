"""A model as one ONNX file, waveform in and probabilities out, for machines without torch.

Only `export` needs torch; reading a file and hearing words takes numpy and onnxruntime.

The graph has a second input, `features`, which need not be given: the rows of mel spectrograms that were computed
elsewhere, and come out behind those of the waveforms. Who listens to a stream gives it, and computes a frame once
instead of ten times (`kws.serve.detector`). It is an initializer of no rows that may be overridden, so that whoever
gives waveforms alone need not know of it.
"""

import contextlib
import copy
import dataclasses
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.config import FeatureConfig, from_dict, require, require_words
from kws.cores import num_cores
from kws.preprocess.audio import Waveform

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from kws.model.bundle import Recognizer

FORMAT = "1"
OPSET = 18
FEATURES = {"cosines", "sines", "mel_filters"}
"""Names of constants in the graph whose products stay in float32: powers span too many decades for int8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxRecognizer:
    """An exported model with what belongs to it."""

    session: "InferenceSession"
    words: list[str]
    features: FeatureConfig
    num_parameters: int
    about: dict[str, Any]

    def hear(self, waveforms: Waveform) -> npt.NDArray[np.float32]:
        """Turns float32 [clips, num_samples] into probabilities, float32 [clips, words]."""
        (probabilities,) = self.session.run(None, {"waveforms": waveforms})
        return np.asarray(probabilities)

    @property
    def takes_features(self) -> bool:
        """Whether the file has the second input, which exports of earlier versions had not."""
        return any(value.name == "features" for value in self.session.get_overridable_initializers())

    def hear_features(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Turns mel spectrograms, float32 [clips, num_mels, num_frames], into probabilities [clips, words].

        Raises:
            ValueError: the file was exported before there was this input.
        """
        if not self.takes_features:
            raise ValueError("model must be an .onnx file that takes features, got an older one; export it again")
        none = np.empty((0, self.features.num_samples), np.float32)
        (probabilities,) = self.session.run(None, {"waveforms": none, "features": features})
        return np.asarray(probabilities)


def load(path: Path, num_threads: int = 0) -> OnnxRecognizer:
    """Reads a file that `export` wrote.

    Args:
        path: the file.
        num_threads: threads of a call; 0 takes one for every core.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no model of this project.
    """
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"model must be an .onnx file, got {str(path)!r}, which does not exist")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or num_cores()
    # Threads that spin while they wait for each other lose more beside a busy process than they win alone.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # no warning that features may be overridden; what is wrong is raised as well
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for every kind of damage
        raise ValueError(f"model must be an .onnx file of kws export, got {str(path)!r}, which is damaged") from error
    about = session.get_modelmeta().custom_metadata_map
    if about.get("kws_format") != FORMAT:
        raise ValueError(f"model must be an .onnx file of kws export, got another one: {path}")
    try:
        return _recognizer(session, about)
    except ValueError as error:
        raise ValueError(f"model must be whole, got {path}, which is damaged: {error}") from error


def _recognizer(session: "InferenceSession", metadata: Mapping[str, str]) -> OnnxRecognizer:
    """Builds a recognizer of a graph and its metadata.

    Raises:
        ValueError: something is missing, or does not fit the rest.
    """
    known = {name: files.parse_json(metadata.get(name, "").encode(), name)
             for name in ("words", "features", "num_parameters", "about")}  # fmt: skip
    require_words(known["words"])
    require(type(known["num_parameters"]) is int, "num_parameters", "be a whole number", known["num_parameters"])
    require(isinstance(known["about"], dict), "about", "be a table", known["about"])
    recognizer = OnnxRecognizer(session=session, **known | {"features": from_dict(FeatureConfig, known["features"])})
    shapes = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    expected = ("waveforms", "tensor(float)", [recognizer.features.num_samples])
    require(shapes == [expected], "inputs", f"be {expected[0]} of {expected[2][0]} samples", shapes)
    # A clip of noise meets nearly every weight: one that is not a number comes out as such.
    noise = np.random.default_rng(0).standard_normal((1, recognizer.features.num_samples), dtype=np.float32)
    try:
        heard = recognizer.hear(0.1 * noise)
    except Exception as error:  # a class of its own for every kind of damage, again
        raise ValueError(f"the graph must hear a clip, got {str(error).splitlines()[0]}") from error
    fits = heard.shape == (1, len(recognizer.words)) and heard.dtype == np.float32
    require(fits, "probabilities", f"be of {len(recognizer.words)} words", heard.shape)
    require(bool(np.isclose(heard.sum(), 1, atol=1e-3)), "probabilities", "add up to 1", float(heard.sum()))
    return recognizer


def export(recognizer: "Recognizer", path: Path, int8: bool = False) -> None:
    """Writes a model as ONNX, atomically.

    The graph has everything: mel spectrogram (the Fourier transform as a product), model, temperature, softmax. Words
    and settings are in its metadata.

    Args:
        recognizer: the model; its window must have an even length.
        path: the file to write.
        int8: matrices of the model in 8 bits, a scale for every column, and the other factor quantized as it comes
            (dynamic quantization). Convolutions and features stay in float32.
    """
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from torch import Tensor

    config = recognizer.features
    model = copy.deepcopy(recognizer.model).cpu().eval()
    require(config.win_length % 2 == 0, "win_length", "be even for an export", config.win_length)
    half = config.win_length // 2
    block = math.gcd(half, config.hop_length)

    class WaveformToWords(torch.nn.Module):
        blocks: Tensor
        cosines: Tensor
        sines: Tensor
        mel_filters: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            for name, value in _spectrum(config, block).items():
                self.register_buffer(name, value)

        def halves(self, padded: Tensor, first: int) -> Tensor:
            """Cuts half windows, the first of them from a sample on, out of whole blocks of samples."""
            num_blocks = (config.hop_length * (config.num_frames - 1) + half) // block
            # No -1: of no clips, onnxruntime could not tell what it stands for.
            blocks = padded[:, first : first + num_blocks * block].reshape(padded.size(0), num_blocks, block)
            return blocks[:, self.blocks].reshape(padded.size(0), config.num_frames, half)

        def forward(self, waveforms: Tensor, features: Tensor) -> Tensor:
            edge = config.n_fft // 2
            padded = torch.nn.functional.pad(waveforms[:, None], (edge, edge), mode="reflect")[:, 0]
            behind = self.halves(padded, edge)  # [N, T, win_length / 2], from the middle of a window on
            before = self.halves(padded, edge - half + 1).flip(2)  # and back from it
            # Around the middle of a window cosines are even and sines odd: half of the products are enough.
            power = ((behind + before) @ self.cosines).square() + ((behind - before) @ self.sines).square()
            mel = power @ self.mel_filters
            if config.log:
                mel = (mel + config.log_offset).log()
            return recognizer.probabilities(self.model(torch.cat((mel.transpose(1, 2), features))))

    example = torch.zeros(2, config.num_samples), torch.zeros(2, config.num_mels, config.num_frames)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        # The exporter by tracing: half a second and no further packages, where the newer one takes 20 s.
        torch.onnx.export(
            WaveformToWords().eval(), example, whole, dynamo=False, opset_version=OPSET,
            input_names=["waveforms", "features"], output_names=["probabilities"],
            dynamic_axes={"waveforms": {0: "clips"}, "features": {0: "spectrograms"}, "probabilities": {0: "rows"}},
        )  # fmt: skip
        if int8:
            kept = [node.name for node in onnx.load(whole).graph.node if FEATURES & set(node.input)]
            with _silent_root_logger():
                quantize_dynamic(
                    whole, small, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                    weight_type=QuantType.QInt8, nodes_to_exclude=kept,
                )  # fmt: skip
        graph = onnx.load(small if int8 else whole)
    none = np.empty((0, config.num_mels, config.num_frames), np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(none, "features"))
    about = {
        "kws_format": FORMAT,
        "words": json.dumps(recognizer.words),
        "features": json.dumps(dataclasses.asdict(config)),
        "num_parameters": str(recognizer.num_parameters),
        "about": json.dumps(recognizer.about | {"int8": int8}),
    }
    onnx.helper.set_model_props(graph, about)
    with files.atomic_write(path) as file:
        file.write(graph.SerializeToString())


@contextlib.contextmanager
def _silent_root_logger() -> Iterator[None]:
    """Drops what is logged by no logger in particular, for a block.

    The quantizer names every product that it leaves alone: a page that reads like a failure.
    """

    def drop(record: logging.LogRecord) -> bool:
        return False

    logging.getLogger().addFilter(drop)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(drop)


def _spectrum(config: FeatureConfig, block: int) -> dict[str, "Tensor"]:
    """Returns the constants of the mel spectrogram.

    Which blocks of samples make the half windows (int64 [frames, win_length / 2 / block]); the windowed transform
    (float32 [win_length / 2, bins], twice); the mel filters (float32 [bins, num_mels]).
    """
    import torch

    from kws.preprocess.features import MelSpectrogram

    half = config.win_length // 2
    hop = config.hop_length // block
    angles = 2 * math.pi / config.n_fft * torch.outer(torch.arange(half).double(), torch.arange(config.n_fft // 2 + 1))
    window = torch.hann_window(config.win_length, dtype=torch.float64)[half:, None]
    window[0] /= 2  # the middle is in both halves
    return {
        "blocks": hop * torch.arange(config.num_frames)[:, None] + torch.arange(half // block),
        "cosines": (angles.cos() * window).float(),
        "sines": (angles.sin() * window).float(),
        "mel_filters": MelSpectrogram(config).filters,
    }
