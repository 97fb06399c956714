"""Who trains, who validates, who tests."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from kws.config import SPLITS
from kws.preprocess import splits
from kws.preprocess.step import list_clips


@pytest.mark.parametrize(
    ("speaker", "split"),
    [
        # The last 27 bits of `printf NAME | sha1sum`, as a percentage of 2^27 - 1, by hand.
        ("bobby", "train"),  # …3f88b31b → 126,399,259 → 94.2
        ("0a7c2a8d", "train"),  # …fc8c025b → 76,284,507 → 56.8
        ("c9b5ff26", "test"),  # …90e29155 → 14,848,341 → 11.1
        ("lucas", "validation"),  # …b0bc5052 → 12,341,330 → 9.2
        ("nicolas", "validation"),  # …58904184 → 9,453,956 → 7.0
    ],
)
def test_speaker_falls_where_the_published_hash_puts_it(speaker: str, split: str) -> None:
    assert splits.split_of_speaker(speaker) == split


def test_percentages_move_the_borders() -> None:
    assert splits.split_of_speaker("c9b5ff26", 5, 6) == "train"
    assert splits.split_of_speaker("c9b5ff26", 12, 6) == "validation"
    assert splits.split_of_speaker("lucas", 0, 10) == "test"


def test_lists_of_the_real_archive_are_what_the_hash_gives(real_corpus: Path) -> None:
    clips = list_clips(real_corpus, ("left", "stop", "yes"))
    listed = splits.by_speaker(clips, real_corpus)
    hashed = splits.by_speaker(clips, real_corpus / "left")  # no lists there
    assert listed == hashed
    assert all(listed[name] for name in SPLITS)


def test_speaker_of_a_clip_is_what_stands_before_nohash() -> None:
    assert splits.speaker_of("yes/0a7c2a8d_nohash_12.wav") == "0a7c2a8d"
    assert splits.speaker_of("yes/my_own_voice.wav") == "my_own_voice.wav"


def test_no_speaker_is_in_two_splits(tmp_path: Path) -> None:
    clips = [f"{word}/{n:08x}_nohash_{take}.wav" for word in ("yes", "no") for n in range(300) for take in range(2)]
    divided = splits.by_speaker(clips, tmp_path)
    assert sorted(clip for part in divided.values() for clip in part) == sorted(clips)
    speakers = [{splits.speaker_of(clip) for clip in divided[name]} for name in SPLITS]
    assert all(speakers)
    assert sum(len(some) for some in speakers) == len(set.union(*speakers)) == 300


def test_lists_decide_where_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "validation_list.txt").write_text("yes/a_nohash_0.wav\nno/a_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/b_nohash_0.wav\r\nother/z_nohash_0.wav\r\n")
    clips = [f"yes/{speaker}_nohash_0.wav" for speaker in "dcba"]
    assert splits.by_speaker(clips, tmp_path) == {
        "train": ["yes/c_nohash_0.wav", "yes/d_nohash_0.wav"],
        "validation": ["yes/a_nohash_0.wav"],
        "test": ["yes/b_nohash_0.wav"],
    }


def test_random_split_is_the_same_for_any_order_of_files() -> None:
    clips = [f"w/s{n}.wav" for n in range(100)]
    divided = splits.at_random(clips)
    for _ in range(3):
        random.shuffle(clips)
        assert splits.at_random(clips) == divided


def test_random_split_is_the_same_on_any_machine() -> None:
    divided = splits.at_random([f"w/s{n}_nohash_0.wav" for n in range(100)])
    assert divided["validation"] == ["w/s44_nohash_0.wav", "w/s58_nohash_0.wav", "w/s59_nohash_0.wav"]
    assert divided["test"] == ["w/s56_nohash_0.wav", "w/s84_nohash_0.wav"]
    code = "from kws.preprocess import splits; print(splits.at_random([f'w/s{n}_nohash_0.wav' for n in range(100)]))"
    for seed in ("0", "7"):  # Python's own hash changes from process to process
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == str(divided)


@pytest.mark.parametrize(
    ("num_clips", "counts"), [(100, (95, 3, 2)), (1000, (950, 30, 20)), (4043, (3841, 121, 81)), (26, (24, 1, 1))]
)
def test_random_split_is_95_3_2(num_clips: int, counts: tuple[int, int, int]) -> None:
    clips = [f"w/{n}.wav" for n in range(num_clips)]
    divided = splits.at_random(clips)
    assert tuple(len(divided[name]) for name in SPLITS) == counts
    assert sorted(clip for part in divided.values() for clip in part) == sorted(clips)


def test_random_split_with_another_seed_is_another() -> None:
    clips = [f"w/{n}.wav" for n in range(100)]
    assert splits.at_random(clips, seed=42) != splits.at_random(clips)
