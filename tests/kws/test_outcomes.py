"""What a hook is told of the end of a run: a real server hears it."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_server import JsonServer, running

from kws import outcomes


class Hook(JsonServer):
    """Keeps what is posted."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.status = 200
        super().__init__()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        assert (method, path, headers["Content-Type"]) == ("POST", "/secret-path", "application/json")
        self.heard.append(json.loads(body))
        return self.status, {}


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with running(Hook()) as hook:
        monkeypatch.setenv(outcomes.VARIABLE, str(tmp_path / "outcomes"))
        monkeypatch.setenv(outcomes.RUN, "run-1")
        monkeypatch.setenv(outcomes.ADDRESS, f"{hook.address}/secret-path")
        monkeypatch.setenv(outcomes.UI, "http://ui")
        yield hook


def test_a_new_champion_and_a_candidate_are_told_with_figures_and_a_link(hook: Hook, tmp_path: Path) -> None:
    for state in ("champion", "candidate"):
        outcomes.note("train", "began")
        outcomes.note("promote", state, "accuracy 96.00% beats 95.00%", version="v1", accuracy=0.96)
        assert outcomes.tell("SUCCEEDED")
        assert not list((tmp_path / "outcomes").iterdir()), "nothing stays"
    first, second = hook.heard
    assert first == {
        "state": "champion",
        "run": "run-1",
        "step": "promote",
        "sentence": "accuracy 96.00% beats 95.00%",
        "figures": {"version": "v1", "accuracy": 0.96},
        "links": {"run": "http://ui/#/runs/details/run-1"},
        "text": "kws: run run-1 has a new champion: accuracy 96.00% beats 95.00%\nhttp://ui/#/runs/details/run-1",
    }
    assert "waits for approval" in second["text"]


@pytest.mark.parametrize(("step", "state"), [("promote", "not champion"), ("changes", "same")])
def test_an_end_that_concerns_nobody_is_not_told(hook: Hook, step: str, state: str) -> None:
    outcomes.note(step, state)
    # Kubeflow Pipelines may say RUNNING where there are conditions.
    assert not outcomes.tell("RUNNING")
    assert hook.heard == []


def test_the_sentence_of_a_step_that_failed_is_told_and_one_that_was_killed_is_named(hook: Hook) -> None:
    fails = "from kws import steps; steps.start('train'); raise ValueError('seed must be positive, got -1')"
    done = subprocess.run([sys.executable, "-c", fails], capture_output=True, text=True)
    assert "ValueError: seed must be positive, got -1" in done.stderr
    assert outcomes.tell("RUNNING")
    outcomes.note("preprocess", "began")
    outcomes.note("train", "began")
    assert outcomes.tell("FAILED")
    assert outcomes.tell("FAILED", "ImagePullBackOff")
    assert [(one["state"], one["step"], one["sentence"]) for one in hook.heard] == [
        ("failed", "train", "seed must be positive, got -1"),
        ("failed", "train", "it was killed, or could not be started"),
        ("failed", "run", "ImagePullBackOff"),
    ]


def test_a_retry_that_succeeds_is_no_failure(hook: Hook) -> None:
    outcomes.note("train", "failed", "out of memory")
    outcomes.note("train", "began")
    outcomes.note("promote", "champion", "better")
    assert outcomes.tell()
    assert [one["state"] for one in hook.heard] == ["champion"]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/secret-path", "", "http://bad host/secret-path"])
def test_a_hook_that_is_away_costs_a_warning_that_does_not_tell_its_address(
    hook: Hook, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(outcomes.ADDRESS, address)
    outcomes.note("promote", "champion", "better")
    assert not outcomes.tell()
    assert "the hook was not told" in caplog.text
    assert "secret-path" not in caplog.text


def test_a_hook_that_refuses_is_a_warning_with_its_status(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    hook.status = 403
    outcomes.note("promote", "champion", "better")
    assert not outcomes.tell()
    assert "the hook was not told: 403" in caplog.text


def test_where_nobody_is_told_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(outcomes.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    outcomes.note("train", "began")
    assert not outcomes.tell()
    assert not list(tmp_path.iterdir())
