"""Divides clips into train, validation and test."""

import codecs
import hashlib
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kws.config import SPLITS
from kws.download.recordings import SUFFIXES, printable

log = logging.getLogger(__name__)

NAMED = 10
"""How many of the list entries without a recording a manifest names; it counts all of them."""


def speaker_of(clip: str) -> str:
    """Returns the speaker of a clip: the part of the name before `_nohash_`, or else the whole name.

    Args:
        clip: a clip id, `<word>/<speaker>_nohash_<n>.wav`. A copy in another format (.flac) has the same speaker.
    """
    name = clip.rsplit("/", 1)[-1]
    if "_nohash_" not in name and "_nohash_" in name.lower():
        name = name.lower()  # old file systems make it 0A7C2A8D_NOHASH_0.WAV
    speaker, found, _ = name.partition("_nohash_")
    return speaker if found else PurePosixPath(name).with_suffix(".wav").name


def names_speaker(clip: str) -> bool:
    """Tells whether the name of a clip contains its speaker."""
    return "_nohash_" in clip.lower()


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
    """The split of every listed clip."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest, by the name of the list: its entries, and how many match, are of other words, or match
    nothing."""


def read_lists(lists: Mapping[str, Path], clips: Sequence[str]) -> Lists:
    """Finds the clips that split lists name, allowing for differences in spelling; logs how many entries match.

    An entry is a path that ends in `<word>/<name>`. Leading folders, slashes or backslashes, case and the file suffix
    (.wav for a recording that is a .flac) make no difference, unless two recordings differ in nothing else. A clip that
    both lists name goes to the test split: test clips must not influence the choice of the best epoch.

    Args:
        lists: the list files, by split.
        clips: clip ids of all chosen words.
    """
    exactly = set(clips)
    alike: dict[str, list[str]] = {}
    for clip in clips:
        alike.setdefault(_key(clip), []).append(clip)
    words = {clip.split("/")[0].casefold() for clip in clips}
    split_of: dict[str, str] = {}
    loosely: dict[str, str] = {}
    figures: dict[str, Any] = {}
    for split in (split for split in SPLITS if split in lists):
        path = lists[split]
        matched = of_other_words = 0
        without: list[str] = []
        twice: list[str] = []
        for number, entry in read_list(path):
            clip = "/".join(PurePosixPath(entry.replace("\\", "/")).parts[-2:])
            found = alike.get(_key(clip), [])
            if clip in exactly:  # a copy in another format goes with it
                found = [one for one in found if _stem(one) == _stem(clip)]
            twice += [one for one in found if split_of.get(one, loosely.get(one, split)) != split]
            (split_of if clip in exactly else loosely).update(dict.fromkeys(found, split))
            if found:
                matched += 1
            elif "/" in clip and clip.split("/")[0].casefold() not in words:
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
    """Reads a split list in UTF-8 or UTF-16, with or without a byte order mark, with the line ends of any system.

    Returns:
        Numbers and texts of the lines that are not empty. A line that is not UTF-8 is decoded as Windows-1252.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        lines = data.decode("utf-16", "replace").splitlines()
    elif b"\0" in data[:200]:  # UTF-16 without a byte order mark
        lines = data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be", "replace").splitlines()
    else:
        lines = [_decode(line) for line in data.removeprefix(codecs.BOM_UTF8).splitlines()]
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def by_speaker(clips: Sequence[str], lists: Lists) -> dict[str, list[str]]:
    """Splits clips so that each speaker is in one split only.

    The archive's own lists decide if they exist; otherwise the hash of the speaker does.

    Args:
        clips: clip ids.
        lists: the splits that the lists assign to them.

    Returns:
        Clip ids of train, validation and test, each sorted.
    """
    if not lists.figures:
        return _group({clip: split_of_speaker(speaker_of(clip)) for clip in clips})
    return _group({clip: lists.split_of.get(clip, "train") for clip in clips})


def speakers_in_two_splits(divided: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Counts leaks between splits: training speakers who are also in validation or test, and their clips there.

    Only clips with `_nohash_` in their name are counted, as others do not name their speaker.
    """
    train = {speaker_of(clip) for clip in divided["train"] if names_speaker(clip)}
    others = [clip for split in SPLITS if split != "train" for clip in divided[split] if names_speaker(clip)]
    leaks = [clip for clip in others if speaker_of(clip) in train]
    return {"speakers": len({speaker_of(clip) for clip in leaks}), "clips": len(leaks)}


FEW_CLIPS = 1000
"""Below this number of clips, 2 or 3 % of them are too few to choose an epoch by, and to compare two models on."""


def are_few(clips: Sequence[str]) -> bool:
    """Tells whether `at_random` splits each word by itself."""
    return len(clips) < FEW_CLIPS


def at_random(clips: Sequence[str], seed: int = 41) -> dict[str, list[str]]:
    """Splits clips 95/3/2 % at random, regardless of speakers; fewer than 1,000 clips 80/10/10 %, each word by itself.

    Clips are ordered by a hash of the seed and their id, so that neither the machine nor the order of files matters. Of
    few clips, each word with at least three has one in each split.

    Returns:
        Clip ids of train, validation and test, each sorted.
    """
    order = sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}/{clip}".encode()).digest())
    split = dict.fromkeys(order, "train")
    if not are_few(clips):
        groups, shares = [order], (0.03, 0.02)
    else:
        by_word: dict[str, list[str]] = {}
        for clip in order:
            by_word.setdefault(clip.split("/")[0], []).append(clip)
        groups, shares = [group for group in by_word.values() if len(group) >= 3], (0.1, 0.1)
    for group in groups:
        num_validation, num_test = (max(1, round(share * len(group))) for share in shares)
        split.update(dict.fromkeys(group[:num_validation], "validation"))
        split.update(dict.fromkeys(group[num_validation : num_validation + num_test], "test"))
    return _group(split)


def _group(split: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: sorted(clip for clip, of in split.items() if of == name) for name in SPLITS}


def _key(clip: str) -> str:
    """Returns a clip id without its suffix, in lower case and Unicode normal form C."""
    return _stem(unicodedata.normalize("NFC", clip).casefold())


def _stem(clip: str) -> str:
    stem, _, suffix = clip.rpartition(".")
    return stem if f".{suffix.lower()}" in SUFFIXES else clip


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(printable, names[:3])) + (" …" if len(names) > 3 else "")
