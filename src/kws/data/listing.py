"""What there is in a folder of recordings, whatever its layout."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kws.config import SPLITS
from kws.data.index import Index, Lookup, Strings, strings
from kws.data.speech import Talk
from kws.data.words import spelled_as
from kws.text import printable

log = logging.getLogger(__name__)

NAMED = 20
"""How many of the files that were not read a manifest names; it counts all of them."""


class NotRead(dict[str, str]):
    """Files that are not read, with the reasons: for each reason all are counted, and the first NAMED named."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.counts = Counter[str]()
        for name, reason in (names or {}).items():
            self.add(name, reason)

    def add(self, name: str, reason: str) -> None:
        """Counts a file, and names it if it is among the first."""
        self.counts[reason] += 1
        if self.counts[reason] <= NAMED:
            self[name] = reason

    def add_all(self, others: "NotRead", prefix: str = "") -> None:
        """Counts the files of another folder."""
        for name, reason in others.items():
            self.add(prefix + name, reason)
        for reason, count in others.counts.items():
            self.counts[reason] += max(0, count - NAMED)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The contents of a recordings folder, sorted."""

    folder: Path
    layout: str = "word"
    """The name of the layout by which the folder was read; see `kws.data.sources`."""
    clips: Index
    """The clips, in the order of their ids."""
    noise: list[str]
    """Files with background noise."""
    lists: Mapping[str, Path]
    """The paths of the split lists that exist, by split."""
    tables: Sequence[str] = ()
    """Other files that say what the recordings are, from the folder."""
    speech: Sequence[Talk] = ()
    """Recordings of running speech."""
    not_read: NotRead
    """All other files except hidden ones."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Folders that seem to be of a word, but hold no recording that can be read, with the first of their files."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many entries of the tables are not read, by reason."""

    @property
    def words(self) -> list[str]:
        """The words that have clips, sorted."""
        return list(self.clips.counts())

    def files_of(self, clips: Index) -> Strings:
        """Returns all files on which a data set of some clips depends, each once: theirs, noise, speech, and tables."""
        lists = (path.relative_to(self.folder).as_posix() for path in self.lists.values())
        speech = (talk.file for talk in self.speech)
        others = strings(dict.fromkeys([*self.noise, *speech, *lists, *self.tables]))
        found = clips.distinct_files()
        already = Lookup(others).row_of(found)  # a Parquet file is a table, and holds recordings
        return np.concatenate([found, np.delete(others, already[already >= 0])])

    def spelled(self, words: Iterable[str]) -> "Listing":
        """Returns the listing with these words spelled as given: they may differ in case from what is in the folder."""
        return replace(
            self, clips=self.clips.spelled({there: word for word, there in spelled_as(words, self.words).items()})
        )

    def figures(self) -> dict[str, Any]:
        """Returns, for a manifest, how many files are not read, and the first NAMED of them with the reasons."""
        return {"num_files": self.not_read.counts.total(), "first": dict(list(self.not_read.items())[:NAMED])}

    def require_readable_words(self) -> None:
        """Refuses a folder in which a whole word would go unread.

        Raises:
            ValueError: a folder holds sounds, but none in a format that is read.
        """
        for word, file in self.unreadable.items():
            raise ValueError(
                f"every folder of a word must hold recordings that can be read, got {printable(word)} with only files "
                f"like {file}: convert them to WAV or FLAC, or remove the folder"
            )

    def describe(self) -> str:
        """Returns in a few words what was found: the layout, words, speakers, splits and clips."""
        speakers = len(self.clips.counts("speaker").keys() - {""})
        stated = self.clips.counts("split")
        splits = ", ".join(f"{split} {stated[split]:,}" for split in SPLITS if split in stated)
        if lists := [path.name for split, path in self.lists.items() if split in SPLITS]:
            splits = " and ".join(lists)
        of_whom = f"{speakers:,} speakers" if speakers else "no speaker named"
        divided = f"splits as stated ({splits})" if splits else "no splits stated"
        return f"layout {self.layout}, {len(self.words):,} words, {of_whom}, {divided}, {len(self.clips):,} clips"

    def report(self) -> None:
        """Logs which files and entries are not read, in one line for every reason, and of what the text is missing."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.not_read.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            count = self.not_read.counts[reason]
            more = f" and {count - 3} more" if count > 3 else ""
            log.warning(
                "%s: %d not read, as %s: %s%s", printable(self.folder), count, reason, ", ".join(names[:3]), more
            )
        for reason, count in self.left_out.items():
            log.warning("%s: %d entries of the lists not read, as %s", printable(self.folder), count, reason)
        if without := sum(not talk.text for talk in self.speech):
            log.warning(
                "%s: the text of %d of %d recordings of running speech is not known: in training, none of the words is "
                "taken to be spoken in them, and evaluation leaves them out",
                printable(self.folder),
                without,
                len(self.speech),
            )
