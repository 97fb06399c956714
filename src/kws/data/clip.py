"""The clip: a piece of a recording in which somebody says a word, or nobody does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kws.config import SILENCE, UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip of a data set: where its sound is, what is said in it, and by whom."""

    file: str
    """Path of the recording, or of the Parquet file that holds it, from the folder of the data set, with slashes."""
    word: str
    """The word that is said, or SILENCE."""
    speaker: str = ""
    """Who says it; empty if nothing tells."""
    split: str = ""
    """train, validation or test: as the data set states it, and later as it was divided; empty: not stated."""
    row: int | None = None
    """The row of the Parquet file in which the recording stands; None: the file is the recording."""
    stretch: tuple[float, float] | None = None
    """Begin and end of the word in a longer recording, in seconds; None: the whole recording. What it holds is padded
    or cropped like a recording of its own."""
    begin: int | None = None
    """The sample, at the rate of the features, from which on a clip of silence is cut out of its recording, at the
    length of a clip; None: the clip is padded or cropped to that length."""
    gain: int = 0
    """How much a clip of silence is amplified, in dB."""

    @property
    def id(self) -> str:
        """The name of the clip, unique within its data set: its file, and which part of it the clip is."""
        name = self.file if self.row is None else f"{self.file}#{self.row:07d}"  # sorted by name, rows stay in order
        if self.stretch is not None:
            name += f"@{self.stretch[0]}-{self.stretch[1]}s"
        return name if self.begin is None else f"{name}@{self.begin}@{self.gain}"

    @property
    def group(self) -> str:
        """What must not be divided between splits: the speaker, or for lack of one the recording in any format."""
        if self.speaker or self.row is not None:
            return self.speaker or f"{self.file}#{self.row:07d}"
        return PurePosixPath(self.file).with_suffix(".wav").name

    def label(self, words: Sequence[str]) -> str:
        """Returns which of the classes `words` the clip belongs to; see `class_of`."""
        return class_of(self.word, words)


def class_of(word: str, words: Sequence[str]) -> str:
    """Returns the class of a word among the classes `words`: itself, UNKNOWN or SILENCE.

    Without a class of unknown words, the word itself is returned even if it is not one of `words`.
    """
    return word if word in words or word == SILENCE or UNKNOWN not in words else UNKNOWN
