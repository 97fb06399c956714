"""The rows of files that list recordings: CSV, TSV, JSON, JSON lines, Parquet, and what annotation tools export."""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kws.data import shards
from kws.data.layouts.columns import columns_of
from kws.data.layouts.rows import split_named
from kws.data.layouts.tree import Tree
from kws.data.names import is_recording
from kws.data.splits import read_lines
from kws.text import one_line, printable

LISTS_OF = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".lst", ".list")
"""The suffixes of texts that may list recordings, which may also be compressed (.gz)."""

SUFFIXES = (*LISTS_OF, *(f"{suffix}.gz" for suffix in LISTS_OF), *shards.SUFFIXES)


def cells(tree: Tree, path: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a file, each cell under the name of its column; none if it is not a table.

    Raises:
        ValueError: it breaks off within a cell, or is damaged otherwise.
    """
    whole = tree.folder / path
    name = path.lower().removesuffix(".gz")
    if name.endswith(shards.SUFFIXES):
        return shards.Shard(whole).rows()
    return _json_rows(whole) if name.endswith((".json", ".jsonl", ".ndjson")) else _text_rows(tree, path)


def _text_rows(tree: Tree, path: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV or TSV file with any mark between cells; without a header: file, word, …

    Where | stands between the cells, as in LJ Speech, they are file, sentence, and the sentence as it is spoken. Lines
    may also be a file, a blank, and a word. Comments (#) may come first, of which the last may be the header.
    """
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for at, line in enumerate(read_lines(tree.folder / path), 1):  # noqa: B007
            if line.strip() and not line.startswith("sep="):  # Excel's
                yield line

    lines = texts()
    comment, first = "", next(lines, "")
    while first.startswith("#"):
        comment, first = first.lstrip("# "), next(lines, "")
    mark = max("\t,;|", key=first.count)
    near = path.rpartition("/")[0]
    if mark not in first:
        if " " in first and tree.find(first.rsplit(None, 1)[0], near) is not None:
            yield from (dict(zip(("file", "word"), line.rsplit(None, 1), strict=False)) for line in [first, *lines])
        return
    header = _header(first, mark)
    if "file" not in columns_of(header):
        if len(named := _header(comment, mark)) == len(header):
            header, lines = named, itertools.chain([first], lines)
        elif names := _without_header(tree, header, near, mark):
            header, lines = names, itertools.chain([first], lines)
    # In Common Voice and other TSV files, a quotation mark is part of the sentence.
    if mark == "\t":
        rows = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, delimiter=mark, skipinitialspace=True, strict=True)
    while True:
        before = at
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"a quotation mark that opens a cell must be closed, got {printable(path)}, line {before + 1}: "
                f"{error}. Close it, write it twice if it is part of the text, or save the list as TSV"
            ) from error
        yield dict(itertools.zip_longest(header, row[: len(header)], fillvalue=""))


def _header(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])]


def _without_header(tree: Tree, row: list[str], near: str, mark: str) -> list[str]:
    """Returns what to call the columns of a table of which the first row names a recording; none if it does not."""
    named = [at for at, cell in enumerate(row) if is_recording(cell) and tree.find(cell, near) is not None]
    if not named and tree.find(row[0], near) is not None:
        named = [0]
    if not named:
        return []
    if named[0] == 0:
        return (
            ["file", "sentence", "spoken"][: len(row)]
            if mark == "|"
            else ["file", "word", "speaker", "split"][: len(row)]
        )
    return ["word", "file"] if len(row) == 2 else [f"column {at}" for at in range(1, len(row) + 1)]


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON lines, or those of a JSON document; none if the file is something else."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = (line for line in io.TextIOWrapper(file, "utf-8-sig", "replace") if line.strip())
        start = list(itertools.islice(lines, 2))
        first = _parsed(start[0]) if len(start) == 2 else None
        if not isinstance(first, dict):
            yield from _objects(_parsed("".join([*start, *lines])))
            return
        yield from _annotated(first)
        for line in itertools.chain(start[1:], lines):
            value = _parsed(line)
            if value is None:
                raise ValueError(f"{printable(path)} must have an object on every line, got {one_line(line[:80])}")
            if isinstance(value, dict):
                yield from _annotated(value)


def _parsed(text: str) -> Any:
    """Returns a JSON value, or None if the text is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSON document.

    It is an array of objects, an object with one or with one for each split, what belongs to each file, or the
    files of each word.
    """
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                yield from _annotated(one)
    elif isinstance(value, dict):
        arrays = [one for one in value.values() if isinstance(one, list) and one and isinstance(one[0], dict)]
        are_splits = bool(value) and all(map(split_named, value))
        if value and all(map(is_recording, value)):
            for file, said in value.items():
                yield {"file": file} | (said if isinstance(said, dict) else {"word": said})
        elif value and all(isinstance(some, list) and some and _are_recordings(some) for some in value.values()):
            for name, some in value.items():
                yield from ({"file": file, "split" if are_splits else "word": name} for file in some)
        elif arrays and are_splits:
            for split, some in value.items():
                yield from ({"split": split} | row for row in _objects(some))
        elif arrays and "file" not in columns_of(value):
            named = (some for some in arrays if any(is_recording(str(cell)) for cell in some[0].values()))
            yield from _objects(arrays[0] if len(arrays) == 1 else next(named, []))
        else:
            yield value


def _are_recordings(values: list[Any]) -> bool:
    return all(isinstance(value, str) and is_recording(value) for value in values)


def _annotated(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a row for every label of a task that Label Studio or Prodigy exported as JSON; any other row as it is."""
    if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        audio = next((value for value in row["data"].values() if isinstance(value, str)), "")
        for annotation in row["annotations"]:
            if not annotation.get("was_cancelled"):
                for result in annotation.get("result", []):
                    yield from ({"file": audio} | region for region in regions(result.get("value", {})))
    elif row.get("answer") in ("accept", "reject", "ignore"):
        labels = row.get("audio_spans") or [{"label": row.get("accept", row.get("label"))}]
        if row["answer"] == "accept":
            yield from ({"file": row.get("path") or row.get("audio")} | region for region in regions(labels))
    else:
        yield row


def regions(cell: Any) -> list[dict[str, Any]]:
    """Returns the labels of a recording, or of its stretches, that a cell has as annotation tools write them.

    Such as [{"start": 0.2, "end": 0.9, "labels": ["left"]}] or {"choices": ["left"]}, also as a text; none in others.
    """
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        cell = _parsed(cell)
    found = []
    for value in cell if isinstance(cell, list) else [cell]:
        labels = value if isinstance(value, dict) else {}
        label = labels.get("choices") or labels.get("labels") or labels.get("label")
        if label:
            found.append({"word": label, "start": labels.get("start"), "end": labels.get("end")})
    return found
