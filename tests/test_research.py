"""The studies of accuracy: networks as their papers have them, and the points of the learning curve."""

from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch

from kws.config import SPLITS
from kws.data import splits
from kws.data.folder import clip_of
from kws.data.index import Index
from kws.recipe import FeatureConfig
from research import curve, cut_archive, frontier, peers


@pytest.mark.parametrize(("name", "num_words", "published"), [("KWT-1", 35, 607_000), ("BC-ResNet-3", 12, 54_200)])
def test_a_peer_has_as_many_parameters_as_its_paper_says(name: str, num_words: int, published: int) -> None:
    features: FeatureConfig = peers.PEERS[name].preset.features
    network = peers.PEERS[name].network(features, num_words)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(published, rel=0.01)
    scores = network.eval()(torch.randn(2, features.num_mels, features.num_frames))
    assert scores.shape == (2, num_words)
    assert bool(scores.isfinite().all())


@pytest.mark.parametrize(("name", "parameters"), [("KWT-1", 607_000), ("KWT-2", 2_394_000), ("BC-ResNet-8", 321_000)])
def test_networks_of_the_frontier_have_the_sizes_of_their_papers(name: str, parameters: int) -> None:
    (published,) = (one for one in frontier.PUBLISHED if one.name == name)
    found, multiplied = published.size()
    assert found == pytest.approx(parameters, rel=0.01)
    assert multiplied > 10 * found, "weights are used for many frames"


def test_smaller_points_of_the_curve_are_in_the_larger_ones_and_have_as_many_clips_of_each_word() -> None:
    clips = [clip_of(f"{word}/{speaker:08x}_nohash_0.wav") for word in ("no", "yes") for speaker in range(40)]
    few, more = (set(curve.fewer_clips(clips, most)) for most in (5, 20))
    assert few < more
    assert Counter(clip.word for clip in more) == {"no": 20, "yes": 20}


def test_fewer_speakers_keep_all_of_their_clips() -> None:
    clips = [clip_of(f"{word}/{speaker:08x}_nohash_0.wav") for word in ("no", "yes") for speaker in range(40)]
    kept = curve.fewer_speakers(clips, 0.25)
    assert len(kept) == 20
    assert len({clip.speaker for clip in kept}) == 10


def test_the_fit_finds_the_exponent_of_a_power_law() -> None:
    clips = [50, 100, 200, 400, 800]
    assert curve.fit(clips, [0.8 * number**-0.5 for number in clips]) == pytest.approx((0.8, 0.5))


@pytest.mark.parametrize(("name", "counts"), [("real16", [3200, 480, 363, 6]), ("real21", [16_522, 2049, 3093, 6])])
def test_a_list_has_no_speaker_in_two_splits(name: str, counts: list[int]) -> None:
    clips = cut_archive.read_list(Path(cut_archive.__file__).parent / "lists" / f"{name}.txt")
    assert [len(some) for some in clips.values()] == counts
    divided = {split: Index.of(map(clip_of, clips[split])) for split in SPLITS}
    assert splits.speakers_in_two_splits(divided) == {"speakers": 0, "clips": 0}


def test_what_is_cut_out_has_the_listed_clips_and_their_splits(real_archive: Path, tmp_path: Path) -> None:
    noise = "_background_noise_/running_tap"
    some = {"train": "yes/0132a06d_nohash_3", "validation": "five/264f471d_nohash_0", "test": "left/c9b5ff26_nohash_1"}
    path = tmp_path / "list.txt"
    path.write_text(
        "# a few\n" + "".join(f"\n[{split}]\n{clip}\n" for split, clip in (*some.items(), ("noise", noise)))
    )
    output = tmp_path / "cut"
    cut_archive.cut(cut_archive.read_list(path), real_archive, output, ["train"])
    files = sorted(str(file.relative_to(output)) for file in output.rglob("*") if file.is_file())
    kept = [f"{some['train']}.opus", *(f"{name}.wav" for name in (some["validation"], some["test"], noise))]
    assert files == sorted([*kept, "testing_list.txt", "validation_list.txt"])
    assert (output / "testing_list.txt").read_text() == f"{some['test']}.wav\n"
    assert soundfile.info(output / kept[0]).frames == 16_000
    path.write_text("[train]\nyes/nobody_nohash_0\n")
    with pytest.raises(ValueError, match=r"archive must have every clip of the list, got 'none named yes/nobody"):
        cut_archive.cut(cut_archive.read_list(path), real_archive, tmp_path / "other")
    assert sorted(tmp_path.iterdir()) == [output, path]
