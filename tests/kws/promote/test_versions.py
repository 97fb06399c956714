"""What is published: the files of a version, the record of champions, and rollback."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensor_folders import copy_tensors

from kws import files
from kws.cli import main
from kws.evaluate.accuracy import evaluate_tensors, wilson
from kws.evaluate.step import evaluate
from kws.model import bundle as pth
from kws.model import onnx, versions
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.preprocess.audio import read_clip
from kws.preprocess.tensors import Tensors
from kws.promote.card import write_card
from kws.promote.publish import Version, fill
from kws.promote.step import promote


@pytest.fixture(scope="module")
def published(expert: Recognizer, tone_tensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one version, the champion, of a whole evaluation. Read only."""
    folder = tmp_path_factory.mktemp("published")
    pth.save(folder / "model.pth", expert)
    found = evaluate(folder / "model.pth", tone_tensors, folder / "report.html")
    files.write_json(folder / "evaluation.json", found.summary())
    promote(
        folder / "model.pth",
        tone_tensors,
        folder / "evaluation.json",
        folder / "report.html",
        folder,
        0.5,
        formats="onnx,onnx-int8,litert,page",
    )
    return folder


@pytest.fixture
def data_root(published: Path, tmp_path: Path) -> Path:
    """Three versions, of which the last is champion."""
    for name in ("one", "two", "three"):
        shutil.copytree(published / "models" / "expert", tmp_path / "models" / name)
        versions.appoint(tmp_path, name, 1.0, by=versions.STEP, reason="better")
    return tmp_path


def version_files(published: Path) -> tuple[Path, Any]:
    folder = published / "models" / "expert"
    return folder, versions.verify(folder)


def test_exported_models_hear_what_the_trained_one_hears(published: Path, expert: Recognizer) -> None:
    folder, manifest = version_files(published)
    clip = read_clip(folder / versions.REFERENCE, expert.features)[None]
    expected = expert.predict(clip)[0]
    for name in (versions.ONNX, versions.INT8):
        heard = onnx.load(folder / name).predict(clip)[0]
        np.testing.assert_allclose(heard, manifest["reference"][name], atol=1e-4)
        assert heard.argmax() == expected.argmax()
    np.testing.assert_allclose(manifest["reference"][versions.ONNX], expected, atol=1e-3)
    said = manifest["formats"][versions.INT8]
    assert re.fullmatch(r"published: accuracy 100.00% on \d+ clips of the test split, model.onnx 100.00%", said)


def test_every_format_that_a_run_asks_for_is_published_or_left_out_with_a_reason(published: Path) -> None:
    folder, manifest = version_files(published)
    said = manifest["formats"]
    assert list(said) == [versions.INT8, "model.tflite", "model.html"]
    assert said["model.html"] == "not published: `kws export` makes it from model.pth"
    assert (folder / "model.tflite").is_file() == said["model.tflite"].startswith("published: accuracy")
    assert all(f"| `{name}` | {sentence} |" in (folder / versions.CARD).read_text() for name, sentence in said.items())


