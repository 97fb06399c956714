"""Runs that are disturbed, fail or are cancelled, and are retried.

Started by `KUBECONFIG=… KWS_E2E_VOLUME=… pytest tests/e2e/test_retry_after_disturbances.py`.

Whatever ended a run, `retry` makes it a true success: training resumes from its checkpoint, the model becomes champion
once, and no job, pod or service is left. Jobs that are not elastic end with the weights of an undisturbed run. The
settings are explained in tests/live_cluster.py; these tests need the volume as a folder of this machine, and

KWS_E2E_AWAY         a command that stops the API server of the cluster for some 20 s; not needed on kind
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from live_cluster import (
    cluster,
    command_line,
    get,
    job_of,
    kubectl,
    needs_cluster,
    pipeline,
    recordings,
    require_pipelines,
    run_id,
    volume,
    wait_for,
)

from kws import files
from kws.launch.job_status import verdict
from kws.model import versions
from kws.train.runs import BEST
from pipeline import shell
from pipeline.cluster import argo_steps
from pipeline.kind import local_cluster as kind

EPOCHS = 150
FIXED = {"elastic": False}
OPERATOR = ("-n", kind.NAMESPACE, "deployment/training-operator")

pytestmark = needs_cluster

KILL = """
import os, sys, time
delay, wanted, but = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
if delay:  # in a process of its own, which outlives this connection to the container
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(delay)
killed = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        command = open(f"/proc/{pid}/cmdline").read()
    except OSError:
        continue
    program = command.partition(chr(0))[0]
    if "python" in program and wanted in command and not any(part in command for part in (*but, "os.listdir")):
        os.kill(int(pid), 9)
        killed += 1
sys.exit(0 if killed else 1)
"""


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    require_pipelines()
    if volume() is None:
        pytest.exit("these tests need the volume as a folder of this machine: kind, or KWS_E2E_VOLUME", 2)


@pytest.fixture(scope="module")
def data_root() -> Iterator[Path]:
    """A data root of these tests on the volume, as a folder of this machine."""
    root = volume()
    assert root is not None
    folder = root / f"e2e-retries-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@dataclass
class Run:
    """A run on two nodes, whose data root is a folder of this machine."""

    data_root: Path
    id: str = ""

    def submit(self, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Submits it, with settings of its job."""
        monkeypatch.setenv("KWS_PYTORCHJOB", json.dumps(settings))
        source = recordings()
        words = "auto" if source.startswith("/data/") else "yes,no,stop"
        flags = [
            "--source",
            source,
            "--words",
            words,
            "--epochs",
            str(EPOCHS),
            "--num-nodes",
            "2",
            "--min-accuracy",
            "0",
            "--data-root",
            f"/data/{self.data_root.name}",
        ]
        self.id = run_id(pipeline("submit", "--no-follow", *flags))

    def folder(self) -> Path:
        (found,) = (self.data_root / "runs").glob(f"*{self.id}")
        return found

    def weights(self) -> dict[str, Any]:
        """Returns the weights of the best model."""
        return dict(torch.load(self.folder() / BEST, weights_only=True)["weights"])

    def pod_of(self, step: str) -> str:
        """Returns the running pod of a step, or ""."""
        return str(self._metadata_of_pod(step).get("name", ""))

    def uid_of(self, step: str) -> str:
        """Returns what tells its pod from another in its place, which may have the same name, or ""."""
        return str(self._metadata_of_pod(step).get("uid", ""))

    def _metadata_of_pod(self, step: str) -> dict[str, Any]:
        found = [
            pod["metadata"]
            for pod in get("pods", "-l", f"pipeline/runid={self.id}")["items"]
            if pod["status"]["phase"] == "Running"
            and "deletionTimestamp" not in pod["metadata"]
            and pod["metadata"]["name"].partition("-system-container-impl-")[2]
            and argo_steps.step_of_node(argo_steps.pod_node(pod)[1], [step])
        ]
        return found[0] if found else {}

    def worker(self, node: int) -> str:
        """Returns the name of a training pod."""
        return f"{job_of(self.id)['metadata']['name']}-worker-{node}"

    def epoch(self) -> int:
        """Returns how many epochs the training pods have completed."""
        logs = [log.read_text() for log in (self.data_root / "runs").glob(f"*{self.id}/logs/worker-0.log")]
        return max((int(number) for log in logs for number in re.findall(r"epoch (\d+)/", log)), default=0)

    def says(self, text: str) -> bool:
        """Tells whether the train step has printed something."""
        try:
            return bool(pod := self.pod_of("train")) and text in kubectl("logs", pod, "-c", "main")
        except shell.ClusterError:  # the container is being created
            return False

    def state(self) -> str:
        """Returns its state; empty while the cluster does not answer."""
        try:
            return argo_steps.outcome(cluster().client.get_run(self.id))
        except shell.ClusterError:
            return ""

    def kill(self, step: str, delay: float = 0) -> None:
        """Kills the process of a step with SIGKILL, as the kernel does for want of memory."""
        kubectl(
            "exec", self.pod_of(step), "-c", "main", "--", "python3", "-c", KILL, str(delay), "kfp.dsl.executor_main"
        )

    def left_behind(self) -> list[str]:
        """Returns what there is of the training job."""
        return [
            f"{what} {thing['metadata']['name']}"
            for what in ("pytorchjobs.kubeflow.org", "pods", "services")
            for thing in get(what)["items"]
            if f"kws-{self.folder().name[:15]}" in thing["metadata"]["name"]
        ]


