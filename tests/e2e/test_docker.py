"""The images as they are built, and the whole compiled pipeline in them: `pytest tests/e2e/test_docker.py`."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc

from kws import files
from kws.model import bundle, onnx, versions
from kws.model.network import AudioTransformer
from kws.model.predict import predict
from kws.recipe import RECIPES, ModelConfig
from pipeline import shell
from pipeline.kind import preflight
from pipeline.kind.docker_images import image_names, inspect, revision

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The images of this revision, which `make images` built."""
    preflight.require_all([preflight.tool(shell.docker()), preflight.docker_engine()])
    return image_names()


def inside(image: str, *command: str) -> str:
    """Runs a command in a container as a cluster would: read-only, without rights, as the image's own user."""
    return shell.run(
        shell.docker(),
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--network",
        "none",
        image,
        *command,
    )


@pytest.mark.parametrize("role", ["runtime", "launcher", "serving"])
def test_an_image_runs_as_a_numeric_user_and_brings_no_compiler_installer_or_cache(
    images: dict[str, str], role: str
) -> None:
    (described,) = inspect([images[role]])
    assert described["Config"]["User"] == "1000:1000"
    assert inside(images[role], "id", "-u").strip() == "1000"
    assert inside(images[role], "sh", "-c", "command -v gcc cc g++ make uv || true").strip() == ""
    assert inside(images[role], "sh", "-c", "ls -d /var/cache/uv /root/.cache/* /build 2>/dev/null || true") == ""
    assert "not writable" in inside(images[role], "sh", "-c", "test -w /opt/venv || echo not writable")


@pytest.mark.parametrize("role", ["runtime", "launcher", "serving"])
def test_an_image_carries_revision_version_and_licence(images: dict[str, str], role: str) -> None:
    (described,) = inspect([images[role]])
    labels = {name.rpartition(".")[2]: value for name, value in described["Config"]["Labels"].items()}
    assert labels["revision"] == revision()
    assert labels["version"] == "0.2.0"
    assert labels["licenses"] == "Apache-2.0"


def test_the_server_runs_on_a_read_only_root_without_torch_and_lives_without_a_model(images: dict[str, str]) -> None:
    code = (
        "import importlib.util as u, subprocess, time, urllib.request;"
        "assert u.find_spec('torch') is None;"
        "p = subprocess.Popen(['kws', 'serve', '--data-root', '/tmp', '--port', '8080']); time.sleep(20);"
        "print(urllib.request.urlopen('http://127.0.0.1:8080/v2/health/live').read().decode()); p.terminate()"
    )
    assert inside(images["serving"], "python3", "-c", code).strip().endswith('{"live":true}')


MOST_MEGABYTES = 400
"""Largest size of the serving image on disk, with a base of 191 MB."""


