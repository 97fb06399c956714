"""The rows that every layout consists of: a file, its word, and what else is known about it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kws.config import BACKGROUND_NOISE
from kws.data.clip import Clip
from kws.data.folder import LISTS
from kws.data.index import Index, Lookup, strings
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing, NotRead
from kws.data.names import speaker_of
from kws.data.words import alike, merged, only_word
from kws.text import one_line, plain, wrong_with


class UnclearLayout(ValueError):
    """Raised if a folder can be read in more than one way, or in none; the message says which flag settles it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table, or what stands for one."""

    file: str
    """What the table calls the recording; the path of a Parquet file if it holds the recording itself."""
    word: str
    """The word, or a sentence."""
    near: str = ""
    """The folder of the table, from which the file may be named."""
    is_found: bool = False
    """Whether the file is a recording below the folder; if not, it is looked for."""
    is_sentence: bool = False
    """Whether the word is what somebody says rather than a name: then only single words are read."""
    speaker: str = ""
    split: str = ""
    start: float | None = None
    """Where in the recording the word begins, in seconds."""
    end: float | None = None
    """Where it ends; None: where the recording does."""
    row: int | None = None
    """The row of the Parquet file."""
    refused: str = ""
    """Why the row must not be read, as the table itself says; empty if it may."""

    @property
    def stretch(self) -> tuple[float, float] | None:
        """Begin and end in seconds; None if the clip is the whole recording."""
        if self.end is None:
            return None
        return round(self.start or 0.0, 6), round(self.end, 6)


def listing_of(
    tree: Tree, layout: str, rows: Iterable[Row], tables: Sequence[str], not_named: str = "no list names it"
) -> Listing:
    """Makes the listing of rows, each clip once.

    Folders of noise and the lists of splits count as in the layout of Speech Commands, wherever they lie.

    Raises:
        ValueError: two rows give a clip two words.
    """
    noise = {file for file in tree.recordings if BACKGROUND_NOISE in file.split("/")[:-1]}
    left_out: Counter[str] = Counter()

    def clips() -> Iterator[Clip]:
        for row in rows:
            file = row.file if row.is_found or row.row is not None else tree.find(row.file, row.near)
            word = only_word(row.word) if row.is_sentence else plain(row.word)
            reason = row.refused or _reason(row, file, word)
            if reason:
                left_out[reason] += 1
                continue
            assert file is not None
            if word == BACKGROUND_NOISE:
                if row.row is None:
                    noise.add(file)
                continue
            yield Clip(
                file=file,
                word=word,
                speaker=row.speaker or ("" if row.row is not None else speaker_of(file.rpartition("/")[2])),
                split=row.split,
                row=row.row,
                stretch=row.stretch,
            )

    found = _each_once(merged(Index.of(clips())), tables)
    named = Lookup(np.concatenate([found.distinct_files(), strings(noise)]))
    without = tree.recordings[named.row_of(tree.recordings) < 0]
    return Listing(
        folder=tree.folder,
        layout=layout,
        clips=found,
        noise=sorted(noise),
        lists={split: tree.folder / path for split, path in tree.only_by_name(LISTS).items()},
        tables=sorted(tables),
        not_read=NotRead({one_line(file): not_named for file in without}),
        left_out=dict(left_out),
    )


def _each_once(clips: Index, tables: Sequence[str]) -> Index:
    """Returns clips, in the order of their ids, without those that several rows name."""
    _, first, counts = np.unique(clips.order(), return_index=True, return_counts=True)
    kept = first.copy()
    for group in np.flatnonzero(counts > 1).tolist():
        rows = range(first[group], first[group] + counts[group])
        same = [clips[row] for row in rows]
        for one in same:
            if alike(one.word) != alike(same[0].word):
                raise ValueError(
                    f"a recording must be of one word, got {one_line(one.id)}, which {', '.join(tables[:3])} call "
                    f"{one_line(same[0].word)} and {one_line(one.word)}: correct the list"
                )
        # The list of a split says more than the list of all.
        kept[group] = next((row for row, one in zip(rows, same, strict=True) if one.split), rows[0])
    return clips.take(kept)


def _reason(row: Row, file: str | None, word: str) -> str:
    if row.is_sentence and not word:
        return "they are sentences of several words" if row.word.strip() else "they have no word"
    if word != BACKGROUND_NOISE and (wrong := wrong_with(word)):
        return wrong
    if file is None:
        return "there are no such recordings below the folder"
    if row.stretch is not None and not 0 <= row.stretch[0] < row.stretch[1]:
        return "they end before they begin"
    if row.start and row.end is None:
        return "they begin, but do not end"
    return ""
