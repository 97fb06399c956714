"""Publishing models, and deciding which one is in use."""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recognizers import MakeRecognizer
from together import run_together

from kws import cli, files
from kws.config import DEFAULT_FORMATS
from kws.evaluate.accuracy import evaluate_tensors
from kws.evaluate.new_clips import apart
from kws.model import bundle, versions
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.preprocess.tensors import Tensors
from kws.promote.card import write_card
from kws.promote.step import Decision, promote
from kws.recipe import FeatureConfig

Publish = Callable[..., Decision]


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def publish(data_root: Path, tone_tensors: Path, tmp_path: Path) -> Publish:
    """Evaluates a model and promotes it, as the steps do; without a model in 8 bits unless asked for."""

    def call(
        recognizer: Recognizer,
        min_accuracy: float = 0.0,
        tensors: Path = tone_tensors,
        approval: bool = False,
        formats: str = "onnx",
    ) -> Decision:
        folder = tmp_path / "steps" / str(recognizer.about.get("run")).replace("/", "-")
        model, report, evaluation = folder / "model.pth", folder / "report.html", folder / "evaluation.json"
        bundle.save(model, recognizer)
        files.write_json(evaluation, evaluate_tensors(recognizer, Tensors(tone_tensors)).summary())
        report.write_text("<!doctype html>")
        more: Any = {"approval": approval, "comparison": folder / "comparison.html", "formats": formats}
        return promote(model, tensors, evaluation, report, data_root, min_accuracy, **more)

    return call


def champion(data_root: Path) -> Any:
    path = data_root / "models" / "champion.json"
    return files.read_json(path) if path.exists() else None


@pytest.fixture
def weak(make_recognizer: MakeRecognizer, tone_tensors: Path) -> Recognizer:
    """A model that is right on some of the clips only."""
    recognizer = make_recognizer(run="weak")
    assert evaluate_tensors(recognizer, Tensors(tone_tensors)).accuracy < 0.9
    return recognizer


def renamed(recognizer: Recognizer, run: str) -> Recognizer:
    return dataclasses.replace(recognizer, about={"run": run})


