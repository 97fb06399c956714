"""The splits: by lists, by speaker, and at random."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kws.config import SPLITS
from kws.data import splits
from kws.data.folder import clip_of
from kws.data.index import Index
from kws.data.sources import list_recordings
from kws.data.splits import Divided, Lists, read_lists

NO_LISTS = Lists(split_of=np.zeros(0))


def clips_of(*files: str) -> Index:
    return Index.of(map(clip_of, files))


def listed(lists: Lists, clips: Index) -> dict[str, str]:
    return {clip.file: SPLITS[code] for clip, code in zip(clips, lists.split_of, strict=True) if code >= 0}


def ids(divided: Divided) -> dict[str, list[str]]:
    return {split: [clip.id for clip in clips] for split, clips in divided.items()}


CLIPS = clips_of("no/b_nohash_0.WAV", "yes/a_nohash_0.wav", "yes/b_nohash_0.flac", "yes/b_nohash_1.flac")


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
    listing = list_recordings(real_corpus)
    clips = listing.clips
    lists = read_lists(listing.lists, clips)
    found = splits.by_speaker(clips, lists)
    hashed = splits.by_speaker(clips, NO_LISTS)
    assert [figures["matched"] for figures in lists.figures.values()] == [len(found["validation"]), len(found["test"])]
    assert splits.speakers_in_two_splits(found) == {"speakers": 0, "clips": 0}
    assert ids(found) == ids(hashed)
    assert all(len(found[name]) for name in SPLITS)


def test_no_speaker_is_in_two_splits() -> None:
    files = [f"{word}/{n:08x}_nohash_{take}.wav" for word in ("yes", "no") for n in range(300) for take in range(2)]
    divided = splits.by_speaker(clips_of(*files), NO_LISTS)
    assert sorted(clip.id for part in divided.values() for clip in part) == sorted(files)
    assert all(clip.split == split for split, part in divided.items() for clip in part)
    speakers = [{clip.speaker for clip in divided[name]} for name in SPLITS]
    assert all(speakers)
    assert sum(len(some) for some in speakers) == len(set.union(*speakers)) == 300


def test_lists_decide_where_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "validation_list.txt").write_text("yes/a_nohash_0.wav\nno/a_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/b_nohash_0.wav\r\nother/z_nohash_0.wav\r\n")
    clips = clips_of(*(f"yes/{speaker}_nohash_0.wav" for speaker in "dcba"))
    lists = read_lists(list_recordings(tmp_path).lists, clips)
    assert lists.figures["validation_list.txt"] == {
        "entries": 2,
        "matched": 1,
        "of_other_words": 1,
        "without_recording": 0,
        "first": [],
        "twice": 0,
    }
    assert ids(splits.by_speaker(clips, lists)) == {
        "train": ["yes/c_nohash_0.wav", "yes/d_nohash_0.wav"],
        "validation": ["yes/a_nohash_0.wav"],
        "test": ["yes/b_nohash_0.wav"],
    }


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_any_bytes_are_a_list_with_lines_that_can_be_named(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "testing_list.txt"
    path.write_bytes(data)
    numbers = [number for number, _ in splits.read_list(path)]
    assert numbers == sorted(set(numbers))
    figures = read_lists({"test": path}, CLIPS).figures["testing_list.txt"]
    assert figures["entries"] == len(numbers)


@pytest.mark.parametrize(
    "content",
    [
        "yes/b_nohash_0.wav\nno/b_nohash_0.wav\n".encode("utf-8-sig"),
        "yes/b_nohash_0.wav\r\nno/b_nohash_0.wav\r\n".encode("utf-16"),
        "yes/b_nohash_0.wav\nno/b_nohash_0.wav\n".encode("utf-16-le"),
        "yes/b_nohash_0.wav\nno/b_nohash_0.wav\n".encode("utf-16-be"),
        b"yes/b_nohash_0.wav\rno/b_nohash_0.wav\r",
        b"./yes/b_nohash_0.flac\n\n./no/b_nohash_0.WAV",
        b"yes\\b_nohash_0.wav\r\nno\\b_nohash_0.wav",
        b"speech_commands_v0.02/yes/b_nohash_0.wav\nspeech_commands_v0.02\\no\\b_nohash_0.wav",
        b"C:\\data\\Yes\\B_NOHASH_0.WAV\n/data/NO/b_nohash_0.wav  \n",
        b"yes/b_nohash_0\nno//b_nohash_0",
    ],
    ids=[
        "byte order mark",
        "UTF-16",
        "UTF-16 without mark",
        "big endian",
        "old Mac",
        "./",
        "backslashes",
        "name in front",
        "case",
        "no suffix",
    ],
)
def test_list_is_read_however_it_spells_its_entries(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "testing_list.txt").write_bytes(content)
    lists = read_lists({"test": tmp_path / "testing_list.txt"}, CLIPS)
    assert listed(lists, CLIPS) == {"yes/b_nohash_0.flac": "test", "no/b_nohash_0.WAV": "test"}
    assert "testing_list.txt: 2 of 2 entries name a recording" in caplog.text


def test_entries_without_a_recording_are_named_with_their_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "testing_list.txt"
    path.write_bytes(b"yes/a_nohash_0.wav\nyes/n\xe4_nohash_0.wav\n\nyes/c_nohash_0.wav\nmaybe/a_nohash_0.wav\na.wav\n")
    lists = read_lists({"test": path}, CLIPS)
    assert listed(lists, CLIPS) == {"yes/a_nohash_0.wav": "test"}
    figures = lists.figures["testing_list.txt"]
    assert figures["first"] == ["line 2: yes/nä_nohash_0.wav", "line 4: yes/c_nohash_0.wav", "line 6: a.wav"]
    assert (figures["entries"], figures["matched"], figures["of_other_words"]) == (5, 1, 1)
    assert f"{path}: 3 entries name recordings that do not exist: line 2: yes/nä_nohash_0.wav, line 4" in caplog.text


def test_entry_that_is_exact_means_that_recording_and_its_copies_in_other_formats(tmp_path: Path) -> None:
    files = ["yes/A.wav", "yes/a.flac", "yes/a.wav", "yes/j\u00e4.wav"]
    path = tmp_path / "testing_list.txt"
    path.write_text("yes/a.wav\nyes/ja\u0308.wav")
    assert listed(read_lists({"test": path}, clips_of(*files)), clips_of(*files)) == dict.fromkeys(files[1:], "test")


def test_recording_in_both_lists_is_in_the_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = {"test": tmp_path / "testing_list.txt", "validation": tmp_path / "validation_list.txt"}
    paths["test"].write_text("yes/a_nohash_0.wav")
    paths["validation"].write_text("yes/A_nohash_0.wav\nno/b_nohash_0.wav\n")
    lists = read_lists(paths, CLIPS)
    assert listed(lists, CLIPS) == {"yes/a_nohash_0.wav": "test", "no/b_nohash_0.WAV": "validation"}
    assert "1 recordings are also in another list" in caplog.text


def test_speakers_who_train_and_test_are_counted() -> None:
    divided = {
        "train": clips_of("yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "yes/take1.wav"),
        "validation": clips_of("no/a_nohash_0.wav", "no/a_nohash_1.wav", "no/take1.wav"),
        "test": clips_of("no/b_nohash_0.wav", "no/c_nohash_0.wav"),
    }
    assert splits.speakers_in_two_splits(divided) == {"speakers": 2, "clips": 3}


def test_random_split_is_the_same_for_any_order_of_files() -> None:
    clips = list(clips_of(*(f"w/s{n}.wav" for n in range(100))))
    divided = ids(splits.at_random(Index.of(clips)))
    for _ in range(3):
        random.shuffle(clips)
        assert ids(splits.at_random(Index.of(clips))) == divided


def test_random_split_is_the_same_on_any_machine() -> None:
    divided = ids(splits.at_random(clips_of(*(f"w/s{n}_nohash_0.wav" for n in range(30)))))
    assert divided["validation"] == ["w/s17_nohash_0.wav", "w/s27_nohash_0.wav", "w/s8_nohash_0.wav"]
    assert divided["test"] == ["w/s19_nohash_0.wav", "w/s21_nohash_0.wav", "w/s4_nohash_0.wav"]
    code = """
