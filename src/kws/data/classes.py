"""The classes that are no words: clips of unknown words are chosen, and clips of silence cut out of noise."""

from collections.abc import Mapping

import numpy as np

from kws.config import SILENCE, SPLITS
from kws.data.clip import Clip
from kws.data.index import Index
from kws.data.splits import Divided, order_by_hash
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


def choose_unknown(divided: Mapping[str, Index], counts: Mapping[str, int]) -> Divided:
    """Chooses clips of the unknown words: the same number of every word, in the order of a hash of their ids.

    Args:
        divided: the clips of these words, by split.
        counts: how many to choose for each split; fewer if there are not as many.
    """
    chosen = {}
    for split in SPLITS:
        clips = divided[split].sorted()
        order = order_by_hash(clips.ids)
        words = clips.numbered("word", list(clips.counts()))[order]
        by_word = np.argsort(words, kind="stable")
        _, first, sizes = np.unique(words[by_word], return_index=True, return_counts=True)
        rank = np.empty(len(order), np.int64)  # of a clip among those of its word
        rank[by_word] = np.arange(len(order)) - np.repeat(first, sizes)
        chosen[split] = clips.take(np.sort(order[np.argsort(rank, kind="stable")[: counts[split]]]))
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
        drawn = (
            Clip(
                file=name,
                word=SILENCE,
                split=split,
                begin=int(random.integers(*ranges[name], endpoint=True)),
                gain=int(random.integers(*SILENCE_GAIN_DB, endpoint=True)),
            )
            for name in (names[i % len(names)] for i in range(counts[split] if names else 0))
        )
        found[split] = Index.of(drawn).sorted()
    return found


def mean_per_word(clips: Index) -> int:
    """Returns the average number of clips per word, rounded up."""
    return -(-len(clips) // max(len(clips.counts()), 1))
