"""Features in parts named by content: what is computed once, what is computed again, and what survives a kill."""

import itertools
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from tensor_folders import features_of

from kws import files
from kws.config import SPLITS, CleanConfig
from kws.data import shards
from kws.data.clip import Clip
from kws.data.index import Index
from kws.download.step import download
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.promote.clean import clean
from kws.recipe import RECIPES, Recipe, make_recipe


@pytest.fixture
def corpus(tone_corpus: Path, tmp_path: Path) -> Path:
    """The tones, to be added to."""
    return Path(shutil.copytree(tone_corpus, tmp_path / "recordings"))


def parts_of(data_root: Path) -> dict[Path, int]:
    """Returns the arrays of all parts, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in data_root.glob("features/*/*/features.npy")}


def num_rows(data_root: Path) -> int:
    return sum(len(np.load(path, mmap_mode="r")) for path in parts_of(data_root))


def record(folder: Path, number: int, speaker: str = "aaaaaaaa") -> Path:
    """Adds a recording that sounds like no other one."""
    sound = np.random.default_rng(number).uniform(-0.2, 0.2, 16_000)
    path = folder / f"{speaker}_nohash_{number}.wav"
    soundfile.write(path, sound, 16_000)
    return path


def of_clips(tensors: Path, split: str) -> Iterable[tuple[Clip, np.ndarray]]:
    """Returns the clips of a split with their features."""
    return zip(Tensors(tensors).split(split).clips, features_of(tensors, split), strict=True)


def assert_same(one: Path, other: Path) -> None:
    """Checks that training reads the same from two tensors folders, to the last bit."""
    for split in SPLITS:
        assert features_of(one, split).tobytes() == features_of(other, split).tobytes()
    manifests = [files.read_json(each / files.MANIFEST) for each in (one, other)]
    for name in ("fingerprint", "counts", "normalization", "left_out", "copies", "words"):
        assert manifests[0][name] == manifests[1][name]
    assert (one / "index.npz").read_bytes() == (other / "index.npz").read_bytes()


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_added_recordings_alone_are_computed_and_give_what_all_anew_gives(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, preset: str
) -> None:
    caplog.set_level(logging.INFO)
    data_root, recipe = tmp_path / "data", make_recipe(preset, split="speaker")
    preprocess(corpus, data_root, recipe, words="auto", num_threads=1)
    before = parts_of(data_root)
    for number in range(3):
        record(corpus / "yes", number, "0000000a")
        record(corpus / "no", 10 + number, "ffffffff")
    folder = preprocess(corpus, data_root, recipe, words="auto", num_threads=1)
    assert "the features of 120 of 126 clips are there already" in caplog.text
    assert len(before) == 1
    assert before.items() < parts_of(data_root).items()
    assert num_rows(data_root) == 126
    assert_same(folder, preprocess(corpus, tmp_path / "anew", recipe, words="auto", num_threads=2))


def test_other_words_splits_and_names_need_no_new_features(corpus: Path, tmp_path: Path) -> None:
    data_root = tmp_path / "data"
    first = preprocess(corpus, data_root, words="auto", num_threads=1)
    before = parts_of(data_root)
    others = [
        preprocess(corpus, data_root, words="yes,no", num_threads=1),
        preprocess(corpus, data_root, Recipe(split="random"), words="auto", num_threads=1),
    ]
    moved = tmp_path / "moved"
    (corpus / "yes").rename(corpus / "oui")
    corpus.rename(moved)
    others.append(preprocess(moved, data_root, words="auto", num_threads=1))
    assert len({first, *others}) == 4
    assert parts_of(data_root) == before
    heard = {row.tobytes() for split in SPLITS for row in features_of(first, split)}
    assert {row.tobytes() for split in SPLITS for row in features_of(others[2], split)} == heard


def test_other_feature_settings_have_parts_of_their_own(
    tone_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(tone_corpus, tmp_path, words="auto", num_threads=1)
    preprocess(tone_corpus, tmp_path, make_recipe("default", ["features.num_mels=64"]), words="auto", num_threads=1)
    monkeypatch.setattr("kws.preprocess.store.VERSION", 99)
    monkeypatch.setattr("kws.preprocess.step.VERSION", 99)
    preprocess(tone_corpus, tmp_path, words="auto", num_threads=1)
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_edited_recording_alone_is_computed_again(corpus: Path, tmp_path: Path) -> None:
    data_root = tmp_path / "data"
    folder = download(str(corpus), "", data_root)
    preprocess(folder, data_root, words="auto", num_threads=1)
    clip = min((folder / "yes").iterdir())
    content = clip.read_bytes()
    clip.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = preprocess(folder, data_root, words="auto", num_threads=1)
    assert num_rows(data_root) == 121
    assert_same(again, preprocess(folder, tmp_path / "anew", words="auto", num_threads=1))


def test_recordings_of_a_download_are_not_read_again_when_another_source_is_added(corpus: Path, tmp_path: Path) -> None:
    data_root = tmp_path / "data"
    first = download(str(corpus), "", data_root)
    preprocess(first, data_root, words="auto", num_threads=1)
    for path in first.glob("[a-z]*/*.wav"):  # the same by size and time, which no reader could use
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "mine" / "yes").mkdir(parents=True)
    record(tmp_path / "mine" / "yes", 1)
    both = download(f"{corpus} {tmp_path / 'mine'}", "", data_root)
    folder = preprocess(both, data_root, words="auto", num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["left_out"] == {}
    assert sum(manifest["counts"][split] for split in SPLITS) == num_rows(data_root) == 121


def test_damaged_digests_of_a_download_are_computed_again(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_root = tmp_path / "data"
    folder = download(str(corpus), "", data_root)
    first = preprocess(folder, data_root, words="auto", num_threads=1)
    (folder / ".digests.npz").write_bytes(b"PK\x03\x04")
    assert_same(first, preprocess(folder, tmp_path / "anew", words="auto", num_threads=1))
    assert ".digests.npz is damaged" in caplog.text


def _until_the_third_part(recordings: Path, data_root: Path, part_clips: int) -> None:
    """Preprocesses, and ends as by SIGKILL in the middle of the third part."""
    from kws.preprocess import store

    store.PART_CLIPS = part_clips
    write_json, count = files.write_json, itertools.count(1)

    def write_or_die(path: Path, value: object) -> None:
        if "features" in path.parts and next(count) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    files.write_json = write_or_die
    preprocess(recordings, data_root, words="auto", num_threads=1)


def test_killed_between_parts_it_keeps_those_that_are_complete(
    tone_corpus: Path, tone_tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kws.preprocess.store.PART_CLIPS", 25)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_until_the_third_part, args=(tone_corpus, tmp_path, 25))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    whole = {path: time for path, time in parts_of(tmp_path).items() if not path.parent.name.startswith(".")}
    assert len(whole) == 2
    folder = preprocess(tone_corpus, tmp_path, words="auto", num_threads=1)
    assert whole.items() < parts_of(tmp_path).items()
    assert sorted(files.read_json(folder / files.MANIFEST)["parts"].values()) == [20, 25, 25, 25, 25]
    assert_same(folder, tone_tensors)


def test_rows_of_a_table_are_read_in_their_order_whatever_their_split(
    tone_corpus: Path, tone_tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table").mkdir()
    paths = sorted(tone_corpus.glob("[a-z]*/*.wav"))
    columns = {
        "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "label": [path.parent.name for path in paths],
        "split": [("train", "validation", "test", "train")[number % 4] for number in range(len(paths))],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table" / "words.parquet", row_group_size=10)
    read: list[int] = []
    column = shards._Parquet.column

    def counted(self: shards._Parquet, name: str, group: int) -> Any:
        read.append(group)
        return column(self, name, group)

    monkeypatch.setattr(shards._Parquet, "column", counted)
    folder = preprocess(tmp_path / "table", tmp_path / "data", words="auto", num_threads=1)
    assert read == [*range(12), *range(12)]  # for the estimate of their length, and for the features
    counts = files.read_json(folder / files.MANIFEST)["counts"]
    assert {split: counts[split] for split in SPLITS} == {"train": 60, "validation": 30, "test": 30}
    kept = {clip.row: features.tobytes() for split in SPLITS for clip, features in of_clips(folder, split)}
    there = {clip.file: features.tobytes() for split in SPLITS for clip, features in of_clips(tone_tensors, split)}
    assert kept == {row: there[path.relative_to(tone_corpus).as_posix()] for row, path in enumerate(paths)}


def test_clip_that_could_not_be_read_is_tried_again(corpus: Path, tmp_path: Path) -> None:
    """Its bytes may be readable another time: with another decoder, for example."""
    data_root = tmp_path / "data"
    clip = min((corpus / "yes").iterdir())
    clip.write_bytes(b"nothing")
    for words in ("auto", "yes,no"):
        folder = preprocess(corpus, data_root, words=words, max_bad_fraction=0.1, num_threads=1)
        (reason,) = files.read_json(folder / files.MANIFEST)["left_out"].values()
        assert "must be an audio file" in reason
    assert len(parts_of(data_root)) == 1


def test_copies_of_a_recording_are_computed_once(corpus: Path, tmp_path: Path) -> None:
    clips = sorted((corpus / "yes").iterdir())
    for path in clips[:5]:
        shutil.copyfile(path, path.with_name(path.name.replace("_0.wav", "_1.wav")))
    folder = preprocess(corpus, tmp_path / "data", words="auto", num_threads=1)
    index = Index.load(folder / "index.npz")
    assert len(index) == 125
    assert num_rows(tmp_path / "data") == 120


def test_tensors_whose_parts_are_gone_say_so_and_are_made_again(tone_corpus: Path, tmp_path: Path) -> None:
    folder = preprocess(tone_corpus, tmp_path, words="auto", num_threads=1)
    before = features_of(folder, "train")
    shutil.rmtree(tmp_path / "features")
    with pytest.raises(ValueError, match=r"features.npy must be as kws preprocess wrote it, got .*No such file"):
        Tensors(folder).split("train")
    assert preprocess(tone_corpus, tmp_path, words="auto", num_threads=1) == folder
    np.testing.assert_array_equal(features_of(folder, "train"), before)


def test_arrays_have_the_type_of_the_preset(tone_corpus: Path, tmp_path: Path) -> None:
    recipe = RECIPES["baseline"]
    folder = preprocess(tone_corpus, tmp_path, recipe, words="auto", num_threads=1)
    assert Tensors(folder).split("train").parts[0].features.numpy().dtype == recipe.features.dtype


def test_parts_that_no_tensors_name_are_deleted_once_they_are_old(corpus: Path, tmp_path: Path) -> None:
    def parts_to_delete() -> set[Path]:
        plan = clean(tmp_path, CleanConfig(dry_run=True))
        return {piece.path / "features.npy" for piece in plan.pieces if piece.kind == "features"}

    folder = preprocess(corpus, tmp_path, words="yes,no", num_threads=1)
    (first,) = parts_of(tmp_path)
    preprocess(corpus, tmp_path, words="yes,stop", num_threads=1)
    (second,) = parts_of(tmp_path).keys() - {first}
    shutil.rmtree(folder)
    assert parts_to_delete() == set()
    for part in (first, second):
        for path in (*part.parent.iterdir(), part.parent):
            os.utime(path, (0, 0))
    # The other tensors name the part with the clips of yes as well as their own.
    assert parts_to_delete() == set()
    shutil.rmtree(tmp_path / "tensors")
    assert parts_to_delete() == {first, second}
