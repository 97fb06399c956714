"""Running speech: recordings of people who talk, in which the words of a model are not commands.

They lie in a folder `_running_speech_` of the data set or of one of its folders, at any depth in it and of any length,
as LibriSpeech, Common Voice or one's own recordings do. What is said in them may be told in a file of the same name
with the suffix .txt, in LibriSpeech's `*.trans.txt`, or in a table `index.tsv` with the columns file, speaker and text.
"""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kws.data.names import is_recording, speaker_of
from kws.data.splits import read_lines, split_of_speaker

INDEX = "index.tsv"
TRANSCRIPTS = ".trans.txt"
"""The end of the name of a file with a recording's name and its text in every line, as in LibriSpeech."""

HOMOPHONES = (
    {"no", "know"},
    {"right", "write", "wright", "rite"},
    {"two", "to", "too"},
    {"four", "for", "fore"},
    {"one", "won"},
    {"eight", "ate"},
)
"""English words that sound the same."""

LEAST_SECONDS, SHARE = 0.8, 0.06
"""Half of the stretch in which a word of a text may be spoken: so many seconds, or that share of the recording, if it
is more. Its place is estimated from its place among the letters of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A recording of running speech."""

    file: str
    """Path from the folder of the data set, with slashes."""
    speaker: str = ""
    """Who talks; empty if nothing tells."""
    text: str = ""
    """What is said; empty if nothing tells."""

    @property
    def split(self) -> str:
        """The split, which is that of the speaker, or for lack of one of the recording."""
        return split_of_speaker(self.speaker or PurePosixPath(self.file).stem)

    def places_of(self, words: Sequence[str]) -> list[float]:
        """Estimates where words of a model are spoken, as shares of the speech in the recording, 0 to 1."""
        alike = set(words).union(*(group for group in HOMOPHONES if group & set(words)))
        found = []
        for match in re.finditer(r"[^\W_]+(?:['’][^\W_]+)*", self.text.lower()):
            if match.group() in alike:
                found.append((match.start() + match.end()) / 2 / len(self.text))
        return found

    def stretches_of(self, words: Sequence[str], begin: float, end: float) -> list[tuple[float, float]]:
        """Estimates the stretches in which words of a model may be spoken.

        Args:
            words: the words.
            begin: when the speech begins, in seconds.
            end: when it ends.
        """
        half = max(LEAST_SECONDS, SHARE * (end - begin))
        middles = [begin + place * (end - begin) for place in self.places_of(words)]
        return [(middle - half, middle + half) for middle in middles]


def list_speech(root: Path, folder: Path) -> list[Talk]:
    """Lists the recordings of running speech in a folder, sorted.

    The speaker of a recording is told by the table, or by its name before `_nohash_`, or by the first folder below
    `folder` in which it lies.

    Args:
        root: the folder of the data set.
        folder: `_running_speech_` in it.
    """
    recordings: list[Path] = []
    texts: dict[str, str] = {}  # by path below the folder, without suffix
    speakers: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            key = path.relative_to(folder).with_suffix("").as_posix()
            if is_recording(name):
                recordings.append(path)
            elif name.endswith(TRANSCRIPTS):
                for line in read_lines(path):
                    known, _, text = line.partition(" ")
                    texts[(path.parent / known).relative_to(folder).as_posix()] = text.strip()
            elif name == INDEX:
                for row in csv.DictReader(read_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE):
                    listed = path.parent.relative_to(folder).joinpath(row.get("file") or "").with_suffix("").as_posix()
                    texts[listed], speakers[listed] = row.get("text") or "", row.get("speaker") or ""
            elif name.endswith(".txt"):
                texts[key] = " ".join(read_lines(path))
    found = []
    for path in recordings:
        below = path.relative_to(folder)
        key = below.with_suffix("").as_posix()
        speaker = speakers.get(key) or speaker_of(path.name) or (below.parts[0] if len(below.parts) > 1 else "")
        found.append(Talk(file=path.relative_to(root).as_posix(), speaker=speaker, text=texts.get(key, "")))
    return found


def texts_of(root: Path, folder: Path) -> list[str]:
    """Returns the files that tell what is said in running speech, by their paths from the folder of the data set.

    Args:
        root: the folder of the data set.
        folder: `_running_speech_` in it.
    """
    texts = (path for path in folder.rglob("*") if path.name == INDEX or path.name.endswith(".txt"))
    return sorted(path.relative_to(root).as_posix() for path in texts if not path.name.startswith("."))
