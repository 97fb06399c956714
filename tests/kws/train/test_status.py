"""What a training reports to the controller of its TrainJob."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from certificates import with_tls
from json_server import JsonServer, running
from kubeflow_trainer_api.models import TrainerV1alpha1UpdateTrainJobStatusRequest

from kws.train import status
from kws.train.journal import Journal, open_journal

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainjobs/kws-1/status"

ROW = {
    "epoch": 1.0,
    "step": 4.0,
    "train_loss": 0.25,
    "validation_loss": 0.5,
    "train_accuracy": 0.75,
    "validation_accuracy": 0.9,
    "learning_rate": 1e-3,
    "clips_per_second": 100.0,
}


class Controller(JsonServer):
    """Takes reports as Kubeflow Trainer does: only with the token."""

    def __init__(self, token: Path) -> None:
        super().__init__()
        self.token, self.heard = token, list[dict[str, Any]]()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        if headers["Authorization"] != f"Bearer {self.token.read_text()}" or (method, path) != ("POST", PATH):
            return 401, {}
        TrainerV1alpha1UpdateTrainJobStatusRequest.from_json(body.decode())
        self.heard.append(json.loads(body)["trainerStatus"])
        return 200, {}


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(status, "SECONDS", 0.05)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "token").write_text("mine")
    return tmp_path / "token"


def tell(monkeypatch: pytest.MonkeyPatch, url: str, certificate: Path | str, token: Path) -> None:
    """Sets the variables that the controller sets in its pods."""
    for name, value in ((status.URL, f"{url}{PATH}"), (status.CERTIFICATE, certificate), (status.TOKEN, token)):
        monkeypatch.setenv(name, str(value))


def train(folder: Path, then: Any = None) -> None:
    """Keeps the journal of a run of one epoch of 1000 clips, as the trainer does; does something after half of it."""
    folder.mkdir(exist_ok=True)
    with open_journal(folder, ["no", "yes"], 1000, 0, 1) as journal:
        assert isinstance(journal, Journal)
        for done in range(100, 501, 100):
            journal.done(done)
        if then:
            then()
        journal.done(1000)
        journal.epoch([ROW], 1, None)


def test_progress_is_posted_with_the_token_that_is_valid_then(
    tmp_path: Path, token: Path, authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller(token)
    with with_tls(controller, authority[1]) as url, running(controller):
        tell(monkeypatch, url, authority[0], token)

        def renew() -> None:
            until = time.monotonic() + 20
            while not any(one["progressPercentage"] == 50 for one in controller.heard) and time.monotonic() < until:
                time.sleep(0.01)
            token.write_text("renewed")

        train(tmp_path / "run", renew)
    half = next(one for one in controller.heard if one["progressPercentage"] == 50)
    assert half["estimatedRemainingSeconds"] >= 0
    assert half["metrics"] == []
    last = controller.heard[-1]
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    assert {"name": "train_loss", "value": "0.25"} in last["metrics"]
    assert {"name": "validation_accuracy", "value": "0.9"} in last["metrics"]
    assert {"name": "epoch", "value": "1"} in last["metrics"]
    assert [one["progressPercentage"] for one in controller.heard] == sorted(
        one["progressPercentage"] for one in controller.heard
    )
    assert not [thread for thread in threading.enumerate() if isinstance(thread, status.Reporter)]


def test_controller_that_refuses_or_is_not_the_one_meant_costs_one_warning(
    tmp_path: Path,
    token: Path,
    authority: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "other").write_text("not mine")
    with running(Controller(token)) as controller:
        tell(monkeypatch, controller.address, "", tmp_path / "other")
        train(tmp_path / "run", lambda: time.sleep(0.3))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the status of the TrainJob does not show the progress of training: HTTP Error 401: Unauthorized"
    ]
    caplog.clear()
    controller = Controller(token)
    with with_tls(controller, authority[1]) as url, running(controller):
        tell(monkeypatch, url, "", token)  # an authority that this machine does not know
        train(tmp_path / "run")
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    assert controller.heard == []
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_without_a_controller_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(status.URL, raising=False)
    train(
        tmp_path / "run",
        lambda: [pytest.fail("a thread") for thread in threading.enumerate() if isinstance(thread, status.Reporter)],
    )
