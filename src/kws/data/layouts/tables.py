"""Lists of recordings in CSV, TSV, JSON and Parquet: audiofolder, Common Voice, Spoken Words, NeMo, and others."""

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

import numpy as np

from kws.data.digest import read_manifest
from kws.data.index import Lookup
from kws.data.layouts.rows import Row, UnclearLayout, listing_of, split_named, split_within
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import word_of
from kws.data.shards import Shard
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
    "speaker": ("client_id", "speaker_id", "speaker", "speakerid", "spk_id", "spk", "user_id", "user", "participant"),
    "split": ("set", "split", "subset", "partition"),
    "start": ("start", "begin", "onset", "start_time", "begin_time", "offset", "xmin"),
    "end": ("end", "stop", "end_time", "xmax", "offset"),
    "duration": ("duration",),
    "valid": ("valid", "is_valid"),
}  # fmt: skip
"""What the columns are called, in any case; of several that are there the first counts."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")

NOT_FOR_USE = ("invalidated", "other", "reported", "clip_durations", "unvalidated_sentences", "validated_sentences")
"""Tables of Common Voice beside validated.tsv that hold what listeners rejected or have not heard, or no recordings."""

UNNAMED = ("NA", "nan", "None", "null")
"""What stands in the column of the speakers if nobody knows the speaker."""

SAMPLE = 1000
"""How many rows are looked at to choose the column of the words."""


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
    """Refuses a table that names recordings in a column of an unknown name.

    Raises:
        UnclearLayout: there is one.
    """
    for path in tree.others:
        if Path(path).suffix.lower() in SUFFIXES and (path != MANIFEST or read_manifest(tree.folder) is None):
            for row in itertools.islice(_cells(tree, path, strict=False), 1):
                texts = [(str(column), _text(value)) for column, value in row.items()]
                named = [column for column, text in texts if "." in text and tree.find(text, path.rpartition("/")[0])]
                if named and len(row) > 1:
                    raise UnclearLayout(
                        f"a list must have a column named file and one named word, got {path} with "
                        f"{', '.join(map(one_line, map(str, row)))}, of which {one_line(named[0])} names recordings: "
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
    named = len(np.unique(listing.clips.files))
    others = tree.recordings[Lookup(listing.clips.files).row_of(tree.recordings) < 0]
    parents = Counter(file.split("/")[0] for file in others if file.count("/") == 1)
    folders = [word for word in parents if not wrong_with(word)]
    if parents.total() > named and len(folders) > 1:
        raise UnclearLayout(
            f"a list must name the recordings of its folder, got {', '.join(listing.tables[:3])} with "
            f"{named:,} of {len(tree.recordings):,}, which lie in {len(folders):,} folders: use --layout list to "
            "read only these, or --layout word to read the folders"
        )


def _table(tree: Tree, path: str) -> Table | None:
    """Opens a file that may be a list, or returns None if it is none."""
    whole = tree.folder / path
    if whole.suffix.lower() not in SUFFIXES or (path == MANIFEST and read_manifest(tree.folder) is not None):
        return None
    first = next(_cells(tree, path), {})
    columns = _columns(first)
    if whole.suffix.lower() == ".parquet" and Shard(whole).holds_recordings:
        return Table(path, columns, is_shard=True) if {"word", "sentence"} & columns.keys() else None
    if "file" not in columns or len(columns) < 2:
        return None
    if not {"word", "sentence"} & columns.keys():  # then the folder of a recording is its word
        file = tree.find(_text(first[columns["file"]]), path.rpartition("/")[0])
        if not {"speaker", "split"} & columns.keys() or file is None or "/" not in file:
            return None
    return Table(path, columns)


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


def _cells(tree: Tree, path: str, strict: bool = True) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a file, each cell under the name of its column; none if it is not a table of recordings.

    Unless `strict`, a table of text may have any names of columns.
    """
    whole = tree.folder / path
    suffix = whole.suffix.lower()
    if suffix == ".parquet":
        return Shard(whole).rows()
    return _json_rows(whole) if suffix in (".json", ".jsonl", ".ndjson") else _text_rows(tree, path, strict)


def _text_rows(tree: Tree, path: str, strict: bool) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV or TSV file with any mark between cells; without a header: file, word, …

    Where | stands between the cells, as in LJ Speech, they are file, sentence, and the sentence as it is spoken.
    """
    lines: Iterator[str] = (
        line
        for line in read_lines(tree.folder / path)
        if line.strip() and not line.startswith("sep=")  # Excel's
    )
    first = next(lines, "")
    mark = max("\t,;|", key=first.count)
    if mark not in first:
        return
    header = [cell.strip() for cell in next(csv.reader([first], delimiter=mark))]
    columns = _columns(header)
    if "file" not in columns or len(columns) < 2:
        if tree.find(header[0], path.rpartition("/")[0]) is not None:
            names = ["file", "sentence", "spoken"] if mark == "|" else ["file", "word", "speaker", "split"]
            header = names[: len(header)]
            lines = itertools.chain([first], lines)
        elif strict:
            return
    # In Common Voice and other TSV files, a quotation mark is part of the sentence.
    quotes = (
        csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE) if mark == "\t" else csv.reader(lines, delimiter=mark)
    )
    for cells in quotes:
        yield dict(itertools.zip_longest(header, cells[: len(header)], fillvalue=""))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON lines, or of a JSON array; none if the file is something else."""
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if start.startswith(b"["):
            try:
                values = json.loads(file.read())
            except ValueError:
                return
            for value in values:
                if isinstance(value, dict) and isinstance(value.get("data"), dict) and "annotations" in value:
                    yield from _of_label_studio(value)
                elif isinstance(value, dict):
                    yield value
            return
        for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", "replace"), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                if number == 1:
                    return  # not JSON lines
                raise ValueError(
                    f"{printable(path)} must have an object on every line, got {one_line(line[:80])}"
                ) from error
            if isinstance(value, dict):
                yield value


def _of_label_studio(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a row for every label of a task that Label Studio exported as JSON."""
    audio = next((value for value in task["data"].values() if isinstance(value, str)), "")
    for annotation in task["annotations"] if isinstance(task["annotations"], list) else []:
        for result in annotation.get("result", []):
            value = result.get("value", {})
            for label in value.get("choices") or value.get("labels") or []:
                yield {"file": audio, "word": label, "start": value.get("start"), "end": value.get("end")}
