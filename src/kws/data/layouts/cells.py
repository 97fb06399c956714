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
from kws.data.layouts.columns import columns_of, number, text
from kws.data.layouts.folders import named_like_speakers
from kws.data.layouts.tree import Tree
from kws.data.names import is_recording, split_named
from kws.data.splits import read_lines
from kws.data.words import alike, is_known
from kws.text import one_line, printable

LISTS_OF = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".manifest", ".txt", ".lst", ".list")
"""The suffixes of texts that may list recordings, which may also be compressed (.gz)."""

SUFFIXES = (*LISTS_OF, *(f"{suffix}.gz" for suffix in LISTS_OF), *shards.SUFFIXES)

SAMPLE = 1000
"""How many rows are looked at to tell what columns say."""

TITLES = 5
"""In how many of the first lines the header may be, below titles."""


def cells(tree: Tree, path: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a file, each cell under the name of its column; none if it is not a table.

    Raises:
        ValueError: it breaks off within a cell, or is damaged otherwise.
    """
    whole = tree.folder / path
    name = path.lower().removesuffix(".gz")
    if name.endswith(shards.SUFFIXES):
        return shards.Shard(whole).rows()
    if name.endswith((".json", ".jsonl", ".ndjson")) or next(read_lines(whole), "").lstrip().startswith(("{", "[")):
        return _with_sources(tree, path, _json_rows(whole)) if SUPERVISIONS in path else _json_rows(whole)
    return _text_rows(tree, path)


def _text_rows(tree: Tree, path: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV or TSV file with any mark between cells; without a header: as their values tell.

    Lines may also be a file, a blank, and a word. Titles and comments (#) may come first, and the header be the last of
    the comments.
    """
    at, near = 0, path.rpartition("/")[0]

    def texts() -> Iterator[str]:
        nonlocal at
        for at, line in itertools.chain(some, numbered):  # noqa: B007
            yield line

    read = enumerate(read_lines(tree.folder / path), 1)
    numbered = ((number, line) for number, line in read if line.strip() and not line.startswith("sep="))  # Excel's
    some = list(itertools.islice(numbered, SAMPLE))
    comments = list(itertools.takewhile(lambda one: one[1].startswith("#"), some))
    del some[: len(comments)]
    for above, (_, line) in enumerate(some[:TITLES]):
        mark = _mark_in(line)
        if _is_header(header := _header(line, mark), mark):
            del some[: above + 1]
            break
    else:
        first = some[0][1] if some else ""
        mark = _mark_in(first)
        if mark == " ":
            if tree.find(first.rsplit(None, 1)[0], near) is not None:
                yield from (dict(zip(("file", "word"), line.rsplit(None, 1), strict=False)) for line in texts())
            return
        header = _header(first, mark)
        if comments and len(named := _header(comments[-1][1].lstrip("# "), mark)) == len(header):
            header = named
        elif names := _without_header(tree, [_header(line, mark) for _, line in some], near, mark):
            header = names
        else:
            del some[:1]
    if some and len(row := _header(some[0][1], mark)) == len(header) + 1 and row[-1]:
        header.insert(0, "")  # R numbers the rows, but not in the header
    # In Common Voice and other TSV files, a quotation mark is part of the sentence.
    if mark == "\t" and not all(line.startswith('"') and line.endswith('"') for _, line in some[:TITLES]):
        rows = csv.reader(texts(), delimiter=mark, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(texts(), delimiter=mark, skipinitialspace=True, strict=True)
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


def _mark_in(line: str) -> str:
    mark = max("\t,;|", key=line.count)
    return mark if mark in line else " "


def _header(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])]


def _is_header(names: list[str], mark: str) -> bool:
    """Tells whether cells are names of columns: of files and something else; between blanks all must be known."""
    known = columns_of(names)
    return "file" in known and len(known) > 1 and (mark != " " or len(known) == len(names))


