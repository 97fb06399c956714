"""What there is in a folder of recordings, whatever its layout."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from kws.config import SPLITS
from kws.data.clip import Clip
from kws.data.speech import Talk
from kws.data.words import respelled, spelled_as
from kws.text import printable

log = logging.getLogger(__name__)

NAMED = 20
"""How many of the files that were not read a manifest names; it counts all of them."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The contents of a recordings folder, sorted."""

    folder: Path
    layout: str = "word"
    """The name of the layout by which the folder was read; see `kws.data.sources`."""
    clips: Mapping[str, list[Clip]]
    """The clips of every word."""
    noise: list[str]
    """Files with background noise."""
    lists: Mapping[str, Path]
    """The paths of the split lists that exist, by split."""
    tables: Sequence[str] = ()
    """Other files that say what the recordings are, from the folder."""
    speech: Sequence[Talk] = ()
    """Recordings of running speech."""
    not_read: Mapping[str, str]
    """All other files except hidden ones, with the reason why each is not read."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Folders that seem to be of a word, but hold no recording that can be read, with the first of their files."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many entries of the tables are not read, by reason."""

    @property
    def words(self) -> list[str]:
        """The words that have clips."""
        return list(self.clips)

    def clips_of(self, words: Iterable[str]) -> list[Clip]:
        """Returns the clips of some words, in the order of their ids."""
        return sorted((clip for word in words for clip in self.clips.get(word, [])), key=attrgetter("id"))

    def files_of(self, clips: Iterable[Clip]) -> list[str]:
        """Returns all files on which a data set of some clips depends, each once: theirs, noise, speech, and tables."""
        lists = (path.name for path in self.lists.values())
        speech = (talk.file for talk in self.speech)
        return list(dict.fromkeys([*(clip.file for clip in clips), *self.noise, *speech, *lists, *self.tables]))

    def spelled(self, words: Iterable[str]) -> "Listing":
        """Returns the listing with these words spelled as given: they may differ in case from what is in the folder."""
        clips = dict(self.clips)
        for wanted, there in spelled_as(words, self.clips).items():
            clips[wanted] = respelled(clips.pop(there), wanted)
        return replace(self, clips={word: clips[word] for word in sorted(clips)})

    def figures(self) -> dict[str, Any]:
        """Returns, for a manifest, how many files are not read, and the first NAMED of them with the reasons."""
        return {"num_files": len(self.not_read), "first": dict(list(self.not_read.items())[:NAMED])}

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
        clips = [clip for some in self.clips.values() for clip in some]
        speakers = len({clip.speaker for clip in clips if clip.speaker})
        stated = {split: sum(clip.split == split for clip in clips) for split in SPLITS}
        splits = ", ".join(f"{split} {count:,}" for split, count in stated.items() if count)
        if lists := [path.name for split, path in self.lists.items() if split in SPLITS]:
            splits = " and ".join(lists)
        of_whom = f"{speakers:,} speakers" if speakers else "no speaker named"
        divided = f"splits as stated ({splits})" if splits else "no splits stated"
        return f"layout {self.layout}, {len(self.clips):,} words, {of_whom}, {divided}, {len(clips):,} clips"

    def report(self) -> None:
        """Logs which files and entries are not read, in one line for every reason, and of what the text is missing."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.not_read.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            log.warning(
                "%s: %d not read, as %s: %s%s", printable(self.folder), len(names), reason, ", ".join(names[:3]), more
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
