"""The classes that are no words: clips of unknown words are chosen, and clips of silence cut out of noise."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from kws.config import SILENCE, SPLITS
from kws.data.clip import Clip
from kws.data.splits import Divided
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


def choose_unknown(divided: Mapping[str, Sequence[Clip]], counts: Mapping[str, int]) -> Divided:
    """Chooses clips of the unknown words: the same number of every word, in the order of a hash of their ids.

    Args:
        divided: the clips of these words, by split.
        counts: how many to choose for each split; fewer if there are not as many.
    """
    chosen = {}
    for split in SPLITS:
        seen: Counter[str] = Counter()
        ranked = []
        for clip in sorted(divided[split], key=_hash):
            seen[clip.word] += 1
            ranked.append((seen[clip.word], clip))  # its rank among the clips of its word
        ranked.sort(key=lambda pair: pair[0])
        chosen[split] = sorted((clip for _, clip in ranked[: counts[split]]), key=attrgetter("id"))
    return chosen


def cut_silence(lengths: Mapping[str, int], counts: Mapping[str, int], features: FeatureConfig) -> Divided:
    """Draws clips of silence from noise recordings; each split has its own part of every recording.

    Args:
        lengths: lengths of the noise recordings in samples, by file.
        counts: how many clips to draw for each split.
        features: determines the length of a clip.

    Returns:
        Clips by split; none for a split if no recording is long enough for it.
    """
    found: Divided = {}
    for split, (first, last) in SILENCE_PARTS.items():
        random = np.random.default_rng(list(split.encode()))
        ranges = {
            name: (int(first * length), int(last * length) - features.num_samples)
            for name, length in sorted(lengths.items())
        }
        names = [name for name, (low, high) in ranges.items() if high >= low]
        drawn = [
            Clip(
                file=name,
                word=SILENCE,
                split=split,
                begin=int(random.integers(*ranges[name], endpoint=True)),
                gain=int(random.integers(*SILENCE_GAIN_DB, endpoint=True)),
            )
            for name in (names[i % len(names)] for i in range(counts[split] if names else 0))
        ]
        found[split] = sorted(drawn, key=attrgetter("id"))
    return found


def mean_per_word(clips: Sequence[Clip]) -> int:
    """Returns the average number of clips per word, rounded up."""
    return -(-len(clips) // max(len({clip.word for clip in clips}), 1))


def _hash(clip: Clip) -> bytes:
    return hashlib.sha256(clip.id.encode()).digest()
