"""Lists of recordings in CSV, TSV, JSON, Parquet, Arrow: audiofolder, Common Voice, Spoken Words, NeMo, and others."""

import functools
import io
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kws.data import shards
from kws.data.digest import read_manifest
from kws.data.folder import LISTS
from kws.data.index import Lookup
from kws.data.layouts.cells import RECORDINGS, SAMPLE, SUFFIXES, SUPERVISIONS, cells, regions
from kws.data.layouts.columns import NAMES, NOT_KNOWN, TIMES, columns_of, flag, keys, number, text, time, unit_of
from kws.data.layouts.finding import Finder
from kws.data.layouts.rows import Row, UnclearLayout, listing_of
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import (
    is_container,
    is_recording,
    split_in,
    split_named,
    split_of_path,
    split_within,
    stem_of,
    word_of,
)
from kws.data.pack import opened
from kws.data.words import alike, is_known, merged, only_word
from kws.files import MANIFEST
from kws.text import one_line, plain, wrong_with

log = logging.getLogger(__name__)

NOT_READ = {
    "save it as CSV beside the recordings": r"\.(xlsx|xlsm|xls|ods|numbers|db|sqlite3?|mdb|accdb)$",
    "export its tier of words as a TextGrid of Praat": r"\.(eaf|antx|trs|exb)$",
    "export its labels as text, and its sound as a WAV file": r"\.aup3?$",
}
"""Names of files that may be lists, too, but are not read, by the remedy."""

ARRAYS = r"\.(tfrecord|npy|npz|h5|hdf5|pkl|pickle|pt|pth|mat|cbor|lance)\b"
"""Names of files that may hold the recordings, where there are no others."""

NOT_FOR_USE = ("invalidated", "other", "reported", "clip_durations", "unvalidated_sentences", "validated_sentences")
"""Tables of Common Voice beside validated.tsv that hold what listeners rejected or have not heard, or no recordings."""

FEW = 20
"""How many rows are looked at to find the column of the files."""

COUNTED = ("", "index", "unnamed:_0")
"""Names of columns that only number the rows."""

NO_WORDS = {"nan", "NaN", "NA", "N/A", "<NA>", "None", "True", "False"}
"""What programs write where a cell was empty, or yes or no."""

ENDS = ".,;!?…。！？"
"""Marks at the end of a word that are none of it."""

SHORTEST = 0.1
"""Seconds that a word takes at least."""

FLAGS = ("is_test", "is_validation", "is_train")
"""Columns of flags that say which split a row is of; of several that are true the first counts."""


@dataclass(frozen=True)
class Table:
    """A list of recordings, and which of its columns say what."""

    path: str
    """From the folder."""
    columns: Mapping[str, str]
    """The names of its columns by what they say; see NAMES."""
    is_shard: bool = False
    """Whether the recordings stand in the table itself, a Parquet file."""

    @property
    def has_words(self) -> bool:
        """Whether a column has the words; if none has, the folder of a recording is its word."""
        return not {"word", "sentence"}.isdisjoint(self.columns)


def lists(tree: Tree) -> Listing | None:
    """Lists the recordings that the lists below a folder name; None if there is no list of recordings.

    Raises:
        UnclearLayout: the lists name no recordings of the folder, or do not tell their words or splits.
        ValueError: they contradict each other, or one cannot be read.
    """
    tables = [table for path in tree.others if (table := _table(tree, path)) is not None]
    names = {Path(table.path).stem for table in tables}
    if not names.isdisjoint({"validated", "invalidated"}):
        tables = [table for table in tables if Path(table.path).stem not in NOT_FOR_USE]
    if any(name.startswith("cuts") for name in names):  # Lhotse's cuts have the supervisions in them
        tables = [table for table in tables if SUPERVISIONS not in table.path]
    tables = _with_words(tree, _without_numbers(tree, tables))
    if not tables:
        return None
    paths = [table.path for table in tables]
    beside = (path.replace(SUPERVISIONS, RECORDINGS) for path in paths if SUPERVISIONS in path)
    paths += [path for path in beside if path in tree.others]
    try:
        rows = itertools.chain.from_iterable(_rows(tree, table) for table in tables)
        listing = _named_by_folders(listing_of(tree, "list", rows, paths))
    except UnclearLayout:
        raise
    except ValueError as error:
        if not any("channel" in table.columns for table in tables):
            raise
        raise ValueError(f"{error}; channels are not read: write each channel to a file of its own") from error
    if odd := sorted(NO_WORDS.intersection(listing.words)):
        log.warning("%s: check the words %s, which programs write for none, yes or no", paths[0], ", ".join(odd))
    if len(listing.clips) or listing.noise:
        return listing
    reasons = "; ".join(f"{count:,} rows are not read, as {reason}" for reason, count in listing.left_out.items())
    raise UnclearLayout(
        f"a list must name recordings below its folder, each with its word, got {', '.join(paths[:3])}: "
        f"{reasons or 'it has no rows'}. Put the recordings beside the list, name the column of the words `word` if "
        "they have several words, or use --layout word to read the folders alone"
    )


