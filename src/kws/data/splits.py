"""Divides clips into train, validation and test."""

import codecs
import dataclasses
import hashlib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from kws.config import SPLITS
from kws.data.clip import Clip
from kws.data.names import SUFFIXES
from kws.text import printable

log = logging.getLogger(__name__)

Divided = dict[str, list[Clip]]
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

    split_of: Mapping[str, str]
    """The split of every listed clip, by its file."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest, by the name of the list: its entries, and how many match, are of other words, or match
    nothing."""


def read_lists(lists: Mapping[str, Path], clips: Sequence[Clip]) -> Lists:
    """Finds the clips that split lists name, allowing for differences in spelling; logs how many entries match.

    An entry is a path that ends in `<word>/<name>`. Leading folders, slashes or backslashes, case and the file suffix
    (.wav for a recording that is a .flac) make no difference, unless two recordings differ in nothing else. A clip that
    both lists name goes to the test split: test clips must not influence the choice of the best epoch.

    Args:
        lists: the list files, by split.
        clips: the clips of all chosen words.
    """
    if not lists:
        return Lists(split_of={})
    exactly = {clip.file for clip in clips}
    alike: dict[str, list[str]] = {}
    for clip in clips:
        alike.setdefault(_key(clip.file), []).append(clip.file)
    folders = {clip.file.rpartition("/")[0].rpartition("/")[2].lower() for clip in clips}
    split_of: dict[str, str] = {}
    loosely: dict[str, str] = {}
    figures: dict[str, Any] = {}
    for split in (split for split in SPLITS if split in lists):
        path = lists[split]
        matched = of_other_words = 0
        without: list[str] = []
        twice: list[str] = []
        for number, entry in read_list(path):
            file = "/".join(PurePosixPath(entry.replace("\\", "/")).parts[-2:])
            found = alike.get(_key(file), [])
            if file in exactly:  # a copy in another format goes with it
                found = [one for one in found if _stem(one) == _stem(file)]
            twice += [one for one in found if split_of.get(one, loosely.get(one, split)) != split]
            (split_of if file in exactly else loosely).update(dict.fromkeys(found, split))
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
    return Lists(split_of=loosely | split_of, figures=figures)


