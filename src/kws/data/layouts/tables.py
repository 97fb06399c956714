"""Lists of recordings in CSV, TSV, JSON, Parquet, Arrow: audiofolder, Common Voice, Spoken Words, NeMo, and others."""

import csv
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws.data import shards
from kws.data.digest import read_manifest
from kws.data.folder import LISTS
from kws.data.index import Lookup
from kws.data.layouts.rows import Row, UnclearLayout, listing_of, split_named, split_within
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import is_container, is_recording, word_of
from kws.data.splits import read_lines
from kws.files import MANIFEST
from kws.text import one_line, printable, wrong_with

NAMES: Mapping[str, Sequence[str]] = {
    "file": (
        "file_name", "filename", "audio_filepath", "audio_file", "audio_path", "wav_filename", "wav_path", "wav",
        "path", "filepath", "file_path", "file", "link", "clip", "recording", "audio",
    ),
    "word": (
        "word", "keyword", "command", "label_name", "class_name", "label", "labels", "category", "class", "choice",
        "target",
    ),
    "sentence": ("sentence", "text", "transcript", "transcription", "utterance", "normalized_text"),
    "speaker": (
        "client_id", "speaker_id", "speaker", "speakerid", "spk_id", "spk", "user_id", "user", "worker_id",
        "participant",
    ),
    "split": ("set", "split", "subset", "partition"),
    "start": ("start", "begin", "onset", "start_time", "begin_time", "offset", "xmin"),
    "end": ("end", "stop", "end_time", "xmax", "offset"),
    "duration": ("duration",),
    "valid": ("valid", "is_valid"),
}  # fmt: skip
"""What the columns are called, in any case; of several that are there the first counts."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".lst", ".list", *shards.SUFFIXES)

SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
"""Of files that may be lists, too, but are not read."""

NOT_FOR_USE = ("invalidated", "other", "reported", "clip_durations", "unvalidated_sentences", "validated_sentences")
"""Tables of Common Voice beside validated.tsv that hold what listeners rejected or have not heard, or no recordings."""

UNNAMED = ("NA", "nan", "None", "null")
"""What stands in the column of the speakers if nobody knows the speaker."""

SAMPLE = 1000
"""How many rows are looked at to choose the column of the words."""

FEW = 20
"""How many rows are looked at to find the column of the files."""

COUNTED = ("", "id", "index", "unnamed:_0")
"""Names of columns that only number the rows."""


@dataclass(frozen=True)
class Table:
    """A list of recordings, and which of its columns say what."""

    path: str
    """From the folder."""
    columns: Mapping[str, str]
    """The names of its columns by what they say; see NAMES."""
    is_shard: bool = False
    """Whether the recordings stand in the table itself, a Parquet file."""


def lists(tree: Tree) -> Listing | None:
    """Lists the recordings that the lists below a folder name; None if there is no list of recordings.

    Raises:
        UnclearLayout: the lists name no recordings of the folder.
        ValueError: they contradict each other, or one cannot be read.
    """
    tables = [table for path in tree.others if (table := _table(tree, path)) is not None]
    names = {Path(table.path).stem for table in tables}
    if "validated" in names:
        tables = [table for table in tables if Path(table.path).stem not in NOT_FOR_USE]
    if not tables:
        return None
    paths = [table.path for table in tables]
    listing = listing_of(tree, "list", itertools.chain.from_iterable(_rows(tree, table) for table in tables), paths)
    if len(listing.clips) or listing.noise:
        return listing
    reasons = "; ".join(f"{count:,} rows are not read, as {reason}" for reason, count in listing.left_out.items())
    raise UnclearLayout(
        f"a list must name recordings below its folder, each with its word, got {', '.join(paths[:3])}: "
        f"{reasons or 'it has no rows'}. Put the recordings beside the list, name the column of the words `word` if "
        "they have several words, or use --layout word to read the folders alone"
    )


def require_no_other(tree: Tree) -> None:
    """Refuses a table that names recordings in a column of an unknown name, and a spreadsheet, which may name them.

    Raises:
        UnclearLayout: there is one.
    """
    for path in tree.others:
        if path.lower().endswith(SPREADSHEETS):
            raise UnclearLayout(f"a list must be text or Parquet, got the spreadsheet {path}: save it as CSV beside it")
        if _may_be_table(tree, path):
            rows = list(itertools.islice(_cells(tree, path), FEW))
            named = _column_of_files(tree, path, rows)
            if named is not None and len(rows[0]) > 1:
                raise UnclearLayout(
                    f"a list must have a column named file and one named word, got {path} with "
                    f"{', '.join(map(one_line, map(str, rows[0])))}, of which {one_line(named)} names recordings: "
                    "name the columns so (docs/data.md has other names), or use --layout word to read the folders "
                    "alone"
                )


def said_by(row: Any) -> dict[str, str]:
    """Returns what the columns of a row say, by the names of NAMES."""
    return {what: _text(row.get(column)) for what, column in _columns(row).items()} if isinstance(row, dict) else {}


def require_most(tree: Tree, listing: Listing) -> None:
    """Checks that lists name most of the recordings that lie in folders of words.

    Raises:
        UnclearLayout: they do not.
    """
    named = listing.clips.distinct_files()
    others = tree.recordings[Lookup(named).row_of(tree.recordings) < 0]
    parents = Counter(file.split("/")[0] for file in others if file.count("/") == 1)
    folders = [word for word in parents if not wrong_with(word)]
    if parents.total() > len(named) and len(folders) > 1:
        raise UnclearLayout(
            f"a list must name the recordings of its folder, got {', '.join(listing.tables[:3])} with "
            f"{len(named):,} of {len(tree.recordings):,}, which lie in {len(folders):,} folders: use --layout list to "
            "read only these, or --layout word to read the folders"
        )


def _may_be_table(tree: Tree, path: str) -> bool:
    """Tells by its name whether a file may be a table, which no list of a split, cache of `datasets` or manifest is."""
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES or file.name.lower() in LISTS.values():
        return False
    if file.suffix.lower() == ".arrow" and file.name.startswith("cache-"):
        return False
    return path != MANIFEST or read_manifest(tree.folder) is None


def _table(tree: Tree, path: str) -> Table | None:
    """Opens a file that may be a list, or returns None if it is none."""
    if not _may_be_table(tree, path):
        return None
    whole = tree.folder / path
    some = list(itertools.islice(_cells(tree, path), FEW))
    first = next(iter(some), {})
    columns = _columns(first)
    if whole.suffix.lower() in shards.SUFFIXES and shards.Shard(whole).holds_recordings:
        return Table(path, columns, is_shard=True) if {"word", "sentence"} & columns.keys() else None
    if "file" not in columns and (file := _column_of_files(tree, path, some)) is not None:
        columns = {"file": file} | {what: name for what, name in columns.items() if name != file}
    if "file" in columns and not {"word", "sentence"} & columns.keys():
        columns |= _only_column_of_words(tree, path, some, columns)
    if "file" not in columns or len(columns) < 2:
        return None
    if not {"word", "sentence"} & columns.keys():  # then the folder of a recording is its word
        file = tree.find(_text(first[columns["file"]]), path.rpartition("/")[0])
        if not {"speaker", "split"} & columns.keys() or file is None or "/" not in file:
            return None
        if is_container(file.split("/")[-2]):
            return None
    return Table(path, columns)


def _column_of_files(tree: Tree, path: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the first column of which most values name recordings; None if there is none."""
    near = path.rpartition("/")[0]
    for column in rows[0] if rows else ():
        found = sum(tree.find(_text(row.get(column)), near) is not None for row in rows)
        if found > len(rows) / 2:
            return str(column)
    return None