def require_no_other(tree: Tree, words: Sequence[str]) -> None:
    """Refuses files that name recordings, or may, but are not understood.

    Those are tables with columns of unknown names, or whose names are of other recordings; spreadsheets and the like;
    and texts in which recordings are named.

    Args:
        tree: what lies below the folder.
        words: the words without such files, at most one; the folder of that may only be called what it holds.

    Raises:
        UnclearLayout: there is one.
    """
    may_be_listed = not words or is_container(words[0])
    recordings = tree.recordings[:FEW].tolist()
    for path in tree.others:
        for remedy, names in NOT_READ.items():
            if re.search(names, path.lower()):
                raise UnclearLayout(f"a list must be text or Parquet, got {path}: {remedy}")
        if not recordings and re.search(ARRAYS, path.lower()):
            raise UnclearLayout(
                f"recordings must be files of sound, or stand in Parquet or Arrow files, got {path}: write each to a "
                "WAV file in the folder of its word (soundfile.write)"
            )
        if _may_be_table(tree, path):
            rows = list(itertools.islice(cells(tree, path), FEW))
            named = _column_of_files(tree, path, rows)
            if named is not None and len(rows[0]) > 1:
                raise UnclearLayout(
                    f"a list must have a column named file and one named word, got {path} with "
                    f"{', '.join(map(one_line, map(str, rows[0])))}, of which {one_line(named)} names recordings: "
                    "name the columns so (docs/data.md has other names), or use --layout word to read the folders "
                    "alone"
                )
            if (
                may_be_listed
                and recordings
                and len(rows) > 1
                and not {"word", "sentence"}.isdisjoint(columns_of(rows[0]))
            ):
                raise UnclearLayout(
                    f"a list must name recordings below its folder, got {path} with "
                    f"{', '.join(f'{name} {one_line(text(cell))}' for name, cell in list(rows[0].items())[:4])}, and "
                    f"recordings such as {recordings[0]}: name them so in a column file, or use --layout word to read "
                    "the folders alone"
                )
        if may_be_listed and recordings and _mentions(tree.folder / path, recordings):
            raise UnclearLayout(
                f"a list must be CSV, TSV, JSON or Parquet, got {path}, in which recordings are named: save it as CSV "
                "with the columns file and word, or use --layout word to read the folders alone"
            )


def _mentions(path: Path, recordings: Sequence[str]) -> bool:
    """Tells whether most of some recordings are named in a text, by more than two characters."""
    with path.open("rb") as file:
        words = set(re.split(r"[^\w.-]+", file.read(1 << 18).decode("utf-8", "replace")))
    words |= {word.partition(".")[0] for word in words}
    names = [file.rpartition("/")[2] for file in recordings]
    named = sum(name in words or (len(stem_of(name)) > 2 and stem_of(name) in words) for name in names)
    return named > len(names) / 2


def said_by(row: Any) -> dict[str, str]:
    """Returns what the columns of a row say, by the names of NAMES."""
    return {what: text(row.get(column)) for what, column in columns_of(row).items()} if isinstance(row, dict) else {}