Disturbance = Callable[[Run], contextlib.AbstractContextManager[None]]
"""Disturbs a run so that it ends; what the context still holds up when it is left is mended then."""


def _training(run: Run) -> None:
    wait_for("three epochs", lambda: run.epoch() >= 3, run=run.id)


def _delete(pod: str) -> None:
    kubectl("delete", "pod", pod, "--grace-period=0", "--force")


@contextlib.contextmanager
def worker_0_deleted(run: Run) -> Iterator[None]:
    _training(run)
    _delete(run.worker(0))
    run.kill("train")
    yield


@contextlib.contextmanager
def worker_1_deleted(run: Run) -> Iterator[None]:
    _training(run)
    _delete(run.worker(1))
    pipeline("cancel", run.id)
    yield


@contextlib.contextmanager
def worker_1_deleted_and_step_killed(run: Run) -> Iterator[None]:
    _training(run)
    _delete(run.worker(1))
    run.kill("train")
    yield


@contextlib.contextmanager
def trainer_killed(run: Run) -> Iterator[None]:
    _training(run)
    kubectl(
        "exec", run.worker(1), "--", "python", "-c", KILL, "0", "kws.train", "torch.distributed.run", "kws.launch.node"
    )
    yield


@contextlib.contextmanager
def step_killed(run: Run) -> Iterator[None]:
    _training(run)
    run.kill("train")
    yield


@contextlib.contextmanager
def step_deleted(run: Run) -> Iterator[None]:
    _training(run)
    job, first = job_of(run.id)["metadata"]["uid"], run.uid_of("train")
    _delete(run.pod_of("train"))  # which Argo retries by itself, so that the run goes on
    wait_for(
        "the next attempt to adopt the job",
        lambda: run.uid_of("train") != first and run.says("adopted PyTorchJob"),
        run=run.id,
    )
    assert job_of(run.id)["metadata"]["uid"] == job
    pipeline("cancel", run.id)
    yield


@contextlib.contextmanager
def step_killed_and_lease_over(run: Run) -> Iterator[None]:
    _training(run)
    run.kill("train")
    wait_for("the end of the job", lambda: verdict(job_of(run.id)) == "Failed")
    yield


@contextlib.contextmanager
def api_away(run: Run) -> Iterator[None]:
    _training(run)
    run.kill("train", delay=8)
    default = "docker exec kws-control-plane pkill -9 kube-apiserver" if cluster().kind else ""
    subprocess.run(os.environ.get("KWS_E2E_AWAY", default), shell=True, check=True, capture_output=True)
    wait_for("the API server", _answers, 300)
    yield


def _answers() -> bool:
    try:
        get("pods")
        return bool(cluster().health)
    except shell.ClusterError:
        return False


@contextlib.contextmanager
def operator_away(run: Run) -> Iterator[None]:
    _training(run)
    shell.run("kubectl", "scale", *OPERATOR, "--replicas=0")
    try:
        run.kill("train")
        yield
        wait_for("the step to wait for the operator", lambda: run.says("trying again in"))
        time.sleep(60)
    finally:
        shell.run("kubectl", "scale", *OPERATOR, "--replicas=1")
        shell.run("kubectl", "rollout", "status", *OPERATOR, "--timeout=300s")


