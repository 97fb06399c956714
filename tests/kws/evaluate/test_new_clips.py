"""What new clips changed, told apart from what changed on old ones."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kws import files
from kws.config import SILENCE
from kws.evaluate.accuracy import wilson
from kws.evaluate.new_clips import find_new
from kws.evaluate.step import evaluate
from kws.model import bundle, versions
from kws.model.bundle import Recognizer
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import make_recipe


def publish(data_root: Path, version: str, tensors: str) -> None:
    """Makes a version champion of which nothing is known but its data."""
    manifest = {"version": version, "files": {}, "about": {"tensors": tensors}}
    files.write_json(data_root / "models" / version / files.MANIFEST, manifest)
    versions.appoint(data_root, version, 0.9, by=versions.STEP, reason="")


def evaluated(recognizer: Recognizer, tensors: Path, tmp_path: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """Runs the evaluate step; returns its JSON, its metrics and its page."""
    bundle.save(tmp_path / "model.pth", recognizer)
    found = evaluate(tmp_path / "model.pth", tensors, tmp_path / "report.html")
    return found.summary(), found.figures(), (tmp_path / "report.html").read_text()


def test_clip_is_new_whose_sound_the_data_of_the_champion_had_not_whatever_its_name(
    grown: tuple[Path, Path, list[str]],
) -> None:
    before, after, names = grown
    publish(after.parents[1], "v1", before.name)
    is_new = find_new(Tensors(after), after.parents[1], "v1")
    assert is_new is not None
    clips = Tensors(after).split("test").clips
    assert [clip.id for clip, new in zip(clips, is_new, strict=True) if new] == names


def test_evaluate_tells_accuracy_on_new_and_on_old_clips_apart(
    grown: tuple[Path, Path, list[str]], expert: Recognizer, tmp_path: Path
) -> None:
    before, after, names = grown
    publish(after.parents[1], "v1", before.name)
    # It takes every "no" for "stop", and the other way round.
    confused = dataclasses.replace(expert, words=["stop", "no", "yes"])
    summary, metrics, page = evaluated(confused, after, tmp_path)
    num_old = len(Tensors(before).split("test").clips)
    assert summary["new_clips"] == {
        "champion": "v1",
        "new": {"num_clips": len(names), "accuracy": 1 / 3, "interval": list(wilson(1 / 3, len(names)))},
        "old": {"num_clips": num_old, "accuracy": 1 / 3, "interval": list(wilson(1 / 3, num_old))},
    }
    assert (metrics["num_new_clips"], metrics["accuracy_on_new_clips"]) == (3, 1 / 3)
    assert (metrics["num_old_clips"], metrics["accuracy_on_old_clips"]) == (num_old, 1 / 3)
    assert "the data of the champion, v1, did not have" in page
    assert "33.33 %" in page


def test_evaluate_says_nothing_of_new_clips_without_a_champion_or_if_nothing_is_new(
    grown: tuple[Path, Path, list[str]], expert: Recognizer, tmp_path: Path
) -> None:
    before, after, _ = grown
    for tensors, champion in ((after, ""), (after, after.name), (before, after.name)):
        if champion:
            publish(after.parents[1], f"v-{champion}", champion)
        summary, metrics, page = evaluated(expert, tensors, tmp_path)
        assert "new_clips" not in summary
        assert metrics.keys() == {"accuracy", "macro_f1", "calibration_error", "num_clips"}
        assert "New clips" not in page


def test_evaluate_goes_on_if_the_data_of_the_champion_is_gone_or_champion_json_is_damaged(
    grown: tuple[Path, Path, list[str]], expert: Recognizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before, after, _ = grown
    publish(after.parents[1], "v1", before.name)
    shutil.rmtree(before)
    assert "new_clips" not in evaluated(expert, after, tmp_path)[0]
    assert "as the data of v1 cannot be read" in caplog.text
    (after.parents[1] / "models" / "champion.json").write_text("{")
    assert "new_clips" not in evaluated(expert, after, tmp_path)[0]
    assert "accuracy on new clips is not known" in caplog.messages[-3]


def test_silence_counts_as_old(real_corpus: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(real_corpus, before)
    (before / "_background_noise_" / "exercise_bike.wav").unlink()
    recipe = make_recipe("default", [], split="random")
    old, new = (
        Tensors(preprocess(folder, tmp_path / "data", recipe, words="left,stop", unknown_words="yes"))
        for folder in (before, real_corpus)
    )
    publish(tmp_path / "data", "v1", old.fingerprint)
    clips = new.split("test").clips
    unseen = set(clips.ids[~np.isin(new.keys("test"), old.keys())].tolist())
    assert any(clip.word == SILENCE and clip.id in unseen for clip in clips)
    is_new = find_new(new, tmp_path / "data", "v1")
    found = set() if is_new is None else set(clips.ids[is_new].tolist())
    assert found == {clip.id for clip in clips if clip.id in unseen and clip.word != SILENCE}