def require_most(tree: Tree, listing: Listing) -> None:
    """Checks that lists name most of the recordings that lie in folders of words, and not those of one word alone.

    Raises:
        UnclearLayout: they do not.
    """
    named = listing.clips.distinct_files()
    others = tree.recordings[Lookup(named).row_of(tree.recordings) < 0]
    parents = Counter(file.split("/")[0] for file in others if file.count("/") == 1)
    folders = {word for word in parents if not wrong_with(word)}
    if len(listing.words) == 1:
        inner = {file.split("/")[-2] for file in others if "/" in file}
        folders |= {word for word in inner if not wrong_with(word)}
    elif parents.total() <= len(named):
        return
    if len(folders) > 1:
        raise UnclearLayout(
            f"a list must name the recordings of its folder, got {', '.join(listing.tables[:3])} with "
            f"{len(named):,} of {len(tree.recordings):,}, of {len(listing.words):,} words; the others lie in "
            f"{len(folders):,} folders: use --layout list to read only those that it names, or --layout word, or "
            "levels of folders such as */word, to read the folders"
        )


def _may_be_table(tree: Tree, path: str) -> bool:
    """Tells by its name whether a file may be a table of recordings and what they are.

    A list of a split, a cache of `datasets`, a manifest, and a sample of what to submit to a contest are none.
    """
    file = Path(path)
    name = file.name.lower()
    if not name.endswith(SUFFIXES) or name in LISTS.values() or "submission" in name:
        return False
    if file.suffix.lower() == ".arrow" and file.name.startswith("cache-"):
        return False
    return path != MANIFEST or read_manifest(tree.folder) is None


def _table(tree: Tree, path: str) -> Table | None:
    """Opens a file that may be a list, or returns None if it is none."""
    if not _may_be_table(tree, path):
        return None
    whole = tree.folder / path
    some = list(itertools.islice(cells(tree, path), FEW))
    columns = columns_of(next(iter(some), {}))
    if whole.suffix.lower() in shards.SUFFIXES and shards.Shard(whole).holds_recordings:
        table = Table(path, columns, is_shard=True)
        return table if table.has_words else None
    if "file" not in columns and (file := _column_of_files(tree, path, some)) is not None:
        columns = {"file": file} | {what: name for what, name in columns.items() if name != file}
    if "file" in columns and not Table(path, columns).has_words:
        columns |= _only_column_of_words(tree, path, some, columns)
    if "file" not in columns or len(columns) < 2:
        return None
    if {"split", *FLAGS}.isdisjoint(columns):
        unused = (name for name in some[0] if name not in columns.values())
        split = next((name for name in unused if all(split_named(text(row.get(name))) for row in some)), None)
        columns |= {} if split is None else {"split": split}
    table = Table(path, _label_or_sentence(path, some, columns))
    if not table.has_words:
        finder = Finder(tree, path, columns, some)
        first = next((file for row in some if (file := finder.find(row)) is not None), "")
        if {"speaker", "split", *FLAGS}.isdisjoint(columns) or "/" not in first or is_container(first.split("/")[-2]):
            return None
    return table


