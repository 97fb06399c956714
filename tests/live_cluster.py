"""What the tests on a cluster with Kubeflow Pipelines share; settings are environment variables.

KUBECONFIG           the cluster, in whose current context the tests create runs, jobs and pods
KWS_E2E_NAMESPACE    where steps run (kubeflow)
KWS_E2E_VOLUME       the volume, if it is a folder of this machine; not needed on kind
KWS_E2E_SOURCE       recordings that the cluster can read, of at least the words yes, no, stop. By default they are
                     synthesized into the volume if it is such a folder; otherwise the published archive is used
KWS_E2E_FLAGS        further flags of runs and schedules, such as --registry ghcr.io/me --cpu 600m --memory 2Gi
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kws.config import SPEECH_COMMANDS_URL
from kws.download.synthesize import synthesize
from pipeline import shell
from pipeline.cluster import argo_steps, runs
from pipeline.cluster.connect import Cluster

NAMESPACE = os.environ.get("KWS_E2E_NAMESPACE", "kubeflow")

WITH_IMAGE = ("pull", "deploy", "rollback", "candidates", "approve", "reject")
"""Commands that start a pod of one of our images."""

needs_cluster = [
    pytest.mark.timeout(5400),
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="needs a cluster: KUBECONFIG=FILE pytest …"),
]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    return shell.run("kubectl", "-n", NAMESPACE, *arguments, stdin=stdin)


def get(*arguments: str) -> Any:
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def command_line(command: str, *arguments: str | Path) -> list[str | Path]:
    """Returns a command as a user types it."""
    given = shlex.split(os.environ.get("KWS_E2E_FLAGS", ""))
    flags = given if command in ("submit", "schedule") else []
    if command in WITH_IMAGE and "--registry" in given:
        flags = given[given.index("--registry") :][:2]
    return [sys.executable, "-m", "pipeline", command, *arguments, "--namespace", NAMESPACE, *flags]


def pipeline(command: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command as a user does."""
    done = subprocess.run(command_line(command, *arguments), cwd=shell.ROOT, capture_output=True, text=True)
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
        if run and (state := argo_steps.outcome(cluster().client.get_run(run))) in argo_steps.FINISHED:
            if value := condition():
                return value
            raise AssertionError(f"{what} must come, got the end of run {run}: {state}; jobs: {sorted(jobs())}")
        time.sleep(3)
    raise AssertionError(f"{what} must come within {seconds:.0f} s; jobs: {sorted(jobs())}")


@contextlib.contextmanager
def forwarded(service: str) -> Iterator[str]:
    """Forwards a port of this machine to one pod of a service, and gives the address.

    The API server's own proxy rewrites pages, cannot read that of TensorBoard, and has no WebSockets.
    """
    command = ["kubectl", "-n", NAMESPACE, "port-forward", f"service/{service}", ":80"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            yield f"http://127.0.0.1:{forward.stdout.readline().split('127.0.0.1:')[1].split()[0]}"
        finally:
            forward.terminate()


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
    return Path(given) if given else cluster().volume


def require_pipelines() -> None:
    """Ends the tests with a sentence where something is absent that all of them need."""
    try:
        assert cluster().health is not None
        runs.check_volume(cluster(), "kws-data")
        get("crd", "pytorchjobs.kubeflow.org")
    except shell.ClusterError as error:
        pytest.exit(f"these tests need Kubeflow Pipelines, the training operator and the claim kws-data: {error}", 2)


def recordings() -> str:
    """Returns the source of recordings as the cluster sees it; synthesizes them if need be."""
    if given := os.environ.get("KWS_E2E_SOURCE"):
        return given
    if root := volume():
        target = root / "e2e-recordings"
        if not target.exists():
            synthesize(target, words=["yes", "no", "stop"], clips_per_word=30)
            shell.run("chmod", "-R", "a+rX", str(target))
        return "/data/e2e-recordings"
    return SPEECH_COMMANDS_URL
