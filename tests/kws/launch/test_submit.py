"""Following a job, over real HTTP: a stand-in answers as the API server, the operator and the kubelet do."""

import contextlib
import copy
import dataclasses
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from json_server import JsonServer, running

from kws.kube import client
from kws.launch import submit
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import LaunchError, Training
from kws.launch.kinds.pytorchjob import PYTORCH_JOB
from kws.launch.submit import ClusterLauncher

CONFIG = ClusterConfig(image="kws-runtime:0.2.0", namespace="kubeflow", attempts=2)
NAME = "kws-1f3c"


class Play:
    """What becomes of a job: how often it is looked at until it ends, how, and with which pods."""

    def __init__(
        self,
        end: str = "Succeeded",
        looks: int = 2,
        status: int = 0,
        pods: int = 2,
        waits: str = "",
        reason: str = "",
        vanishes: bool = False,
        replaced: bool = False,
    ) -> None:
        self.end, self.looks, self.status, self.pods, self.waits = end, looks, status, pods, waits
        self.reason, self.vanishes, self.replaced = reason, vanishes, replaced


def container(**state: Any) -> dict[str, Any]:
    return {"name": "pytorch", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}


class Kubernetes(JsonServer):
    """Keeps jobs as the API server does, and lets them go as a test says."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.step: dict[str, Any] = {}
        """The pod of the step; empty if it may not be read."""
        self.workflow: dict[str, Any] | None = {}
        """The workflow of the step; empty if it may not be read, None if there is none."""
        self.plays: list[Play] = []
        self.ends: dict[str, Play] = {}
        self.refusals: list[tuple[int, str]] = []
        self.events: list[dict[str, Any]] = []
        self.logs = {0: ["epoch 1", "epoch 2"], 1: ["ready"]}
        self.cut_logs = 0
        self.denied = 0
        """How many questions about what there is are refused, once there is a job."""
        self.stamp: Callable[[int], str] = lambda number: f"2026-11-25T09:00:0{number}.5Z"
        self.calls: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.patches: list[dict[str, Any]] = []
        super().__init__()

    def create(self, job: dict[str, Any], play: Play | None = None) -> dict[str, Any]:
        play = play or self.plays.pop(0)
        uid = f"uid-{len(self.calls)}"
        job["metadata"] |= {"uid": uid, "namespace": "kubeflow", "creationTimestamp": "2026-11-25T09:00:00Z"}
        job["status"] = {"conditions": [{"type": "Created", "status": "True"}]}
        self.ends[job["metadata"]["name"]] = play
        self.jobs[job["metadata"]["name"]] = job
        for rank in range(play.pods):
            name = f"{NAME}-worker-{rank}"
            waiting = container(waiting={"reason": "ErrImagePull", "message": play.waits})
            self.pods[name] = {
                "metadata": {
                    "name": name,
                    "namespace": "kubeflow",
                    "uid": f"{uid}-{rank}",
                    "labels": {"training.kubeflow.org/replica-index": str(rank)},
                },
                "spec": {"containers": []},
                "status": {
                    "phase": "Pending" if play.waits else "Running",
                    "containerStatuses": [waiting] if play.waits else [],
                },
            }
        return job

    def look(self, name: str) -> dict[str, Any] | None:
        job = self.jobs.get(name)
        if job is None:
            return None
        play = self.ends[name]
        play.looks -= 1
        if play.replaced and play.looks == 2:
            for pod in self.pods.values():
                pod["metadata"]["uid"] += "-new"
        if play.looks < 0 and play.vanishes:
            del self.jobs[name]
            return None
        if play.looks < 0 and play.end:
            ended = {"exitCode": play.status, "finishedAt": "2026-11-25T10:00:00Z", "reason": play.reason or "Error"}
            for pod in self.pods.values():
                pod["status"] = {"phase": play.end, "containerStatuses": [container(terminated=ended)]}
            job["status"]["conditions"].append({"type": play.end, "status": "True", "message": "said by the operator"})
        return job

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        self.calls.append(f"{method} {path.rpartition('/namespaces/kubeflow/')[2]}")
        sent = json.loads(body) if body else {}
        missing = (404, {"message": "not found"})
        if self.denied and method == "GET" and self.jobs:
            self.denied -= 1
            return 403, {"message": f"{path} is forbidden"}
        if self.refusals and ((method, path[-12:]) == ("POST", "/pytorchjobs") or method == "DELETE"):
            status, said = self.refusals.pop(0)
            return status, {"message": said}
        if path.endswith("/pytorchjobs"):
            if sent["metadata"]["name"] in self.jobs:
                return 409, {"message": "already exists"}
            self.sent.append(copy.deepcopy(sent))
            return 201, self.create(sent)
        if "/pytorchjobs/" in path:
            name = path.rpartition("/")[2]
            if method == "DELETE":
                self.pods.clear()
                return (200, {}) if self.jobs.pop(name, None) else missing
            if method == "PATCH":
                self.patches.append(sent)
                return 200, self.jobs[name]
            job = self.look(name)
            return (200, job) if job else missing
        if path.endswith("/events"):
            return 200, {"items": self.events}
        if path.endswith("/pods"):
            return 200, {"items": list(self.pods.values())}
        if found := re.search(r"/pods/[^/]*-(\d+)/log$", path):
            lines = self.logs[int(found[1])]
            if self.cut_logs:  # the connection ends early, once
                self.cut_logs -= 1
                lines = lines[:1]
            stamped = [f"{self.stamp(number)} {line}\n" for number, line in enumerate(lines)]
            return 200, "".join(stamped).encode()
        if path.endswith("/pods/step"):
            return (200, self.step) if self.step else (403, {"message": "pods is forbidden"})
        if path.endswith("/workflows/speech-commands-x"):
            return missing if self.workflow is None else (200 if self.workflow else 403, self.workflow)
        pod = self.pods.get(path.rpartition("/")[2])
        return (200, pod) if pod else missing


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    server = Kubernetes()
    config = tmp_path / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "clusters": [{"name": "here", "cluster": {"server": server.address}}],
                "users": [{"name": "me", "user": {}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    for name in ("POLL_SECONDS", "QUOTA_SECONDS", "EVENTS_SECONDS", "FIRST_DELAY_SECONDS", "REOPEN_SECONDS"):
        monkeypatch.setattr(submit, name, 0.02)
    with running(server):
        yield server
        server.pods.clear()  # so that those who read their logs end
        for thread in threading.enumerate():
            if thread.name.startswith("log of ") and thread.ident is not None:
                thread.join(30)


@pytest.fixture
def job(tmp_path: Path) -> Training:
    folder = tmp_path / "run"
    folder.mkdir()
    return Training(name=NAME, folder=folder, arguments=(), num_nodes=2, processes_per_node=1)


@pytest.fixture
def train(kubernetes: Kubernetes, job: Training) -> Callable[[], None]:
    return lambda: ClusterLauncher(PYTORCH_JOB, CONFIG).run(job, job.folder / "job.yaml")


@pytest.fixture
def in_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process one of the pod `step`, with the uid 18, in a namespace."""

    def enter(namespace: str) -> None:
        (tmp_path / "namespace").write_text(namespace)
        monkeypatch.setattr(client, "NAMESPACE_FILE", tmp_path / "namespace")
        monkeypatch.setenv("KFP_POD_NAME", "step")
        monkeypatch.setenv("KFP_POD_UID", "18")

    return enter


