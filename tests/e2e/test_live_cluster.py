"""Tests that need a cluster: `make e2e-cluster KUBECONFIG=…`, on kind after `make kind-up` or on any Kubeflow.

KUBECONFIG           the cluster, in whose current context these tests create runs, jobs and pods
KWS_E2E_NAMESPACE    where steps run (kubeflow)
KWS_E2E_VOLUME       the volume, if it is a folder of this machine; not needed on kind
KWS_E2E_SOURCE       recordings that the cluster can read, of at least the words yes, no, stop. By default they are
                     synthesized into the volume if it is such a folder; otherwise the published archive is used
KWS_E2E_FLAGS        further flags of runs and schedules, such as --registry ghcr.io/me --cpu 600m --memory 2Gi
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kws import files
from kws.config import SPEECH_COMMANDS_URL
from kws.download.synthesize import synthesize
from kws.model import bundle
from pipeline import shell
from pipeline.cluster import runs, steps
from pipeline.cluster.connection import Cluster
from pipeline.kind import images
from pipeline.kind import local_cluster as kind

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = os.environ.get("KWS_E2E_NAMESPACE", "kubeflow")
SHORT = ["--words", "yes,no,stop", "--debug", "--epochs", "1", "--min-accuracy", "0"]

pytestmark = [
    pytest.mark.timeout(5400),
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="needs a cluster: make e2e-cluster KUBECONFIG=…"),
]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    return shell.run("kubectl", "-n", NAMESPACE, *arguments, stdin=stdin)


def get(*arguments: str) -> Any:
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def pipeline(command: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command as a user does."""
    given = shlex.split(os.environ.get("KWS_E2E_FLAGS", ""))
    flags = given if command in ("submit", "schedule") else []
    if command == "pull" and "--registry" in given:
        flags = given[given.index("--registry") :][:2]
    done = subprocess.run([sys.executable, "-m", "pipeline", command, *arguments, "--namespace", NAMESPACE, *flags],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    """Reads the id of a run from what submit printed: run NAME  ID."""
    return next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("run "))


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 600, *, run: str = "") -> Any:
    """Waits for something; where it is to come of a run, no longer than that runs, and says what there is instead."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        if run and (state := steps.outcome(cluster().client.get_run(run))) in steps.FINISHED:
            if value := condition():
                return value
            raise AssertionError(f"{what} must come, got the end of run {run}: {state}; jobs: {sorted(jobs())}")
        time.sleep(3)
    raise AssertionError(f"{what} must come within {seconds:.0f} s; jobs: {sorted(jobs())}")


def cluster() -> Cluster:
    return Cluster(namespace=NAMESPACE)


def jobs() -> dict[str, Any]:
    return {job["metadata"]["name"]: job for job in get("pytorchjobs.kubeflow.org")["items"]}


def job_of(run: str) -> Any:
    """Returns the training job of a run, named after the folder of the run: time and id; None where there is none."""
    return next((job for name, job in jobs().items() if run[:13] in name), None)


def volume() -> Path | None:
    """Returns the volume as a folder of this machine, where it is one."""
    given = os.environ.get("KWS_E2E_VOLUME")
    return Path(given) if given else kind.host_data_root()


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    """Ends the tests with a sentence where something is absent that all of them need."""
    try:
        assert cluster().health is not None
        runs.check_volume(cluster(), "kws-data")
        get("crd", "pytorchjobs.kubeflow.org")
    except shell.ClusterError as error:
        pytest.exit(f"these tests need Kubeflow Pipelines, the training operator and the claim kws-data: {error}", 2)


@pytest.fixture(scope="module")
def source() -> str:
    """Recordings as the cluster sees them."""
    if given := os.environ.get("KWS_E2E_SOURCE"):
        return given
    if root := volume():
        target = root / "e2e-recordings"
        if not target.exists():
            synthesize(target, words=["yes", "no", "stop"], clips_per_word=30)
            shell.run("chmod", "-R", "a+rX", str(target))
        return "/data/e2e-recordings"
    return SPEECH_COMMANDS_URL


@pytest.fixture(scope="module")
def trained(source: str) -> subprocess.CompletedProcess[str]:
    """What a run on two nodes that succeeded printed."""
    words = ["--words", "auto"] if source.startswith("/data/") else []
    done = pipeline("submit", "--source", source, *SHORT, *words, "--num-nodes", "2")
    for step in ("download", "preprocess", "train", "evaluate", "promote"):
        assert step in done.stdout
    return done


def test_the_claim_is_bound_and_tensorboard_is_ready() -> None:
    assert get("pvc", "kws-data")["status"]["phase"] == "Bound"
    kubectl("rollout", "status", "deployment/kws-tensorboard", "--timeout=300s")
    # Not through the API server's proxy, which rewrites pages and cannot read this one.
    command = ["kubectl", "-n", NAMESPACE, "port-forward", "service/kws-tensorboard", ":80"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            port = int(forward.stdout.readline().split("127.0.0.1:")[1].split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                assert "tensorboard" in page.read().decode().lower()
        finally:
            forward.terminate()


def test_the_account_of_the_steps_may_do_what_the_launcher_does() -> None:
    account = "pipeline-runner" if NAMESPACE == "kubeflow" else "default-editor"
    who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    for verb, resource in [("create", "pytorchjobs.kubeflow.org"), ("delete", "pytorchjobs.kubeflow.org"),
                           ("patch", "pytorchjobs.kubeflow.org"), ("list", "pods"), ("get", "pods/log")]:  # fmt: skip
        assert kubectl("auth", "can-i", verb, resource, who).strip() == "yes"


def test_a_run_trains_on_two_nodes_and_prints_its_results(trained: subprocess.CompletedProcess[str]) -> None:
    assert "submitted PyTorchJob" in trained.stderr
    assert "epoch 1/1" in trained.stderr  # the trainer's own lines, without a terminal
    for fact in ("accuracy ", "champion ", "version ", "report ", "run ", "make pull-model VERSION="):
        assert fact in trained.stdout
    assert "macro F1" in trained.stdout
    for noise in ("executor(0)", "launcher_v2.go", "executor_input", "-driver"):
        assert noise not in trained.stdout + trained.stderr


def test_following_a_finished_run_shows_the_same_results(trained: subprocess.CompletedProcess[str]) -> None:
    end = trained.stdout[trained.stdout.index("step ") :]
    assert pipeline("follow", run_id(trained)[:8]).stdout == end


def test_the_steps_ran_as_user_1000_on_the_images_of_this_revision(trained: subprocess.CompletedProcess[str]) -> None:
    names = set(images.image_names().values())
    pods = get("pods", "-l", f"pipeline/runid={run_id(trained)}")["items"]
    ours = [c for pod in pods for c in pod["spec"]["containers"] if c["image"] in names]
    assert len(ours) >= 5


def test_the_champion_comes_back_verified(trained: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    done = pipeline("pull", "--to", tmp_path)
    folder = Path(done.stdout.splitlines()[0])
    assert bundle.load(folder / "model.pth").words
    manifest = files.read_json(folder / files.MANIFEST)
    assert all(files.sha256_of(folder / name) == digest for name, digest in manifest["files"].items())


def test_the_champion_comes_back_through_a_pod_too_and_the_pod_goes(
    trained: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    context = shell.run("kubectl", "config", "current-context").strip()
    pipeline("pull", "--to", tmp_path, "--context", context)
    assert list(tmp_path.glob("*/model.pth"))
    wait_for("the end of the reader pod",
             lambda: not get("pods", "-l", "app.kubernetes.io/name=kws-reader")["items"], 120)  # fmt: skip


def test_a_run_that_fails_ends_with_a_status_and_the_reason() -> None:
    done = pipeline("submit", "--source", "/data/there-is-no-such-folder", *SHORT, check=False)
    assert done.returncode == 1
    assert "ValueError: source must be" in done.stdout
    assert "there-is-no-such-folder" in done.stdout
    assert "Traceback" not in done.stdout
    assert "attempt" not in done.stdout + done.stderr  # what trying again cannot mend is not tried again
    assert "the run failed at download" in done.stderr
    assert "make retry RUN=" in done.stderr


def test_cancelling_a_run_deletes_its_training_job(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(pipeline("submit", "--no-follow", "--source", source, *words, "--epochs", "500"))
    wait_for("the training job", lambda: job_of(run), 1200, run=run)
    pipeline("cancel", run)
    wait_for("the end of the training job", lambda: job_of(run) is None, 300)
    wait_for("the run as cancelled", lambda: f"{run[:8]}  cancelled" in pipeline("runs").stdout, 120)


def test_a_worker_that_is_killed_comes_back_and_training_succeeds(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(pipeline("submit", "--no-follow", "--source", source, *words, "--epochs", "30", "--num-nodes", "2",
                          "--min-accuracy", "0"))  # fmt: skip

    def running() -> list[str]:
        pods = get("pods", "-l", "app.kubernetes.io/component=trainer")["items"]
        return [pod["metadata"]["name"] for pod in pods
                if run[:13] in pod["metadata"]["name"] and pod["status"]["phase"] == "Running"]  # fmt: skip

    wait_for("two running workers", lambda: len(running()) == 2, 1200, run=run)
    time.sleep(20)
    kubectl("delete", "pod", running()[-1], "--grace-period=0", "--force")
    assert pipeline("follow", run).returncode == 0


def test_a_step_whose_pod_vanishes_is_retried_and_says_so(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(pipeline("submit", "--no-follow", "--source", source, *words, "--epochs", "300",
                          "--min-accuracy", "0"))  # fmt: skip
    wait_for("the training job", lambda: job_of(run), 1200, run=run)
    time.sleep(30)  # a pod that Argo has not yet seen running it makes anew, with the same name, as the same attempt
    (pod,) = (pod["metadata"]["name"] for pod in get("pods", "-l", f"pipeline/runid={run}")["items"]
              if pod["status"]["phase"] == "Running")  # fmt: skip
    kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    done = pipeline("follow", run)
    assert "2nd attempt, as the one before ended: pod deleted" in done.stderr
    assert "2nd attempt, ended before: pod deleted" in " ".join(done.stdout.split())


def test_a_missing_image_ends_following_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_RUNTIME_IMAGE", "kws-runtime:there-is-none")
    done = pipeline("submit", "--source", "/data/e2e-recordings", *SHORT, "--patience", "0.2", check=False)
    run = run_id(done)
    pipeline("cancel", run)
    assert done.returncode == 1
    assert re.search(r"download   waits: (ErrImagePull|ImagePullBackOff): ", done.stderr)
    assert "waiting longer will not help: make images" in done.stderr


def test_a_failed_run_is_retried(source: str) -> None:
    """The source appears between the two attempts: only where the test can write to the volume."""
    root = volume()
    if root is None:
        pytest.skip("needs the volume as a folder of this machine: kind, or KWS_E2E_VOLUME")
    late = root / f"late-{uuid.uuid4().hex[:6]}"
    done = pipeline("submit", "--source", f"/data/{late.name}", *SHORT, "--words", "auto", check=False)
    assert done.returncode == 1
    late.symlink_to("e2e-recordings")
    try:
        again = pipeline("retry", run_id(done))
        assert "make pull-model VERSION=" in again.stdout
    finally:
        late.unlink()


def test_a_schedule_is_made_replaced_run_and_deleted(source: str) -> None:
    name = f"e2e-{uuid.uuid4().hex[:6]}"
    words = ["--words", "auto"] if source.startswith("/data/") else []
    arguments = ["--name", name, "--source", source, *SHORT, *words]
    before, seen = set(jobs()), set[str]()

    def trained_twice() -> bool:
        seen.update(set(jobs()) - before)  # one at a time, and a step deletes its job when that is done
        return len(seen) >= 2

    try:
        assert "made schedule" in pipeline("schedule", "--cron", "0 0 1 1 *", *arguments).stdout
        assert "replaced schedule" in pipeline("schedule", "--cron", "* * * * *", *arguments).stdout
        assert pipeline("schedules").stdout.count(name) == 1
        # Two runs with the same parameters both train: nothing comes from a cache.
        wait_for("two training jobs of the schedule", trained_twice, 2400)
    finally:
        pipeline("unschedule", "--name", name)
    assert name not in pipeline("schedules").stdout
    assert not [line for line in pipeline("runs").stdout.splitlines() if name in line and "running" in line]
    assert not set(jobs()) - before


@contextlib.contextmanager
def pod(name: str, labels: dict[str, str], *command: str) -> Iterator[str]:
    """Runs a pod of the runtime image."""
    from pipeline.cluster.pull import reader_manifest

    manifest = reader_manifest(name, claim="kws-data", image=images.image_names()["runtime"], mount_path="/data")
    manifest["metadata"]["labels"] = labels
    manifest["spec"]["containers"][0]["command"] = list(command)
    kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    try:
        kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
        yield str(get("pod", name)["status"]["podIP"])
    finally:
        kubectl("delete", "pod", name, "--wait=false")


def test_training_pods_reach_each_other_but_not_the_world() -> None:
    trainer = {"app.kubernetes.io/name": "kws", "app.kubernetes.io/component": "trainer"}
    suffix = uuid.uuid4().hex[:6]

    def reaches(client: str, host: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(({host!r}, {port}), timeout=5)"
        try:
            kubectl("exec", client, "--", "python", "-c", code)
        except shell.ClusterError:
            return False
        return True

    server = ("python", "-m", "http.server", "23456", "--directory", "/tmp")
    with (
        pod(f"kws-e2e-server-{suffix}", trainer, *server) as address,
        pod(f"kws-e2e-friend-{suffix}", trainer, "sleep", "600"),
    ):
        assert reaches(f"kws-e2e-friend-{suffix}", address, 23456)
        assert not reaches(f"kws-e2e-friend-{suffix}", "ml-pipeline." + kind.NAMESPACE, 8888)


def test_kind_status_is_healthy() -> None:
    if kind.host_data_root() is None:
        pytest.skip("needs kind")
    done = subprocess.run([sys.executable, "-m", "pipeline", "kind-status"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
