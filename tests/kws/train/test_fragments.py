"""Fragments are made of halves of words, and never hold the middle of one."""

import torch
from torch import Tensor

from kws.train.fragments import Fragments

SILENCE = -13.8
UNKNOWN = 7
MIDDLE = 40


def words(num_clips: int = 40) -> Tensor:
    """Features [clips, 4, 81] of words from frame 20 to 60, in which every frame has its own value."""
    features = torch.full((num_clips, 4, 81), SILENCE)
    features[:, :, 20:61] = torch.linspace(0, 0.04, 41)
    return features


def test_a_share_of_the_clips_become_fragments_of_class_unknown() -> None:
    torch.manual_seed(0)
    features, labels = Fragments(0.25, UNKNOWN, SILENCE)(words(), torch.zeros(40, dtype=torch.int64))
    replaced = labels == UNKNOWN
    assert int(replaced.sum()) == 10
    assert torch.equal(features[~replaced], words(30))
    assert all(not torch.equal(clip, words(1)[0]) for clip in features[replaced])


def test_no_fragment_holds_both_sides_of_the_middle_of_a_word() -> None:
    torch.manual_seed(1)
    before, after = words(1)[0, 0, MIDDLE - 2], words(1)[0, 0, MIDDLE + 2]
    for _ in range(20):
        features, labels = Fragments(0.9, UNKNOWN, SILENCE)(words(), torch.zeros(40, dtype=torch.int64))
        features = features[labels == UNKNOWN]
        assert len(features) == 36
        first, fifth = features[:, 0, :-4], features[:, 0, 4:]
        assert not bool(((first == before) & (fifth == after)).any())
        assert bool((features > SILENCE + 1).any(dim=2).all())  # each has speech in it


def test_the_same_seed_makes_the_same_fragments() -> None:
    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Fragments(0.5, UNKNOWN, SILENCE)(words(), torch.zeros(40, dtype=torch.int64))[0]

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))
