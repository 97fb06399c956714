"""Tests that need a cluster: `KUBECONFIG=… pytest tests/e2e/test_live_cluster.py`.

On kind after `make kind-up`, or on any Kubeflow. The settings are explained in tests/live_cluster.py.
"""

import base64
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from json_server import JsonServer, running
from live_cluster import (
    NAMESPACE,
    cluster,
    command_line,
    forwarded,
    get,
    job_of,
    jobs,
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
from kws.download.credentials import SECRET
from kws.model import bundle
from pipeline import shell
from pipeline.kind import docker_images
from pipeline.kind import local_cluster as kind

SHORT = ["--words", "yes,no,stop", "--debug", "--epochs", "1", "--min-accuracy", "0"]

STORE_KEYS = "mlpipeline-minio-artifact"
"""The secret with the keys of the object store of Kubeflow Pipelines."""

pytestmark = needs_cluster


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    require_pipelines()


@pytest.fixture(scope="module")
def source() -> str:
    return recordings()


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
    with forwarded("kws-tensorboard") as address, urllib.request.urlopen(address, timeout=60) as page:
        assert "tensorboard" in page.read().decode().lower()


def test_the_account_of_the_steps_may_do_what_the_launcher_does() -> None:
    account = "pipeline-runner" if NAMESPACE == "kubeflow" else "default-editor"
    who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
    for verb, resource in [
        ("create", "pytorchjobs.kubeflow.org"),
        ("delete", "pytorchjobs.kubeflow.org"),
        ("patch", "pytorchjobs.kubeflow.org"),
        ("list", "pods"),
        ("get", "pods/log"),
    ]:
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
    names = set(docker_images.image_names().values())
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
    wait_for(
        "the end of the reader pod", lambda: not get("pods", "-l", "app.kubernetes.io/name=kws-reader")["items"], 120
    )


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


def test_a_run_that_goes_past_its_deadline_ends_with_its_training_job_and_says_so(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KWS_DEADLINE_HOURS", "0.03")
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    done = pipeline("submit", "--source", source, *words, "--epochs", "5000", check=False)
    assert done.returncode == 1
    assert "deadline" in done.stderr
    assert "make retry cannot resume this one" in done.stderr
    wait_for("the end of the training job", lambda: job_of(run_id(done)) is None, 300)


def test_a_worker_that_is_killed_comes_back_and_training_succeeds(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(
        pipeline(
            "submit",
            "--no-follow",
            "--source",
            source,
            *words,
            "--epochs",
            "30",
            "--num-nodes",
            "2",
            "--min-accuracy",
            "0",
        )
    )

    def running() -> list[str]:
        pods = get("pods", "-l", "app.kubernetes.io/component=trainer")["items"]
        return [
            pod["metadata"]["name"]
            for pod in pods
            if run[:13] in pod["metadata"]["name"] and pod["status"]["phase"] == "Running"
        ]

    wait_for("two running workers", lambda: len(running()) == 2, 1200, run=run)
    time.sleep(20)
    kubectl("delete", "pod", running()[-1], "--grace-period=0", "--force")
    assert pipeline("follow", run).returncode == 0


def test_a_step_whose_pod_vanishes_is_retried_says_so_and_adopts_its_job(source: str) -> None:
    words = ["--words", "auto"] if source.startswith("/data/") else ["--words", "yes,no,stop"]
    run = run_id(
        pipeline("submit", "--no-follow", "--source", source, *words, "--epochs", "300", "--min-accuracy", "0")
    )
    wait_for("the training job", lambda: job_of(run), 1200, run=run)
    time.sleep(30)  # a pod that Argo has not yet seen running it makes anew, with the same name, as the same attempt
    (pod,) = (
        pod["metadata"]["name"]
        for pod in get("pods", "-l", f"pipeline/runid={run}")["items"]
        if pod["status"]["phase"] == "Running"
    )
    kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    done = pipeline("follow", run)
    assert "adopted PyTorchJob" in done.stderr
    assert "submitted PyTorchJob" not in done.stderr
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
        assert "replaced schedule" in pipeline("schedule", "--cron", "* * * * *", "--always", *arguments).stdout
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
    from pipeline.cluster.volumes import reader_manifest

    manifest = reader_manifest(name, claim="kws-data", image=docker_images.image_names()["runtime"])
    manifest["metadata"]["labels"] = labels
    manifest["spec"]["containers"][0]["command"] = list(command)
    kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    try:
        kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
        yield str(get("pod", name)["status"]["podIP"])
    finally:
        kubectl("delete", "pod", name, "--wait=false")


def test_the_download_step_reads_a_store_with_what_the_secret_holds(source: str) -> None:
    """The store is that of Kubeflow Pipelines, which neither the steps nor their parameters know."""
    if not source.startswith("/data/"):
        pytest.skip("needs recordings on the volume")
    if SECRET in kubectl("get", "secrets", "-o", "name"):
        pytest.skip(f"the namespace has a secret {SECRET} of its own")
    store = json.loads(shell.run("kubectl", "-n", kind.NAMESPACE, "get", "secret", STORE_KEYS, "-o", "json"))["data"]
    entries = {
        "AWS_ACCESS_KEY_ID": base64.b64decode(store["accesskey"]).decode(),
        "AWS_SECRET_ACCESS_KEY": base64.b64decode(store["secretkey"]).decode(),
        "AWS_ENDPOINT_URL": f"http://seaweedfs.{kind.NAMESPACE}:9000",
    }
    given = [f"{name}={value}" for name, value in entries.items()]
    bucket, suffix = "mlpipeline", uuid.uuid4().hex[:6]
    words = f"{bucket}/kws-e2e-{suffix}"
    with pod(f"kws-e2e-store-{suffix}", {}, "sleep", "3600"):

        def in_store(call: str) -> None:
            code = f"import s3fs; s3fs.S3FileSystem().{call}"
            kubectl("exec", f"kws-e2e-store-{suffix}", "--", "env", *given, "python", "-c", code)

        in_store(f"put({source!r}, {words!r}, recursive=True)")
        kubectl("create", "secret", "generic", SECRET, *(f"--from-literal={each}" for each in given))
        try:
            done = pipeline("submit", "--source", f"s3://{words}", *SHORT)
            spec = json.dumps(cluster().client.get_run(run_id(done)).to_dict(), default=str)
        finally:
            kubectl("delete", "secret", SECRET)
            in_store(f"rm({words!r}, recursive=True)")
    assert f"from the secret {SECRET}: {', '.join(sorted(entries))}" in done.stderr
    assert "make pull-model VERSION=" in done.stdout
    assert entries["AWS_SECRET_ACCESS_KEY"] not in spec + done.stderr + done.stdout


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


class Guard(JsonServer):
    """A proxy before Kubeflow Pipelines that asks the cluster whether a token is good, as that of a multi-user one."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        super().__init__()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        token = (headers["Authorization"] or "").removeprefix("Bearer ")
        if not token:  # which Kubernetes does not review
            return 401, {"message": "the token is not accepted: there is none"}
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": ["pipelines.kubeflow.org"]},
        }
        status = json.loads(kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))["status"]
        if not status.get("authenticated"):
            return 401, {
                "message": f"the token is not accepted: {status.get('error', 'it is for another audience')}"[:200]
            }
        kept = {name: value for name, value in headers.items() if name in ("Accept", "Content-Type")}
        address = f"{self.upstream}{path}?{urlencode(query)}"
        request = urllib.request.Request(address, body or None, kept, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)


@pytest.fixture
def guarded() -> Iterator[str]:
    """The address of Kubeflow Pipelines behind a proxy that demands a token of this cluster."""
    with subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            address = proxy.stdout.readline().split()[-1]
            service = f"api/v1/namespaces/{kind.NAMESPACE}/services/ml-pipeline:http/proxy"
            with running(Guard(f"http://{address}/{service}")) as guard:
                yield guard.address
        finally:
            proxy.terminate()


def test_a_host_that_demands_a_token_gets_that_of_the_file_and_a_renewed_one(guarded: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    where = ("--host", guarded, "--token-file", file)

    def fresh(audience: str = "pipelines.kubeflow.org") -> str:
        return kubectl("create", "token", "default", f"--audience={audience}", "--duration=10m")

    file.write_text(fresh())
    nowhere = ("--source", "/data/there-is-no-such-folder", *SHORT)
    run = run_id(pipeline("submit", "--no-follow", *nowhere, *where))
    following = subprocess.Popen(
        command_line("follow", run, *where), cwd=shell.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    time.sleep(8)
    file.write_text("")  # as the shell does for `kubectl create token > FILE`
    file.write_text(fresh())
    printed, _ = following.communicate()
    assert "ValueError: source must be" in printed
    assert "the run failed at download" in printed
    for wrong, said in [
        ("wrong", "must accept your credentials, got status 401: the token is not accepted"),
        (fresh("https://kubernetes.default.svc"), "must accept your credentials, got status 401"),
        ("", "token_file must be a file that holds one token, got"),
    ]:
        file.write_text(wrong)
        done = pipeline("runs", *where, check=False)
        assert done.returncode in (1, 2)
        (line,) = done.stderr.splitlines()
        assert said in line
        assert line.endswith(f"--audience=pipelines.kubeflow.org > {file}")
    done = pipeline("runs", "--host", guarded, check=False)
    assert "must accept your credentials, got status 401: the token is not accepted: there is none" in done.stderr


def test_kind_status_is_healthy() -> None:
    if not cluster().kind:
        pytest.skip("needs kind")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "kind-status"], cwd=shell.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