def test_int8_model_that_cannot_be_evaluated_is_not_published_and_the_manifest_says_why(
    published: Path, expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    tensors = copy_tensors(tone_tensors, tmp_path)
    manifest = files.read_json(tensors / files.MANIFEST)
    manifest["recordings"]["path"] = str(tmp_path / "gone")
    files.write_json(tensors / files.MANIFEST, manifest)
    (tmp_path / "staging").mkdir()
    fill(
        tmp_path / "staging",
        Version(
            name="v",
            recognizer=expert,
            model=published / "model.pth",
            evaluation=published / "evaluation.json",
            report=published / "report.html",
            tensors=tensors,
        ),
    )
    found = versions.verify(tmp_path / "staging")
    assert found["formats"][versions.INT8].startswith(
        "not published, as it could not be evaluated: the recordings gone must still exist"
    )
    assert versions.INT8 not in found["files"]
    assert list(found["reference"]) == [versions.ONNX]


def test_thresholds_are_those_of_the_evaluation_or_else_unmeasured(
    published: Path, expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    folder, _ = version_files(published)
    assert Thresholds.beside(folder / versions.ONNX, expert.words) == Thresholds.unmeasured(expert.words)
    chosen = dataclasses.replace(Thresholds.unmeasured(expert.words), false_alarms_per_hour=1.0)
    summary = evaluate_tensors(expert, Tensors(tone_tensors)).summary() | {"thresholds": chosen.as_json()}
    files.write_json(tmp_path / "evaluation.json", summary)
    (tmp_path / "staging").mkdir()
    fill(
        tmp_path / "staging",
        Version(
            name="v",
            recognizer=expert,
            model=published / "model.pth",
            evaluation=tmp_path / "evaluation.json",
            report=published / "report.html",
            tensors=tone_tensors,
        ),
    )
    assert Thresholds.beside(tmp_path / "staging" / versions.ONNX, expert.words) == chosen
    assert "at most 1.0 false alarms per hour" in (tmp_path / "staging" / versions.CARD).read_text()


def test_model_card_has_a_head_that_hubs_read_and_the_figures_of_the_evaluation(published: Path) -> None:
    folder, _ = version_files(published)
    empty, head, text = (folder / versions.CARD).read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert empty == ""
    assert card["pipeline_tag"] == "audio-classification"
    assert (card["license"], card["license_name"]) == ("other", "that-of-the-recordings")
    (result,) = card["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 1.0, "f1": 1.0}
    low = wilson(1.0, 12)[0]
    assert f"**100.0 %** (95 % interval {100 * low:.1f} % to 100.0 %, 12 clips)" in text
    assert "hardest" not in text  # no word is mistaken
    assert "reference.wav" in text
    for name in (versions.MODEL, versions.ONNX, versions.INT8):
        assert f"| `{name}` | `{files.sha256_of(folder / name)}` |" in text
    for part in (
        "## Data",
        "| train | 96 |",
        "| noise at 10 dB |",
        "## Limits",
        "`no`, `stop`, `yes`",
        "Not meant for",
    ):
        assert part in text
    assert "{{" not in text
    assert re.findall(r"\|\n[^|\n].*", text) == []  # would be read as a row of the table above it


def test_model_card_names_the_model_that_training_started_from(
    published: Path, expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    init = {"model": "/home/ann/older", "sha256": "0123456789abcdef"}
    write_card(
        tmp_path / "card.md",
        dataclasses.replace(expert, about=expert.about | {"init": init}),
        version="v",
        formats={},
        evaluation=files.read_json(published / "evaluation.json"),
        tensors=Tensors(tone_tensors).manifest,
        thresholds=Thresholds.unmeasured(expert.words),
    )
    text = "Training started from the weights of `older` (SHA-256 `0123456789ab…`).\n"
    assert text in (tmp_path / "card.md").read_text()
    assert "Training started from" not in (version_files(published)[0] / versions.CARD).read_text()


def test_word_in_a_table_of_the_card_is_code_that_stays_in_its_cell(
    published: Path, expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    one = {
        "spoken": 9,
        "missed": 0.1,
        "missed_95": [0.0, 0.3],
        "false_alarms": 1,
        "false_alarms_per_hour_95": [0.0, 2.0],
    }
    row = one | {"snr_db": 10.0, "hours": 1.0, "words": {"*no*|`yes`": one}}
    evaluation = evaluate_tensors(expert, Tensors(tone_tensors)).summary() | {"streams": [row]}
    write_card(
        tmp_path / versions.CARD,
        expert,
        version="v",
        evaluation=evaluation,
        tensors=Tensors(tone_tensors).manifest,
        thresholds=Thresholds.unmeasured(expert.words),
        formats={},
    )
    assert "| `` *no*\\|`yes` `` | 10 dB | 9 |" in (tmp_path / versions.CARD).read_text()


def test_report_shows_robustness_and_the_course_of_the_training(
    expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    tensors = copy_tensors(tone_tensors, tmp_path)
    (tmp_path / "runs" / "expert").mkdir(parents=True)
    lines = [
        {"epoch": epoch, "train_loss": 1.0, "validation_loss": 1.1, "train_accuracy": 0.5, "validation_accuracy": 0.4}
        | {"learning_rate": 1e-3}
        for epoch in range(1, 4)
    ]
    (tmp_path / "runs" / "expert" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pth.save(tmp_path / "model.pth", expert)
    evaluation = evaluate(tmp_path / "model.pth", tensors, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Robustness</h2>" in page
    assert "<h2>Training</h2>" in page
    assert "and the learning rate then" in page
    assert evaluation.summary()["robustness"]["clean"] == evaluation.accuracy


def test_intervals_hold_at_the_ends() -> None:
    assert wilson(1.0, 100) == pytest.approx((0.963, 1.0), abs=1e-3)
    assert wilson(0.5, 400) == pytest.approx((0.451, 0.549), abs=1e-3)


# Going back


def test_rollback_makes_the_champion_before_champion_and_records_who_and_why(data_root: Path) -> None:
    assert versions.rollback(data_root, by="ann", reason="it mishears stop") == ("three", "two")
    record = versions.champion_record(data_root)
    assert record is not None
    assert (record["version"], record["by"], record["reason"]) == ("two", "ann", "it mishears stop")
    assert [entry["version"] for entry in record["history"]] == ["one", "two", "three"]
    assert versions.rollback(data_root, "one")[1] == "one"


def test_a_version_that_was_taken_out_of_use_does_not_come_back_by_a_step_that_is_tried_again(
    published: Path, tone_tensors: Path, tmp_path: Path
) -> None:
    shutil.copytree(published, tmp_path / "data")
    root = tmp_path / "data"
    shutil.copytree(root / "models" / "expert", root / "models" / "older")
    versions.rollback(root, "older", by="ann", reason="it mishears stop")
    again = promote(root / "model.pth", tone_tensors, root / "evaluation.json", root / "report.html", root, 0.5)
    assert not again.is_champion
    assert "ann took it out of use on" in again.reason
    assert "it mishears stop" in again.reason
    versions.rollback(root, "expert", by="ben")
    assert versions.was_rolled_back(root, "expert") is None


def test_rollback_to_what_is_not_there_or_damaged_leaves_the_champion(data_root: Path) -> None:
    with pytest.raises(ValueError, match="version must be one of one, three, two, got 'four'"):
        versions.rollback(data_root, "four")
    with pytest.raises(ValueError, match="version must be the name of a folder of models/"):
        versions.rollback(data_root, "../models/one")
    (data_root / "models" / "two" / versions.ONNX).write_bytes(b"cut")
    with pytest.raises(ValueError, match="must have the SHA-256"):
        versions.rollback(data_root)
    assert versions.champion(data_root) == "three"


def test_rollback_without_a_champion_before_says_what_there_is(published: Path) -> None:
    with pytest.raises(
        ValueError, match=r"version must be given, got '', as there was no champion before expert; choose one of expert"
    ):
        versions.rollback(published)


def test_rollback_command_says_what_it_did(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in ("champion two, before three\n", "champion two, as before\n"):
        with pytest.raises(SystemExit) as caught:
            main(["rollback", "--data-root", str(data_root), "--version", "two", "--reason", "a test"])
        assert (caught.value.code, capsys.readouterr().out) == (0, expected)
