"""The index: what is stored comes back, and a million clips open in a moment."""

from pathlib import Path

import numpy as np
import pytest

from kws.data.clip import Clip
from kws.data.index import Index

CLIPS = [
    Clip(file="yes/a_nohash_0.wav", word="yes", speaker="a", split="train"),
    Clip(file="tschüs/日本\n.wav", word="tschüs", split="train"),
    Clip(file="_background_noise_/hiss.wav", word="_silence_", split="train", begin=0, gain=-30),
    Clip(file="no/a_nohash_0.wav", word="no", speaker="a", split="test"),
    Clip(file="_background_noise_/hiss.wav", word="_silence_", split="test", begin=2**40, gain=3),
]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    Index.of(CLIPS).save(tmp_path / "index.npz")
    return Index.load(tmp_path / "index.npz")


def test_clips_come_back_as_they_were_stored_in_their_order(index: Index) -> None:
    assert list(index) == CLIPS
    assert index[-1] == CLIPS[-1]
    assert len({clip.id for clip in index}) == len(CLIPS)


def test_some_rows_are_an_index_again(index: Index) -> None:
    assert list(index[::2]) == CLIPS[::2]
    assert list(index.take(np.array([3, 0]))) == [CLIPS[3], CLIPS[0]]
    assert list(index.of_split("test")) == CLIPS[3:]
    assert list(index.of_split("validation")) == []


def test_labels_are_the_places_of_the_classes(index: Index) -> None:
    assert index.labels(["no", "yes", "_unknown_", "_silence_"]).tolist() == [1, 2, 3, 0, 3]
    assert index.of_split("test").labels(["_silence_", "no"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="clips must be of the words no, yes, got 'tschüs'"):
        index.labels(["no", "yes"])


def test_a_hundred_thousand_clips_take_forty_bytes_each_beside_their_names(tmp_path: Path) -> None:
    names = [f"word{number % 30}/{number:08x}_nohash_0.wav" for number in range(100_000)]
    Index.of([Clip(file=name, word=name.split("/")[0], split="train") for name in names]).save(tmp_path / "index.npz")
    assert (tmp_path / "index.npz").stat().st_size < sum(map(len, names)) + 40 * len(names)
    index = Index.load(tmp_path / "index.npz")
    assert [index[row].file for row in (0, 31_337, 99_999)] == [names[row] for row in (0, 31_337, 99_999)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gain", lambda column: column[:-1]),
        ("word.codes", lambda column: column[:-1]),
        ("word.codes", lambda column: column + 1),
        ("file.codes", lambda column: column - 1),
        ("file.ends", lambda column: column[:-1]),
        ("file.ends", lambda column: column[::-1]),
        ("speaker.pool", lambda column: column[:-1]),
        ("split.codes", lambda column: column.astype(float)),
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(tmp_path: Path, name: str, change: object) -> None:
    path = tmp_path / "index.npz"
    Index.of(CLIPS).save(path)
    columns = dict(np.load(path))
    columns[name] = change(columns[name])
    np.savez(path, **columns)
    with pytest.raises(ValueError, match="the index must hold 5"):
        Index.load(path)