def _label_or_sentence(path: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Mapping[str, str]:
    """Returns columns without that of a label which is not the word that was said: of single words, which it numbers.

    Raises:
        UnclearLayout: label and sentence are different words, so that either could count.
    """
    label, sentence = columns.get("word", ""), columns.get("sentence", "")
    if not label or not sentence or next(iter(keys([label]))) in ("word", "keyword", "command"):
        return columns
    said = [only_word(text(row.get(sentence))) for row in rows]
    labels = [text(row.get(_column_of_words(rows, label))) for row in rows]
    if not all(said) or len(set(said)) < 2 or len(set(labels)) < 2 or not all(labels):
        return columns
    if all(number(one) is not None for one in labels) and not all(number(one) is not None for one in said):
        return {what: name for what, name in columns.items() if what != "word"}
    if sum(alike(one) != alike(other) for one, other in zip(labels, said, strict=True)) > len(rows) / 2:
        raise UnclearLayout(
            f"a list must say one word of each recording, got {path} with {one_line(labels[0])} in column "
            f"{one_line(label)} and {one_line(said[0])} in {one_line(sentence)}: name the one that counts `word`"
        )
    return columns


def _column_of_files(tree: Tree, path: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the column of which most cells name recordings; None if there is none.

    Of several it is the first of which most have the suffix of a recording, then the first that does not only count
    the rows.
    """
    found: dict[str, int] = {}
    for key, column in keys(rows[0] if rows else ()).items():
        finder = Finder(tree, path, {"file": column}, rows)
        names = [text(row.get(column)) for row in rows]
        num_named = sum(bool(finder.find(row) or finder.named(row)) for row in rows)
        numbers = [number(name) for name in names]
        counts = numbers[0] is not None and numbers == [numbers[0] + at for at in range(len(numbers))]
        if num_named and sum(map(is_recording, names)) > len(rows) / 2:
            found[column] = 0
        elif num_named > len(rows) / 2 and key not in COUNTED and (not counts or num_named == len(rows)):
            found[column] = 2 if counts else 1
    return min(found, key=found.__getitem__) if found else None


def _only_column_of_words(
    tree: Tree, path: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> dict[str, str]:
    """Returns the column of the words under whatever name, if recordings lie in one folder and only one is left."""
    left = [name for key, name in keys(rows[0]).items() if name not in columns.values() and key not in (*COUNTED, "id")]
    finder = Finder(tree, path, columns, rows)
    folders = {file.rpartition("/")[0] for row in rows if (file := finder.find(row)) is not None}
    if len(left) != 1 or len(folders) != 1:
        return {}
    words = [text(row.get(left[0])) for row in rows]
    return {} if any(number(word) is not None for word in words) else {"word": left[0]}


def _without_numbers(tree: Tree, tables: list[Table]) -> list[Table]:
    """Returns tables without those of numbers of several digits, such as lengths, where others have words."""

    def words(table: Table) -> list[str]:
        rows = itertools.islice(cells(tree, table.path), FEW) if "word" in table.columns else ()
        return [text(row.get(table.columns["word"])) for row in rows]

    said = {table.path: words(table) for table in tables} if len(tables) > 1 else {}
    numbers = {path for path, some in said.items() if some and all(number(word) is not None for word in some)}
    counts = {path for path in numbers if not all(map(is_known, said[path]))} if len(numbers) < len(said) else set()
    kept = [table for table in tables if table.path not in counts]
    for path in counts:
        log.warning("%s is not read, as it has numbers where %s has words", path, kept[0].path)
    return kept


def _with_words(tree: Tree, tables: list[Table]) -> list[Table]:
    """Returns tables without those that say no words, if all their recordings lie in folders of one name.

    Raises:
        UnclearLayout: there are no other tables.
    """
    without = [table for table in tables if not table.has_words]
    finders = ((Finder(tree, table.path, table.columns, ()), cells(tree, table.path)) for table in without)
    files = (file for finder, rows in finders for row in rows if (file := finder.find(row)) is not None)
    folders = (file.split("/")[-2] if "/" in file else "" for file in files)
    first = next(folders, "")
    if not without or any(folder != first for folder in folders):
        return tables
    names = ", ".join(one_line(str(name)) for name in next(iter(cells(tree, without[0].path))))
    if len(without) == len(tables):
        raise UnclearLayout(
            f"a list must say the word of each recording, got {without[0].path} with {names}, whose recordings all lie "
            f"in {one_line(first)}: name the column of the words `word`, or use --layout word to read the folders alone"
        )
    log.warning("%s is not read, as none of its columns (%s) is known to say the words", without[0].path, names)
    return [table for table in tables if table.has_words]


def _named_by_folders(listing: Listing) -> Listing:
    """Returns a listing in which words that only number the folders of their recordings are called as these."""
    words = listing.words
    if len(words) < 2 or not all(number(word) is not None for word in words):
        return listing
    pairs = {(clip.word, clip.file.rpartition("/")[0].rpartition("/")[2]) for clip in listing.clips}
    named = {word: plain(word_of(folder)) for word, folder in pairs}
    if not len(pairs) == len(named) == len(set(named.values())):
        return listing
    if any(wrong_with(name) or is_container(name) or split_named(name) for name in named.values()):
        return listing
    log.info("the words %s are called %s, as their folders are", ", ".join(named), ", ".join(named.values()))
    return replace(listing, clips=merged(listing.clips.spelled(named)))


class _Splits:
    """Tells the splits of a table's rows; notes what it is told, to check at the end that it was understood."""

    def __init__(self, table: Table) -> None:
        folder, _, name = table.path.rpartition("/")
        folders = (split for part in reversed(folder.split("/")) if (split := split_named(part)))
        self._of_table = split_within(name.rpartition(".")[0]) or next(folders, "")
        self._table = table
        self._values: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        self._flags: dict[str, Counter[bool | None]] = {what: Counter() for what in ("valid", "is_validation")}

    def of(self, said: Mapping[str, str], file: str) -> str:
        """Returns the split of a row, as its columns, the name of the list, or the folder of the recording say."""
        for what, counted in self._flags.items():
            counted[flag(said.get(what, ""))] += 1
        if value := said.get("split", ""):
            split = split_in(value)
            self._values[bool(split)][value] += value.casefold() not in NOT_KNOWN
            return split
        flags = {what.removeprefix("is_"): flag(said[what]) for what in FLAGS if what in said}
        if split := next((split for split, is_set in flags.items() if is_set), ""):
            return split
        if flags and None not in flags.values():
            return "train" if "train" not in flags else "test" if len(flags) == 1 else ""
        return "" if "split" in said else self._of_table or split_of_path(file)

    def check(self) -> None:
        """Checks at the end that what the columns say was understood.

        Raises:
            UnclearLayout: it was only in part, or flags say the opposite of what their name seems to.
        """
        path, columns = self._table.path, self._table.columns
        unknown, known = ([one_line(value) for value, count in some.most_common(5) if count] for some in self._values)
        if unknown and known:
            raise UnclearLayout(
                f"splits must be called train, validation or test, got {', '.join(unknown)} beside {', '.join(known)} "
                f"in column {columns['split']} of {path}: rename them, or leave their cells empty"
            )
        if unknown:
            log.warning("%s: column %s (%s) is not used as splits", path, columns["split"], ", ".join(unknown))
        for what, is_odd in (("valid", False), ("is_validation", True)):
            counted = self._flags[what]
            if counted[is_odd] > counted[not is_odd]:
                raise UnclearLayout(
                    f"column {columns[what]} of {path} must say "
                    f"{'which rows are for validation' if is_odd else 'which rows may be used'}, got "
                    f"{is_odd} in {counted[is_odd]:,} of {counted.total():,}: name it "
                    f"{'valid if these may be used' if is_odd else 'is_valid if the others are for validation'}, "
                    "or take it out"
                )


class _Times:
    """Tells where in their recordings a table's rows begin and end; in which unit, if no name says it, the lengths."""

    def __init__(
        self,
        tree: Tree,
        table: Table,
        columns: Mapping[str, str],
        finder: Finder | None,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        self._tree, self._table = tree, table
        self._columns = {what: columns.get(what, what) for what in TIMES}
        self._units = {what: unit_of(column) for what, column in self._columns.items()}
        timed = not self._units["start"] and not columns.keys().isdisjoint(TIMES)
        if finder is not None and timed and (unit := self._told_by_lengths(columns, finder, rows[:FEW])):
            self._units = {what: said or unit for what, said in self._units.items()}

    def of(self, said: Mapping[str, str], file: str) -> tuple[float | None, float | None]:
        """Returns where in its recording a row begins and ends, in seconds.

        Raises:
            UnclearLayout: a cell is no time.
        """
        found: dict[str, float | None] = {}
        for what, column in self._columns.items():
            try:
                value = time(said.get(what, ""))
            except ValueError as error:
                raise UnclearLayout(
                    f"{error} in column {one_line(column)} of {self._table.path}: correct it, or rename the column if "
                    "it does not say where in the recording the word is"
                ) from error
            found[what] = None if value is None else value * self._scale(self._units[what], file)
        start, end, duration = found["start"], found["end"], found["duration"]
        return start, start + duration if end is None and start is not None and duration is not None else end

    def _scale(self, unit: str, file: str) -> float:
        """Returns how many seconds a unit has."""
        if unit == "samples":
            return 1 / _length_and_rate(self._tree.folder, file)[1]
        return 0.001 if unit == "milliseconds" else 1.0

    def _told_by_lengths(self, columns: Mapping[str, str], finder: Finder, rows: Sequence[Mapping[str, Any]]) -> str:
        """Returns the unit that fits where rows end far behind their recordings if it is seconds; empty if it is.

        Raises:
            UnclearLayout: none fits, or several do.
        """
        looked = []
        for row in rows:
            file = finder.find(row)
            start, end = self.of({what: text(row.get(column)) for what, column in columns.items()}, file or "")
            length, rate = _length_and_rate(self._tree.folder, file or "")
            if end is not None and length:
                looked.append((start or 0.0, end, length, rate))
        if sum(end > 5 * length for _, end, length, _ in looked) <= len(looked) / 2:
            return ""
        fitting = [
            unit
            for unit, scales in {
                "milliseconds": [0.001] * len(looked),
                "samples": [1 / one[3] for one in looked],
            }.items()
            if all(
                end * scale <= length + 0.1 and (end - start) * scale >= SHORTEST
                for scale, (start, end, length, _) in zip(scales, looked, strict=True)
            )
        ]
        path, (_, end, length, _) = self._table.path, looked[0]
        if len(fitting) != 1:
            raise UnclearLayout(
                f"times must be in seconds, got one that ends at {end:g} in {path}, of a recording of {length:.3g} s: "
                "name the columns start_ms and end_ms (or duration_ms), or start_samples and end_samples"
            )
        log.warning("%s: times are taken for %s, as recordings are shorter otherwise", path, fitting[0])
        return fitting[0]


@functools.lru_cache(maxsize=1 << 12)
def _length_and_rate(folder: Path, file: str) -> tuple[float, float]:
    """Returns the seconds and the rate in Hz of a recording by its header; 0 and 16,000 if it has none."""
    import soundfile

    try:
        content = opened(folder, file)
        about = soundfile.info(io.BytesIO(content) if isinstance(content, bytes) else content)
    except (OSError, TypeError, soundfile.LibsndfileError):
        return 0.0, 16_000.0
    return float(about.duration), float(about.samplerate)


def _rows(tree: Tree, table: Table) -> Iterator[Row]:
    """Yields the rows of a table."""
    some = list(itertools.islice(cells(tree, table.path), SAMPLE))
    columns = dict(table.columns)
    if "word" in columns:
        columns["word"] = _column_of_words(some, columns["word"])
    finder = None if table.is_shard else Finder(tree, table.path, columns, some)
    have_several = "word" in columns and _have_several(some, columns["word"])
    splits, times = _Splits(table), _Times(tree, table, columns, finder, some)
    kind = next(iter(keys([columns.get("word", "")])))
    for at, row in enumerate(cells(tree, table.path)):
        said = {what: text(row.get(column)) for what, column in columns.items()}
        file, near = (table.path, "") if table.is_shard else (said["file"], table.path.rpartition("/")[0])
        found = finder and finder.find(row)
        refused = "they are marked as not valid" if flag(said.get("valid", "")) is False else ""
        if finder and found is None and len(finder.named(row)) > 1:
            refused = refused or "several recordings have that name"
        split = splits.of(said, file)
        labels = row.get(columns["word"]) if "word" in columns else None
        if kind.startswith("is_"):
            labels = {True: kind[3:], False: f"not_{kind[3:]}", None: ""}[flag(text(labels))]
        elif isinstance(labels, bool):
            raise UnclearLayout(
                f"a word must be a text, got {json.dumps(labels)} in column {columns['word']} of {table.path}: write "
                'it between quotation marks, such as "yes" or "on"'
            )
        for region in regions(labels) or [{"word": labels}]:
            of_one = said | {what: text(value) for what, value in region.items()}
            several = isinstance(region["word"], list) and len(region["word"]) > 1
            several = several or (have_several and "," in of_one["word"])
            if table.has_words:
                word = of_one["word"].rstrip(ENDS) or of_one["word"] or of_one.get("sentence", "")
            else:
                word = word_of((found or "").rpartition("/")[0].rpartition("/")[2])
            start, end = times.of(of_one, found or file)
            yield Row(
                file=found or file,
                near=near,
                is_found=found is not None,
                word=word,
                is_sentence="word" not in columns and "sentence" in columns,
                speaker="" if said.get("speaker", "").casefold() in NOT_KNOWN else said["speaker"],
                split=split,
                start=start,
                end=end,
                row=at if table.is_shard else None,
                refused=refused or ("they have several labels" if several else ""),
            )
    splits.check()


def _have_several(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Tells whether a comma in the column of the words is between several: it is named so, or most cells have it."""
    if next(iter(keys([column]))).endswith("labels"):
        return True
    return sum("," in text(row.get(column)) for row in rows) > len(rows) / 2


def _column_of_words(rows: Sequence[Mapping[str, Any]], chosen: str) -> str:
    """Returns the column of the words: where several could be, one whose values are not all numbers."""
    there = keys(rows[0] if rows else ())
    for column in (there[name] for name in NAMES["word"] if name in there):
        if not all(number(text(row.get(column))) is not None for row in rows):
            return column
    return chosen