def submitted(server: Kubernetes) -> int:
    return server.calls.count("POST pytorchjobs")


def test_job_that_succeeds_shows_its_pods_leaves_its_outcome_and_is_deleted(
    kubernetes: Kubernetes, train: Callable[[], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays = [Play()]
    train()
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] epoch 1", "[0] epoch 2", "[1] ready"]
    assert err.splitlines() == [f"submitted PyTorchJob kubeflow/{NAME}"]
    outcome = json.loads((tmp_path / "run" / "logs" / "job.json").read_text())
    assert outcome["job"]["status"]["conditions"][-1]["type"] == "Succeeded"
    assert [pod["name"] for pod in outcome["pods"]] == [f"{NAME}-worker-0", f"{NAME}-worker-1"]
    assert yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())["metadata"]["name"] == NAME
    assert kubernetes.jobs == {}


def test_log_whose_connection_was_cut_is_read_on_without_a_line_twice(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays, kubernetes.cut_logs = [Play(looks=20, pods=1)], 1
    train()
    assert capfd.readouterr().out.splitlines() == ["[0] epoch 1", "[0] epoch 2"]


def test_log_of_a_node_whose_clock_goes_back_is_read_on_too(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays, kubernetes.stamp = [Play(looks=20, pods=1)], lambda number: f"2026-11-{25 - number}T09:00:00.5Z"
    train()
    assert capfd.readouterr().out.splitlines() == ["[0] epoch 1", "[0] epoch 2"]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (
            (500, "failed calling webhook"),
            "the Kubernetes API does not answer as it should, trying again in 1 s: failed calling webhook",
        ),
        ((403, "exceeded quota: kws, used: 8"), "waits: exceeded quota: kws, used: 8"),
        ((403, "status unknown for quota: kws"), "waits: status unknown for quota: kws"),
    ],
)
def test_refusal_that_passes_is_waited_for(
    refusal: tuple[int, str],
    said: str,
    kubernetes: Kubernetes,
    train: Callable[[], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    kubernetes.plays, kubernetes.refusals = [Play()], [refusal]
    train()
    assert capfd.readouterr().err.splitlines() == [said, f"submitted PyTorchJob kubeflow/{NAME}"]


def test_quota_that_stays_used_up_ends_the_step_with_the_remedy(
    kubernetes: Kubernetes, train: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "PATIENCE_SECONDS", 0.05)
    kubernetes.refusals = [(403, "exceeded quota: kws, used: 8")] * 100
    with pytest.raises(LaunchError, match=r"exceeded quota: kws, used: 8; delete what is not needed"):
        train()


def test_limit_that_an_older_operator_does_not_know_is_left_out_with_a_word(
    kubernetes: Kubernetes, job: Training, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = dataclasses.replace(PYTORCH_JOB, dispensable={"runPolicy": "has no deadline"})
    said = (
        'PyTorchJob in version "v1" cannot be handled as a PyTorchJob: strict decoding error: unknown field "spec.{}"'
    )
    kubernetes.plays, kubernetes.refusals = [Play()], [(400, said.format("runPolicy"))]
    ClusterLauncher(kind, CONFIG).run(job)
    assert ["runPolicy" in one["spec"] for one in kubernetes.sent] == [False]
    assert capfd.readouterr().err.splitlines() == [
        f"PyTorchJob kubeflow/{NAME} has no deadline",
        f"submitted PyTorchJob kubeflow/{NAME}",
    ]
    kubernetes.refusals = [(400, said.format("elasticPolicy"))]
    with pytest.raises(LaunchError, match="install the training operator"):
        ClusterLauncher(kind, CONFIG).run(job)


def test_missing_right_ends_the_step_at_once(kubernetes: Kubernetes, train: Callable[[], None]) -> None:
    kubernetes.refusals = [(403, 'User "default" cannot create resource "pytorchjobs"')]
    with pytest.raises(LaunchError, match="the step's service account must be allowed to create"):
        train()
    assert submitted(kubernetes) == 1


def test_right_that_is_away_for_a_while_ends_no_training(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays, kubernetes.denied = [Play()], 2
    train()
    err = capfd.readouterr().err
    assert "trying again in 1 s" in err
    assert "Traceback" not in err
    assert submitted(kubernetes) == 1


def ours(kubernetes: Kubernetes, train: Callable[[], None]) -> dict[str, Any]:
    """Returns the job that the step submits, as it was sent."""
    kubernetes.plays = [Play()]
    train()
    kubernetes.calls.clear()
    return kubernetes.sent[0]


def test_job_of_an_earlier_attempt_is_adopted_while_it_runs(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.create(ours(kubernetes, train), Play())
    train()
    assert f"adopted PyTorchJob kubeflow/{NAME} of an earlier attempt" in capfd.readouterr().err
    assert kubernetes.patches == [{"metadata": {"ownerReferences": []}}]
    assert submitted(kubernetes) == 1


WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "speech-commands-x", "uid": "7"}
POD = {"apiVersion": "v1", "kind": "Pod", "name": "step", "uid": "18"}


@pytest.mark.parametrize(
    ("pod", "namespace", "owners"),
    [
        ({"ownerReferences": [POD | {"name": "other"}, WORKFLOW | {"controller": True}]}, "kubeflow", [WORKFLOW]),
        ({}, "kubeflow", [POD]),
        (None, "kubeflow", [POD]),
        ({"ownerReferences": [WORKFLOW | {"controller": True}]}, "elsewhere", None),
    ],
    ids=["step of a workflow", "pod of its own", "pod that may not be read", "job in another namespace"],
)
def test_job_is_deleted_with_its_workflow_or_else_with_the_pod_of_its_step(
    pod: dict[str, Any] | None,
    namespace: str,
    owners: list[dict[str, Any]] | None,
    kubernetes: Kubernetes,
    job: Training,
    in_pod: Callable[[str], None],
) -> None:
    launcher = ClusterLauncher(PYTORCH_JOB, CONFIG)
    in_pod(namespace)
    if pod is not None:
        kubernetes.step = {"metadata": {"name": "step", "namespace": "kubeflow", "uid": "18", **pod}}
    kubernetes.plays = [Play()]
    launcher.run(job)
    assert kubernetes.sent[0]["metadata"].get("ownerReferences") == owners


def test_job_of_an_earlier_attempt_that_failed_is_replaced(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.create(ours(kubernetes, train), Play("Failed", 0, 1))
    kubernetes.plays = [Play()]
    train()
    assert f"replacing PyTorchJob kubeflow/{NAME} of an earlier attempt, which failed" in capfd.readouterr().err
    assert submitted(kubernetes) == 2


def test_job_of_someone_else_is_left_alone(kubernetes: Kubernetes, train: Callable[[], None]) -> None:
    theirs = ours(kubernetes, train)
    theirs["metadata"]["labels"] = {}
    kubernetes.create(theirs, Play("", 100))
    with pytest.raises(LaunchError, match="must be unused or that of a job of kws, got another PyTorchJob; delete it"):
        train()
    assert NAME in kubernetes.jobs


def test_failed_job_is_submitted_again_and_then_told_with_its_last_lines(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays = [Play("Failed", 3, 1), Play("Failed", 3, 1)]
    with pytest.raises(LaunchError) as failed:
        train()
    assert f"PyTorchJob kubeflow/{NAME} failed: said by the operator; {NAME}-worker-0 ended with status 1:" in str(
        failed.value
    )
    assert str(failed.value).endswith("epoch 1\n  epoch 2")
    assert "attempt 2 of 2" in capfd.readouterr().err
    assert (submitted(kubernetes), kubernetes.jobs) == (2, {})


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [(65, "", "said by the operator"), (137, "OOMKilled", "MEMORY= of make pipeline gives the training pods more")],
)
def test_failure_that_another_attempt_cannot_mend_is_told_at_once(
    status: int, reason: str, said: str, kubernetes: Kubernetes, train: Callable[[], None]
) -> None:
    kubernetes.plays = [Play("Failed", 1, status, reason=reason)]
    with pytest.raises(LaunchError, match=said):
        train()
    assert (submitted(kubernetes), kubernetes.jobs) == (1, {})


def test_job_of_an_attempt_that_was_killed_after_training_ended_is_deleted_by_the_next(
    kubernetes: Kubernetes, job: Training, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher = ClusterLauncher(PYTORCH_JOB, CONFIG)
    launcher.clean_up(job)  # there is none
    kubernetes.jobs[NAME] = {"metadata": {"name": NAME, "uid": "1"}}
    launcher.clean_up(job)
    assert kubernetes.jobs == {}
    assert capfd.readouterr().err == ""


def test_job_that_may_not_be_deleted_does_not_fail_a_training_that_is_complete(
    kubernetes: Kubernetes, job: Training, capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.refusals = [(403, "pytorchjobs is forbidden")]
    ClusterLauncher(PYTORCH_JOB, CONFIG).clean_up(job)
    assert "is not deleted: pytorchjobs is forbidden" in capfd.readouterr().err


def test_job_that_was_deleted_meanwhile_has_not_succeeded(kubernetes: Kubernetes, train: Callable[[], None]) -> None:
    kubernetes.plays = [Play(vanishes=True)]
    with pytest.raises(LaunchError, match=f"PyTorchJob kubeflow/{NAME} must not be deleted before it ends"):
        train()


def test_what_pods_wait_for_is_told_once(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays = [Play(looks=5, pods=1, waits="no such image")]
    kubernetes.events = [
        {"reason": "FailedCreatePod", "message": "exceeded quota: pods", "metadata": {}, "involvedObject": {}}
    ]
    train()
    said = capfd.readouterr().err.splitlines()
    assert said.count("[0] waits: ErrImagePull: no such image") == 1
    assert said.count("waits for pods: FailedCreatePod: exceeded quota: pods") == 1


def test_pod_that_takes_the_place_of_another_tells_anew_what_it_waits_for(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays = [Play(looks=5, waits="no such image", replaced=True)]
    train()
    assert capfd.readouterr().err.splitlines().count("[0] waits: ErrImagePull: no such image") == 2


def refusal(said: str, when: str) -> dict[str, Any]:
    return {"reason": "FailedCreatePod", "message": said, "lastTimestamp": when, "metadata": {}, "involvedObject": {}}


@pytest.mark.parametrize(
    "said",
    [
        'pods "a" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
        'admission webhook "validate.kyverno.svc-fail" denied the request: images must be signed',
        'pods "a" is forbidden: maximum memory usage per Container is 2Gi, but limit is 4Gi',
    ],
)
def test_pods_that_are_refused_for_good_end_the_step_at_once(
    said: str, kubernetes: Kubernetes, train: Callable[[], None]
) -> None:
    kubernetes.plays = [Play("", 10**6, pods=0)]
    kubernetes.events = [refusal(said, "2026-11-25T10:00:01Z")]
    with pytest.raises(LaunchError, match=f"must be allowed to create its pods, got: .*{re.escape(said)}; change"):
        train()
    assert submitted(kubernetes) == 1
    assert not kubernetes.jobs


def test_refusal_of_an_earlier_job_of_that_name_is_not_this_jobs(
    kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kubernetes.plays = [Play(looks=5, pods=0)]
    kubernetes.events = [refusal("violates PodSecurity", "2026-11-25T08:59:59Z")]
    train()
    assert "waits for pods" not in capfd.readouterr().err


def stop_when_followed(server: Kubernetes, signum: signal.Signals, run: Callable[[], None]) -> BaseException:
    """Runs a step that gets a signal once it follows its job, and returns what ended it."""
    server.plays = [Play("", 10**6)]

    def stop() -> None:
        while f"GET pytorchjobs/{NAME}" not in server.calls:
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signum)

    threading.Thread(target=stop, daemon=True).start()
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as a worker of pytest-xdist ignores it
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
            run()
    finally:
        signal.signal(signal.SIGINT, ignored)
    return stopped.value


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_step_that_is_told_to_stop_deletes_its_job(
    signum: signal.Signals, kubernetes: Kubernetes, train: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = stop_when_followed(kubernetes, signum, train)
    if signum == signal.SIGTERM:
        assert stopped.code == 143  # type: ignore[attr-defined]
    assert kubernetes.jobs == {}
    assert f"told to stop; deleting PyTorchJob kubeflow/{NAME}" in capfd.readouterr().err


def test_step_that_is_told_to_stop_deletes_its_job_though_nobody_reads_its_log(
    kubernetes: Kubernetes, train: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        with monkeypatch.context() as patched:
            patched.setattr("sys.stderr", closed)
            stop_when_followed(kubernetes, signal.SIGTERM, train)
        with contextlib.suppress(BrokenPipeError):
            closed.close()
    assert kubernetes.jobs == {}


@pytest.mark.parametrize(
    ("workflow", "kept"),
    [
        ({"spec": {}}, True),
        ({"spec": {"activeDeadlineSeconds": 0}}, False),
        ({"spec": {"shutdown": "Terminate"}}, False),
        ({"spec": {"activeDeadlineSeconds": 60}, "status": {"startedAt": "2026-11-30T15:06:21Z"}}, False),
        ({"spec": {"activeDeadlineSeconds": 60}, "status": {"startedAt": "2999-11-30T15:06:21Z"}}, True),
        ({"spec": {}, "metadata": {"uid": "another"}}, False),
        (None, False),
        ({}, False),
    ],
    ids=[
        "run that goes on",
        "cancelled",
        "terminated",
        "past its deadline",
        "before its deadline",
        "another run of its name",
        "deleted",
        "may not be read",
    ],
)
def test_job_of_a_step_that_is_told_to_stop_is_left_to_the_next_attempt_if_the_run_goes_on(
    workflow: dict[str, Any] | None,
    kept: bool,
    kubernetes: Kubernetes,
    job: Training,
    in_pod: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    launcher = ClusterLauncher(PYTORCH_JOB, CONFIG)
    in_pod("kubeflow")
    kubernetes.step = {"metadata": {"name": "step", "uid": "18", "ownerReferences": [WORKFLOW | {"controller": True}]}}
    kubernetes.workflow = workflow and {"metadata": {"uid": WORKFLOW["uid"]}} | workflow
    stop_when_followed(kubernetes, signal.SIGTERM, lambda: launcher.run(job))
    assert list(kubernetes.jobs) == ([NAME] if kept else [])
    assert ("waits 900 s for the next attempt" in capfd.readouterr().err) == kept


def test_ctrl_c_deletes_the_job_also_of_a_run_that_goes_on(
    kubernetes: Kubernetes, job: Training, in_pod: Callable[[str], None]
) -> None:
    launcher = ClusterLauncher(PYTORCH_JOB, CONFIG)
    in_pod("kubeflow")
    kubernetes.step = {"metadata": {"name": "step", "uid": "18", "ownerReferences": [WORKFLOW | {"controller": True}]}}
    kubernetes.workflow = {"metadata": {"uid": WORKFLOW["uid"]}, "spec": {}}
    stop_when_followed(kubernetes, signal.SIGINT, lambda: launcher.run(job))
    assert kubernetes.jobs == {}
