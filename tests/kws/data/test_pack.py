"""Recordings of a large data set in one archive: the same clips, sounds and digests as in files."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from noise_recordings import make_recordings
from noise_recordings import pack as make_archive
from tensor_folders import features_of

from kws import files
from kws.data import pack
from kws.data.digest import Digests, content_digest, fingerprint
from kws.data.index import strings
from kws.data.pack import Pack, Packer, opened
from kws.data.sources import list_recordings
from kws.download.step import download
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import INDEX


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "MANY", 5)


def sounds_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.wav") if not path.parent.name.startswith("_")]


@pytest.mark.parametrize("wrapping", [".", "data/words"])
def test_many_recordings_of_an_archive_stay_in_one_file_and_are_what_they_are_as_files(
    tmp_path: Path, wrapping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = make_recordings(tmp_path / "recordings")
    folder = download(str(make_archive(recordings, tmp_path / "a.tar.gz", wrapping)), "", tmp_path / "packed")
    assert sounds_below(folder) == []
    listing, as_files = list_recordings(folder), list_recordings(recordings)
    assert list(listing.clips) == list(as_files.clips)
    assert content_digest(listing) == content_digest(as_files)
    for file in as_files.clips.files:
        assert opened(folder, file) == (recordings / file).read_bytes()
    manifest = files.read_json(folder / files.MANIFEST)
    assert (manifest["num_clips"], manifest["num_bytes"]) == (12, 12 * 32_044)
    with tarfile.open(folder / pack.FOLDER / pack.TAR) as archive:  # any tar reads it
        assert len(archive.getmembers()) == 12
    again = download(str(folder), "", tmp_path / "copied")  # a packed data set is a source like any other
    assert content_digest(list_recordings(again)) == content_digest(as_files)
    monkeypatch.setattr(pack, "MANY", 100)
    back = download(str(folder), "", tmp_path / "unpacked")
    assert len(sounds_below(back)) == 12


def test_features_of_packed_recordings_are_those_of_files(
    tone_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = []
    for many in (5, 1000):
        monkeypatch.setattr(pack, "MANY", many)
        folder = download(str(tone_corpus), "", tmp_path / str(many))
        assert bool(sounds_below(folder)) == (many == 1000)
        assert (folder / "_background_noise_" / "hiss.wav").is_file()
        tensors.append(preprocess(folder, tmp_path / str(many), words="yes,no"))
    one, other = tensors
    assert one.name == other.name
    assert (one / INDEX).read_bytes() == (other / INDEX).read_bytes()
    for split in ("train", "validation", "test"):
        assert features_of(one, split).tobytes() == features_of(other, split).tobytes()


def test_several_sources_may_be_packed_and_an_edit_is_seen(tmp_path: Path) -> None:
    sources = [make_recordings(tmp_path / str(seed), seed=seed) for seed in range(2)]
    folder = download("\n".join(map(str, sources)), "", tmp_path / "data")
    listing = list_recordings(folder)
    assert listing.layout == "parts"
    assert len(listing.clips) == 24
    before = fingerprint(listing, listing.clips, Digests(folder))
    assert before == files.read_json(folder / files.MANIFEST)["content"]
    for clip in listing.clips:
        assert isinstance(opened(folder, clip.file), bytes)
    part = folder.parent / listing.clips[0].file.split("/")[1]
    (part / "yes").mkdir(exist_ok=True)
    shutil.copyfile(sources[0] / "no" / "00000000_nohash_0.wav", part / "yes" / "more.wav")
    edited = list_recordings(folder)
    assert fingerprint(edited, edited.clips, Digests(folder)) != before


def test_of_members_with_one_name_the_last_counts_and_others_are_files(tmp_path: Path) -> None:
    packer = Packer(tmp_path)
    for number in range(8):
        name = f"yes/{number % 7}.wav"
        if packer.takes(name):
            packer.add(name, io.BytesIO(bytes([number] * 3)), 3)
        else:
            (tmp_path / "yes").mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(bytes([number] * 3))
    assert not packer.takes("list.csv")
    assert not packer.takes("_background_noise_/hiss.wav")
    packer.close()
    there = Pack.of(tmp_path)
    assert there is not None
    assert sorted(there.names()) == [f"yes/{number}.wav" for number in range(7)]
    assert [there.read(f"yes/{number}.wav") for number in (0, 1, 6)] == [b"\7\7\7", b"\1\1\1", b"\6\6\6"]
    assert there.read("yes/7.wav") is None
    assert there.rows(strings(["no", "yes/0.wav"])).tolist()[0] == -1


def test_a_member_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    archive = make_archive(make_recordings(tmp_path / "recordings"), tmp_path / "a.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-200_000])
    with pytest.raises(ValueError, match="source must be a whole archive"):
        download(str(archive), "", tmp_path / "data")
    assert not [path for path in (tmp_path / "data" / "datasets").iterdir() if files.is_complete(path)]
