"""The index of a data set: its clips in columns, so that a million of them open in a moment and take little memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from kws.data.clip import Clip, class_of
from kws.settings import require

Ints = npt.NDArray[np.integer]

TEXTS = ("file", "word", "speaker", "split")
"""The fields of a clip that are texts; the others are numbers."""

WHOLE = -1
"""The begin of a clip that is a whole recording, and its row."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The fields of clips that are numbers, each [rows]."""

    begin: Ints
    """int64, or WHOLE."""
    gain: Ints
    """int16."""
    row: Ints
    """int64, or WHOLE."""
    start: Floats
    """Where the stretch begins, in seconds, or NaN."""
    end: Floats
    """Where it ends."""

    @staticmethod
    def of(clips: Sequence[Clip]) -> "Numbers":
        """Makes the columns."""
        stretches = np.array([clip.stretch or (np.nan, np.nan) for clip in clips], np.float64).reshape(-1, 2)
        return Numbers(
            begin=np.array([WHOLE if clip.begin is None else clip.begin for clip in clips], np.int64),
            gain=np.array([clip.gain for clip in clips], np.int16),
            row=np.array([WHOLE if clip.row is None else clip.row for clip in clips], np.int64),
            start=stretches[:, 0],
            end=stretches[:, 1],
        )

    @staticmethod
    def load(stored: Mapping[str, npt.NDArray[Any]]) -> "Numbers":
        """Reads what `arrays` returned; an index of an earlier version has neither rows nor stretches."""
        begin = stored["begin"]
        none = np.full(len(begin), np.nan)
        row = stored["row"] if "row" in stored else np.full(len(begin), WHOLE)
        start, end = (stored.get(name, none) for name in ("start", "end"))
        return Numbers(begin=begin, gain=stored["gain"], row=row, start=start, end=end)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the columns by name; of rows and stretches only if there are any."""
        found: dict[str, npt.NDArray[Any]] = {"begin": self.begin, "gain": self.gain}
        if (self.row != WHOLE).any():
            found["row"] = self.row
        if not np.isnan(self.start).all():
            found |= {"start": self.start, "end": self.end}
        return found

    def take(self, rows: Ints | slice) -> "Numbers":
        """Returns the columns of some rows."""
        return Numbers(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    def fields_of(self, row: int) -> dict[str, Any]:
        """Returns the fields of the clip in a row."""
        begin, number, start, end = (
            int(self.begin[row]),
            int(self.row[row]),
            float(self.start[row]),
            float(self.end[row]),
        )
        return {
            "begin": None if begin == WHOLE else begin,
            "gain": int(self.gain[row]),
            "row": None if number == WHOLE else number,
            "stretch": None if np.isnan(start) else (start, end),
        }


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A column of texts, of which each distinct one is stored once."""

    codes: Ints
    """int32 [rows]: which text."""
    ends: Ints
    """int64 [distinct texts]: where each ends in the pool."""
    pool: npt.NDArray[np.uint8]
    """uint8 [bytes]: the distinct texts in UTF-8, one after the other."""

    @staticmethod
    def of(texts: Iterable[str]) -> "Texts":
        """Makes a column."""
        known: dict[str, int] = {}
        codes = np.array([known.setdefault(text, len(known)) for text in texts], np.int32)
        encoded = [text.encode() for text in known]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return Texts(codes=codes, ends=ends, pool=np.frombuffer(b"".join(encoded), np.uint8))

    def require_whole(self, num_rows: int) -> None:
        """Checks that the arrays fit each other.

        Raises:
            ValueError: they do not.
        """
        ends, codes = self.ends, self.codes
        fits = [array.ndim == 1 and array.dtype.kind in "iu" for array in (codes, ends, self.pool)]
        fits += [len(codes) == num_rows, bool((np.diff(ends, prepend=0) >= 0).all())]
        fits += [(int(ends[-1]) if len(ends) else 0) == self.pool.size]
        fits += [num_rows == 0 or bool(0 <= codes.min() <= codes.max() < len(ends))]
        require(all(fits), "the index", f"hold {num_rows} whole clips", f"{len(codes)} rows, {self.pool.size} bytes")

    def __getitem__(self, row: int) -> str:
        return self.text(int(self.codes[row]))

    def text(self, code: int) -> str:
        """Returns one of the distinct texts."""
        return self.pool[self.ends[code - 1] if code else 0 : self.ends[code]].tobytes().decode()

    def distinct(self) -> list[str]:
        """Returns the distinct texts, in the order of their codes."""
        return [self.text(code) for code in range(len(self.ends))]

    def take(self, rows: Ints | slice) -> "Texts":
        """Returns the column of some rows."""
        return Texts(codes=self.codes[rows], ends=self.ends, pool=self.pool)


