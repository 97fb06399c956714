"""Recognizes recordings with any model, a `.pth` or a file of `kws.model.formats`, which needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kws.config import FORMATS
from kws.data.folder import list_tree
from kws.model import formats
from kws.preprocess.audio import read_clip

if TYPE_CHECKING:
    from kws.model.bundle import Recognizer
    from kws.model.formats import Exported
    from kws.model.onnx import OnnxRecognizer

AnyRecognizer: TypeAlias = "Recognizer | OnnxRecognizer | Exported"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A word and its probability according to the model, 0 to 1."""

    word: str
    probability: float


def load(path: Path, num_threads: int = 0) -> AnyRecognizer:
    """Reads a `.pth` file, or one of `kws.model.formats` if its name ends so.

    A call of an ONNX model has `num_threads`; 0: one for every core.

    Raises:
        ValueError: the file is not a model, or is damaged.
        FileNotFoundError: there is no such file.
    """
    if path.suffix in FORMATS.values():
        return formats.of_file(path).load(path, num_threads)
    from kws.model import bundle

    return bundle.load(path)


def predict(recognizer: AnyRecognizer, path: Path, top: int = 1) -> list[Prediction]:
    """Returns the most probable words of a recording, the most probable first.

    The recording has any sample rate, sample width and number of channels; of a long one the second in which most is
    said counts.

    Raises:
        ValueError: the file cannot be read as a recording.
        FileNotFoundError: there is no such file.
    """
    probabilities = recognizer.predict(read_clip(path, recognizer.features)[None])[0]
    best = (-probabilities).argsort(kind="stable")[:top].tolist()
    return [Prediction(word=recognizer.words[index], probability=float(probabilities[index])) for index in best]


def expand(paths: Sequence[Path]) -> list[Path]:
    """Returns paths with each folder replaced by its recordings, sorted; a folder without any stays in the list."""
    return [file for path in paths for file in (list_tree(path) if path.is_dir() else []) or [path]]
