"""Tensors, opened again, and handed from step to step."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensor_folders import copy_tensors, features_of

from kws import files, steps
from kws.config import SPLITS
from kws.preprocess.tensors import Part, Tensors, gather
from kws.recipe import RECIPES


def test_everything_that_was_stored_is_there_again(tone_tensors: Path) -> None:
    tensors = Tensors(tone_tensors)
    manifest = files.read_json(tone_tensors / files.MANIFEST)
    assert tensors.words == ["no", "stop", "yes"]
    assert tensors.features == RECIPES["default"].features
    assert tensors.fingerprint == tone_tensors.name
    assert tensors.mean.tolist() == pytest.approx(manifest["normalization"]["mean"])
    assert tensors.std.tolist() == pytest.approx(manifest["normalization"]["std"])
    for name in SPLITS:
        part = tensors.split(name)
        assert len(part) == manifest["counts"][name] == len(part.labels) == len(part.rows)
        assert part.parts[0].features.dtype == torch.float16
        assert {clip.split for clip in part.clips} == {name}
        assert [tensors.words[label] for label in part.labels] == [clip.word for clip in part.clips]
    noise = tensors.noise()
    assert noise is not None
    assert noise.shape == (4, 128, 81)


def test_batch_gathers_the_clips_that_were_asked_for(tone_tensors: Path) -> None:
    part = Tensors(tone_tensors).split("train")
    features, labels = part.batch(torch.tensor([5, 0, 5]))
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features.numpy(), features_of(tone_tensors, "train")[[5, 0, 5]])
    assert labels.tolist() == [int(part.labels[5]), int(part.labels[0]), int(part.labels[5])]


def test_some_clips_are_spread_over_the_split_and_keep_their_rows(tone_tensors: Path) -> None:
    whole = Tensors(tone_tensors).split("train")
    part = Tensors(tone_tensors).split("train", most=9)
    rows = [whole.clips.index(clip) for clip in part.clips]
    assert len(part) == 9
    assert (rows[0], rows[-1]) == (0, len(whole) - 1)
    assert torch.equal(part.rows, whole.rows[rows])
    assert torch.equal(part.labels, whole.labels[rows])
    assert set(part.labels.tolist()) == {0, 1, 2}
    assert len(Tensors(tone_tensors).split("train", most=10**6)) == len(whole)


def test_writing_to_opened_tensors_leaves_the_files_alone(tone_tensors: Path) -> None:
    before = features_of(tone_tensors, "test")
    Tensors(tone_tensors).split("test").parts[0].features.zero_()
    np.testing.assert_array_equal(features_of(tone_tensors, "test"), before)


def test_recordings_without_noise_have_none(tone_tensors: Path, tmp_path: Path) -> None:
    folder = copy_tensors(tone_tensors, tmp_path)
    manifest = files.read_json(folder / files.MANIFEST)
    files.write_json(folder / files.MANIFEST, manifest | {"counts": manifest["counts"] | {"noise": 0}})
    assert Tensors(folder).noise() is None


def test_folder_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensors must be a folder that kws preprocess completed, got"):
        Tensors(tmp_path)


def test_folder_that_is_handed_over_is_received(tone_tensors: Path, tmp_path: Path) -> None:
    artifact = str(tmp_path / "artifact" / "tensors.json")
    written = steps.hand_over(tone_tensors, artifact, {"num_clips": 120})
    manifest = {"path": str(tone_tensors), "sha256": files.sha256_of(tone_tensors / files.MANIFEST), "num_clips": 120}
    assert json.loads(Path(artifact).read_text()) == manifest
    assert written == manifest
    assert steps.receive(artifact) == tone_tensors


def test_folder_that_is_gone_or_another_is_not_received(tone_tensors: Path, tmp_path: Path) -> None:
    folder = copy_tensors(tone_tensors, tmp_path)
    artifact = str(tmp_path / "tensors.json")
    steps.hand_over(folder, artifact, {})
    files.write_json(folder / files.MANIFEST, {"another": True})
    with pytest.raises(ValueError, match=r"must be as the step before left it, got another manifest\.json"):
        steps.receive(artifact)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="must be on the volume, got"):
        steps.receive(artifact)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"{}", r"manifest.json must have words \(list\), got none"),
        ("manifest.json", b"[]", "manifest.json must be a JSON object, got a list"),
        ("index.npz", b"", "index.npz must be as kws preprocess wrote it, got No data left"),
        ("index.npz", b"PK\x03\x04", "index.npz must be as kws preprocess wrote it, got File is not a zip file"),
        ("index.npz", pickle.dumps([1]), "index.npz must be as kws preprocess wrote it"),
        ("rows.npy", b"\x93NUMPY", "rows.npy must be as kws preprocess wrote it"),
        ("features.npy", b"\x93NUMPY", "features.npy must be as kws preprocess wrote it"),
        ("features.npy", pickle.dumps([1]), "features.npy must be as kws preprocess wrote it"),
    ],
)
def test_damaged_tensors_are_refused_with_the_file_and_the_remedy(
    tone_tensors: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = copy_tensors(tone_tensors, tmp_path)
    (path,) = tmp_path.glob(f"*/*/{name}" if name != "features.npy" else f"*/*/*/{name}")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tensors(folder).split("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ["no"]}, "got words must be a list of two words or more"),
        ({"normalization": {"mean": [0.0]}}, "got no 'std': delete"),
        ({"normalization": {"mean": [0.0] * 128, "std": [1.0]}}, "got std must have 128 numbers"),
        ({"normalization": {"mean": ["x"] * 128, "std": [1.0] * 128}}, "must be as kws preprocess wrote it"),
        ({"features": {"num_mels": -1}}, "got num_mels must be positive"),
        ({"words": ["no", "stop"]}, "clips must be of the words no, stop, got 'yes'"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    tone_tensors: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = copy_tensors(tone_tensors, tmp_path)
    files.write_json(folder / files.MANIFEST, files.read_json(folder / files.MANIFEST) | change)
    with pytest.raises(ValueError, match=message):
        Tensors(folder).split("train")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs a way to empty the page cache of a file")
def test_clips_that_are_not_in_memory_are_read_without_their_neighbours(tmp_path: Path) -> None:
    """Of features larger than memory, what is read beside a clip pushes others out of the page cache."""
    path = tmp_path / "features.npy"
    np.save(path, np.random.default_rng(0).integers(0, 9, (3000, 128, 81), np.int16).view(np.float16))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    part, rows = Part.open(path), torch.arange(0, 3000, 100)

    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])

    before = read_bytes()
    found = gather([part], rows)
    assert read_bytes() - before <= 2 * found.nbytes
    assert torch.equal(found.view(torch.int16), torch.from_numpy(np.load(path))[rows].view(torch.int16))
