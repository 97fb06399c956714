"""What there is in a folder of recordings, whatever its layout."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from kws.data.clip import Clip
from kws.text import printable

log = logging.getLogger(__name__)

NAMED = 20
"""How many of the files that were not read a manifest names; it counts all of them."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The contents of a recordings folder, sorted."""

    folder: Path
    clips: Mapping[str, list[Clip]]
    """The clips of every word."""
    noise: list[str]
    """Files with background noise."""
    lists: Mapping[str, Path]
    """The paths of the split lists that exist, by split."""
    not_read: Mapping[str, str]
    """All other files except hidden ones, with the reason why each is not read."""

    @property
    def words(self) -> list[str]:
        """The words that have clips."""
        return list(self.clips)

    def clips_of(self, words: Iterable[str]) -> list[Clip]:
        """Returns the clips of some words, in the order of their ids."""
        return sorted((clip for word in words for clip in self.clips.get(word, [])), key=attrgetter("id"))

    def files_of(self, clips: Iterable[Clip]) -> list[str]:
        """Returns all files on which a data set of some clips depends: theirs, the noise, and the lists of splits."""
        return [*(clip.file for clip in clips), *self.noise, *(path.name for path in self.lists.values())]

    def figures(self) -> dict[str, Any]:
        """Returns, for a manifest, how many files are not read, and the first NAMED of them with the reasons."""
        return {"num_files": len(self.not_read), "first": dict(list(self.not_read.items())[:NAMED])}

    def report(self) -> None:
        """Logs which files are not read, in one line for every reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.not_read.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            log.warning(
                "%s: %d not read, as %s: %s%s", printable(self.folder), len(names), reason, ", ".join(names[:3]), more
            )
