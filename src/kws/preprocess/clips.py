"""Clip ids: how the clips of a data set are named, which class they belong to, and how they are read.

<word>/<name>.wav                                  a recording of a word, or of one of the unknown words
_background_noise_/<name>.wav@<start>@<gain>       silence: a second of noise, from a sample on, at a gain in dB
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kws.config import BACKGROUND_NOISE, SILENCE, SPLITS, UNKNOWN
from kws.preprocess.audio import Waveform, read_clip, read_waveform
from kws.recipe import FeatureConfig

HELD_OUT_NOISE = 0.2
"""Fraction of every noise recording, at its end, that is kept out of training and used for evaluation."""

SILENCE_PARTS = {
    "train": (0.0, 1 - HELD_OUT_NOISE),
    "validation": (1 - HELD_OUT_NOISE, 1 - HELD_OUT_NOISE / 2),
    "test": (1 - HELD_OUT_NOISE / 2, 1.0),
}
"""The part of a noise recording, as fractions of its length, from which the silence of a split is cut."""

SILENCE_GAIN_DB = (-30, 0)
"""Range of the gain of silence, as rooms may be quiet."""


def word_of(clip: str, words: Sequence[str]) -> str:
    """Returns the class of a clip: the name of its folder, UNKNOWN or SILENCE.

    Without a class of unknown words, the name of the folder is returned even if it is not one of `words`.
    """
    folder = clip.split("/")[0]
    if folder == BACKGROUND_NOISE:
        return SILENCE
    return folder if folder in words or UNKNOWN not in words else UNKNOWN


def read(recordings: Path, clip: str, features: FeatureConfig) -> Waveform:
    """Reads a clip as float32 [num_samples].

    Raises:
        ValueError: the file cannot be read, is empty, is too long, or has invalid samples.
        FileNotFoundError: there is no such file.
    """
    if not clip.startswith(BACKGROUND_NOISE):
        return read_clip(recordings / clip, features)
    name, start, gain = clip.rsplit("@", 2)
    noise = read_waveform(recordings / name, features.sample_rate)[int(start) :][: features.num_samples]
    return noise * np.float32(10 ** (int(gain) / 20))


def choose_unknown(divided: Mapping[str, Sequence[str]], counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Chooses clips of the unknown words: the same number of every word, in the order of a hash of their ids.

    Args:
        divided: the clips of these words, by split.
        counts: how many to choose for each split; fewer if there are not as many.

    Returns:
        Clip ids by split, sorted.
    """
    chosen = {}
    for split in SPLITS:
        seen: Counter[str] = Counter()
        ranks = {}
        for clip in sorted(divided[split], key=_hash):
            seen[clip.split("/")[0]] += 1
            ranks[clip] = seen[clip.split("/")[0]]  # rank among the clips of its word
        chosen[split] = sorted(sorted(ranks, key=ranks.__getitem__)[: counts[split]])
    return chosen


def cut_silence(lengths: Mapping[str, int], counts: Mapping[str, int], features: FeatureConfig) -> dict[str, list[str]]:
    """Draws clips of silence from noise recordings; each split has its own part of every recording.

    Args:
        lengths: lengths of the noise recordings in samples, by name.
        counts: how many clips to draw for each split.
        features: determines the length of a clip.

    Returns:
        Clip ids by split, sorted; none for a split if no recording is long enough for it.
    """
    found: dict[str, list[str]] = {}
    for split, (first, last) in SILENCE_PARTS.items():
        random = np.random.default_rng(list(split.encode()))
        ranges = {
            name: (int(first * length), int(last * length) - features.num_samples)
            for name, length in sorted(lengths.items())
        }
        names = [name for name, (low, high) in ranges.items() if high >= low]
        found[split] = sorted(
            f"{BACKGROUND_NOISE}/{name}@{random.integers(*ranges[name], endpoint=True)}"
            f"@{random.integers(*SILENCE_GAIN_DB, endpoint=True)}"
            for name in (names[i % len(names)] for i in range(counts[split] if names else 0))
        )
    return found


def mean_per_word(clips: Iterable[str]) -> int:
    """Returns the average number of clips per word, rounded up."""
    folders = [clip.split("/")[0] for clip in clips]
    return -(-len(folders) // max(len(set(folders)), 1))


def _hash(clip: str) -> bytes:
    return hashlib.sha256(clip.encode()).digest()
