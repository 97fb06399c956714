"""Which clip trains, which validates, which tests."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from kws.config import SPLITS

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


def speaker_of(clip: str) -> str:
    """Returns who speaks in a clip: what stands before `_nohash_` in the name, else the whole name.

    Args:
        clip: a clip id, `<word>/<speaker>_nohash_<n>.wav`.
    """
    return clip.rsplit("/", 1)[-1].split("_nohash_")[0]


def split_of_speaker(speaker: str, validation_percent: float = 10, test_percent: float = 10) -> str:
    """Returns the split of a speaker as Speech Commands itself draws it: from SHA-1 of the name.

    Source: `which_set` in the README of the data set (Warden, arXiv 1804.03209). A clip that is added later leaves
    all others where they are.
    """
    digest = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    percent = (digest % 2**27) * (100 / (2**27 - 1))
    if percent < validation_percent:
        return "validation"
    return "test" if percent < validation_percent + test_percent else "train"


def by_speaker(clips: Sequence[str], recordings: Path) -> dict[str, list[str]]:
    """Splits clips so that a speaker is in one split only.

    The archive's own lists decide where they exist; without them the data set's hash of the speaker does.

    Args:
        clips: clip ids.
        recordings: the folder of the words, where the lists lie.

    Returns:
        Clip ids of train, validation and test, each sorted.
    """
    listed = {
        clip: split
        for split, name in LISTS.items()
        if (recordings / name).is_file()
        for clip in map(str.strip, (recordings / name).read_text().splitlines())
    }
    split = {clip: listed.get(clip, "train") if listed else split_of_speaker(speaker_of(clip)) for clip in clips}
    return _group(split)


def at_random(clips: Sequence[str], seed: int = 41) -> dict[str, list[str]]:
    """Splits clips 95/3/2 % at random, whoever speaks.

    Clips are ordered by a hash of the seed and their id, so that neither the machine nor the order of files matters.

    Returns:
        Clip ids of train, validation and test, each sorted.
    """
    order = sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}/{clip}".encode()).digest())
    num_validation, num_test = round(0.03 * len(order)), round(0.02 * len(order))
    split = dict.fromkeys(order, "train")
    split.update(dict.fromkeys(order[:num_validation], "validation"))
    split.update(dict.fromkeys(order[num_validation : num_validation + num_test], "test"))
    return _group(split)


def _group(split: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: sorted(clip for clip, of in split.items() if of == name) for name in SPLITS}
