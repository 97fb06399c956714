"""The two container images: their names, their tags, and how they are built."""

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kws.config import PipelineConfig
from kws.files import human_bytes

if TYPE_CHECKING:
    from kfp.local import DockerRunner

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = ("images", "src", "pyproject.toml", "uv.lock", ".dockerignore")
"""What the images are made of: nothing else changes their tag."""

CUDA_BASE = "pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime"
"""The official image of the PyTorch of uv.lock, the base of the image for NVIDIA GPUs."""


class ClusterError(Exception):
    """Something outside this program is not as it must be; the message says what, and the remedy."""


def docker() -> str:
    """Returns the Docker client: the one that the environment variable DOCKER names, or docker."""
    return os.environ.get("DOCKER") or "docker"


def run(*command: str, remedy: str = "", stdin: str | None = None, timeout: float | None = None) -> str:
    """Runs a program in the root of the repository and returns what it printed.

    Raises:
        ClusterError: the program is not installed, did not end in time or failed; the message ends with its own words.
    """
    hint = f"; {remedy}" if remedy else ""
    try:
        done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} must be installed and on PATH, got none{hint}") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(command[:3])} must answer within {timeout:g} s, got nothing{hint}") from None
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-3:])
        raise ClusterError(f"{' '.join(command[:3])} must succeed, got status {done.returncode}: {said}{hint}")
    return done.stdout


def stream(*command: str, remedy: str = "", env: dict[str, str] | None = None) -> None:
    """Runs a program in the root of the repository that shows its own progress.

    Raises:
        ClusterError: the program is not installed, or failed.
    """
    hint = f"; {remedy}" if remedy else ""
    try:
        status = subprocess.run(command, cwd=ROOT, env=os.environ | (env or {})).returncode
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} must be installed and on PATH, got none{hint}") from None
    if status:
        raise ClusterError(f"{' '.join(command[:3])} must succeed, got status {status} (see above){hint}")


def revision() -> str:
    """Returns the tag of the images: the commit that last changed them, and a digest of what is not committed."""
    commit = run("git", "log", "-1", "--format=%h", "--abbrev=12", "--", *CONTEXT,
                 remedy="the images are tagged by git revision: work in a clone").strip()  # fmt: skip
    changes = run("git", "status", "--porcelain", "-z", "--untracked-files=all", "--", *CONTEXT)
    if not changes:
        return commit
    digest = hashlib.sha256(run("git", "diff", "HEAD", "--", *CONTEXT).encode())
    for name in run("git", "ls-files", "-z", "--others", "--exclude-standard", "--", *CONTEXT).split("\0")[:-1]:
        digest.update(name.encode() + (ROOT / name).read_bytes())
    return f"{commit}-dirty-{digest.hexdigest()[:8]}"


def image_names(*, registry: str = "", device: str = "cpu") -> dict[str, str]:
    """Returns the images of this revision by role, runtime and launcher.

    The environment variables KWS_RUNTIME_IMAGE and KWS_LAUNCHER_IMAGE name others.

    Args:
        registry: where they are pushed to, such as ghcr.io/me; empty: nowhere.
        device: cpu or cuda.
    """
    prefix = f"{registry.rstrip('/')}/" if registry else ""
    names = {}
    for role, suffix in (("runtime", "-cuda" if device == "cuda" else ""), ("launcher", "")):
        given = os.environ.get(f"KWS_{role.upper()}_IMAGE")
        names[role] = given or f"{prefix}kws-{role}:{revision()}{suffix}"
        if names[role].endswith(":latest") or ":" not in names[role].rpartition("/")[2]:
            raise ValueError(f"an image must have a tag other than latest, which is pulled anew, got {names[role]!r}")
    return names


def build(names: dict[str, str], *, device: str, torch: str = "", base_image: str = "", push: bool = False) -> None:
    """Builds the images, and pushes them to their registry if told to.

    Args:
        names: what `image_names` gave.
        device: cpu or cuda.
        torch: where PyTorch comes from, see images/runtime/Dockerfile; empty: as the device says.
        base_image: replaces the base image of the runtime; empty: as the device says.
        push: push them once they are built.
    """
    arguments = {
        "runtime": {
            "TORCH": torch or ("base" if device == "cuda" else "cpu"),
            "BASE_IMAGE": base_image or (CUDA_BASE if device == "cuda" else ""),
        },
        "launcher": {},
    }
    labels = {"VERSION": version("kws"), "REVISION": revision()}
    for role, name in names.items():
        given = [f"--build-arg={key}={value}" for key, value in (arguments[role] | labels).items() if value]
        stream(docker(), "build", "--file", f"images/{role}/Dockerfile", "--tag", name, *given, ".",
               env={"DOCKER_BUILDKIT": "1"},
               remedy="PyTorch's index of CPU builds out of reach: TORCH=locked; "
                      "no BuildKit: install docker-buildx, or name another client in DOCKER")  # fmt: skip
        if push:
            stream(docker(), "push", name, remedy="log in with docker login, and give REGISTRY")


def inspect(names: Sequence[str]) -> list[dict[str, Any]]:
    """Describes images of the local engine.

    Raises:
        ClusterError: one of them was not built.
    """
    return list(json.loads(run(docker(), "image", "inspect", *names, remedy="build them: make images")))


def size(image: dict[str, Any]) -> str:
    """Returns the size of an image for people."""
    return human_bytes(image["Size"])


def local_runner(config: PipelineConfig, outputs: Path) -> "tuple[DockerRunner, PipelineConfig]":
    """Prepares containers that run the steps on this machine as a cluster would: no root, nothing to write but /tmp
    and the data root.

    The images are those of this revision, unless KWS_RUNTIME_IMAGE names another; the data root and a local source
    have the same path inside as outside.

    Args:
        config: the parameters, with absolute paths.
        outputs: where kfp.local keeps artifacts, inside the data root.

    Raises:
        ClusterError: the image is not there.
        ValueError: the data root cannot be written by the user of the containers.
    """
    from docker.types import Mount
    from kfp.local import DockerRunner

    image = os.environ.setdefault("KWS_RUNTIME_IMAGE", image_names()["runtime"])  # components.images reads it
    inspect([image])
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        user = group = 1000  # the user of the images
        for folder in (Path(config.data_root), outputs):
            os.chown(folder, user, group)
    for folder in (Path(config.data_root), *Path(config.data_root).iterdir()):
        if folder.stat().st_uid != user:
            raise ValueError(f"data_root must belong to user {user}, who runs the containers, got {folder} of user "
                             f"{folder.stat().st_uid}; name another folder, or sudo chown -R {user} it")  # fmt: skip
    mounts = [Mount(config.data_root, config.data_root, type="bind")]
    if "://" not in config.source:
        found = Path(config.source).stat()
        if found.st_uid != user and not found.st_mode & 0o004:
            raise ValueError(f"source must be readable for user {user}, who runs the containers, got one that only "
                             f"user {found.st_uid} reads; chmod -R o+rX {config.source}")  # fmt: skip
        mounts.append(Mount(config.source, config.source, type="bind", read_only=True))
    here = urlsplit(config.source).hostname in ("127.0.0.1", "localhost")
    runner = DockerRunner(
        user=f"{user}:{group}", read_only=True, tmpfs={"/tmp": "mode=1777"}, mounts=mounts, shm_size="1g",
        cap_drop=["ALL"], security_opt=["no-new-privileges"], network_mode="host" if here else "bridge",
    )  # fmt: skip
    return runner, config
