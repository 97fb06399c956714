"""Requests and responses of the Open Inference Protocol, version 2, for REST and gRPC.

There is one input, `waveforms`: FP32 [clips, samples], or BYTES [clips], each an audio file of any format (in JSON as
base64). There are two outputs: `probabilities`, FP32 [clips, words], and `words`, BYTES [clips], the most probable
ones. Two extensions of Triton are supported: binary tensors over REST, and `classification`, the k best words of each
clip.
"""

import base64
import binascii
import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from kws.config import ServeConfig
from kws.preprocess.audio import LOUDEST, TooLong, Waveform, fit_length, read_bytes
from kws.serve.models import Served

INPUT = "waveforms"
PROBABILITIES = "probabilities"
WORDS = "words"
EXTENSIONS = ("binary_tensor_data", "classification")
HEADER_LENGTH = "inference-header-content-length"


class Refused(Exception):
    """Raised for a request that is refused; the message says why."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


def demand(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises Refused "{name} must {rule}, got {value}" unless the condition holds."""
    if not condition:
        shown = repr(value)
        raise Refused(f"{name} must {rule}, got {shown if len(shown) < 80 else shown[:77] + '...'}")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input tensor of a request, with its data as a list (from JSON or gRPC) or as raw bytes."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Any = None
    raw: bytes | memoryview | None = None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A requested output."""

    name: str
    binary: bool = False
    classes: int = 0
    """If not 0, return only this many best words of each clip, as text, instead of all probabilities."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request for inference."""

    id: str = ""
    inputs: Sequence[Tensor] = ()
    wishes: Sequence[Wish] = field(default=(Wish(name=PROBABILITIES), Wish(name=WORDS)))


# Requests


def read_rest(body: bytes, header_length: str | None) -> Call:
    """Reads the body of a REST request.

    Args:
        body: JSON, or JSON followed by the raw bytes of tensors.
        header_length: value of the header Inference-Header-Content-Length, the length of the JSON; None: all of it.

    Raises:
        Refused: the request is not valid.
    """
    size = len(body)
    if header_length is not None:
        demand(
            header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body),
            "Inference-Header-Content-Length",
            f"be a number of bytes up to {len(body)}, the whole body",
            header_length,
        )
        size = int(header_length)
    try:
        content = orjson.loads(memoryview(body)[:size])
    except orjson.JSONDecodeError as error:
        raise Refused(f"the request must be JSON, got {error}") from error
    demand(isinstance(content, dict), "the request", "be a JSON object", type(content).__name__)
    request_id = content.get("id")
    demand(request_id is None or isinstance(request_id, str), "id", "be a string", request_id)
    parameters = _parameters(content, "the request")
    raw, tensors = memoryview(body)[size:], []
    for entry in _list(content, "inputs", "the request"):
        name = _text(entry, "name", "an input")
        own, data, piece = _parameters(entry, name), entry.get("data"), None
        if "binary_data_size" in own:
            length = own["binary_data_size"]
            demand(
                _is_count(length) and length <= len(raw),
                f"binary_data_size of {name}",
                f"be at most {len(raw)}, the number of bytes that remain after the JSON",
                length,
            )
            demand(data is None, f"{name}", "have data or binary_data_size, not both", "both")
            piece, raw = raw[:length], raw[length:]
        else:
            demand(isinstance(data, list), f"data of {name}", "be a list", type(data).__name__)
        shape: Any = entry.get("shape")
        demand(
            isinstance(shape, list) and all(_is_count(side) for side in shape),
            f"shape of {name}",
            "be a list of integers of at least 0",
            shape,
        )
        tensors.append(Tensor(name=name, datatype=_text(entry, "datatype", name), shape=shape, data=data, raw=piece))
    demand(
        len(raw) == 0, "the raw bytes after the JSON", "all belong to an input by binary_data_size", f"{len(raw)} more"
    )
    binary = parameters.get("binary_data_output", False)
    wishes = [
        wish(_text(entry, "name", "an output"), _parameters(entry, "an output"), binary)
        for entry in (_list(content, "outputs", "the request") if content.get("outputs") is not None else ())
    ]
    return Call(
        id=request_id or "", inputs=tensors, wishes=wishes or (wish(PROBABILITIES, {}, binary), wish(WORDS, {}, binary))
    )