def _only_column_of_words(
    tree: Tree, path: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> dict[str, str]:
    """Returns the column of the words under whatever name, if recordings lie in one folder and only one is left."""
    left = [name for key, name in _named(rows[0]).items() if name not in columns.values() and key not in COUNTED]
    files = [tree.find(_text(row.get(columns["file"])), path.rpartition("/")[0]) for row in rows]
    folders = {file.rpartition("/")[0] for file in files if file is not None}
    if len(left) != 1 or len(folders) != 1:
        return {}
    words = [_text(row.get(left[0])) for row in rows]
    return {} if any(_number(word) is not None for word in words) else {"word": left[0]}


def _columns(row: Iterable[object]) -> dict[str, str]:
    """Returns the columns of a row by what they say."""
    there = _named(row)
    found: dict[str, str] = {}
    for what, names in NAMES.items():
        taken = set(found.values())
        chosen = [there[name] for name in names if name in there and there[name] not in taken]
        if "onset" in there and what == "start":
            chosen = [there["onset"]]
        if "onset" not in there and what == "end":
            chosen = [name for name in chosen if name != there.get("offset")]
        if chosen:
            found[what] = chosen[0]
    return found


def _rows(tree: Tree, table: Table) -> Iterator[Row]:
    """Yields the rows of a table."""
    folder, _, name = table.path.rpartition("/")
    split_of_table = split_within(name.rpartition(".")[0]) or next(
        (split for part in reversed(folder.split("/")) if (split := split_named(part))), ""
    )
    columns = dict(table.columns)
    if "word" in columns:
        columns["word"] = _column_of_words(list(itertools.islice(_cells(tree, table.path), SAMPLE)), columns["word"])
    for number, row in enumerate(_cells(tree, table.path)):
        said = {what: _text(row.get(column)) for what, column in columns.items()}
        start, end, duration = (_number(said.get(what, "")) for what in ("start", "end", "duration"))
        if end is None and start is not None and duration is not None:
            end = start + duration
        file = table.path if table.is_shard else said["file"]
        word = said.get("word") or said.get("sentence")
        if word is None:
            word = word_of((tree.find(file, folder) or "").rpartition("/")[0].rpartition("/")[2])
        split = split_named(said["split"]) if "split" in columns else split_of_table or _split_of(file)
        yield Row(
            file=file,
            near=folder,
            word=word,
            is_sentence="word" not in columns and "sentence" in columns,
            speaker="" if said.get("speaker") in UNNAMED else said.get("speaker", ""),
            split=split,
            start=start,
            end=end,
            row=number if table.is_shard else None,
            refused="they are marked as not valid" if said.get("valid", "").casefold() in ("false", "0") else "",
        )


def _named(row: Iterable[object]) -> dict[str, str]:
    """Returns the names of columns by how they are compared: file_name for "File Name"."""
    return {str(name).strip().casefold().replace(" ", "_").replace("-", "_"): str(name) for name in row}


def _column_of_words(rows: Sequence[Mapping[str, Any]], chosen: str) -> str:
    """Returns the column of the words: where several could be, one whose values are not all numbers."""
    there = _named(rows[0] if rows else ())
    for column in (there[name] for name in NAMES["word"] if name in there):
        if not all(_number(_text(row.get(column))) is not None for row in rows):
            return column
    return chosen


def _split_of(file: str) -> str:
    """Returns the split that the outermost folder of a recording names."""
    return split_named(file.replace("\\", "/").removeprefix("./").split("/")[0]) if "/" in file else ""


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, dict):
        return _text(value.get("path"))
    if isinstance(value, list):
        return _text(value[0]) if len(value) == 1 else ""
    return str(value).strip()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _cells(tree: Tree, path: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a file, each cell under the name of its column; none if it is not a table."""
    whole = tree.folder / path
    suffix = whole.suffix.lower()
    if suffix in shards.SUFFIXES:
        return shards.Shard(whole).rows()
    return _json_rows(whole) if suffix in (".json", ".jsonl", ".ndjson") else _text_rows(tree, path)


def _text_rows(tree: Tree, path: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV or TSV file with any mark between cells; without a header: file, word, …

    Where | stands between the cells, as in LJ Speech, they are file, sentence, and the sentence as it is spoken. Lines
    may also be a file, a blank, and a word.
    """
    lines: Iterator[str] = (
        line
        for line in read_lines(tree.folder / path)
        if line.strip() and not line.startswith("sep=")  # Excel's
    )
    first = next(lines, "")
    mark = max("\t,;|", key=first.count)
    near = path.rpartition("/")[0]
    if mark not in first:
        if " " in first and tree.find(first.rsplit(None, 1)[0], near) is not None:
            yield from (dict(zip(("file", "word"), line.rsplit(None, 1), strict=False)) for line in [first, *lines])
        return
    header = [cell.strip() for cell in next(csv.reader([first], delimiter=mark))]
    if "file" not in _columns(header) and tree.find(header[0], near) is not None:
        names = ["file", "sentence", "spoken"] if mark == "|" else ["file", "word", "speaker", "split"]
        header = names[: len(header)]
        lines = itertools.chain([first], lines)
    # In Common Voice and other TSV files, a quotation mark is part of the sentence.
    quotes = (
        csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE) if mark == "\t" else csv.reader(lines, delimiter=mark)
    )
    for cells in quotes:
        yield dict(itertools.zip_longest(header, cells[: len(header)], fillvalue=""))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON lines, or those of a JSON document; none if the file is something else."""
    with path.open("rb") as file:
        lines = (line for line in io.TextIOWrapper(file, "utf-8-sig", "replace") if line.strip())
        start = list(itertools.islice(lines, 2))
        first = _parsed(start[0]) if len(start) == 2 else None
        if not isinstance(first, dict):
            yield from _objects(_parsed("".join([*start, *lines])))
            return
        yield first
        for line in itertools.chain(start[1:], lines):
            value = _parsed(line)
            if value is None:
                raise ValueError(f"{printable(path)} must have an object on every line, got {one_line(line[:80])}")
            if isinstance(value, dict):
                yield value


def _parsed(text: str) -> Any:
    """Returns a JSON value, or None if the text is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSON document.

    It is an array of objects, an object with one, what belongs to each file, or the
    files of each word.
    """
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict) and isinstance(one.get("data"), dict) and "annotations" in one:
                yield from _of_label_studio(one)
            elif isinstance(one, dict):
                yield one
    elif isinstance(value, dict):
        arrays = [one for one in value.values() if isinstance(one, list) and one and isinstance(one[0], dict)]
        if value and all(map(is_recording, value)):
            for file, said in value.items():
                yield {"file": file} | (said if isinstance(said, dict) else {"word": said})
        elif value and all(isinstance(some, list) and some and _are_recordings(some) for some in value.values()):
            for word, some in value.items():
                yield from ({"file": file, "word": word} for file in some)
        elif len(arrays) == 1 and not _columns(value).keys() & {"file"}:
            yield from _objects(arrays[0])
        else:
            yield value


def _are_recordings(values: list[Any]) -> bool:
    return all(isinstance(value, str) and is_recording(value) for value in values)


def _of_label_studio(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a row for every label of a task that Label Studio exported as JSON."""
    audio = next((value for value in task["data"].values() if isinstance(value, str)), "")
    for annotation in task["annotations"] if isinstance(task["annotations"], list) else []:
        for result in annotation.get("result", []):
            value = result.get("value", {})
            for label in value.get("choices") or value.get("labels") or []:
                yield {"file": audio, "word": label, "start": value.get("start"), "end": value.get("end")}
