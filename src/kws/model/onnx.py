"""A model as one ONNX file that maps waveforms to probabilities, for machines without torch.

Only `export` needs torch; loading and running a model takes numpy and onnxruntime.

The graph has a second, optional input, `features`: mel spectrograms that were computed elsewhere. Their results follow
those of the waveforms; if tokens get scores, those of every token are a second output. `kws.model.detector` uses it to
compute each frame of a stream once instead of many times. In the graph it is an overridable initializer with no rows,
so that a caller who gives only waveforms need not know of it.
"""

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.config import require_words
from kws.cores import num_cores
from kws.preprocess.audio import Waveform
from kws.recipe import FeatureConfig
from kws.settings import from_dict, require

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession
    from torch import Tensor
    from torch.nn import Module

    from kws.model.bundle import Recognizer

FORMAT = "1"
OPSET = 18
FEATURES = {"cosines", "sines", "mel_filters"}
"""Names of constants in the graph whose products stay in float32, as powers span too many decades for int8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxRecognizer:
    """An exported model with its words, feature settings and metadata."""

    session: "InferenceSession"
    words: list[str]
    features: FeatureConfig
    num_parameters: int
    about: dict[str, Any]
    margin: tuple[int, int] | None = None
    """The numbers of tokens before and after a token on which its scores depend; None: only clips get scores."""
    frames_per_token: int = 1

    def predict(self, waveforms: Waveform) -> npt.NDArray[np.float32]:
        """Converts waveforms, float32 [clips, num_samples] in -1 to 1, to probabilities, float32 [clips, words]."""
        (probabilities,) = self.session.run(["probabilities"], {"waveforms": waveforms})
        return np.asarray(probabilities)

    def predict_features(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Converts mel spectrograms of clips or, if tokens get scores, of streams, to probabilities.

        Args:
            features: float32 [clips, num_mels, num_frames].

        Returns:
            float32 [clips, words], or [streams, tokens, words].
        """
        none = np.empty((0, self.features.num_samples), np.float32)
        output = "probabilities" if self.margin is None else "tokens"
        (probabilities,) = self.session.run([output], {"waveforms": none, "features": features})
        return np.asarray(probabilities)


def report_nothing() -> None:
    """Has onnxruntime report nothing, if called before it is imported.

    From 1.29 on it reports to its maker when imported, with an id that it keeps in the home folder. People speak to
    these models. Who wants that sets ORT_DISABLE_TELEMETRY to 0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(path: Path, num_threads: int = 0) -> OnnxRecognizer:
    """Reads a file that `export` wrote, to run with so many threads for a call; 0: one for every core.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a model of this project, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model must be an .onnx file, got {str(path)!r}, which does not exist")
    session = open_session(path, num_threads)
    about = session.get_modelmeta().custom_metadata_map
    if about.get("kws_format") != FORMAT:
        raise ValueError(f"model must be an .onnx file of kws export, got one of another program: {path}")
    try:
        return _recognizer(session, about)
    except ValueError as error:
        raise ValueError(f"model must be intact, got {path}, which is damaged: {error}") from error


def open_session(path: Path, num_threads: int) -> "InferenceSession":
    """Opens a graph to run it on the CPU; see `load`."""
    report_nothing()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or num_cores()
    # Spinning threads lose more time beside a busy process than they gain on an idle machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # hides the warning that features can be overridden; errors are raised as well
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for every kind of damage
        raise ValueError(f"model must be an .onnx file of kws export, got {str(path)!r}, which is damaged") from error


def _recognizer(session: "InferenceSession", metadata: Mapping[str, str]) -> OnnxRecognizer:
    """Builds a recognizer from a graph and its metadata.

    Raises:
        ValueError: an entry is missing, or does not fit the others.
    """
    known = {
        name: files.parse_json(metadata.get(name, "").encode(), name)
        for name in ("words", "features", "num_parameters", "about")
    }
    tokens = files.parse_json(metadata.get("tokens", "null").encode(), "tokens")
    fits = tokens is None or (isinstance(tokens, list) and len(tokens) == 3 and all(type(one) is int for one in tokens))
    require(fits, "tokens", "be three whole numbers", tokens)
    require_words(known["words"])
    require(type(known["num_parameters"]) is int, "num_parameters", "be a whole number", known["num_parameters"])
    require(isinstance(known["about"], dict), "about", "be a JSON object", known["about"])
    recognizer = OnnxRecognizer(
        session=session,
        **known | {"features": from_dict(FeatureConfig, known["features"])},
        margin=None if tokens is None else (tokens[1], tokens[2]),
        frames_per_token=1 if tokens is None else tokens[0],
    )
    shapes = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    expected = ("waveforms", "tensor(float)", [recognizer.features.num_samples])
    require(shapes == [expected], "inputs", f"be {expected[0]} of {expected[2][0]} samples", shapes)
    optional = [node.name for node in session.get_overridable_initializers()]
    require("features" in optional, "optional inputs", "have features", optional)
    # A clip of noise involves nearly every weight: a NaN among them shows in the output.
    noise = np.random.default_rng(0).standard_normal((1, recognizer.features.num_samples), dtype=np.float32)
    try:
        heard = recognizer.predict(0.1 * noise)
    except Exception as error:  # as above, onnxruntime has many classes of errors
        raise ValueError(f"the graph must compute a clip, got {str(error).splitlines()[0]}") from error
    fits = heard.shape == (1, len(recognizer.words)) and heard.dtype == np.float32
    require(fits, "probabilities", f"be float32 [1, {len(recognizer.words)}]", heard.shape)
    require(bool(np.isclose(heard.sum(), 1, atol=1e-3)), "probabilities", "add up to 1", float(heard.sum()))
    return recognizer


