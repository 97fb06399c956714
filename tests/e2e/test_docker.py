"""The images as they are built, and the whole compiled pipeline in them: `make e2e-docker`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kws import files
from kws.model import bundle
from kws.model.predict import predict
from pipeline import shell
from pipeline.kind import preflight
from pipeline.kind.images import image_names, inspect, revision

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The images of this revision, which `make images` built."""
    preflight.require_all([preflight.tool(shell.docker()), preflight.docker_engine()])
    names = image_names()
    inspect(list(names.values()))
    return names


def inside(image: str, *command: str) -> str:
    """Runs a command in a container as a cluster would: read-only, without rights, as the image's own user."""
    return shell.run(shell.docker(), "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
                          "--security-opt", "no-new-privileges", "--network", "none", image, *command)  # fmt: skip


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


def test_the_launcher_imports_all_that_it_needs_and_has_no_torch(images: dict[str, str]) -> None:
    code = (
        "import importlib.util as u; import kfp, kws.train.step, kws.launch.submit, kws.launch.pytorchjob, kubernetes;"
        "print(u.find_spec('torch'))"
    )
    assert inside(images["launcher"], "python", "-c", code).strip() == "None"


def test_the_runtime_imports_all_that_it_needs_in_the_versions_of_the_lock_file(images: dict[str, str]) -> None:
    code = "import torch, torchaudio, soundfile, tensorboard, matplotlib, kws.train.trainer; print(torch.__version__)"
    assert inside(images["runtime"], "python", "-c", code).strip().split("+")[0] == "2.11.0"
    assert "usage: kws" in inside(images["runtime"], "kws", "--help")
    assert (
        "kfp"
        in inside(images["runtime"], "env", "_KFP_RUNTIME=true", "python", "-m", "kfp.dsl.executor_main", "-h").lower()
    )


def run_pipeline(runner: str, source: Path, folder: Path) -> dict[str, Any]:
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "pipeline", "run", "--runner", runner, "--source", str(source), "--words", "auto",
               "--epochs", "2", "--min-accuracy", "0", "--data-root", str(folder / "data"),
               "--json", str(summary)]  # fmt: skip
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
    assert len(clips) > 100
    for clip in clips:
        here, there = (predict(recognizers[runner], clip)[0] for runner in ("subprocess", "docker"))
        assert there.word == here.word, clip
        assert there.probability == pytest.approx(here.probability, abs=1e-4), clip
    # All that containers left belongs to a user who is not root, and can be deleted by whoever started them.
    owners = {path.stat().st_uid for path in (tmp_path / "docker" / "data").rglob("*")}
    assert owners == {os.geteuid() or 1000}
