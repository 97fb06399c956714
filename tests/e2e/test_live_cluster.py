"""What only a cluster shows: `make e2e-cluster KUBECONFIG=…`, on kind after `make kind-up` or on any Kubeflow.

KUBECONFIG           the cluster, in whose current context these tests make runs, jobs and pods
KWS_E2E_NAMESPACE    where steps run (kubeflow)
KWS_E2E_SOURCE       recordings that the cluster can read, of at least the words yes, no, stop. On kind they are put
                     into the volume from ../shared/data; elsewhere the default is the published archive
KWS_E2E_FLAGS        further flags of every command, such as --registry ghcr.io/me
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kws import files
from kws.config import SPEECH_COMMANDS_URL
from kws.launch.job import job_name
from kws.model import bundle
from pipeline import shell
from pipeline.kind import cluster as kind
from pipeline.kind import images

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
    flags = shlex.split(os.environ.get("KWS_E2E_FLAGS", "")) if command in ("submit", "schedule", "pull") else []
    done = subprocess.run([sys.executable, "-m", "pipeline", command, *arguments, "--namespace", NAMESPACE, *flags],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    """Reads the id of a run from what submit printed: run NAME  ID."""
    return next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("run "))


def wait_for(what: str, condition: Any, seconds: float = 600) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(3)
    raise AssertionError(f"{what} must come within {seconds:.0f} s")


def jobs() -> dict[str, Any]:
    return {job["metadata"]["name"]: job for job in get("pytorchjobs.kubeflow.org")["items"]}


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest) -> str:
    """Recordings as the cluster sees them."""
    if given := os.environ.get("KWS_E2E_SOURCE"):
        return given
    if root := kind.host_data_root():
        target = root / "e2e-recordings"
        if not target.exists():
            shutil.copytree(request.getfixturevalue("real_corpus"), target)
        return "/data/e2e-recordings"
    return SPEECH_COMMANDS_URL


@pytest.fixture(scope="module")
def trained(source: str) -> str:
    """A run on two nodes that succeeded; its id."""
    words = ["--words", "auto"] if source.startswith("/data/") else []
    done = pipeline("submit", "--source", source, *SHORT, *words, "--num-nodes", "2")
    for step in ("download", "preprocess", "train", "evaluate", "promote"):
        assert step in done.stdout
    return run_id(done)


def test_the_cluster_accepts_every_object_of_the_overlay() -> None:
    overlay = "kind" if kind.host_data_root() else "storage-class" if NAMESPACE == "kubeflow" else "profile"
    kubectl("apply", "--dry-run=server", "-k", str(ROOT / "manifests" / "overlays" / overlay))


def test_the_claim_is_bound_and_tensorboard_is_ready() -> None:
    assert get("pvc", "kws-data")["status"]["phase"] == "Bound"
    kubectl("rollout", "status", "deployment/kws-tensorboard", "--timeout=300s")
    page = kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/services/kws-tensorboard:http/proxy/")
    assert "tensorboard" in page.lower()


def test_the_account_of_the_steps_may_do_what_the_launcher_does() -> None:
    account = "pipeline-runner" if NAMESPACE == "kubeflow" else "default-editor"
    who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    for verb, resource in [("create", "pytorchjobs.kubeflow.org"), ("delete", "pytorchjobs.kubeflow.org"),
                           ("patch", "pytorchjobs.kubeflow.org"), ("list", "pods"), ("get", "pods/log")]:  # fmt: skip
        assert kubectl("auth", "can-i", verb, resource, who).strip() == "yes"


def test_a_run_trains_on_two_nodes(trained: str) -> None:
    job = jobs()[job_name(trained)]
    assert {c["type"] for c in job["status"]["conditions"] if c["status"] == "True"} >= {"Succeeded"}
    pods = get("pods", "-l", f"training.kubeflow.org/job-name={job_name(trained)}")["items"]
    assert len(pods) == 2
    owners = job["metadata"]["ownerReferences"]
    assert [owner["kind"] for owner in owners] == ["Pod"]


def test_the_steps_ran_as_user_1000_on_the_images_of_this_revision(trained: str) -> None:
    names = set(images.image_names().values())
    pods = get("pods", "-l", f"pipeline/runid={trained}")["items"]
    ours = [c for pod in pods for c in pod["spec"]["containers"] if c["image"] in names]
    assert len(ours) >= 5


def test_the_champion_comes_back_verified(trained: str, tmp_path: Path) -> None:
    done = pipeline("pull", "--to", tmp_path)
    folder = Path(done.stdout.splitlines()[0])
    assert bundle.load(folder / "model.pth").words
    manifest = files.read_json(folder / files.MANIFEST)
    assert all(files.sha256_of(folder / name) == digest for name, digest in manifest["files"].items())


def test_the_champion_comes_back_through_a_pod_too_and_the_pod_goes(trained: str, tmp_path: Path) -> None:
    context = shell.run("kubectl", "config", "current-context").strip()
    pipeline("pull", "--to", tmp_path, "--context", context)
    assert list(tmp_path.glob("*/model.pth"))
    wait_for("the end of the reader pod",
             lambda: not get("pods", "-l", "app.kubernetes.io/name=kws-reader")["items"], 120)  # fmt: skip


def test_a_run_that_fails_ends_with_a_status_and_the_reason() -> None:
    done = pipeline("submit", "--source", "/data/there-is-no-such-folder", *SHORT, check=False)
    assert done.returncode == 1
    assert "there-is-no-such-folder" in done.stdout + done.stderr
    assert "make retry RUN=" in done.stderr


def test_a_cancelled_run_takes_its_training_job_along(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(pipeline("submit", "--no-follow", "--source", source, *words, "--epochs", "500"))
    wait_for("the training job", lambda: job_name(run) in jobs(), 1200)
    pipeline("cancel", run)
    wait_for("the end of the training job", lambda: job_name(run) not in jobs(), 300)
    listed = wait_for("the end of the run", lambda: "cancel" in pipeline("runs").stdout)
    assert listed


def test_a_worker_that_is_killed_comes_back_and_training_succeeds(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(pipeline("submit", "--no-follow", "--source", source, *words, "--epochs", "30", "--num-nodes", "2",
                          "--min-accuracy", "0"))  # fmt: skip
    selector = f"training.kubeflow.org/job-name={job_name(run)}"

    def running() -> list[str]:
        pods = get("pods", "-l", selector)["items"]
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

    wait_for("two running workers", lambda: len(running()) == 2, 1200)
    time.sleep(20)
    kubectl("delete", "pod", running()[-1], "--grace-period=0", "--force")
    assert pipeline("follow", run).returncode == 0


def test_a_failed_run_is_retried(source: str) -> None:
    """The source appears between the two attempts: only where the test can write to the volume."""
    root = kind.host_data_root()
    if root is None:
        pytest.skip("needs the volume as a folder of this machine: kind")
    late = root / f"late-{uuid.uuid4().hex[:6]}"
    done = pipeline("submit", "--source", f"/data/{late.name}", *SHORT, "--words", "auto", check=False)
    assert done.returncode == 1
    late.symlink_to("e2e-recordings")
    try:
        pipeline("retry", run_id(done))
    finally:
        late.unlink()


def test_a_schedule_is_made_replaced_run_and_deleted(source: str) -> None:
    name = f"e2e-{uuid.uuid4().hex[:6]}"
    words = ["--words", "auto"] if source.startswith("/data/") else []
    arguments = ["--name", name, "--source", source, *SHORT, *words]
    before = set(jobs())
    try:
        assert "made schedule" in pipeline("schedule", "--cron", "0 0 1 1 *", *arguments).stdout
        assert "replaced schedule" in pipeline("schedule", "--cron", "* * * * *", *arguments).stdout
        assert pipeline("schedules").stdout.count(name) == 1
        # Two runs with the same parameters both train: nothing comes from a cache.
        wait_for("two training jobs of the schedule", lambda: len(set(jobs()) - before) >= 2, 2400)
    finally:
        pipeline("unschedule", "--name", name)
    assert name not in pipeline("schedules").stdout


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
