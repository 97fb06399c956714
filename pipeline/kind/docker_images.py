"""The container images: their names, their tags, and how they are built."""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pipeline.shell import ROOT, docker, run, stream

CONTEXT = ("images", "src", "pyproject.toml", "uv.lock", ".dockerignore")
"""What the images are made of: nothing else changes their tag."""

CUDA_BASE = "pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime"
"""The official image of the PyTorch of uv.lock, the base of the image for NVIDIA GPUs."""


def revision() -> str:
    """Returns the tag of the images: the commit that last changed them, and a digest of uncommitted changes."""
    remedy = "the images are tagged by git revision: work in a clone"
    commit = run(*["git", "log", "-1", "--format=%h", "--abbrev=12", "--"], *CONTEXT, remedy=remedy).strip()
    changes = run("git", "status", "--porcelain", "-z", "--untracked-files=all", "--", *CONTEXT)
    if not changes:
        return commit
    digest = hashlib.sha256(run("git", "diff", "HEAD", "--", *CONTEXT).encode())
    for name in run("git", "ls-files", "-z", "--others", "--exclude-standard", "--", *CONTEXT).split("\0")[:-1]:
        digest.update(name.encode() + (ROOT / name).read_bytes())
    return f"{commit}-dirty-{digest.hexdigest()[:8]}"


def image_names(*, registry: str = "", device: str = "cpu") -> dict[str, str]:
    """Returns the images of this revision by role: runtime, launcher and serving.

    The environment variables KWS_RUNTIME_IMAGE, KWS_LAUNCHER_IMAGE and KWS_SERVING_IMAGE override them. `registry` is
    where they are pushed, such as ghcr.io/me; empty: nowhere. `device` is cpu or cuda.
    """
    prefix = f"{registry.rstrip('/')}/" if registry else ""
    names = {}
    for role, suffix in (("runtime", "-cuda" if device == "cuda" else ""), ("launcher", ""), ("serving", "")):
        given = os.environ.get(f"KWS_{role.upper()}_IMAGE")
        names[role] = given or f"{prefix}kws-{role}:{revision()}{suffix}"
        if names[role].endswith(":latest") or ":" not in names[role].rpartition("/")[2]:
            raise ValueError(f"an image must have a tag other than latest, which is pulled anew, got {names[role]!r}")
    return names


def build(names: dict[str, str], *, device: str, torch: str = "", base_image: str = "", push: bool = False) -> None:
    """Builds the images, and pushes them to their registry if told to.

    Where PyTorch comes from (`torch`) is described in images/runtime/Dockerfile; it and the base image follow from the
    device, cpu or cuda, where they are empty.
    """
    arguments = {
        "runtime": {
            "TORCH": torch or ("base" if device == "cuda" else "cpu"),
            "BASE_IMAGE": base_image or (CUDA_BASE if device == "cuda" else ""),
        },
        "launcher": {},
        "serving": {},
    }
    labels = {"VERSION": version("kws"), "REVISION": revision()}
    for role, name in names.items():
        given = [f"--build-arg={key}={value}" for key, value in (arguments[role] | labels).items() if value]
        command = [docker(), "build", "--file", f"images/{role}/Dockerfile", "--tag", name, *given, "."]
        remedy = "if PyTorch's index of CPU builds cannot be reached, TORCH=locked"
        stream(*command, env={"DOCKER_BUILDKIT": "1"}, remedy=remedy)
        if push:
            stream(docker(), "push", name, remedy="log in with docker login, and give REGISTRY")


def inspect(names: Sequence[str]) -> list[dict[str, Any]]:
    """Describes images of the local engine.

    Raises:
        ClusterError: one of them has not been built.
    """
    return list(json.loads(run(docker(), "image", "inspect", *names, remedy="build them: make images")))
