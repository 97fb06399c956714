"""The clip: a piece of a recording in which somebody says a word, or nobody does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kws.config import SILENCE, UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip of a data set: where its sound is, what is said in it, and by whom."""

    file: str
    """Path of the recording from the folder of the data set, with slashes."""
    word: str
    """The word that is said, or SILENCE."""
    speaker: str = ""
    """Who says it; empty if nothing tells."""
    split: str = ""
    """train, validation or test; empty until the data set is divided."""
    begin: int | None = None
    """The sample, at the rate of the features, from which on the clip is cut out of its recording; None: the clip is
    the whole recording, padded or cropped to its length."""
    gain: int = 0
    """How much a cut clip is amplified, in dB."""

    @property
    def id(self) -> str:
        """The name of the clip, unique within its data set: its file, and if it is cut out `@<begin>@<gain>`."""
        return self.file if self.begin is None else f"{self.file}@{self.begin}@{self.gain}"

    @property
    def group(self) -> str:
        """What must not be divided between splits: the speaker, or for lack of one the recording in any format."""
        return self.speaker or PurePosixPath(self.file).with_suffix(".wav").name

    def label(self, words: Sequence[str]) -> str:
        """Returns which of the classes `words` the clip belongs to; see `class_of`."""
        return class_of(self.word, words)


def class_of(word: str, words: Sequence[str]) -> str:
    """Returns the class of a word among the classes `words`: itself, UNKNOWN or SILENCE.

    Without a class of unknown words, the word itself is returned even if it is not one of `words`.
    """
    return word if word in words or word == SILENCE or UNKNOWN not in words else UNKNOWN
