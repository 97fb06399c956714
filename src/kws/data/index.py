"""The clips of a data set in columns, from the listing to training: a million take some 30 MB and their names."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from kws.config import SPLITS
from kws.data.clip import Clip, class_of
from kws.settings import require

T = TypeVar("T")

Ints = npt.NDArray[np.integer]

Strings = npt.NDArray[Any]
"""An array of texts, of the type TEXT."""

TEXT = np.dtypes.StringDType()

WHOLE = -1
"""The begin of a clip that is a whole recording, and its row."""

NAMED = ("word", "speaker", "split")
"""The fields of which many clips have the same text: columns of numbers, int32, that count the distinct texts. The
column of the files is of such numbers, too, but the same text may have several of them."""

NUMBERS: Mapping[str, tuple[Any, float]] = {
    "begin": (np.int64, WHOLE),
    "gain": (np.int16, 0),
    "row": (np.int64, WHOLE),
    "start": (np.float64, np.nan),
    "end": (np.float64, np.nan),
}
"""The fields that are numbers, with their types and what stands for none; the stretch is start and end. A column in
which all are none takes no memory."""

ROW_BITS = 40
"""Of the number by which a clip in a table is ordered, the bits of its row."""

PARTS = ("begin", "row", "start")
"""The numbers that say which part of its file a clip is."""

BATCH = 1 << 12
"""How many clips are Python objects at a time."""


def strings(texts: Iterable[str]) -> Strings:
    """Makes an array of texts of which there may be millions."""
    return _emptied([np.array(some, TEXT) for some in _batches(texts)])


def _emptied(arrays: list[Strings]) -> Strings:
    """Joins arrays of texts and frees each on the way, as two copies of all would be in memory otherwise."""
    found, end = np.empty(sum(map(len, arrays)), TEXT), 0
    arrays.reverse()
    while arrays:
        some = arrays.pop()
        found[end : end + len(some)] = some
        end += len(some)
    return found


class Lookup:
    """Finds texts among millions, by a key that they have in common with what is looked for, in 16 bytes each."""

    def __init__(self, texts: Strings, key: Callable[[str], str] = str) -> None:
        self._texts, self._key = texts, key
        hashes = self._hashes(texts)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def rows(self, text: str) -> list[int]:
        """Returns the rows of the texts with the same key as this one."""
        key = self._key(text)
        first, end = np.searchsorted(self._sorted, hash(key)), np.searchsorted(self._sorted, hash(key), "right")
        return [row for row in self._order[first:end].tolist() if self._key(self._texts[row]) == key]

    def row_of(self, texts: Strings) -> Ints:
        """Returns the row of each of many texts, or -1, [texts]; the key is to be the text itself."""
        if len(self._sorted) == 0:
            return np.full(len(texts), -1)
        at = np.searchsorted(self._sorted, self._hashes(texts))
        rows = self._order[np.minimum(at, len(self._sorted) - 1)]
        return np.where(self._texts[rows] == texts, rows, -1)

    def _hashes(self, texts: Strings) -> Ints:
        return np.fromiter((hash(self._key(text)) for text in texts), np.int64, len(texts))


class Index(Sequence[Clip]):
    """The clips of a data set, or of some rows of it. A clip is made when it is asked for."""

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]], texts: Mapping[str, Any], rows: Ints) -> None:
        self._columns = columns
        self._texts = texts
        self._rows = rows
        self._is_whole = False
        """Whether the rows are all rows of the columns, in their order."""

    @staticmethod
    def of(clips: Iterable[Clip]) -> "Index":
        """Makes the index of some clips, in their order."""
        known: dict[str, dict[str, int]] = {name: {} for name in NAMED}
        found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("file", *NAMED, *NUMBERS)}
        files: list[Strings] = []
        num_files = 0
        for some in _batches(clips):
            # Of clips that follow each other in a file its name is kept once.
            begins = [not row or clip.file != some[row - 1].file for row, clip in enumerate(some)]
            files.append(np.array([clip.file for clip in itertools.compress(some, begins)], TEXT))
            found["file"].append(np.cumsum(begins, dtype=np.int32) + (num_files - 1))
            num_files += len(files[-1])
            for name, texts in known.items():
                codes = [texts.setdefault(getattr(clip, name), len(texts)) for clip in some]
                found[name].append(np.array(codes, np.int32))
            stretches = np.array([clip.stretch or (np.nan, np.nan) for clip in some], np.float64)
            columns = {"begin": [clip.begin for clip in some], "row": [clip.row for clip in some]}
            numbers = {name: np.array([WHOLE if one is None else one for one in few]) for name, few in columns.items()}
            numbers |= {
                "gain": np.array([clip.gain for clip in some]),
                "start": stretches[:, 0],
                "end": stretches[:, 1],
            }
            for name, values in numbers.items():
                found[name].append(_compact(name, values))
        joined = {name: np.concatenate([np.zeros(0, np.int32), *found[name]]) for name in ("file", *NAMED)}
        joined |= {name: np.concatenate([_none(name, 0), *found[name]]) for name in NUMBERS if _any(found[name])}
        return Index._whole(joined, {"file": _emptied(files)} | {name: list(one) for name, one in known.items()})

    @staticmethod
    def _whole(columns: dict[str, npt.NDArray[Any]], texts: Mapping[str, Any]) -> "Index":
        """Makes an index of all rows of columns; those that are not given have no values."""
        size = len(columns["file"])
        missing = {name: _none(name, size) for name in NUMBERS if name not in columns}
        codes = {name: np.zeros(size, np.int32) for name in NAMED if name not in columns}
        index = Index(columns | missing | codes, texts, np.arange(size))
        index._is_whole = True
        return index

    @staticmethod
    def joined(parts: Sequence["Index"]) -> "Index":
        """Returns the clips of several indices, one after the other."""
        first = parts[0]
        if all(part._columns is first._columns and part._texts is first._texts for part in parts):
            return Index(first._columns, first._texts, np.concatenate([part._rows for part in parts]))
        ends = np.cumsum([0, *(len(part._texts["file"]) for part in parts)])
        codes = [part._of("file") + end.astype(np.int32) for part, end in zip(parts, ends[:-1], strict=True)]
        columns = {"file": np.concatenate(codes)}
        texts: dict[str, Any] = {"file": np.concatenate([part._texts["file"] for part in parts])}
        for name in NAMED:
            known: dict[str, int] = {}
            codes = [
                np.array([known.setdefault(text, len(known)) for text in part._texts[name]] or [0], np.int32)
                for part in parts
            ]
            columns[name] = np.concatenate([new[part._of(name)] for part, new in zip(parts, codes, strict=True)])
            texts[name] = list(known)
        for name in NUMBERS:
            if _any([part._columns[name] for part in parts]):
                columns[name] = np.concatenate([part._of(name) for part in parts])
        return Index._whole(columns, texts)

    def save(self, path: Path) -> None:
        """Writes the index as one .npz file, uncompressed."""
        arrays = {name: self._of(name) for name in NUMBERS if name in ("begin", "gain") or _any([self._columns[name]])}
        columns: dict[str, tuple[Ints, Strings]] = {}
        if self._has_parts():  # a file may have several clips
            found, of_found = self.files_of_clips()
            files, of_clip = np.unique(found, return_inverse=True)
            columns["file"] = of_clip.astype(np.int32)[of_found], files
        else:
            columns["file"] = np.arange(len(self), dtype=np.int32), self.files
        for name in NAMED:  # in the order in which they occur: equal clips make equal files
            used, first, of_clip = np.unique(self._of(name), return_index=True, return_inverse=True)
            order = np.argsort(first)
            there = strings(self._texts[name][code] for code in used[order].tolist())
            columns[name] = np.argsort(order).astype(np.int32)[of_clip], there
        for name, (codes, texts) in columns.items():
            arrays[f"{name}.codes"] = codes
            arrays[f"{name}.ends"], arrays[f"{name}.pool"] = pooled(texts)
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> "Index":
        """Reads what `save` wrote.

        Raises:
            ValueError: the arrays do not fit each other.
            KeyError, EOFError, zipfile.BadZipFile: the file is damaged in another way.
        """
        with np.load(path, allow_pickle=False) as stored:
            columns = {name: _compact(name, stored[name]) for name in NUMBERS if name in stored}
            texts: dict[str, Any] = {}
            for name in ("file", *NAMED):
                codes, ends, pool = (stored[f"{name}.{part}"] for part in ("codes", "ends", "pool"))
                _require_whole(codes, ends, pool, len(columns["begin"]))
                found = unpooled(ends, pool)
                columns[name], texts[name] = codes, found if name == "file" else found.tolist()
        size = len(columns["file"])
        for name in NUMBERS:
            numbers = columns.get(name, columns["file"])
            require(len(numbers) == size, "the index", f"hold {size} numbers {name}", len(numbers))
        return Index._whole(columns, texts)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> Clip: ...
    @overload
    def __getitem__(self, row: slice) -> "Index": ...
    def __getitem__(self, row: int | slice) -> "Clip | Index":
        if isinstance(row, slice):
            return self.take(row)
        return next(self._clips(self._rows[[row]]))

    def __iter__(self) -> Iterator[Clip]:
        for first in range(0, len(self), BATCH):
            yield from self._clips(self._rows[first : first + BATCH])

    def _clips(self, rows: Ints) -> Iterator[Clip]:
        files = self._texts["file"][self._columns["file"][rows]].tolist()
        texts = [[self._texts[name][code] for code in self._columns[name][rows].tolist()] for name in NAMED]
        numbers = [self._columns[name][rows].tolist() for name in NUMBERS]
        for file, word, speaker, split, begin, gain, row, start, end in zip(files, *texts, *numbers, strict=True):
            yield Clip(
                file=file,
                word=word,
                speaker=speaker,
                split=split,
                row=None if row == WHOLE else row,
                stretch=(start, end) if start == start else None,  # not NaN
                begin=None if begin == WHOLE else begin,
                gain=gain,
            )

    def _of(self, name: str) -> npt.NDArray[Any]:
        column = self._columns[name]
        return column if self._is_whole else np.asarray(column[self._rows])

    def _own(self) -> list[str]:
        """Returns the names of the columns that have values."""
        return ["file", *NAMED, *(name for name in NUMBERS if _any([self._columns[name]]))]

    def _has_parts(self) -> bool:
        """Tells whether clips are parts of their files, which may then have several of them."""
        return _any([self._columns[name] for name in PARTS])

    def files_of_clips(self) -> tuple[Strings, npt.NDArray[np.int32]]:
        """Returns names of files, of which some may occur twice, and which of them each clip is of, int32 [clips]."""
        used, codes = np.unique(self._of("file"), return_inverse=True)
        return self._texts["file"][used], codes.astype(np.int32)

    @property
    def files(self) -> Strings:
        """The file of every clip, [clips]."""
        files, codes = self._texts["file"], self._of("file")
        is_own = len(codes) == len(files) and np.array_equal(codes, np.arange(len(codes)))
        return files if is_own else files[codes]  # type: ignore[no-any-return]

    def distinct_files(self) -> Strings:
        """Returns every file once, in the order in which they occur."""
        if not self._has_parts():
            return self.files  # each is a clip
        used, first = np.unique(self._of("file"), return_index=True)
        files = self._texts["file"][used[np.argsort(first)]]
        return np.asarray(files[np.sort(np.unique(files, return_index=True)[1])])

    @property
    def ids(self) -> Strings:
        """The id of every clip, [clips]."""
        return strings(clip.id for clip in self) if self._has_parts() else self.files

    @property
    def are_rows(self) -> bool:
        """Whether clips are rows of tables (some may be files), and none is a stretch of a recording or cut out."""
        return self._has_parts() and not _any([self._columns["begin"], self._columns["start"]])

    def order(self) -> npt.NDArray[Any]:
        """Returns what compares as the ids do, [clips]; numbers, where the files are tables with rows of clips."""
        if not self.are_rows:
            return self.ids
        files, codes = self.files_of_clips()
        number = np.unique(files, return_inverse=True)[1].astype(np.int64)[codes]
        return np.asarray((number << ROW_BITS) + self._of("row") + 1)

    def take(self, rows: Ints | slice) -> "Index":
        """Returns the index of some rows, in the order in which they are given."""
        return Index(self._columns, self._texts, self._rows[rows])

    def sorted(self) -> "Index":
        """Returns the clips in the order of their ids."""
        order = self.order()
        if bool((order[1:] >= order[:-1]).all()):
            return self
        found = self.take(np.argsort(order, kind="stable"))
        if not self._is_whole:
            return found
        columns, texts = {name: found._of(name) for name in self._own()}, self._texts
        if not self._has_parts():  # in their order, all files need no copy later
            columns["file"], texts = np.arange(len(self), dtype=np.int32), {**texts, "file": found.files}
        return Index._whole(columns, texts)

    def counts(self, name: str = "word") -> dict[str, int]:
        """Returns how many clips have each text of a column, sorted by the text."""
        counts = np.bincount(self._of(name), minlength=len(self._texts[name])).tolist()
        return {text: count for text, count in sorted(zip(self._texts[name], counts, strict=False)) if count}

    def numbered(self, name: str, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Returns which of some texts each clip has in a column, or -1, [clips]."""
        number = {text: index for index, text in enumerate(texts)}
        of_code = np.array([number.get(text, -1) for text in self._texts[name]] or [-1], np.int64)
        found: npt.NDArray[np.int64] = of_code[self._of(name)]
        return found

    def of_words(self, words: Iterable[str]) -> "Index":
        """Returns the clips of some words, in their order."""
        return self.take(np.flatnonzero(self.numbered("word", list(words)) >= 0))

    def rows_of_split(self, split: str) -> Ints:
        """Returns the rows of the clips of one split, int64 [clips of the split]."""
        return np.flatnonzero(self.numbered("split", [split]) == 0)

    def of_split(self, split: str) -> "Index":
        """Returns the clips of one split, in their order."""
        return self.take(self.rows_of_split(split))

    def with_splits(self, splits: Ints) -> "Index":
        """Returns the clips in other splits, [clips], as indices into SPLITS."""
        column = np.zeros(len(self._columns["file"]), np.int32)
        column[self._rows] = splits
        return self._changed("split", column, SPLITS)

    def _changed(self, name: str, codes: Ints, texts: Sequence[str] | Strings) -> "Index":
        index = Index({**self._columns, name: codes}, {**self._texts, name: texts}, self._rows)
        index._is_whole = self._is_whole
        return index

    def spelled(self, words: Mapping[str, str]) -> "Index":
        """Returns the clips with some words in another spelling."""
        texts = [words.get(word, word) for word in self._texts["word"]]
        known: dict[str, int] = {}
        codes = np.array([known.setdefault(text, len(known)) for text in texts] or [0], np.int32)
        return self._changed("word", codes[self._columns["word"]], list(known))

    def below(self, prefix: str) -> "Index":
        """Returns the clips with something in front of the names of their files."""
        files = strings(prefix + file for file in self._texts["file"])
        return self._changed("file", self._columns["file"], files)

    def labels(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Returns the class of every clip, int64 [clips], as indices into `words`.

        Raises:
            ValueError: a clip belongs to none of them.
        """
        classes = {word: class_of(word, words) for word in self._texts["word"]}
        found = self.spelled(classes).numbered("word", words)
        for row in np.flatnonzero(found < 0)[:1].tolist():
            raise ValueError(f"clips must be of the words {', '.join(words)}, got {self[row].word!r}")
        return found


def pooled(texts: Strings) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Returns where each text ends, int64 [texts], in all of them one after the other in UTF-8, uint8 [bytes]."""
    pool, ends = bytearray(), np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        pool += text.encode()
        ends[row] = len(pool)
    return ends, np.frombuffer(pool, np.uint8)


def unpooled(ends: npt.NDArray[np.int64], pool: npt.NDArray[np.uint8]) -> Strings:
    """Returns the texts of `pooled`."""
    return strings(each_of(ends, pool))


def each_of(ends: npt.NDArray[np.int64], pool: npt.NDArray[np.uint8]) -> Iterator[str]:
    """Yields the texts of `pooled`."""
    data = memoryview(pool)  # type: ignore[arg-type]
    for start, end in itertools.pairwise(itertools.chain([0], map(int, ends))):
        yield data[start:end].tobytes().decode()


def _require_whole(codes: Ints, ends: Ints, pool: Ints, num_rows: int) -> None:
    fits = [array.ndim == 1 and array.dtype.kind in "iu" for array in (codes, ends, pool)]
    fits += [len(codes) == num_rows, bool((np.diff(ends, prepend=0) >= 0).all())]
    fits += [(int(ends[-1]) if len(ends) else 0) == pool.size]
    fits += [num_rows == 0 or bool(0 <= codes.min() <= codes.max() < len(ends))]
    require(all(fits), "the index", f"hold {num_rows} whole clips", f"{len(codes)} rows, {pool.size} bytes")


def _none(name: str, size: int) -> npt.NDArray[Any]:
    """Returns a column of numbers that are none, [size], which takes no memory."""
    dtype, none = NUMBERS[name]
    return np.broadcast_to(np.array(none, dtype), size)


def _compact(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    dtype, none = NUMBERS[name]
    is_none = np.isnan(values) if none != none else values == none
    return _none(name, len(values)) if is_none.all() else values.astype(dtype)


def _any(columns: Sequence[npt.NDArray[Any]]) -> bool:
    """Tells whether there are numbers in some columns."""
    return any(column.strides != (0,) for column in columns)


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    values = iter(values)
    while some := list(itertools.islice(values, BATCH)):
        yield some