def read_list(path: Path) -> list[tuple[int, str]]:
    """Returns numbers and texts of the lines of a split list that are not empty; see `read_lines`."""
    return [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text in UTF-8 or UTF-16, with or without a byte order mark, with the line ends of any OS.

    A line that is not UTF-8 is decoded as Windows-1252.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace").splitlines()
    if b"\0" in data[:200]:  # UTF-16 without a byte order mark
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", "replace").splitlines()
    return [_decode(line) for line in data.removeprefix(codecs.BOM_UTF8).splitlines()]


def by_speaker(clips: Sequence[Clip], lists: Lists) -> Divided:
    """Splits clips so that each speaker is in one split only.

    The archive's own lists decide if they exist, or else the splits that the data set states for its clips (see
    `as_stated`); otherwise the hash of the speaker does.

    Args:
        clips: the clips.
        lists: the splits that the lists assign to them.
    """
    if lists.figures:
        return divide(clips, lambda clip: lists.split_of.get(clip.file, "train"))
    if any(clip.split for clip in clips):
        return as_stated(clips)
    return divide(clips, lambda clip: split_of_speaker(clip.group))


def as_stated(clips: Sequence[Clip]) -> Divided:
    """Splits clips as the data set states it.

    A clip without a split goes where its speaker is, or else to train. If no clip is stated to be of validation or of
    test, a tenth of the speakers of train is taken for it, by the hash of the speaker.
    """
    of_group: dict[str, str] = {}
    for split in SPLITS:  # test last: of a speaker in two splits, clips without one go to test
        of_group.update((clip.group, split) for clip in clips if clip.split == split)
    stated = {clip.split for clip in clips} - {""}
    split_of = {clip.id: clip.split or of_group.get(clip.group, "train") for clip in clips}
    for split in ("validation", "test"):
        if split not in stated:
            train = {clip.group for clip in clips if split_of[clip.id] == "train"}
            taken = _tenth_of(train, split)
            log.info(
                "the data set states no %s split: %d of its %d training speakers are taken",
                split,
                len(taken),
                len(train),
            )
            split_of |= {clip.id: split for clip in clips if clip.group in taken and split_of[clip.id] == "train"}
    return divide(clips, lambda clip: split_of[clip.id])


def _tenth_of(speakers: Iterable[str], split: str) -> set[str]:
    """Returns the speakers that are of a split by their hash; if none is, the first by hash, but never all."""
    ranked = sorted(speakers, key=lambda speaker: hashlib.sha1(speaker.encode()).hexdigest())
    return {speaker for speaker in ranked if split_of_speaker(speaker) == split} or set(
        ranked[:1] if ranked[1:] else ()
    )


def speakers_in_two_splits(divided: Mapping[str, Sequence[Clip]]) -> dict[str, int]:
    """Counts leaks between splits: training speakers who are also in validation or test, and their clips there.

    Only clips whose speaker is known are counted.
    """
    train = {clip.speaker for clip in divided["train"] if clip.speaker}
    leaks = [clip.speaker for split in SPLITS if split != "train" for clip in divided[split] if clip.speaker in train]
    return {"speakers": len(set(leaks)), "clips": len(leaks)}


def known_speakers(divided: Mapping[str, Sequence[Clip]]) -> dict[str, int]:
    """Counts the speakers that are named, and the clips of which nothing names the speaker."""
    clips = [clip for some in divided.values() for clip in some]
    return {
        "speakers": len({clip.speaker for clip in clips if clip.speaker}),
        "clips_without": sum(not clip.speaker for clip in clips),
    }


FEW_CLIPS = 1000
"""Below this number of clips, 2 or 3 % of them are too few to choose an epoch by, and to compare two models on."""


def are_few(clips: Sequence[Clip]) -> bool:
    """Tells whether `at_random` splits each word by itself."""
    return len(clips) < FEW_CLIPS


def at_random(clips: Sequence[Clip], seed: int = 41) -> Divided:
    """Splits clips 95/3/2 % at random, regardless of speakers; fewer than 1,000 clips 80/10/10 %, each word by itself.

    Clips are ordered by a hash of the seed and their id, so that neither the machine nor the order of files matters. Of
    few clips, each word with at least three has one in each split.
    """
    order = sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}/{clip.id}".encode()).digest())
    split: dict[str, str] = {}
    if not are_few(clips):
        groups, shares = [order], (0.03, 0.02)
    else:
        by_word: dict[str, list[Clip]] = {}
        for clip in order:
            by_word.setdefault(clip.word, []).append(clip)
        groups, shares = [group for group in by_word.values() if len(group) >= 3], (0.1, 0.1)
    for group in groups:
        num_validation, num_test = (max(1, round(share * len(group))) for share in shares)
        split.update((clip.id, "validation") for clip in group[:num_validation])
        split.update((clip.id, "test") for clip in group[num_validation : num_validation + num_test])
    return divide(clips, lambda clip: split.get(clip.id, "train"))


def divide(clips: Iterable[Clip], split_of: Callable[[Clip], str]) -> Divided:
    """Gives every clip its split, and returns the clips of each in the order of their ids."""
    divided: Divided = {name: [] for name in SPLITS}
    for clip in sorted(clips, key=attrgetter("id")):
        split = split_of(clip)
        divided[split].append(dataclasses.replace(clip, split=split))
    return divided


def _key(file: str) -> str:
    """Returns a file name without its suffix, in lower case and Unicode normal form C."""
    return _stem(unicodedata.normalize("NFC", file).lower())


def _stem(file: str) -> str:
    stem, _, suffix = file.rpartition(".")
    return stem if f".{suffix.lower()}" in SUFFIXES else file


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(printable, names[:3])) + (" …" if len(names) > 3 else "")