def test_the_serving_image_is_small(images: dict[str, str]) -> None:
    (described,) = inspect([images["serving"]])
    assert described["Size"] < MOST_MEGABYTES * 1_000_000


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A volume with an untrained champion, readable by the user of the image."""
    torch.manual_seed(1)
    features = RECIPES["default"].features
    config = ModelConfig(num_layers=1, num_heads=2, width=32, feedforward=64, frames_per_token=4)
    recognizer = bundle.Recognizer(
        model=AudioTransformer(config, features, 2).eval(), words=["no", "yes"], features=features, about={}
    )
    folder = tmp_path / versions.MODELS / "v1"
    folder.mkdir(parents=True)
    onnx.export(recognizer, folder / versions.ONNX)
    files.write_json(
        folder / files.MANIFEST,
        {"schema": 2, "version": "v1", "files": {versions.ONNX: files.sha256_of(folder / versions.ONNX)}},
    )
    versions.appoint(tmp_path, "v1", 1.0, by="a test", reason="")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    return tmp_path


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def serving(image: str, data_root: Path) -> Iterator[tuple[str, str]]:
    """Runs the serving image as its Deployment does, with the volume read-only; gives its HTTP and gRPC addresses."""
    name = shell.run(
        shell.docker(),
        "run",
        "--detach",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--volume",
        f"{data_root}:/data:ro",
        "--publish",
        "127.0.0.1::8080",
        "--publish",
        "127.0.0.1::8081",
        image,
    ).strip()
    try:
        http, grpc = (shell.run(shell.docker(), "port", name, port).split()[0] for port in ("8080", "8081"))
        until = time.monotonic() + 120
        while not is_ready(http) and time.monotonic() < until:
            time.sleep(0.5)
        assert is_ready(http), shell.run(shell.docker(), "logs", name)
        yield f"http://{http}", grpc
    finally:
        shell.run(shell.docker(), "rm", "--force", name)


def test_the_serving_image_answers_health_inference_and_the_page(
    images: dict[str, str], data_root: Path, real_corpus: Path
) -> None:
    clip = min((real_corpus / "yes").iterdir()).read_bytes()
    sent = {
        "inputs": [{"name": "waveforms", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(clip).decode()]}]
    }
    with serving(images["serving"], data_root) as (http, grpc):

        def get(path: str, body: object = None) -> str:
            data = json.dumps(body).encode() if body else None
            with urllib.request.urlopen(http + path, data, timeout=30) as answer:
                return str(answer.read().decode())

        assert json.loads(get("/v2/health/live")) == {"live": True}
        answer = json.loads(get("/v2/models/kws/infer", sent))
        by_rest = next(each["data"] for each in answer["outputs"] if each["name"] == "probabilities")
        assert answer["model_version"] == "v1"
        client = tritonclient.grpc.InferenceServerClient(grpc)
        given = tritonclient.grpc.InferInput("waveforms", [1], "BYTES")
        given.set_data_from_numpy(np.array([clip], dtype=object))
        by_grpc = client.infer("kws", [given]).as_numpy("probabilities")
        np.testing.assert_allclose(by_grpc.ravel(), by_rest, atol=1e-6)
        assert by_grpc.shape == (1, 2)
        assert "<h1>Spoken command words</h1>" in get("/")
        assert "AudioWorkletNode" in get("/page/page.js")
        assert 'kws_requests_total{protocol="rest",status="200"} 1.0' in get("/metrics")


def test_the_launcher_imports_all_that_it_needs_and_has_no_torch(images: dict[str, str]) -> None:
    code = (
        "import importlib.util as u; import kfp, kws.train.step, kws.launch.submit, kws.launch.kinds.pytorchjob;"
        "print(u.find_spec('torch'))"
    )
    assert inside(images["launcher"], "python", "-c", code).strip() == "None"


def test_the_runtime_imports_all_that_it_needs_in_the_versions_of_the_lock_file(images: dict[str, str]) -> None:
    code = "import torch, torchaudio, soundfile, tensorboard, matplotlib, kws.train.process; print(torch.__version__)"
    assert inside(images["runtime"], "python", "-c", code).strip().split("+")[0] == "2.11.0"
    assert "usage: kws" in inside(images["runtime"], "kws", "--help")
    assert (
        "kfp"
        in inside(images["runtime"], "env", "_KFP_RUNTIME=true", "python", "-m", "kfp.dsl.executor_main", "-h").lower()
    )


def run_pipeline(runner: str, source: Path, folder: Path) -> dict[str, Any]:
    summary = folder / "summary.json"
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        "--runner",
        runner,
        "--source",
        str(source),
        "--words",
        "auto",
        "--epochs",
        "2",
        "--min-accuracy",
        "0",
        "--data-root",
        str(folder / "data"),
        "--json",
        str(summary),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return dict(json.loads(summary.read_text()))


def test_the_pipeline_gives_the_same_results_in_containers_and_in_processes(
    images: dict[str, str], real_corpus: Path, tmp_path: Path
) -> None:
    # The folders of pytest are for its user alone, and the containers have another where that is root.
    source = Path(shutil.copytree(real_corpus, tmp_path / "recordings"))
    source.chmod(0o755)
    summaries, fingerprints, recognizers = {}, {}, {}
    for runner in ("subprocess", "docker"):
        folder = tmp_path / runner
        folder.mkdir()
        summaries[runner] = run_pipeline(runner, source, folder)
        (manifest,) = (folder / "data" / "tensors").glob("*/manifest.json")
        fingerprints[runner] = files.read_json(manifest)["fingerprint"]
        recognizers[runner] = bundle.load(Path(summaries[runner]["model"]))
    assert fingerprints["docker"] == fingerprints["subprocess"]
    assert summaries["docker"]["accuracy"] == summaries["subprocess"]["accuracy"]
    clips = sorted(source.glob("[a-z]*/*.wav"))
    assert len(clips) == 42
    for clip in clips:
        here, there = (predict(recognizers[runner], clip)[0] for runner in ("subprocess", "docker"))
        assert there.word == here.word, clip
        assert there.probability == pytest.approx(here.probability, abs=1e-4), clip
    # All that containers left belongs to a user who is not root, and can be deleted by whoever started them.
    owners = {path.stat().st_uid for path in (tmp_path / "docker" / "data").rglob("*")}
    assert owners == {os.geteuid() or 1000}
