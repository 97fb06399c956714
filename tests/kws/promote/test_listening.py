"""Comparing a new model with the champion in streams, and what the decision and the card say of it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kws import files
from kws.evaluate.accuracy import evaluate_tensors
from kws.evaluate.outcomes import compare
from kws.evaluate.script import Script
from kws.evaluate.streams import StreamReport
from kws.evaluate.thresholds import NEVER
from kws.model import bundle, onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.preprocess.tensors import Tensors
from kws.promote.listening import compare_in_streams
from kws.promote.step import Decision, promote

Detections = list[tuple[float, str, float]]


@pytest.fixture(scope="module")
def script(tone_corpus: Path, expert: Recognizer) -> Script:
    return Script(tone_corpus, expert, "test", hours=0.04)


def words_of(script: Script, *words: str) -> Detections:
    """Detections of all utterances of some words."""
    return [((one.begin + one.end) / 2, one.word, 0.9) for one in script.spoken if one.word in words]


def evaluation_of(recognizer: Recognizer, script: Script, detections: Detections) -> Mapping[str, Any]:
    """The part of evaluation.json about streams, of a model that detects what it is said to."""
    thresholds = Thresholds(thresholds=dict.fromkeys(recognizer.words, 0.8), false_alarms_per_hour=1.0)
    report = StreamReport(
        snr_db=20,
        outcome=compare(detections, script.spoken, script.seconds / 3600),
        curve=[(0, 1)],
        detections=detections,
        spoken=script.spoken,
        faults=[],
        script=script,
    )
    return {"thresholds": thresholds.as_json(), "streams": [report.summary()]}


@pytest.fixture(scope="module")
def champion(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a version that finds "stop" and "yes", but never reports "no"."""
    folder = tmp_path_factory.mktemp("models") / "old"
    folder.mkdir()
    onnx.export(expert, folder / "model.onnx")
    thresholds = Thresholds(thresholds={"no": NEVER, "stop": 0.8, "yes": 0.8}, false_alarms_per_hour=1.0)
    files.write_json(folder / "thresholds.json", thresholds.as_json())
    return folder


def test_model_that_misses_what_the_champion_hears_is_clearly_worse(
    expert: Recognizer, script: Script, champion: Path, tone_corpus: Path
) -> None:
    spoken = len(words_of(script, *expert.words))
    deaf = compare_in_streams(expert, evaluation_of(expert, script, []), champion, tone_corpus)
    assert deaf.difference < 0
    assert f"h of streams with {spoken} words at 20 dB it misses " in deaf.sentence
    assert "it misses 100.0% at 0.0 false alarms per hour, old " in deaf.sentence
    same = compare_in_streams(
        expert, evaluation_of(expert, script, words_of(script, "stop", "yes")), champion, tone_corpus
    )
    assert same.difference == 0


def test_model_that_raises_more_false_alarms_and_misses_no_less_is_clearly_worse(
    expert: Recognizer, script: Script, champion: Path, tone_corpus: Path
) -> None:
    alarms = [(float(time), "stop", 0.9) for time in np.arange(0.05, script.seconds, 0.7)]
    heard = sorted(words_of(script, "stop", "yes") + alarms)
    assert compare_in_streams(expert, evaluation_of(expert, script, heard), champion, tone_corpus).difference < 0


def test_why_models_are_not_compared_in_streams_is_said(
    expert: Recognizer, script: Script, champion: Path, tone_corpus: Path, tmp_path: Path
) -> None:
    evaluation = evaluation_of(expert, script, [])
    assert compare_in_streams(expert, {"accuracy": 1}, champion, tone_corpus).sentence == ""
    (row,) = evaluation["streams"]
    changed = {**evaluation, "streams": [{**row, "utterances": 3}]}
    found = compare_in_streams(expert, changed, champion, tone_corpus)
    assert found.sentence == "not compared in streams: the recordings are no longer those of the evaluate step"
    (tmp_path / "model.onnx").write_bytes((champion / "model.onnx").read_bytes())
    found = compare_in_streams(expert, evaluation, tmp_path, tone_corpus)
    assert found.sentence == f"not compared in streams: {tmp_path.name} has no measured thresholds"
    gated = Thresholds(thresholds=dict.fromkeys(expert.words, 0.8), after="stop", false_alarms_per_hour=1)
    files.write_json(tmp_path / "thresholds.json", gated.as_json())
    found = compare_in_streams(expert, evaluation, tmp_path, tone_corpus)
    assert found.sentence == f"not compared in streams: {tmp_path.name} has another gate"
    assert found.difference == 0


def test_a_clear_difference_in_streams_outweighs_accuracy(
    expert: Recognizer, script: Script, tone_tensors: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"

    def publish(recognizer: Recognizer, thresholds: Mapping[str, float], detections: Detections) -> Decision:
        folder = tmp_path / str(recognizer.about["run"])
        bundle.save(folder / "model.pth", recognizer)
        (folder / "report.html").write_text("<!doctype html>")
        evaluation = dict(evaluation_of(recognizer, script, detections))
        evaluation["thresholds"] = {**evaluation["thresholds"], "thresholds": thresholds}
        files.write_json(
            folder / "evaluation.json", evaluate_tensors(recognizer, Tensors(tone_tensors)).summary() | evaluation
        )
        report, evaluation_file = folder / "report.html", folder / "evaluation.json"
        return promote(folder / "model.pth", tone_tensors, evaluation_file, report, root, 0.0, formats="onnx")

    # What it calls "cat" counts for nothing, as the new model does not know that word.
    old = dataclasses.replace(expert, words=["cat", "stop", "yes"], about={"run": "old"})
    assert publish(old, dict.fromkeys(old.words, 0.8), words_of(script, "stop", "yes")).is_champion
    decision = publish(expert, dict.fromkeys(expert.words, 0.8), [])
    assert not decision.is_champion
    assert decision.reason.startswith(
        "accuracy 100.00% beats 66.67% of old on the same clips; in 0.04 h of streams with "
    )
    assert "it misses 100.0% at 0.0 false alarms per hour, old " in decision.reason
    assert decision.reason.endswith(", which is clearly worse")
    assert files.read_json(root / "models" / "champion.json")["version"] == "old"
    card = (root / "models" / "expert" / "MODEL_CARD.md").read_text()
    spoken = len(words_of(script, *expert.words))
    low = 100 * spoken / (spoken + 1.96**2)
    assert f"| 20 dB | 0.04 | {spoken} | 100.0 % ({low:.1f} to 100.0) | 0.0 (0.0 to " in card
    assert f"| `yes` | 20 dB | {len(words_of(script, 'yes'))} | 100.0 % (" in card
    heard = publish(
        dataclasses.replace(expert, about={"run": "new"}),
        {"no": NEVER, "stop": 0.8, "yes": 0.8},
        words_of(script, "stop", "yes"),
    )
    assert heard.is_champion
    assert "false alarms per hour, old " in heard.reason
    as_accurate = dataclasses.replace(expert, about={"run": "better"})
    better = publish(as_accurate, dict.fromkeys(expert.words, 0.8), words_of(script, *expert.words))
    assert better.is_champion
    assert better.reason.startswith("accuracy 100.00% does not beat 100.00% of new on the same clips; in ")
    assert better.reason.endswith(", which is clearly better, and on clips they differ by no more than chance")