from kws.data.folder import clip_of
from kws.data.index import Index
from kws.data.index import Index
from kws.data.splits import at_random
divided = at_random(Index.of(clip_of(f"w/s{n}_nohash_0.wav") for n in range(30)))
print({split: [clip.id for clip in clips] for split, clips in divided.items()})
"""
    for seed in ("0", "7"):  # Python's own hash changes from process to process
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == str(divided)


@pytest.mark.parametrize(
    ("num_clips", "counts"), [(1000, (950, 30, 20)), (4043, (3841, 121, 81)), (999, (799, 100, 100)), (3, (1, 1, 1))]
)
def test_random_split_is_95_3_2_and_80_10_10_of_few_clips(num_clips: int, counts: tuple[int, int, int]) -> None:
    files = [f"w/{n}.wav" for n in range(num_clips)]
    divided = ids(splits.at_random(clips_of(*files)))
    assert tuple(len(divided[name]) for name in SPLITS) == counts
    assert sorted(clip for part in divided.values() for clip in part) == sorted(files)


def test_random_split_of_few_clips_tests_every_word() -> None:
    files = [f"{word}/a_nohash_{n}.wav" for word in ("hello", "bye") for n in range(20)]
    divided = splits.at_random(clips_of(*files, "rare/a_nohash_0.wav"))
    for split, count in (("train", 16), ("validation", 2), ("test", 2)):
        words = Counter(clip.word for clip in divided[split])
        assert (words["hello"], words["bye"]) == (count, count)
    assert "rare/a_nohash_0.wav" in ids(divided)["train"]


def test_random_split_with_another_seed_is_another() -> None:
    clips = clips_of(*(f"w/{n}.wav" for n in range(100)))
    assert ids(splits.at_random(clips, seed=42)) != ids(splits.at_random(clips))