def export(recognizer: "Recognizer", path: Path, int8: bool = False, beside: Path | None = None) -> dict[str, float]:
    """Writes a model as ONNX, atomically; see `kws.model.formats.Format.export`. There are no figures.

    The graph contains the mel spectrogram (the Fourier transform as a matrix product), the model, the temperature and
    the softmax. Words and settings are in its metadata.

    With int8, the matrices of the model have a scale for every column, and activations are quantized at run time
    (dynamic quantization). Convolutions and features stay in float32. Of the 8 bits of a weight 7 are used: with all of
    them, sums overflow on processors without VNNI (onnxruntime.ai, "Quantize ONNX models").

    Raises:
        ValueError: the length of the window is odd.
    """
    import onnx
    import torch

    from kws.model.whole import WaveformToWords

    config, model = recognizer.features, recognizer.model
    of_tokens = model.config.scores == "tokens"
    inputs = {
        "waveforms": torch.zeros(2, config.num_samples),
        "features": torch.zeros(2, config.num_mels, config.num_frames),
    }
    axes = {"waveforms": {0: "clips"}, "features": {0: "spectrograms"}, "probabilities": {0: "rows"}}
    outputs = ["probabilities"]
    if of_tokens:
        axes |= {"features": {0: "streams", 2: "frames"}, "tokens": {0: "streams", 1: "tokens"}}
        outputs.append("tokens")
    graph = trace(WaveformToWords(recognizer), inputs, outputs, axes, int8)
    none = np.empty((0, config.num_mels, config.num_frames), np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(none, "features"))
    about = {
        "kws_format": FORMAT,
        "words": json.dumps(recognizer.words),
        "features": json.dumps(dataclasses.asdict(config)),
        "num_parameters": str(recognizer.num_parameters),
        "tokens": json.dumps([model.config.frames_per_token, *model.margin] if of_tokens else None),
        "about": json.dumps(recognizer.about | {"int8": int8}),
    }
    onnx.helper.set_model_props(graph, about)
    files.write(path, graph.SerializeToString())
    return {}


def trace(
    module: "Module",
    inputs: dict[str, "Tensor"],
    outputs: list[str],
    axes: Mapping[str, Mapping[int, str]],
    int8: bool = False,
) -> "ModelProto":
    """Returns the graph of a module of `kws.model.whole`.

    Args:
        module: the module.
        inputs: an example of each input, by name.
        outputs: names of the results.
        axes: names of the axes of inputs and outputs that have any length.
        int8: quantize, see `export`.
    """
    import onnx
    import torch

    report_nothing()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        # The tracing exporter takes half a second and no further packages, the newer one 20 s.
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            whole,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=axes,
        )
        graph = onnx.load(whole)
        _share_weights(graph)
        if int8:
            onnx.save(graph, whole)
            kept = [node.name for node in graph.graph.node if FEATURES & set(node.input)]
            with _silent_root_logger():
                quantize_dynamic(
                    whole,
                    small,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    reduce_range=True,  # without VNNI, sums of 8 bits overflow
                    nodes_to_exclude=kept,
                )
        return onnx.load(small) if int8 else graph


def _share_weights(model: "ModelProto") -> None:
    """Has nodes name shared weights themselves: behind the exporter's Identity in between none is quantized."""
    nodes, weights = model.graph.node, {weight.name for weight in model.graph.initializer}
    copies = [node for node in nodes if node.op_type == "Identity" and node.input[0] in weights]
    shared = {copy.output[0]: copy.input[0] for copy in copies}
    for copy in copies:
        nodes.remove(copy)
    for node in nodes:
        node.input[:] = [shared.get(name, name) for name in node.input]


@contextlib.contextmanager
def _silent_root_logger() -> Iterator[None]:
    """Drops messages of the root logger for the block.

    The quantizer logs there every product that it leaves in float32, which looks like a failure.
    """

    def drop(record: logging.LogRecord) -> bool:
        return False

    logging.getLogger().addFilter(drop)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(drop)