def test_first_model_that_is_good_enough_becomes_champion(
    publish: Publish, expert: Recognizer, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    decision = publish(expert, min_accuracy=0.8)
    assert decision == Decision(
        version="expert",
        path=str(data_root / "models" / "expert"),
        is_champion=True,
        reason="accuracy 100.00%, and there was none before",
        accuracy=1.0,
        champion_accuracy=None,
    )
    assert champion(data_root)["version"] == "expert"
    assert champion(data_root)["accuracy"] == 1.0
    assert any(decision.reason in record.getMessage() for record in caplog.records)


def test_model_below_the_least_accuracy_is_published_but_no_champion(
    publish: Publish, weak: Recognizer, data_root: Path
) -> None:
    decision = publish(weak, min_accuracy=0.95)
    assert not decision.is_champion
    assert "is below min_accuracy 95.00%" in decision.reason
    assert (data_root / "models" / "weak" / "model.pth").is_file()
    assert champion(data_root) is None


@pytest.mark.parametrize("accuracy", [float("nan"), 1.5])
def test_accuracy_that_is_none_is_refused_before_anything_is_written(
    expert: Recognizer, data_root: Path, tone_tensors: Path, tmp_path: Path, accuracy: float
) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    (tmp_path / "report.html").touch()
    (tmp_path / "evaluation.json").write_text(json.dumps({"accuracy": accuracy}))
    with pytest.raises(ValueError, match=r"accuracy .*got"):
        promote(
            tmp_path / "model.pth", tone_tensors, tmp_path / "evaluation.json", tmp_path / "report.html", data_root, 0.5
        )
    assert not (data_root / "models").exists()


def test_accuracy_that_is_just_reached_is_enough(publish: Publish, expert: Recognizer) -> None:
    assert publish(expert, min_accuracy=1.0).is_champion


def test_better_model_takes_the_place_of_the_champion(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    first = publish(weak)
    assert first.is_champion
    decision = publish(expert)
    assert decision.is_champion
    assert decision.champion_accuracy == first.accuracy
    assert decision.reason == f"accuracy 100.00% beats {first.accuracy:.2%} of weak on the same clips"
    assert champion(data_root)["version"] == "expert"
    assert (data_root / "models" / "weak" / "model.pth").is_file()


def test_worse_or_equal_model_leaves_the_champion_where_it_is(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    publish(expert)
    before = champion(data_root)
    worse, equal = publish(weak), publish(renamed(expert, "twin"))
    assert not worse.is_champion
    assert not equal.is_champion
    assert worse.champion_accuracy == equal.champion_accuracy == 1.0
    assert equal.reason == "accuracy 100.00% does not beat 100.00% of expert on the same clips"
    assert champion(data_root) == before


def test_retried_promotion_of_the_champion_writes_nothing(
    publish: Publish, expert: Recognizer, data_root: Path
) -> None:
    publish(expert)
    paths = [data_root / "models" / "champion.json", data_root / "models" / "expert" / "manifest.json"]
    before = [path.stat().st_mtime_ns for path in paths]
    again = publish(expert)
    assert (again.is_champion, again.reason) == (True, "it already was")
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_step_that_was_killed_before_the_decision_decides_when_tried_again(
    publish: Publish, expert: Recognizer, data_root: Path
) -> None:
    publish(expert)
    (data_root / "models" / "champion.json").unlink()
    assert publish(expert).is_champion
    assert champion(data_root)["version"] == "expert"


def test_champion_of_other_features_is_evaluated_on_the_recordings_of_the_same_clips(
    publish: Publish,
    make_recognizer: MakeRecognizer,
    other_features: FeatureConfig,
    expert: Recognizer,
    data_root: Path,
    tone_tensors: Path,
) -> None:
    old = make_recognizer(run="old", features=other_features)
    publish(old)
    decision = publish(expert)
    expected = evaluate_tensors(old, Tensors(tone_tensors)).accuracy
    assert decision.champion_accuracy == expected < 1
    assert champion(data_root)["version"] == "expert"


def test_champion_that_knows_other_words_is_mistaken_on_those_it_does_not_know(
    publish: Publish, expert: Recognizer, make_recognizer: MakeRecognizer
) -> None:
    publish(make_recognizer(words=["cat", "dog"], run="pets"))
    decision = publish(expert)
    assert (decision.is_champion, decision.champion_accuracy) == (True, 0.0)


def test_published_folder_holds_the_model_its_report_and_their_digests(
    publish: Publish, expert: Recognizer, data_root: Path, tmp_path: Path
) -> None:
    decision = publish(expert, formats=DEFAULT_FORMATS)
    folder = data_root / "models" / "expert"
    assert Path(decision.path) == folder
    manifest = files.read_json(folder / files.MANIFEST)
    assert set(manifest["files"]) == {
        "model.pth",
        "model.onnx",
        "model.int8.onnx",
        "evaluation.json",
        "report.html",
        "thresholds.json",
        "reference.wav",
        "MODEL_CARD.md",
    }
    assert {path.name for path in folder.iterdir()} == set(manifest["files"]) | {files.MANIFEST}
    for name, digest in manifest["files"].items():
        assert files.sha256_of(folder / name) == digest
        source = tmp_path / "steps" / "expert" / name
        assert not source.exists() or files.sha256_of(source) == digest
    assert (manifest["version"], manifest["words"], manifest["accuracy"]) == ("expert", expert.words, 1.0)
    assert bundle.load(folder / "model.pth").words == expert.words


def test_exported_models_are_compared_on_a_part_of_a_large_test_split(
    publish: Publish, expert: Recognizer, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kws.promote.publish.COMPARED_CLIPS", 3)
    publish(expert, formats=DEFAULT_FORMATS)
    said = files.read_json(data_root / "models" / "expert" / files.MANIFEST)["formats"][versions.INT8]
    assert said == "published: accuracy 100.00% on 3 clips of the test split, model.onnx 100.00%"


def test_model_without_a_run_is_named_by_its_digest(publish: Publish, expert: Recognizer, data_root: Path) -> None:
    decision = publish(dataclasses.replace(expert, about={}))
    assert decision.version == files.sha256_of(data_root / "models" / decision.version / "model.pth")[:12]


def test_two_that_are_promoted_at_once_leave_the_better_one_as_champion(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    run_together(lambda rank: publish((weak, expert)[rank]))
    assert champion(data_root)["version"] == "expert"


def test_of_two_candidates_at_once_one_waits_and_the_page_shows_that_one(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    publish(weak)
    both = (expert, renamed(expert, "twin"))
    run_together(lambda rank: publish(both[rank], approval=True))
    assert [one["state"] for one in versions.proposals(data_root)] == ["replaced", "candidate"]
    waiting = versions.waiting(versions.proposals(data_root))["version"]
    assert f"New version {waiting}, champion weak" in (data_root / "models" / "candidate.html").read_text()
    assert champion(data_root)["version"] == "weak"


def test_least_accuracy_out_of_range_is_refused(publish: Publish, expert: Recognizer) -> None:
    with pytest.raises(ValueError, match="min_accuracy must be between 0 and 1, got 80"):
        publish(expert, min_accuracy=80)


def test_champion_whose_folder_was_deleted_is_followed_by_the_next_good_model(
    publish: Publish, expert: Recognizer, weak: Recognizer, data_root: Path
) -> None:
    publish(weak)
    shutil.rmtree(data_root / "models" / "weak")
    decision = publish(expert)
    assert decision.is_champion
    assert "weak no longer exists" in decision.reason
    assert champion(data_root)["version"] == decision.version


def test_champion_of_another_format_is_followed_by_the_next_good_model(
    publish: Publish, expert: Recognizer, weak: Recognizer, data_root: Path
) -> None:
    publish(weak)
    torch.save({"format": 1}, data_root / "models" / "weak" / "model.pth")
    decision = publish(expert)
    assert decision.is_champion
    assert "weak cannot be read: model must have format" in decision.reason
    assert champion(data_root)["version"] == "expert"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "champion.json must be a JSON file"),
        (b"\xff\xfe{", "champion.json must be a JSON file"),
        (b"[1]", "champion.json must be a JSON object, got a list"),
        (b"{}", r"champion.json must have version \(str\), got none"),
        (b'{"version": 3}', r"champion.json must have version \(str\), got 3"),
        (b'{"version": "../weak"}', "champion.json: version must be the name of a folder of models/"),
    ],
)
def test_damaged_note_of_the_champion_is_said_to_be_so_and_the_next_good_model_follows(
    publish: Publish, expert: Recognizer, weak: Recognizer, data_root: Path, content: bytes, message: str
) -> None:
    publish(weak)
    (data_root / "models" / "champion.json").write_bytes(content)
    decision = publish(expert)
    assert decision.is_champion
    assert re.search(rf"the previous champion is unknown: .*{message}", decision.reason)
    assert champion(data_root)["version"] == "expert"


@pytest.mark.parametrize("name", ["model.pth", "manifest.json", "report.html"])
def test_damaged_champion_is_said_to_be_so_and_the_next_good_model_follows(
    publish: Publish, expert: Recognizer, weak: Recognizer, data_root: Path, name: str
) -> None:
    publish(weak)
    path = data_root / "models" / "weak" / name
    path.write_bytes(path.read_bytes()[:-100])
    decision = publish(expert)
    assert decision.is_champion
    assert re.search(rf"weak cannot be read: .*{re.escape(name)}", decision.reason)


def test_published_model_that_was_damaged_is_published_anew(
    publish: Publish, expert: Recognizer, data_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(expert)
    (data_root / "models" / "expert" / "model.pth").write_bytes(b"")
    assert publish(expert).version == "expert"
    assert bundle.load(data_root / "models" / "expert" / "model.pth").words == expert.words
    assert "expert is published again, as it is damaged" in caplog.text


def test_another_model_of_the_same_name_is_published_beside_it(
    publish: Publish, expert: Recognizer, weak: Recognizer, data_root: Path
) -> None:
    publish(weak)
    decision = publish(renamed(expert, "weak"))
    assert re.fullmatch("weak-[0-9a-f]{8}", decision.version)
    assert decision.is_champion
    assert champion(data_root)["version"] == decision.version
    assert publish(renamed(expert, "weak")).version == decision.version


def test_another_model_whose_name_with_the_start_of_its_digest_is_taken_too_replaces_none(
    publish: Publish, expert: Recognizer, weak: Recognizer, data_root: Path
) -> None:
    taken = publish(renamed(weak, "run"))
    beside = publish(renamed(expert, "run"))
    shutil.rmtree(data_root / "models" / beside.version)
    shutil.copytree(data_root / "models" / taken.version, data_root / "models" / beside.version)
    again = publish(renamed(expert, "run"))
    assert again.version.startswith(beside.version)
    assert len(again.version) == len("run-") + 64
    assert len(list((data_root / "models").glob("run*/model.pth"))) == 3


@pytest.mark.parametrize("run", ["../outside", ".hidden", "a/b", "", 7])
def test_run_that_cannot_name_a_folder_is_not_one(publish: Publish, expert: Recognizer, run: object) -> None:
    decision = publish(dataclasses.replace(expert, about={"run": run}))
    assert re.fullmatch("[0-9a-f]{12}", decision.version)


def test_figures_without_accuracy_are_refused(
    expert: Recognizer, tone_tensors: Path, tmp_path: Path, data_root: Path
) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    for content in ("{}", '{"accuracy": NaN}', '{"accuracy": "high"}'):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(ValueError, match=r"evaluation.json must have accuracy \(float\), got "):
            promote(tmp_path / "model.pth", tone_tensors, tmp_path / "evaluation.json", tmp_path, data_root, 0.5)
    assert not (data_root / "models").exists()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"speakers": {"speakers": 9, "clips_without": 0}}, "the figures apply to speakers unseen in training"),
        (
            {"speakers": {"speakers": 0, "clips_without": 12}},
            "The recordings name no speaker: speakers of the test split may",
        ),
        (
            {"speakers": {"speakers": 9, "clips_without": 3}},
            "3 clips name no speaker: speakers of the test split may also",
        ),
        (
            {"speakers_in_two_splits": {"speakers": 2, "clips": 5}},
            "2 speakers of the training split also speak 5 clips",
        ),
        ({"split": "random", "speakers": {"speakers": 9, "clips_without": 0}}, "The split is random"),
        ({}, "The recordings name no speaker"),  # tensors of an earlier version
    ],
)
def test_card_claims_unseen_speakers_only_where_all_are_named_and_none_is_in_two_splits(
    expert: Recognizer, tmp_path: Path, tensors: dict[str, Any], said: str
) -> None:
    counts = {"train": 10, "validation": 1, "test": 1}
    manifest = {"recordings": {"path": str(tmp_path), "fingerprint": "ab" * 8}, "counts": counts, "split": "speaker"}
    write_card(
        tmp_path / "MODEL_CARD.md",
        expert,
        version="v",
        evaluation=dict.fromkeys(("accuracy", "macro_f1", "calibration_error"), 0.9) | {"num_clips": 1, "words": []},
        tensors=manifest | tensors,
        thresholds=Thresholds.unmeasured(expert.words),
        formats={},
    )
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert said in card
    assert ("unseen in training." in card) == ("unseen" in said)


