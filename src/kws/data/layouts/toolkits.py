"""What other tools write: Kaldi's data folders, exports of Edge Impulse and Teachable Machine, Audacity's labels."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from kws import files
from kws.config import BACKGROUND_NOISE
from kws.data.layouts.rows import Row, UnclearLayout, listing_of, split_named, split_within
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.splits import read_list
from kws.text import one_line

WAV_SCP = "wav.scp"

INFO_LABELS = "info.labels"


def kaldi(tree: Tree) -> Listing | None:
    """Lists data folders of Kaldi: wav.scp, text, and where there are utt2spk and segments.

    Source: "Data preparation" in Kaldi's documentation (kaldi-asr.org/doc/data_prep.html).

    Raises:
        ValueError: a line of wav.scp is a command, or text is missing.
    """
    folders = [path.removesuffix(WAV_SCP) for path in tree.others if path.rpartition("/")[2] == WAV_SCP]
    if not folders:
        return None
    rows: list[Row] = []
    tables: list[str] = []
    for folder in folders:
        there = {
            name: folder + name for name in (WAV_SCP, "text", "utt2spk", "segments") if folder + name in tree.others
        }
        if "text" not in there:
            raise ValueError(
                f"a data folder of Kaldi must have a file text with the words, got none in {folder or '.'}"
            )
        tables += there.values()
        rows += _kaldi_rows(folder, {name: _keyed(tree, path) for name, path in there.items()})
    return listing_of(tree, "kaldi", rows, tables)


def _kaldi_rows(folder: str, there: dict[str, dict[str, str]]) -> Iterator[Row]:
    for name, value in there[WAV_SCP].items():
        if value.endswith("|"):
            raise ValueError(
                f"{folder}{WAV_SCP} must name files, got the command {one_line(value)[:80]!r} for {one_line(name)}: "
                "run the commands to write WAV files, and name these"
            )
    split = split_within(folder.rstrip("/").rpartition("/")[2])
    segments = there.get("segments")
    for name, words in there["text"].items():
        recording, start, end = name, None, None
        if segments is not None:
            recording, first, last, *_ = [*segments.get(name, "").split(), "", "", ""]
            start, end = _seconds(first), _seconds(last)
        yield Row(
            file=there[WAV_SCP].get(recording, ""),
            near=folder.rstrip("/"),
            word=words,
            is_sentence=True,
            speaker=there.get("utt2spk", {}).get(name, ""),
            split=split,
            start=start,
            end=end,
        )


def _keyed(tree: Tree, path: str) -> dict[str, str]:
    """Reads a table of Kaldi: on every line a name, a blank, and what belongs to it."""
    pairs = (line.split(None, 1) for _, line in read_list(tree.folder / path))
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def edge_impulse(tree: Tree) -> Listing | None:
    """Lists an export of Edge Impulse: training/ and testing/ with <label>.<name>.wav, or as info.labels says.

    Source: "Export your data" and "Importing datasets: info.labels" in the documentation of Edge Impulse.
    """
    infos = [path for path in tree.others if path.rpartition("/")[2] == INFO_LABELS]
    rows: list[Row] = []
    for path in infos:
        folder = path.removesuffix(INFO_LABELS).rstrip("/")
        for entry in files.read_object(tree.folder / path, files=list)["files"]:
            rows.append(_edge_impulse_row(entry if isinstance(entry, dict) else {}, folder))
    if infos:
        return listing_of(tree, "edge-impulse", rows, infos)
    splits = {file: split_named(file.split("/")[0]) for file in tree.recordings if file.count("/") == 1}
    names = [file.split("/")[1] for file in splits]
    if not names or len(names) < len(tree.recordings) or not all(name.count(".") >= 2 for name in names):
        return None
    if set(splits.values()) - {"train", "validation", "test"}:
        return None
    rows = [Row(file=file, word=file.split("/")[1].split(".")[0], split=split) for file, split in splits.items()]
    return listing_of(tree, "edge-impulse", rows, [])


def _edge_impulse_row(entry: dict[str, Any], folder: str) -> Row:
    label = entry.get("label", "")
    if isinstance(label, dict):
        label = label.get("label", "")
    split = split_named(str(entry.get("category", ""))) or split_named(str(entry.get("path", "")).split("/")[0])
    return Row(file=str(entry.get("path", "")), near=folder, word=str(label), split=split)


def teachable_machine(tree: Tree) -> Listing | None:
    """Lists the samples of a project of Teachable Machine, which are named <class>-!-<number>.<suffix>."""
    named = [file for file in tree.recordings if "-!-" in file.rpartition("/")[2]]
    if not named or len(named) < len(tree.recordings):
        return None
    words = [file.rpartition("/")[2].partition("-!-")[0] for file in named]
    words = [BACKGROUND_NOISE if word == "Background Noise" else word for word in words]  # it makes this class itself
    rows = [Row(file=file, word=word) for file, word in zip(named, words, strict=True)]
    return listing_of(tree, "teachable-machine", rows, [])


_LABEL = re.compile(r"(\d+[.,]?\d*)\t(\d+[.,]?\d*)\t(.*)")


def audacity(tree: Tree) -> Listing | None:
    """Lists recordings beside label tracks of Audacity: <name>.txt with begin, end and word on every line.

    A label track of any name belongs to the recording of a folder that has only one. Source: "Importing and Exporting
    Labels" in the manual of Audacity.

    Raises:
        UnclearLayout: a label track belongs to no recording.
    """
    rows: list[Row] = []
    tracks = {path: labels for path in tree.others if path.lower().endswith(".txt") and (labels := _labels(tree, path))}
    for path, labels in tracks.items():
        folder = path.rpartition("/")[0]
        beside = [file for file in tree.recordings if file.rpartition("/")[0] == folder]
        of_name = [file for file in beside if PurePosixPath(file).stem == PurePosixPath(path).stem]
        recordings = of_name if len(of_name) == 1 else beside
        if len(recordings) != 1:
            raise UnclearLayout(
                f"a label track must be named like its recording, got {one_line(path)} beside {len(beside)} recordings"
                ": rename it (interview.txt for interview.wav)"
            )
        rows += [Row(file=recordings[0], word=word, start=start, end=end) for start, end, word in labels]
    return listing_of(tree, "audacity", rows, list(tracks)) if tracks else None


def _labels(tree: Tree, path: str) -> list[tuple[float, float, str]]:
    """Returns begin, end and text of the labels in a file; none if it is not a label track."""
    found = []
    for _, line in read_list(tree.folder / path):
        if line.startswith("\\"):
            continue  # the range of frequencies of the label before
        match = _LABEL.fullmatch(line)
        if match is None:
            return []
        found.append((float(match[1].replace(",", ".")), float(match[2].replace(",", ".")), match[3]))
    return found


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
