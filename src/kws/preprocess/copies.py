"""Clips that sound exactly alike under different names: in two words one is wrong, in two splits the test is."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.data.splits import Divided
from kws.text import printable

log = logging.getLogger(__name__)

PRECEDENCE = ("test", "validation", "train")
"""Of copies in several splits, those in the first of these are kept: the test stays as it is."""

NAMED = 20
"""How many copies a manifest names; it counts all of them."""

Rows = dict[str, dict[int, str]]
"""By split, rows and what is said of each."""


@dataclass(frozen=True)
class Copies:
    """Clips to be left out, as they are copies."""

    contradicting: Rows
    """Clips that are of two words, with the reason."""
    in_other_split: Rows
    """Clips of which a copy is in a split that takes precedence, with the id of that copy."""

    def figures(self, divided: Divided) -> dict[str, Any]:
        """Returns, for a manifest, how many clips are left out as copies, and the first NAMED of them."""
        pairs = [
            (divided[split][row].id, of) for split, rows in self.in_other_split.items() for row, of in rows.items()
        ]
        return {"num_clips": len(pairs), "first": dict(pairs[:NAMED])}

    def report(self, divided: Divided) -> None:
        """Logs how many clips of each split are left out as copies."""
        for split, rows in self.in_other_split.items():
            if rows:
                some = [f"{printable(divided[split][row].id)} = {printable(of)}" for row, of in list(rows.items())[:3]]
                log.warning(
                    "%d clips of %s are left out, as they are copies of clips of another split: %s%s",
                    len(rows),
                    split,
                    ", ".join(some),
                    " …" if len(rows) > 3 else "",
                )


def find(divided: Divided, sounds: Mapping[str, npt.NDArray[np.uint64]]) -> Copies:
    """Finds clips that sound alike and are of two words, or in two splits.

    Args:
        divided: the clips by split.
        sounds: their digests, [clips], by split; 0 for clips that are not compared.
    """
    order = [split for split in PRECEDENCE if split in divided]
    digests = np.concatenate([sounds[split] for split in order])
    starts = dict(zip(order, np.cumsum([0, *(len(sounds[split]) for split in order)]).tolist(), strict=False))
    sorted_rows = np.argsort(digests, kind="stable")  # stable: in each group the order of precedence stays
    sorted_digests = digests[sorted_rows]
    ends = np.flatnonzero(np.append(np.diff(sorted_digests) != 0, np.True_)) + 1
    starts_of = np.concatenate(([0], ends[:-1]))
    several = (ends - starts_of > 1) & (sorted_digests[starts_of] != 0)
    found = Copies({split: {} for split in divided}, {split: {} for split in divided})
    for first, end in zip(starts_of[several].tolist(), ends[several].tolist(), strict=True):
        group = []
        for row in sorted_rows[first:end].tolist():
            split = next(split for split in reversed(order) if row >= starts[split])
            group.append((split, row - starts[split]))
        clips = [divided[split][row] for split, row in group]
        other = {clip.word: clip for clip in clips}
        if len(other) > 1:
            for (split, row), clip in zip(group, clips, strict=True):
                of = next(one for word, one in other.items() if word != clip.word)
                found.contradicting[split][row] = (
                    f"a sound must be of one word, got a copy of {printable(of.id)}, which is of {of.word}"
                )
            continue
        found_in = {(split, row): clips[0].id for split, row in group if split != group[0][0]}
        for (split, row), of in found_in.items():
            found.in_other_split[split][row] = of
    return found
