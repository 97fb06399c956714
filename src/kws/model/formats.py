"""The formats in which a model leaves the project: a module of `kws.model` for each name in `kws.config.FORMATS`.

Each is tested against the `.pth` on real clips (tests/kws/model/test_formats.py). Importing this needs no torch.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from kws import files
from kws.config import FORMATS, require_words
from kws.preprocess.audio import Waveform
from kws.recipe import FeatureConfig
from kws.settings import from_dict, require

if TYPE_CHECKING:
    from kws.model.bundle import Recognizer
    from kws.model.onnx import OnnxRecognizer


class Format(Protocol):
    """A format, which is a module."""

    def export(
        self, recognizer: "Recognizer", path: Path, int8: bool = False, beside: Path | None = None
    ) -> dict[str, float]:
        """Writes a model, atomically, and returns figures about it, by name.

        Args:
            recognizer: the model.
            path: the file.
            int8: quantize matrices to 8 bits.
            beside: the model's folder, for what is beside it; None: nothing.

        Raises:
            ValueError: a model like this cannot be written, or a library for it is missing.
        """

    def load(self, path: Path, num_threads: int = 0) -> "OnnxRecognizer | Exported":
        """Reads a file that `export` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or of another program, or a program for it is missing.
        """


def find(name: str) -> Format:
    """Returns the format of a name."""
    require(name in FORMATS, "format", f"be one of {', '.join(FORMATS)}", name)
    return cast(Format, importlib.import_module(f"kws.model.{name}"))


def of_file(path: Path) -> Format:
    """Returns the format to which a file belongs by its ending."""
    names = {suffix: name for name, suffix in FORMATS.items()}
    require(path.suffix in names, "the name of the file", f"end in {' or '.join(names)}", path.name)
    return find(names[path.suffix])


def file_name(name: str, int8: bool) -> str:
    """Returns the name of a format's file in a version."""
    return f"model{'.int8' if int8 else ''}{FORMATS[name]}"


def missing(library: str, name: str) -> ValueError:
    """Returns the error for a library that a format needs and that is not installed."""
    return ValueError(f"{library} must be installed for the format {name}, got none: pip install {library}")


def describe(recognizer: "Recognizer", int8: bool) -> dict[str, Any]:
    """Returns what a file says about its model, as JSON values; see `Exported.described`."""
    return {
        "kws_format": "1",
        "words": recognizer.words,
        "features": asdict(recognizer.features),
        "num_parameters": recognizer.num_parameters,
        "about": recognizer.about | {"int8": int8},
    }


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model that hears one clip at a time, and no features."""

    hear: Callable[[Waveform], npt.NDArray[np.float32]]
    """Maps a clip, float32 [num_samples], to probabilities, float32 [words]."""
    words: list[str]
    features: FeatureConfig
    num_parameters: int
    about: dict[str, Any] = field(default_factory=dict)
    margin: None = None
    frames_per_token: int = 1

    @classmethod
    def described(cls, text: bytes, path: Path, hear: Callable[[Waveform], npt.NDArray[np.float32]]) -> "Exported":
        """Builds a model from what its file says about it (`describe`), a JSON object.

        Raises:
            ValueError: the file is damaged or of another program.
        """
        try:
            known: Mapping[str, Any] = files.parse_object(
                text, path.name, words=list, features=dict, num_parameters=int, about=dict
            )
            require_words(known["words"])
            features = from_dict(FeatureConfig, known["features"])
        except ValueError as error:
            raise ValueError(f"model must be a file of kws export, got {path}: {error}") from error
        return cls(
            hear=hear,
            words=known["words"],
            features=features,
            num_parameters=known["num_parameters"],
            about=known["about"],
        )

    def predict(self, waveforms: Waveform) -> npt.NDArray[np.float32]:
        """Converts waveforms, float32 [clips, num_samples] in -1 to 1, to probabilities, float32 [clips, words]."""
        return np.stack([self.hear(np.ascontiguousarray(clip, np.float32)) for clip in waveforms])

    def predict_features(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Refuses to hear features, which streams have.

        Raises:
            ValueError: always.
        """
        raise ValueError("model must be a .pth or .onnx file to listen to streams, got one that hears clips")