def _without_header(tree: Tree, rows: list[list[str]], near: str, mark: str) -> list[str]:
    """Returns what to call the columns of a table of which the first row names a recording; none if it does not.

    One column is the word: of several that which has known words, or else is neither of numbers nor of names like
    speakers, nor has the same in all rows; of more, the first after the file, or between | the last, as in the lists of
    speech synthesis, unless the last only spells the one before otherwise, as in LJ Speech.
    """
    named = [at for at, cell in enumerate(rows[0]) if is_recording(cell) and tree.find(cell, near) is not None]
    if not named and tree.find(rows[0][0], near) is not None:
        named = [0]
    if not named:
        return []
    names = [f"column {at}" for at in range(1, len(rows[0]) + 1)]
    names[named[0]] = "file"
    columns = list(itertools.zip_longest(*(row[: len(names)] for row in rows), fillvalue=""))
    left = [at for at in range(len(names)) if at != named[0]]
    if splits := [at for at in left if len(left) > 1 and all(map(split_named, columns[at]))]:
        names[splits[0]] = "split"
        left.remove(splits[0])
    words = [at for at in left if sum(is_known(cell) and not cell.isdigit() for cell in columns[at]) > len(rows) / 2]
    if len(words) != 1:
        words = [at for at in left if len(rows) < 2 or len(set(columns[at])) > 1] or left
        words = [at for at in words if not all(number(cell) is not None for cell in columns[at])] or words
        words = [at for at in words if not named_like_speakers(sorted(set(columns[at])))] or words
    if len(words) > 1 and named[0] > 0:
        return names
    if len(words) > 1 and mark == "|":
        same = sum(alike(row[words[-1]]) == alike(row[words[-2]]) for row in zip(*columns, strict=True))
        words = words[-2:] if same > len(rows) / 2 else words[-1:]
    for word in words[:1]:
        names[word] = "sentence" if mark == "|" else "word"
        left.remove(word)
        for at in [one for one in left if one not in words[1:]] if mark == "|" else left:
            pairs = {(row[at], row[word]) for row in zip(*columns, strict=True)}
            speaks = len(pairs) > len({speaker for speaker, _ in pairs}) > 1  # several words, as speakers do
            if at == word + 1 or (speaks and (at < word or mark == "|")):
                names[at] = "speaker"
                break
    return names


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

    It is an array of objects or arrays, or an object with one, or with one for each split; what belongs to each file or
    identifier, as in SpeechBrain; the files of each word; or its columns, as pandas writes them.
    """
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                yield from _annotated(one)
            elif isinstance(one, list):
                yield {f"column {at}": cell for at, cell in enumerate(one, 1)}
    elif isinstance(value, dict) and value:
        within = list(value.values())
        arrays = [one for one in within if isinstance(one, list) and one and isinstance(one[0], dict)]
        are_splits = all(map(split_named, value))
        names, rows = value.get("columns"), value.get("data")
        if isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows):
            yield from (dict(zip(names, row, strict=False)) for row in rows)
        elif "file" in columns_of(value) and all(isinstance(one, dict) for one in within):
            yield from ({name: cell.get(row) for name, cell in value.items()} for row in within[0])
        elif "file" in columns_of(value) and all(isinstance(one, list) for one in within):
            yield from (dict(zip(value, row, strict=True)) for row in zip(*within, strict=False))
        elif "file" in columns_of(value) or not {SUPERVISIONS, "sources"}.isdisjoint(value):
            yield from _annotated(value)
        elif all(isinstance(some, list) and some and all(isinstance(one, str) for one in some) for some in within):
            for name, some in value.items():
                what = "file" if all(map(is_recording, some)) else "id"
                yield from ({what: file, "split" if are_splits else "word": name} for file in some)
        elif are_splits and all(isinstance(one, dict | list) for one in within):
            for split, some in value.items():
                yield from ({"split": split} | row for row in _objects(some))
        elif all(isinstance(one, dict) for one in within) and len(value) > 1:
            for name, said in value.items():
                yield from _annotated({"file" if is_recording(name) else "id": name} | said)
        elif all(isinstance(one, str | int) or is_recording(name) for name, one in value.items()):
            for name, word in value.items():
                yield {"file" if is_recording(name) else "id": name} | (
                    word if isinstance(word, dict) else {"word": word}
                )
        elif arrays:
            named = (some for some in arrays if any(is_recording(str(cell)) for cell in some[0].values()))
            yield from _objects(arrays[0] if len(arrays) == 1 else next(named, []))
        elif len(nested := [one for one in within if isinstance(one, dict | list) and one]) == 1:
            yield from _objects(nested[0])


def _objects_in(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _annotated(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a row for every label of what Label Studio, Prodigy or Lhotse wrote as JSON; another row with its parts.

    Of objects in a row the parts stand beside the others, under their own names.
    """
    if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        texts = [value for value in row["data"].values() if isinstance(value, str)]
        audio = next((text for text in texts if is_recording(text.partition("?")[0])), next(iter(texts), ""))
        for annotation in _objects_in(row["annotations"]):
            results = [] if annotation.get("was_cancelled") else _objects_in(annotation.get("result"))
            # What is typed for a stretch says more than how it is labelled.
            values = _objects_in([result.get("value") for result in results])
            typed = [value for value in values if "text" in value]
            for value in typed:
                yield {"file": audio, "sentence": value["text"], "start": value.get("start"), "end": value.get("end")}
            for value in [] if typed else values:
                yield from ({"file": audio} | region for region in regions(value))
    elif row.get("answer") in ("accept", "reject", "ignore"):
        labels = row.get("audio_spans") or [{"label": row.get("accept", row.get("label"))}]
        if row["answer"] == "accept":
            yield from ({"file": row.get("path") or row.get("audio")} | region for region in regions(labels))
    elif isinstance(row.get("tracks"), list) and row.get("type") == "MixedCut":
        raise ValueError(
            f"a cut of Lhotse must be of one recording, got the mixed cut {one_line(str(row.get('id')))}: write the "
            "cuts with save_audios, and their manifest with to_file"
        )
    elif isinstance(row.get(SUPERVISIONS), list):
        begin = number(text(row.get("start"))) or 0.0
        for one in _objects_in(row[SUPERVISIONS]):
            start = begin + (number(text(one.get("start"))) or 0.0)
            about = {"file": _source_of(row.get("recording")), "sentence": one.get("text"), "start": start}
            yield about | {"speaker": one.get("speaker"), "duration": one.get("duration")}
    else:
        parts: dict[str, Any] = {}
        for cell in row.values():
            parts = next(_annotated(cell), {}) | parts if isinstance(cell, dict) and "path" not in cell else parts
        yield parts | row


SUPERVISIONS, RECORDINGS = "supervisions", "recordings"
"""What Lhotse calls what is said where in a recording, and the recordings, in the names of files beside each other."""


def _with_sources(tree: Tree, path: str, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields supervisions of Lhotse with the files of their recordings, which the manifest beside them names."""
    beside = path.replace(SUPERVISIONS, RECORDINGS)
    there = _json_rows(tree.folder / beside) if beside in tree.others else ()
    files = {row.get("id"): _source_of(row) for row in there}
    yield from ({"file": files.get(row.get("recording_id")) or row.get("recording_id")} | row for row in rows)


def _source_of(recording: Any) -> str:
    """Returns the file of a recording of Lhotse; empty if it states none."""
    sources = _objects_in(recording.get("sources")) if isinstance(recording, dict) else []
    return str(sources[0].get("source", "")) if sources else ""


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
