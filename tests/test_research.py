"""The studies of accuracy: networks as their papers have them, and the points of the learning curve."""

import pytest
import torch

from kws.recipe import FeatureConfig
from research import curve, peers


@pytest.mark.parametrize(("name", "num_words", "published"), [("KWT-1", 35, 607_000), ("BC-ResNet-3", 12, 54_200)])
def test_a_peer_has_as_many_parameters_as_its_paper_says(name: str, num_words: int, published: int) -> None:
    features: FeatureConfig = peers.PEERS[name].preset.features
    network = peers.PEERS[name].network(features, num_words)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(published, rel=0.01)
    scores = network.eval()(torch.randn(2, features.num_mels, features.num_frames))
    assert scores.shape == (2, num_words)
    assert bool(scores.isfinite().all())


def test_smaller_points_of_the_curve_are_in_the_larger_ones_and_have_as_many_clips_of_each_word() -> None:
    clips = [f"{word}/{speaker:08x}_nohash_0.wav" for word in ("no", "yes") for speaker in range(40)]
    few, more = (set(curve.fewer_clips(clips, most)) for most in (5, 20))
    assert few < more
    assert [sum(clip.startswith(word) for clip in more) for word in ("no/", "yes/")] == [20, 20]


def test_fewer_speakers_keep_all_of_their_clips() -> None:
    clips = [f"{word}/{speaker:08x}_nohash_0.wav" for word in ("no", "yes") for speaker in range(40)]
    kept = curve.fewer_speakers(clips, 0.25)
    assert len(kept) == 20
    assert {clip.split("/")[1] for clip in kept if clip.startswith("no/")} == {
        clip.split("/")[1] for clip in kept if clip.startswith("yes/")
    }


def test_the_fit_finds_the_exponent_of_a_power_law() -> None:
    clips = [50, 100, 200, 400, 800]
    assert curve.fit(clips, [0.8 * number**-0.5 for number in clips]) == pytest.approx((0.8, 0.5))
