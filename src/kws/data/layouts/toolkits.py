"""What other tools write: Kaldi's data folders, exports of Edge Impulse and Teachable Machine, Audacity's labels."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from kws import files
from kws.config import BACKGROUND_NOISE
from kws.data.kinds import is_audio_file
from kws.data.layouts.cells import cells
from kws.data.layouts.columns import columns_of, number, text, time, unit_of
from kws.data.layouts.folders import named_like_speakers
from kws.data.layouts.rows import Row, UnclearLayout, listing_of
from kws.data.layouts.tables import said_by
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import is_recording, split_named, split_of_path, split_within, stem_of, word_of
from kws.data.splits import read_lines, read_list
from kws.data.words import alike, is_known
from kws.text import one_line

log = logging.getLogger(__name__)

WAV_SCP = "wav.scp"

INFO_LABELS, STRUCTURED_LABELS = "info.labels", "structured_labels.labels"

SAMPLES, SAMPLE_OF = "samples.json", "-!-"


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
            start, end = number(first), number(last)
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
    """Lists an export of Edge Impulse: training/ and testing/ with <label>.<name>.wav, or as its files of labels say.

    Recordings may also be .json files of its data acquisition format. Source: "Edge Impulse labels", "Structured
    labels" and "Uploader" in its documentation, and exports in public repositories, which have info.labels in the root
    and in training/ and testing/.
    """
    tables = [path for path in tree.others if path.rpartition("/")[2] in (INFO_LABELS, STRUCTURED_LABELS)]
    in_splits = [path for path in tree.others if path.endswith(".json") and split_named(path.split("/")[0])]
    tree = tree.with_recordings(path for path in in_splits if is_audio_file(tree.folder / path))
    rows: list[Row] = []
    for path in tables:
        folder, _, name = path.rpartition("/")
        if name == INFO_LABELS:
            for entry in files.read_object(tree.folder / path, files=list)["files"]:
                rows += _edge_impulse_rows(entry if isinstance(entry, dict) else {}, folder)
        else:
            labelled = files.read_object(tree.folder / path, structuredLabels=dict)["structuredLabels"]
            for file, labels in labelled.items():
                rows += _labelled_rows(labels, Row(file=file, near=folder, word="", split=split_of_path(f"{folder}/")))
    if tables:
        return listing_of(tree, "edge-impulse", rows, tables)
    names = (file.split("/") for file in tree.recordings)
    if not len(tree.recordings) or not all(
        len(parts) == 2 and split_named(parts[0]) and parts[1].count(".") >= 2 for parts in names
    ):
        return None
    pairs = ((file, file.partition("/")[2].partition(".")[0]) for file in tree.recordings)
    return listing_of(
        tree, "edge-impulse", (Row(file=file, word=word, split=split_of_path(file)) for file, word in pairs), []
    )


def _edge_impulse_rows(entry: dict[str, Any], folder: str) -> list[Row]:
    """Returns what an entry of info.labels says: a label of the whole recording, or labels of stretches of it."""
    path, label = str(entry.get("path", "")), entry.get("label", "")
    split = split_named(str(entry.get("category", ""))) or split_of_path(path) or split_of_path(f"{folder}/")
    row = Row(file=path, near=folder, word="", split=split)
    if isinstance(label, dict) and isinstance(label.get("labels"), list):
        return _labelled_rows(label["labels"], row)
    return [replace(row, word=str(label.get("label", "") if isinstance(label, dict) else label))]


def _labelled_rows(labels: Any, row: Row) -> list[Row]:
    """Returns a row for every labelled stretch, from startIndex to endIndex in milliseconds, the last one included."""
    found = []
    for one in labels if isinstance(labels, list) else []:
        start, end = (number(str(one.get(name))) for name in ("startIndex", "endIndex"))
        if start is not None and end is not None:
            found.append(replace(row, word=str(one.get("label", "")), start=start / 1000, end=(end + 1) / 1000))
    return found


def teachable_machine(tree: Tree) -> Listing | None:
    """Lists the samples of Teachable Machine.

    A class that was downloaded is a folder with samples.json, which cuts samples out of sample-1.webm, …; the folder is
    named by whoever unpacked it. In a project (.tm, a zip archive) files are named <class>-!-<number>.

    Source: programs in public repositories that write and read these, as there is no description.
    """
    tables = [path for path in tree.others if path.rpartition("/")[2] == SAMPLES and path.count("/") > 0]
    rows = [row for path in tables for row in _samples(tree, path)]
    if rows:
        return listing_of(tree, "teachable-machine", rows, tables)
    more = [path for path in tree.others if SAMPLE_OF in path.rpartition("/")[2]]
    tree = tree.with_recordings(path for path in more if is_audio_file(tree.folder / path))
    if not len(tree.recordings) or not all(SAMPLE_OF in file.rpartition("/")[2] for file in tree.recordings):
        return None
    words = (_class_of(file.rpartition("/")[2].partition(SAMPLE_OF)[0]) for file in tree.recordings)
    rows_of = (Row(file=file, word=word) for file, word in zip(tree.recordings, words, strict=True))
    return listing_of(tree, "teachable-machine", rows_of, [])


def _samples(tree: Tree, path: str) -> Iterator[Row]:
    folder = path.rpartition("/")[0]
    try:
        samples = files.read_json(tree.folder / path)
    except ValueError:
        return
    for one in samples if isinstance(samples, list) else []:
        if isinstance(one, dict) and isinstance(one.get("blobFilePath"), str):
            start, end = (number(str(one.get(name))) for name in ("startTime", "endTime"))
            word = _class_of(word_of(folder.rpartition("/")[2]))
            yield Row(file=one["blobFilePath"], near=folder, word=word, start=start, end=end)


def _class_of(name: str) -> str:
    return BACKGROUND_NOISE if name == "Background Noise" else name  # it makes this class itself


SIDECARS = (".cls", ".json", ".txt", ".lab")


def sidecars(tree: Tree) -> Listing | None:
    """Lists recordings beside files of the same name that say the word, as in the shards of WebDataset.

    A .cls, .txt or .lab holds the word or a sentence, a .json an object with the names of columns that a list has.
    """
    beside = {path.rpartition(".")[0]: path for path in tree.others if path.lower().endswith(SIDECARS)}
    stems = (file.rpartition(".")[0] for file in tree.recordings)
    if not beside or sum(stem in beside for stem in stems) < max(1, len(tree.recordings) / 2):
        return None
    rows: list[Row] = []
    for file in tree.recordings:
        path = beside.get(file.rpartition(".")[0], "")
        if path.lower().endswith(".json"):
            try:
                said = said_by(files.read_json(tree.folder / path))
            except ValueError:
                said = {}
        else:
            said = {"sentence": " ".join(read_lines(tree.folder / path))} if path else {}
        rows.append(
            Row(
                file=file,
                word=said.get("word") or said.get("sentence", ""),
                is_sentence="word" not in said,
                speaker=said.get("speaker", ""),
                split=split_named(said.get("split", "")) or split_within(file.split("/")[0]),
            )
        )
    if not any(row.word for row in rows):
        return None
    numbers = sorted({row.word for row in rows if row.word.isdigit()})
    if numbers and all(row.word.isdigit() for row in rows) and any(path.endswith(".cls") for path in beside.values()):
        log.warning("the files .cls number the words (%s …): nothing tells their names", ", ".join(numbers[:3]))
    return listing_of(tree, "sidecars", rows, sorted(beside.values()))


def are_only_notes(listing: Listing) -> bool:
    """Tells whether what lies beside recordings does not name their words, as they lie in folders of known words.

    Raises:
        UnclearLayout: either the folders or the files beside the recordings could name the words.
    """
    said = set(map(alike, listing.words))
    folders = {file.rpartition("/")[0] for file in listing.tables}
    if len(folders) < 2 or any("/" in folder or not folder for folder in folders):
        return False
    if not said.isdisjoint(map(alike, folders)):
        return True
    if any(map(is_known, [*said, *folders])):
        return not any(map(is_known, said))
    if 0 < len(said) < min(4, len(folders)) and not named_like_speakers(list(folders)):
        raise UnclearLayout(
            "either the folders or the files beside the recordings must name the words, got the folders "
            f"{', '.join(sorted(folders)[:3])} and files with {', '.join(sorted(said))}: use --layout word or --layout "
            "sidecars"
        )
    return False


_LABEL = re.compile(r"(\d+[.,]?\d*)\t(\d+[.,]?\d*)\t(.*)")

_INTERVAL = re.compile(r'(?:xmin = )?([\d.]+)\s+(?:xmax = )?([\d.]+)\s+(?:text = )?"((?:[^"]|"")*)"')

_CUE = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+) --> ((?:\d+:)?\d+:\d+[.,]\d+)[^\n]*\n((?:.+\n?)+)")


def label_tracks(tree: Tree) -> Listing | None:
    """Lists recordings beside what says which words begin and end where in them.

    These are label tracks of Audacity (<name>.txt with begin, end and word on every line), TextGrid files of Praat, of
    which the tier named for words counts, or the only one, subtitles (.srt, .vtt), of which those of one word count,
    and tables with columns for begin and end, such as selections of Raven. One of any name belongs to the recording of
    a folder that has only one. Sources: "Importing and Exporting Labels" in the manual of Audacity; "TextGrid file
    formats" in the manual of Praat; WebVTT (w3.org/TR/webvtt1).

    Raises:
        UnclearLayout: a label track belongs to no recording.
    """
    rows: list[Row] = []
    tracks = {
        path: labels
        for path in tree.others
        if ((read := TRACKS.get(PurePosixPath(path).suffix.lower())) and (labels := read(tree.folder / path)))
        or (labels := _of_table(tree, path))
    }
    by_folder: dict[str, list[str]] = {path.rpartition("/")[0]: [] for path in tracks}
    for file in tree.recordings if tracks else ():
        if (folder := file.rpartition("/")[0]) in by_folder:
            by_folder[folder].append(file)
    for path, labels in tracks.items():
        folder = path.rpartition("/")[0]
        beside = by_folder[folder]
        of_name = [file for file in beside if stem_of(file) == path.rpartition(".")[0]]
        of_name = of_name or [file for file in beside if path.startswith(f"{stem_of(file)}.")]
        elsewhere = [] if beside else [tree.find(f"/{path.rpartition('.')[0]}")]
        recordings = of_name or beside or [file for file in elsewhere if file is not None]
        if len(of_name) > 1:
            raise UnclearLayout(
                f"a label track must belong to one recording, got {one_line(path)} beside "
                f"{' and '.join(map(one_line, of_name[:3]))}: keep one of them"
            )
        if len(recordings) != 1:
            raise UnclearLayout(
                f"a label track must be named like its recording, got {one_line(path)} beside {len(beside)} recordings"
                ": rename it (interview.txt for interview.wav)"
            )
        is_sentence = not path.lower().endswith(".txt")  # labels of Audacity are names
        rows += [
            Row(file=recordings[0], word=word, is_sentence=is_sentence, start=start, end=end)
            for start, end, word in labels
        ]
    return listing_of(tree, "label-tracks", rows, list(tracks)) if tracks else None


Labels = list[tuple[float, float, str]]
"""Begin and end in seconds, and text."""

NOTHING_SAID = ("", "<eps>", "<sil>", "sil", "sp", "spn", "<unk>", "<p:>")
"""What aligners write in a TextGrid where nothing is said, or nothing that they know."""


def _of_audacity(path: Path) -> Labels:
    """Returns the labels of a file; none if it is not a label track."""
    found = []
    for _, line in read_list(path):
        if line.startswith("\\"):
            continue  # the range of frequencies of the label before
        match = _LABEL.fullmatch(line)
        if match is None:
            return []
        found.append((float(match[1].replace(",", ".")), float(match[2].replace(",", ".")), match[3]))
    return found


def _of_table(tree: Tree, path: str) -> Labels:
    """Returns what a table without a column of files says, as Raven and others write it beside a recording."""
    begin = next(read_lines(tree.folder / path), "") if path.lower().endswith((".txt", ".csv", ".tsv")) else ""
    names = columns_of(re.split(r'"?[\t,;]"?', begin.strip('"')))
    if not {"start", "end"} <= names.keys() or "file" in names:
        return []
    rows = [{name: text(cell) for name, cell in row.items()} for row in cells(tree, path)]
    values = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    texts = [name for name, some in values.items() if len(set(some)) > 1 and any(number(cell) is None for cell in some)]
    word = names.get("word", texts[0] if len(texts) == 1 else "")
    if not word or any(is_recording(cell) for name in texts for cell in values[name]):
        return []
    units = [0.001 if unit_of(names[what]) == "milliseconds" else 1.0 for what in ("start", "end")]
    times = ((time(row[names["start"]]) or 0.0, time(row[names["end"]]) or 0.0) for row in rows)
    return [(units[0] * one[0], units[1] * one[1], row[word]) for one, row in zip(times, rows, strict=True)]


def _of_praat(path: Path) -> Labels:
    """Returns the intervals of a TextGrid, long or short, that have a text.

    Raises:
        UnclearLayout: it has several tiers, none of which is named for words.
    """
    _, *parts = re.split(r'"(IntervalTier|TextTier)"', "\n".join(read_lines(path)))
    tiers = [text for kind, text in zip(parts[::2], parts[1::2], strict=True) if kind == "IntervalTier"]
    names = [tier.partition('"')[2].partition('"')[0] for tier in tiers]
    of_words = [tier for name, tier in zip(names, tiers, strict=True) if len(tiers) == 1 or "word" in name.lower()]
    if tiers and len(of_words) != 1:
        found = ", ".join(map(one_line, names))
        raise UnclearLayout(
            f"a TextGrid must have one tier of words, got {one_line(path.name)} with {found}: name the one that counts "
            "words, and the others otherwise"
        )
    intervals = [match for tier in of_words for match in _INTERVAL.finditer(tier)]
    return [
        (float(one[1]), float(one[2]), text)
        for one in intervals
        if (text := one[3].replace('""', '"')).strip() not in NOTHING_SAID
    ]


def _of_subtitles(path: Path) -> Labels:
    """Returns the cues of an .srt or .vtt file."""
    found = _CUE.finditer("\n".join(read_lines(path)))
    return [(time(one[1]) or 0.0, time(one[2]) or 0.0, one[3]) for one in found]


TRACKS: dict[str, Callable[[Path], Labels]] = {
    ".txt": _of_audacity,
    ".textgrid": _of_praat,
    ".srt": _of_subtitles,
    ".vtt": _of_subtitles,
}