@contextlib.contextmanager
def quota_exceeded(run: Run) -> Iterator[None]:
    kubectl("create", "quota", "kws-e2e", "--hard=count/pytorchjobs.kubeflow.org=0")
    try:
        wait_for("the step to wait for the quota", lambda: run.says("exceeded quota"), run=run.id)
        run.kill("train")
        yield
        wait_for("the retry to wait for the quota", lambda: run.says("exceeded quota"))
    finally:
        kubectl("delete", "quota", "kws-e2e")


@contextlib.contextmanager
def promote_killed(run: Run) -> Iterator[None]:
    def killed() -> bool:
        try:
            run.kill("promote")
        except shell.ClusterError:  # has not begun
            return False
        return True

    models = run.data_root / versions.MODELS
    models.mkdir(exist_ok=True)
    models.chmod(0o777)
    with files.lock(models / versions.CHAMPION):  # which the step waits for, so that it is not over before it is killed
        wait_for("the promote step", killed, run=run.id)
    yield


@pytest.fixture(scope="module")
def undisturbed(data_root: Path) -> dict[str, Any]:
    """The weights of a run with which nothing happened."""
    run = Run(data_root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run.submit(FIXED, monkeypatch)
    pipeline("follow", run.id)
    return run.weights()


@pytest.mark.parametrize(
    ("disturb", "settings", "ended"),
    [
        (worker_0_deleted, {}, "FAILED"),
        (worker_1_deleted, {}, "CANCELED"),
        (worker_1_deleted_and_step_killed, FIXED, "FAILED"),
        (trainer_killed, {"max_restarts": 0, "pod_restarts": 0, "attempts": 1}, "FAILED"),
        (step_killed, FIXED, "FAILED"),
        (step_deleted, FIXED, "CANCELED"),
        (step_killed_and_lease_over, FIXED | {"lease_seconds": 35}, "FAILED"),
        (api_away, FIXED, "FAILED"),
        (operator_away, FIXED, "FAILED"),
        (quota_exceeded, FIXED, "FAILED"),
        (promote_killed, FIXED, "FAILED"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_run_that_a_disturbance_ended_is_retried_to_a_true_success(
    disturb: Disturbance,
    settings: dict[str, Any],
    ended: str,
    data_root: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(data_root / versions.MODELS, ignore_errors=True)  # so that every model becomes champion
    run = Run(data_root)
    run.submit(settings, monkeypatch)
    begun = time.monotonic()
    with disturb(run):
        wait_for("the end of the run", lambda: run.state() in argo_steps.FINISHED)
        spent = time.monotonic() - begun
        assert run.state() == ended
        first = pipeline("follow", run.id, check=False)
        assert first.returncode == 1
        assert f"make retry RUN={run.id[:8]}" in first.stderr
        begun = time.monotonic()
        again = subprocess.Popen(
            command_line("retry", run.id), cwd=shell.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    out, err = again.communicate()
    assert again.returncode == 0, out + err
    assert "make pull-model VERSION=" in out
    record = versions.champion_record(data_root)
    assert record is not None
    assert (record["version"], record["history"]) == (run.folder().name, [])
    assert [folder.name for folder in (data_root / versions.MODELS).iterdir() if files.is_complete(folder)] == [
        run.folder().name
    ]
    wait_for("the end of all that belongs to the job", lambda: not run.left_behind(), 120)
    mine = run.weights()
    same = mine.keys() == undisturbed.keys() and all(torch.equal(mine[name], undisturbed[name]) for name in mine)
    said = [line.partition("│ ")[2] for line in err.splitlines() if "PyTorchJob" in line or "resuming" in line]
    with capsys.disabled():
        why = next((line for line in first.stderr.splitlines() if line.startswith("the run ")), "")
        print(
            f"\n{disturb.__name__}: after {spent:.0f} s {why}; retried in {time.monotonic() - begun:.0f} s: "
            f"{'; '.join(said)}; {'same weights' if same else 'OTHER weights'}"
        )
    if settings.get("elastic") is False:
        assert same