class Index(Sequence[Clip]):
    """The clips of a data set, or of some rows of it. A clip is made when it is asked for."""

    def __init__(self, texts: dict[str, Texts], numbers: Numbers) -> None:
        self._texts = texts
        self._numbers = numbers

    @staticmethod
    def of(clips: Sequence[Clip]) -> "Index":
        """Makes the index of some clips, in their order."""
        texts = {name: Texts.of(getattr(clip, name) for clip in clips) for name in TEXTS}
        return Index(texts, Numbers.of(clips))

    def save(self, path: Path) -> None:
        """Writes the index as one .npz file, uncompressed."""
        arrays = {f"{name}.{part}": getattr(self._texts[name], part) for name in TEXTS for part in _PARTS}
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **self._numbers.arrays(), **arrays)

    @staticmethod
    def load(path: Path) -> "Index":
        """Reads what `save` wrote.

        Raises:
            ValueError: the arrays do not fit each other.
            KeyError, EOFError, zipfile.BadZipFile: the file is damaged in another way.
        """
        with np.load(path, allow_pickle=False) as stored:
            texts = {name: Texts(**{part: stored[f"{name}.{part}"] for part in _PARTS}) for name in TEXTS}
            index = Index(texts, Numbers.load(stored))
        for column in texts.values():
            column.require_whole(len(index))
        for name, numbers in index._numbers.arrays().items():
            require(len(numbers) == len(index), "the index", f"hold {len(index)} numbers {name}", len(numbers))
        return index

    def __len__(self) -> int:
        return len(self._numbers.begin)

    @overload
    def __getitem__(self, row: int) -> Clip: ...
    @overload
    def __getitem__(self, row: slice) -> "Index": ...
    def __getitem__(self, row: int | slice) -> "Clip | Index":
        if isinstance(row, slice):
            return self.take(row)
        texts: dict[str, Any] = {name: self._texts[name][row] for name in TEXTS}
        return Clip(**texts, **self._numbers.fields_of(row))

    def __iter__(self) -> Iterator[Clip]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: Ints | slice) -> "Index":
        """Returns the index of some rows, in the order in which they are given."""
        return Index({name: self._texts[name].take(rows) for name in TEXTS}, self._numbers.take(rows))

    def rows_of_split(self, split: str) -> Ints:
        """Returns the rows of the clips of one split, int64 [clips of the split]."""
        splits = self._texts["split"]
        code = splits.distinct().index(split) if split in splits.distinct() else -1
        return np.flatnonzero(splits.codes == code)

    def of_split(self, split: str) -> "Index":
        """Returns the clips of one split, in their order."""
        return self.take(self.rows_of_split(split))

    def labels(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Returns the class of every clip, int64 [clips], as indices into `words`.

        Raises:
            ValueError: a clip belongs to none of them.
        """
        column = self._texts["word"]
        number = {word: index for index, word in enumerate(words)}
        labels = np.array([number.get(class_of(word, words), -1) for word in column.distinct()], np.int64)
        found = labels[column.codes]
        for code in column.codes[found < 0][:1].tolist():
            raise ValueError(f"clips must be of the words {', '.join(words)}, got {column.text(code)!r}")
        return found


_PARTS = ("codes", "ends", "pool")