def kws(*arguments: object) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*map(str, arguments)])


def test_with_approval_a_better_model_waits_beside_the_champion_until_it_is_approved(
    publish: Publish,
    weak: Recognizer,
    expert: Recognizer,
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not publish(weak, approval=True).is_champion, "the first one waits, too"
    kws("approve", "--data-root", data_root, "--by", "me")
    decision = publish(expert, approval=True)
    assert (decision.is_champion, decision.is_candidate) == (False, True)
    assert champion(data_root)["version"] == "weak"
    assert versions.states(data_root) == {"weak": "champion", "expert": "candidate"}

    capsys.readouterr()
    kws("candidates", "--data-root", data_root)
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.startswith(("no ", "stop ", "yes "))]
    assert [row[0] for row in rows] == ["no", "stop", "yes"]
    assert all(row[2] == "100.0%" for row in rows)
    assert any(row[3] != "100.0%" for row in rows)
    page = (data_root / "models" / "candidate.html").read_text()
    assert "New version expert, champion weak" in page
    assert (data_root / "models" / "candidate.html").read_text() == (
        tmp_path / "steps/expert/comparison.html"
    ).read_text()
    assert page.count("<audio") >= 1

    with pytest.raises(ValueError, match="version must be expert, which waits, got 'weak'"):
        versions.decide(data_root, True, "weak")
    kws("approve", "--data-root", data_root, "--by", "me", "--reason", "it hears better")
    record = champion(data_root)
    assert record["version"] == "expert"
    assert record["reason"].endswith("approved by me (it hears better)")
    assert versions.was_rolled_back(data_root, "weak") is None
    with pytest.raises(ValueError, match="a candidate must wait, got none"):
        versions.decide(data_root, True)