def wish(name: str, parameters: Mapping[str, Any], binary: object = False) -> Wish:
    """Checks and returns a requested output.

    Its parameters are binary_data, whose default is given, and classification.

    Raises:
        Refused: there is no such output, or it does not support the parameters.
    """
    demand(name in (PROBABILITIES, WORDS), "an output", f"be {PROBABILITIES} or {WORDS}", name)
    binary = parameters.get("binary_data", binary)
    demand(isinstance(binary, bool), f"binary_data of {name}", "be true or false", binary)
    classes = parameters.get("classification", 0)
    demand(
        _is_count(classes) and (classes == 0 or name == PROBABILITIES),
        f"classification of {name}",
        f"be a number of words, and only for {PROBABILITIES}",
        classes,
    )
    return Wish(name=name, binary=bool(binary), classes=classes)


def _list(entry: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    found = entry.get(name)
    well = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    demand(well, f"{name} of {where}", "be a list of objects", found)
    return found  # type: ignore[return-value]


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    found = entry.get(name)
    demand(isinstance(found, str), f"{name} of {where}", "be a string", found)
    return found  # type: ignore[return-value]


def _parameters(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = entry.get("parameters")
    demand(found is None or isinstance(found, dict), f"parameters of {where}", "be an object", found)
    return found or {}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def waveforms_of(call: Call, served: Served, config: ServeConfig) -> Waveform:
    """Returns the clips of a request, float32 [clips, num_samples].

    Raises:
        Refused: the input is missing, has another type or shape, is too large, or is not audio.
    """
    names = [tensor.name for tensor in call.inputs]
    demand(names == [INPUT], "inputs", f"be one tensor named {INPUT}", ", ".join(names) or "none")
    (tensor,) = call.inputs
    demand(tensor.datatype in ("FP32", "BYTES"), f"datatype of {INPUT}", "be FP32 or BYTES", tensor.datatype)
    shape = list(tensor.shape)
    if tensor.datatype == "BYTES":
        demand(len(shape) == 1 or shape[1:] == [1], f"shape of {INPUT}", "be [clips] for audio files", shape)
        _demand_clips(shape[0], config)
        audio = _byte_strings(tensor, shape[0])
        return np.stack([_read_audio(data, number, served, config) for number, data in enumerate(audio)])
    samples = served.recognizer.features.num_samples
    demand(
        shape == [samples] or (len(shape) == 2 and shape[1] == samples),
        f"shape of {INPUT}",
        f"be [clips, {samples}]",
        shape,
    )
    clips = shape[0] if len(shape) == 2 else 1
    _demand_clips(clips, config)
    waveforms = _floats(tensor, clips * samples).reshape(clips, samples)
    loudest = float(np.abs(waveforms).max())
    demand(math.isfinite(loudest), f"data of {INPUT}", "be finite numbers", "NaN, infinity or numbers beyond float32")
    demand(loudest <= LOUDEST, f"data of {INPUT}", "be samples in -1 to 1 (divide 16-bit samples by 32768)", loudest)
    return waveforms


def _demand_clips(clips: int, config: ServeConfig) -> None:
    demand(
        1 <= clips <= config.max_clips,
        "clips of a request",
        f"be 1 to {config.max_clips} (the server's --max-clips)",
        clips,
    )


def _floats(tensor: Tensor, count: int) -> Waveform:
    """Reads the data of an FP32 tensor as float32 [count]."""
    if tensor.raw is not None:
        demand(
            len(tensor.raw) == 4 * count,
            f"data of {INPUT}",
            f"be {4 * count} bytes according to its shape",
            len(tensor.raw),
        )
        return np.frombuffer(tensor.raw, dtype="<f4")
    with np.errstate(over="ignore"):
        return np.array(_flat(tensor, count, {int, float}, "numbers"), dtype=np.float64).astype(np.float32)


def _flat(tensor: Tensor, count: int, kinds: set[type], what: str) -> list[Any]:
    """Returns the data of a tensor as a flat list; the data may be flat, or nested as its shape says.

    Raises:
        Refused: there are not `count` values of these types, or they are nested in another way.
    """
    data: list[Any] = tensor.data
    shape = list(tensor.shape)
    if len(shape) == 2 and data and isinstance(data[0], list):
        well = len(data) == shape[0] and all(isinstance(row, list) and len(row) == shape[1] for row in data)
        demand(well, f"data of {INPUT}", f"be flat, or nested as its shape {shape}", "other lists")
        data = list(itertools.chain.from_iterable(data))
    demand(len(data) == count, f"data of {INPUT}", f"be {count} {what} according to its shape", len(data))
    others = set(map(type, data)) - kinds
    demand(not others, f"data of {INPUT}", f"be {what}", ", ".join(sorted(kind.__name__ for kind in others)))
    return data


def _byte_strings(tensor: Tensor, count: int) -> list[bytes]:
    """Reads the data of a BYTES tensor."""
    if tensor.raw is None:
        try:
            return [
                each if isinstance(each, bytes) else base64.b64decode(each, validate=True)
                for each in _flat(tensor, count, {str, bytes}, "strings")
            ]
        except (binascii.Error, ValueError) as error:
            raise Refused(f"data of {INPUT} must be audio files in base64, got {error}") from error
    found: list[bytes] = []
    rest = memoryview(tensor.raw)
    while len(rest):
        length = struct.unpack_from("<I", rest)[0] if len(rest) >= 4 else len(rest)
        demand(
            length + 4 <= len(rest),
            f"data of {INPUT}",
            "be byte strings, each after its length in 4 bytes",
            f"{len(rest)} bytes for one of {length}",
        )
        found.append(bytes(rest[4 : 4 + length]))
        rest = rest[4 + length :]
    demand(len(found) == count, f"data of {INPUT}", f"be {count} byte strings according to its shape", len(found))
    return found


def _read_audio(data: bytes, number: int, served: Served, config: ServeConfig) -> Waveform:
    """Decodes an audio file to a clip, float32 [num_samples], in the same way as preprocessing."""
    features = served.recognizer.features
    try:
        return fit_length(read_bytes(data, features.sample_rate, config.max_seconds), features)
    except TooLong as error:
        raise Refused(
            f"audio file {number} must last at most {config.max_seconds:g} s (the server's --max-seconds), got more"
        ) from error
    except (ValueError, OSError, TypeError, MemoryError) as error:
        raise Refused(f"audio file {number}: {error}") from error


# Answers


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output: float32 [clips, words], or byte strings."""

    name: str
    shape: list[int]
    values: Any
    binary: bool

    @property
    def datatype(self) -> str:
        """FP32 or BYTES."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    def raw(self) -> bytes:
        """The data as raw bytes."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values, dtype="<f4").tobytes()
        return b"".join(struct.pack("<I", len(each)) + each for each in self.values)


def outputs_of(call: Call, served: Served, probabilities: npt.NDArray[np.float32]) -> list[Output]:
    """Returns the requested outputs, given the probabilities that the model computed, float32 [clips, words]."""
    names, found = served.recognizer.words, []
    for wish in call.wishes:
        if wish.name == WORDS:
            values: Any = [names[best].encode() for best in probabilities.argmax(axis=1).tolist()]
            shape = [len(values)]
        elif wish.classes:
            best = (-probabilities).argsort(axis=1, kind="stable")[:, : wish.classes].tolist()
            values = [
                f"{row[index]:.6f}:{index}:{names[index]}".encode()
                for row, chosen in zip(probabilities, best, strict=True)
                for index in chosen
            ]
            shape = [len(best), len(best[0])]
        else:
            values, shape = probabilities, list(probabilities.shape)
        found.append(Output(name=wish.name, shape=shape, values=values, binary=wish.binary))
    return found


def write_rest(call: Call, name: str, served: Served, outputs: Sequence[Output]) -> tuple[bytes, dict[str, str]]:
    """Returns the body and the headers of a REST response."""
    entries: list[dict[str, Any]] = []
    raw = []
    for output in outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if output.binary:
            raw.append(output.raw())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        elif isinstance(output.values, np.ndarray):
            entry["data"] = np.ascontiguousarray(output.values).reshape(-1)
        else:
            entry["data"] = [each.decode() for each in output.values]
        entries.append(entry)
    content = {"model_name": name, "model_version": served.version, "id": call.id, "outputs": entries}
    head = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raw:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *raw]), headers


def model_metadata(name: str, served: Served) -> dict[str, Any]:
    """Returns the metadata of the model; `labels` names the columns of the probabilities."""
    words = served.recognizer.words
    return {
        "name": name,
        "versions": [served.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, served.recognizer.features.num_samples]}],
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(words)]},
            {"name": WORDS, "datatype": "BYTES", "shape": [-1]},
        ],
        "labels": words,
        "sample_rate": served.recognizer.features.sample_rate,
    }
