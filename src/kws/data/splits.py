"""Divides clips into train, validation and test."""

import codecs
import gzip
import hashlib
import io
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kws.config import SPLITS
from kws.data.index import Index, Ints, Lookup
from kws.data.names import stem_of
from kws.text import printable

log = logging.getLogger(__name__)

Divided = dict[str, Index]
"""The clips of train, validation and test, each in the order of their ids."""

NAMED = 10
"""How many of the list entries without a recording a manifest names; it counts all of them."""


def split_of_speaker(speaker: str, validation_percent: float = 10, test_percent: float = 10) -> str:
    """Returns the split of a speaker as Speech Commands itself assigns it: by the SHA-1 of the speaker's name.

    Source: `which_set` in the README of the data set (Warden, arXiv 1804.03209). Adding clips later does not change
    the split of any other clip.
    """
    digest = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    percent = (digest % 2**27) * (100 / (2**27 - 1))
    if percent < validation_percent:
        return "validation"
    return "test" if percent < validation_percent + test_percent else "train"


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The splits that the lists of a data set assign to its clips."""

    split_of: Ints
    """int8 [clips]: the split of each, as an index into SPLITS, or -1: in no list."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest, by the name of the list: its entries, and how many match, are of other words, or match
    nothing."""


def read_lists(lists: Mapping[str, Path], clips: Index) -> Lists:
    """Finds the clips that split lists name, allowing for differences in spelling; logs how many entries match.

    An entry is a path that ends in `<word>/<name>`. Leading folders, slashes or backslashes, case and the file suffix
    (.wav for a recording that is a .flac) make no difference, unless two recordings differ in nothing else. A clip that
    both lists name goes to the test split: test clips must not influence the choice of the best epoch.

    Args:
        lists: the list files, by split.
        clips: the clips of all chosen words.
    """
    split_of, loosely = (np.full(len(clips), -1, np.int8) for _ in range(2))
    if not lists:
        return Lists(split_of=split_of)
    paths = clips.files
    alike = Lookup(paths, lambda path: _key(_ending(path)))
    folders = {file.rpartition("/")[0].rpartition("/")[2].lower() for file in paths}
    figures: dict[str, Any] = {}
    for split in (split for split in SPLITS if split in lists):
        path = lists[split]
        matched = of_other_words = 0
        without: list[str] = []
        twice: list[str] = []
        for number, entry in read_list(path):
            entry = PurePosixPath(entry.replace("\\", "/")).as_posix()
            file = _ending(entry)
            found = alike.rows(file)
            if len({paths[row].rpartition("/")[0] for row in found}) > 1:  # then the folders before make a difference
                found = [row for row in found if _agree(paths[row], entry)]
            exactly = any(_ending(paths[row]) == file for row in found)
            if exactly:  # a copy in another format goes with it
                found = [row for row in found if stem_of(_ending(paths[row])) == stem_of(file)]
            code = SPLITS.index(split)
            before = np.where(split_of[found] < 0, loosely[found], split_of[found])
            twice += paths[found][(before >= 0) & (before != code)].tolist()
            (split_of if exactly else loosely)[found] = code
            if found:
                matched += 1
            elif "/" in file and file.split("/")[0].lower() not in folders:
                of_other_words += 1
            else:
                without.append(f"line {number}: {entry[:200]}")
        entries = matched + of_other_words + len(without)
        figures[path.name] = {
            "entries": entries,
            "matched": matched,
            "of_other_words": of_other_words,
            "without_recording": len(without),
            "first": without[:NAMED],
            "twice": len(twice),
        }
        log.info(
            "%s: %d of %d entries name a recording, %d are of other words", path.name, matched, entries, of_other_words
        )
        if without:
            log.warning("%s: %d entries name recordings that do not exist: %s", path, len(without), _some(without))
        if twice:
            log.warning(
                "%s: %d recordings are also in another list; this one counts: %s", path, len(twice), _some(twice)
            )
    return Lists(split_of=np.where(split_of < 0, loosely, split_of), figures=figures)


def read_list(path: Path) -> Iterator[tuple[int, str]]:
    """Yields numbers and texts of the lines of a split list that are not empty; see `read_lines`."""
    return ((number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip())


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text in UTF-8 or UTF-16, with or without a byte order mark, with the line ends of any OS.

    A line that is not UTF-8 is decoded as Windows-1252. The file may be compressed by gzip.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(200)
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        coding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        if not coding and b"\0" in start:  # UTF-16 without a byte order mark
            coding = "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
        for line in io.TextIOWrapper(file, coding or "latin-1", "replace"):
            text = line.removesuffix("\n")
            yield text if coding else _decode(text.encode("latin-1"))


def by_speaker(clips: Index, lists: Lists) -> Divided:
    """Splits clips so that each speaker is in one split only.

    The archive's own lists decide if they exist, or else the splits that the data set states for its clips (see
    `as_stated`); otherwise the hash of the speaker does.

    Args:
        clips: the clips.
        lists: the splits that the lists assign to them.
    """
    if lists.figures:
        return divide(clips, np.maximum(lists.split_of, SPLITS.index("train")))
    if clips.counts("split").keys() - {""}:
        return as_stated(clips)
    return divide(clips, np.fromiter((SPLITS.index(split_of_speaker(clip.group)) for clip in clips), np.int8))


def as_stated(clips: Index) -> Divided:
    """Splits clips as the data set states it.

    A clip without a split goes where its speaker is, or else to train. If no clip is stated to be of validation or of
    test, a tenth of the speakers of train is taken for it, by the hash of the speaker.
    """
    _, group = np.unique(np.fromiter((hash(clip.group) for clip in clips), np.int64), return_inverse=True)
    stated = clips.numbered("split", SPLITS)
    of_group = np.full(len(clips), SPLITS.index("train"))
    for code in range(len(SPLITS)):  # test last: of a speaker in two splits, clips without one go to test
        of_group[group[stated == code]] = code
    found = np.where(stated < 0, of_group[group], stated)
    for split in ("validation", "test"):
        code = SPLITS.index(split)
        if not (stated == code).any():
            train = np.flatnonzero(found == SPLITS.index("train"))
            speakers, first = np.unique(group[train], return_index=True)
            taken = speakers[_tenth_of(clips.take(train[first]), split)]
            log.info(
                "the data set states no %s split: %d of its %d training speakers are taken",
                split,
                len(taken),
                len(speakers),
            )
            found[train[np.isin(group[train], taken)]] = code
    return divide(clips, found)


def _tenth_of(speakers: Index, split: str) -> Ints:
    """Returns which speakers, of each a clip, are of a split by their hash; if none is, the first, but never all."""
    taken = np.flatnonzero(np.fromiter((split_of_speaker(clip.group) == split for clip in speakers), np.bool_))
    if len(taken) or len(speakers) < 2:
        return taken
    return np.array([min(range(len(speakers)), key=lambda row: hashlib.sha1(speakers[row].group.encode()).digest())])


def speakers_in_two_splits(divided: Mapping[str, Index]) -> dict[str, int]:
    """Counts leaks between splits: training speakers who are also in validation or test, and their clips there.

    Only clips whose speaker is known are counted.
    """
    train = divided["train"].counts("speaker").keys() - {""}
    leaks = Counter[str]()
    for split in SPLITS:
        if split != "train":
            leaks.update({speaker: n for speaker, n in divided[split].counts("speaker").items() if speaker in train})
    return {"speakers": len(leaks), "clips": leaks.total()}


def known_speakers(divided: Mapping[str, Index]) -> dict[str, int]:
    """Counts the speakers that are named, and the clips of which nothing names the speaker."""
    counts = sum((Counter(some.counts("speaker")) for some in divided.values()), Counter[str]())
    return {"speakers": len(counts.keys() - {""}), "clips_without": counts[""]}


FEW_CLIPS = 1000
"""Below this number of clips, 2 or 3 % of them are too few to choose an epoch by, and to compare two models on."""


def are_few(clips: Index) -> bool:
    """Tells whether `at_random` splits each word by itself."""
    return len(clips) < FEW_CLIPS


def at_random(clips: Index, seed: int = 41) -> Divided:
    """Splits clips 95/3/2 % at random, regardless of speakers; fewer than 1,000 clips 80/10/10 %, each word by itself.

    Clips are ordered by a hash of the seed and their id, so that neither the machine nor the order of files matters. Of
    few clips, each word with at least three has one in each split.
    """
    clips = clips.sorted()
    order = order_by_hash(f"{seed}/{name}" for name in clips.ids)
    if not are_few(clips):
        groups, shares = [order], (0.03, 0.02)
    else:
        of_word = clips.numbered("word", list(clips.counts()))[order]
        groups, shares = [order[of_word == word] for word in np.unique(of_word)], (0.1, 0.1)
        groups = [group for group in groups if len(group) >= 3]
    split = np.full(len(clips), SPLITS.index("train"))
    for group in groups:
        num_validation, num_test = (max(1, round(share * len(group))) for share in shares)
        split[group[:num_validation]] = SPLITS.index("validation")
        split[group[num_validation : num_validation + num_test]] = SPLITS.index("test")
    return divide(clips, split)


def order_by_hash(texts: Iterable[str]) -> Ints:
    """Returns the order of texts by their SHA-256 (by its first 64 bits, which so few never share)."""
    hashes = (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts)
    return np.argsort(np.fromiter(hashes, np.uint64), kind="stable")


def divide(clips: Index, splits: Ints) -> Divided:
    """Gives every clip its split, an index into SPLITS, [clips]; returns those of each in the order of their ids."""
    clips = clips.with_splits(splits).sorted()
    return {split: clips.of_split(split) for split in SPLITS}


def _key(file: str) -> str:
    """Returns a file name without its suffix, in lower case and Unicode normal form C."""
    return stem_of(unicodedata.normalize("NFC", file).lower())


def _ending(path: str) -> str:
    """Returns the last folder of a path and the file name."""
    return "/".join(path.split("/")[-2:])


def _agree(path: str, other: str) -> bool:
    """Tells whether two paths are the same as far as both go back."""
    one, two = f"/{_key(path)}", f"/{_key(other)}"
    return one.endswith(two) or two.endswith(one)


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(printable, names[:3])) + (" …" if len(names) > 3 else "")