def test_promotion_says_how_both_do_on_new_and_on_old_clips_by_what_the_evaluate_step_heard(
    grown: tuple[Path, Path, list[str]], weak: Recognizer, expert: Recognizer, tmp_path: Path
) -> None:
    before, after, names = grown
    data_root, page = after.parents[1], tmp_path / "comparison.html"
    (tmp_path / "report.html").write_text("<!doctype html>")

    def call(recognizer: Recognizer, tensors: Path, heard: dict[str, Any]) -> Decision:
        about = dict(recognizer.about) | {"tensors": tensors.name}
        bundle.save(tmp_path / "model.pth", dataclasses.replace(recognizer, about=about))
        files.write_json(tmp_path / "evaluation.json", evaluate_tensors(recognizer, Tensors(tensors)).summary() | heard)
        model, evaluation, report = (tmp_path / name for name in ("model.pth", "evaluation.json", "report.html"))
        return promote(model, tensors, evaluation, report, data_root, 0.0, comparison=page)

    assert call(weak, before, {}).new_clips == ()
    assert "was not compared with a champion" in page.read_text()
    assert "there was none before" in page.read_text()
    heard = evaluate_tensors(expert, Tensors(after)).heard()
    is_new = np.array([clip.id in names for clip in Tensors(after).split("test").clips])
    heard["predicted"][int(np.flatnonzero(is_new)[0])] += 1  # as no other listener would have it
    decision = call(expert, after, {"heard": heard})
    other = apart(evaluate_tensors(weak, Tensors(after)), is_new)
    new, of_champion = decision.new_clips
    assert (new["new"]["num_clips"], new["new"]["accuracy"], new["old"]["accuracy"]) == (3, pytest.approx(2 / 3), 1.0)
    assert of_champion == other
    said = f"on 3 new clips 66.67% against {other['new']['accuracy']:.2%}, on 9 old clips 100.00% against "
    assert f"{said}{other['old']['accuracy']:.2%}" in decision.reason
    assert "New clips are those" in page.read_text()
    assert f"{100 * other['new']['accuracy']:.2f} %" in page.read_text()
    assert "heard" not in files.read_json(data_root / "models" / "expert" / "evaluation.json")


