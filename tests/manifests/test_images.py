import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import shell
from pipeline.kind import docker_images as images

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))
SCRIPTS = [*sorted((ROOT / "images").rglob("*.sh")), ROOT / ".ci" / "run"]
TOOLS = Path(sys.executable).parent

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)


def lint(tool: str, *arguments: str | Path) -> None:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@each_dockerfile
def test_hadolint_finds_nothing_in_a_dockerfile(dockerfile: Path) -> None:
    if not (TOOLS / "hadolint").exists():
        pytest.skip("needs hadolint")
    lint("hadolint", dockerfile)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_a_script(script: Path) -> None:
    if not (TOOLS / "shellcheck").exists():
        pytest.skip("needs shellcheck")
    lint("shellcheck", script)


@each_dockerfile
def test_the_final_stage_has_a_numeric_user_labels_and_no_installer(dockerfile: Path) -> None:
    stages = re.split(r"^FROM ", dockerfile.read_text(), flags=re.M)
    assert len(stages) > 2, "multi-stage"
    final = stages[-1]
    assert re.search(r"^USER 1000:1000$", final, re.M)
    assert not re.search(r"apt-get|pip install|uv ", final)
    for label in ("licenses", "version", "revision", "title", "base.name"):
        assert f"org.opencontainers.image.{label}=" in final


@each_dockerfile
def test_a_dockerfile_and_the_makefile_pin_the_same_uv(dockerfile: Path) -> None:
    pinned = re.search(r"uv==([\d.]+)", (ROOT / "Makefile").read_text())
    assert pinned is not None
    assert f"ARG UV_VERSION={pinned[1]}\n" in dockerfile.read_text()


@each_dockerfile
def test_a_base_image_is_an_argument_and_has_a_tag_other_than_latest(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    default = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.M)
    assert default is not None
    for name in (default[1], images.CUDA_BASE):
        assert re.search(r":(?!latest)\S+$", name)
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) <= {"${BASE_IMAGE}", "dependencies"}


def test_the_base_for_gpus_has_the_pytorch_of_the_lock_file() -> None:
    locked = re.search(r'^name = "torch"\nversion = "([\d.]+)"', (ROOT / "uv.lock").read_text(), re.M)
    assert locked is not None
    assert images.CUDA_BASE.startswith(f"pytorch/pytorch:{locked[1]}-")


def test_the_tag_follows_what_is_in_the_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for module in (shell, images):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            check=True,
            capture_output=True,
        )

    for name in ("images/file", "src/file", "pyproject.toml", "uv.lock", ".dockerignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    first = images.revision()
    (tmp_path / "README.md").write_text("what the images do not hold")
    git("add", ".")
    git("commit", "-m", "two")
    assert images.revision() == first
    (tmp_path / "src" / "file").write_text("two")
    changed = images.revision()
    (tmp_path / "src" / "new").write_text("three")
    added = images.revision()
    git("add", ".")
    git("commit", "-m", "three")
    committed = images.revision()
    assert re.fullmatch(r"[0-9a-f]{12}", first)
    assert re.fullmatch(rf"{first}-dirty-[0-9a-f]{{8}}", changed)
    assert len({first, changed, added, committed}) == 4
    assert "dirty" not in committed


def test_outside_a_clone_the_tag_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (shell, images):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(shell.ClusterError, match="work in a clone"):
        images.revision()


@pytest.mark.parametrize("name", ["kws-runtime:latest", "kws-runtime", "localhost:5000/kws-runtime"])
def test_an_image_without_a_tag_of_its_own_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_RUNTIME_IMAGE", name)
    with pytest.raises(ValueError, match=f"an image must have a tag other than latest.*{name}"):
        images.image_names()