def test_a_rejected_version_never_comes_back_by_itself(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    publish(weak)
    publish(expert, approval=True)
    kws("reject", "--data-root", data_root, "--reason", "it mishears me")
    assert versions.states(data_root) == {"weak": "champion", "expert": "rejected"}
    for approval in (True, False):
        again = publish(expert, approval=approval)
        assert (again.is_champion, again.is_candidate) == (False, False)
        assert again.reason.startswith("it was rejected")


@pytest.mark.parametrize("content", [b"{", b'{"proposals": [{"version": "expert"}]}'])
def test_with_damaged_candidates_json_a_version_is_published_and_the_reason_names_the_remedy(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path, content: bytes
) -> None:
    publish(weak)
    (data_root / "models" / "candidates.json").write_bytes(content)
    decision = publish(expert, approval=True)
    assert (decision.is_champion, decision.is_candidate) == (False, False)
    assert decision.reason.startswith("it is not known whether it was rejected: ")
    assert "candidates.json" in decision.reason
    assert "delete it" in decision.reason
    assert champion(data_root)["version"] == "weak"
    (data_root / "models" / "candidates.json").unlink()
    assert publish(expert, approval=True).is_candidate


def test_a_later_candidate_takes_the_place_of_one_that_waits(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    publish(weak)
    publish(expert, approval=True)
    publish(renamed(expert, "twin"), approval=True)
    assert [(one["version"], one["state"]) for one in versions.proposals(data_root)] == [
        ("expert", "replaced"),
        ("twin", "candidate"),
    ]


def test_a_candidate_that_is_old_or_was_compared_with_another_champion_needs_force(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path
) -> None:
    publish(weak)
    publish(expert, approval=True)
    path = data_root / "models" / "candidates.json"
    (proposal,) = versions.proposals(data_root)
    files.write_json(path, {"proposals": [proposal | {"since": "2020-01-01T00:00:00Z"}]})
    with pytest.raises(ValueError, match=r"at most 30 days old, got \d+; --force overrules"):
        versions.decide(data_root, True)
    files.write_json(path, {"proposals": [proposal | {"against": "another"}]})
    with pytest.raises(ValueError, match="the champion must be another, with which expert was compared, got weak"):
        versions.decide(data_root, True)
    assert champion(data_root)["version"] == "weak"
    assert versions.decide(data_root, True, force=True) == "expert"
    assert champion(data_root)["version"] == "expert"


def test_at_its_end_a_run_may_delete_what_nothing_needs(
    publish: Publish, weak: Recognizer, expert: Recognizer, data_root: Path, tone_tensors: Path, tmp_path: Path
) -> None:
    for recognizer in (weak, renamed(weak, "worse"), expert, renamed(expert, "twin")):
        publish(recognizer)
    for path in (data_root / "models").glob("*/"):
        os.utime(path, (0, 0))
        for file in path.iterdir():
            os.utime(file, (0, 0))
    steps = tmp_path / "steps" / "expert"
    promote(
        steps / "model.pth", tone_tensors, steps / "evaluation.json", steps / "report.html", data_root, 0.0, keep_runs=1
    )
    assert versions.versions(data_root) == ["expert", "weak"], "champion, and the one before"
