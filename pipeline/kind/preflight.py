"""Checks, within a second, what a machine must have before a cluster can be created on it."""

import contextlib
import errno
import json
import platform
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws.files import free_bytes, human_bytes
from pipeline.shell import ROOT, ClusterError, docker, run

MIN_MEMORY = 7_000_000_000
"""Bytes that Docker must have: Kubeflow Pipelines takes 4 GB, training the rest."""

MIN_DISK = 12_000_000_000
"""Free bytes beside our images: for those of kind and Kubeflow in every node, and a small volume."""

NUM_COPIES = 3
"""Copies of our images: an archive that kind writes to transfer them, and one in each of the two workers."""

INOTIFY = {"max_user_watches": 524_288, "max_user_instances": 512}
"""What three nodes full of pods need; with less, pods fail with "too many open files"."""

FIRST_WITHOUT_BUILDER = 23
"""Major version of the first Docker client that cannot build with BuildKit by itself."""

PORTS = {8080: "the UI of Kubeflow Pipelines", 6006: "TensorBoard"}
"""Ports of 127.0.0.1 in kind-config.yaml."""

INSTALL = {
    "docker": "install Docker Engine or Docker Desktop: https://docs.docker.com/engine/install",
    "kind": "install kind: https://kind.sigs.k8s.io/docs/user/quick-start",
    "kubectl": "install kubectl: https://kubernetes.io/docs/tasks/tools",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one check."""

    name: str
    problem: str = ""
    """A sentence with a remedy; empty: all is well."""
    detail: str = ""
    """What was found."""


def tool(name: str) -> Check:
    """Looks for a program on PATH."""
    path = shutil.which(name)
    if path is None:
        key = Path(name).name
        return Check(name=name, problem=f"{name} must be on PATH, got none; {INSTALL.get(key, 'install it')}")
    return Check(name=name, detail=path)


def docker_engine() -> Check:
    """Asks the Docker engine what it is and how much memory it has."""
    name = "docker engine"
    remedy = "start Docker Desktop"
    if platform.system() == "Linux":
        remedy += ", or systemctl start docker and join the group docker (rootless: systemctl --user start docker)"
    try:
        found = engine_info(remedy=remedy)
    except ClusterError as error:
        return Check(name=name, problem=str(error))
    if found.get("ServerErrors"):  # some clients report them with status 0
        said = " ".join(found["ServerErrors"])
        return Check(name=name, problem=f"the Docker engine must be running, got: {said}; {remedy}")
    if rootless(found) and str(found.get("CgroupVersion")) != "2":
        return Check(
            name=name,
            problem="rootless Docker must have control groups of version 2 for kind, got version "
            f"{found.get('CgroupVersion')}; see https://kind.sigs.k8s.io/docs/user/rootless",
        )
    memory = found["MemTotal"]
    if memory < MIN_MEMORY:
        problem = f"Docker must have {human_bytes(MIN_MEMORY)} of memory, got {human_bytes(memory)}; "
        return Check(name=name, problem=problem + "give it more in Docker Desktop's settings, or use a larger machine")
    kind_of = ", rootless" if rootless(found) else ""
    return Check(name=name, detail=f"{found['ServerVersion']}, {found['NCPU']} CPUs, {human_bytes(memory)}{kind_of}")


def engine_info(remedy: str = "") -> dict[str, Any]:
    """Returns what `docker info` reports.

    Raises:
        ClusterError: it does not answer.
    """
    found: dict[str, Any] = json.loads(run(docker(), "info", "--format", "{{json .}}", remedy=remedy, timeout=20))
    return found


def docker_builder() -> Check:
    """Asks the Docker client whether it can build images: since version 23 it needs a plugin for that."""
    name = "docker buildx"
    try:
        client = engine_info().get("ClientInfo") or {}
    except ClusterError:  # which docker_engine reports
        return Check(name=name, detail="unknown, as Docker does not answer")
    version, plugins = client.get("Version", ""), {plugin["Name"] for plugin in client.get("Plugins") or ()}
    if int(version.partition(".")[0] or 0) >= FIRST_WITHOUT_BUILDER and "buildx" not in plugins:
        remedy = "install docker-buildx or docker-buildx-plugin, or name another client: export DOCKER=/path/to/docker"
        return Check(
            name=name,
            problem=f"the Docker client {version} must have the plugin buildx to build images, got none; {remedy}",
        )
    return Check(name=name, detail="plugin" if "buildx" in plugins else "part of the client")


def rootless(info: Mapping[str, Any]) -> bool:
    """Tells whether the Docker engine is rootless: user ids in containers are then different ones on this machine."""
    return any("rootless" in option for option in info.get("SecurityOptions") or ())


def inotify(folder: Path = Path("/proc/sys/fs/inotify")) -> Check:
    """Reads the kernel's limits of inotify, which are the same in every container."""
    name = "inotify"
    if platform.system() != "Linux":
        return Check(name=name, detail="Docker Desktop sets it")
    low = {key: have for key, least in INOTIFY.items() if (have := int((folder / key).read_text())) < least}
    if low:
        found = ", ".join(f"fs.inotify.{key}={have}" for key, have in low.items())
        remedy = " ".join(f"fs.inotify.{key}={INOTIFY[key]}" for key in low)
        return Check(
            name=name, problem=f"inotify must allow three nodes full of pods, got {found}; sudo sysctl {remedy}"
        )
    return Check(name=name, detail=", ".join(f"{key} {(folder / key).read_text().strip()}" for key in INOTIFY))


def port(number: int, purpose: str) -> Check:
    """Tries to listen on a port of 127.0.0.1."""
    name = f"port {number}"
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", number))
        except OSError as error:
            said = "in use" if error.errno == errno.EADDRINUSE else str(error)
            who = f"ss -ltnp 'sport = :{number}'" if platform.system() == "Linux" else f"lsof -nP -iTCP:{number}"
            problem = f"port {number} must be free for {purpose}, got {said}; stop what listens there ({who}), or "
            problem += "change hostPort in kind-config.yaml"
            return Check(name=name, problem=problem)
    return Check(name=name, detail=f"free for {purpose}")


def disk(folder: Path | None = None, image_bytes: int = 0) -> Check:
    """Measures the free space where Docker keeps images.

    Args:
        folder: where that is; None: where Docker says, or the repository if it does not say.
        image_bytes: size of the images that the nodes lack.
    """
    if folder is None:
        if platform.system() != "Linux":
            return Check(name="disk", detail="Docker Desktop's own: Settings, Resources, Disk; at least 40 GB")
        with contextlib.suppress(ClusterError, KeyError):
            folder = Path(engine_info()["DockerRootDir"])
        folder = folder if folder and folder.is_dir() else ROOT
    free, need = free_bytes(folder), MIN_DISK + NUM_COPIES * image_bytes
    if free < need:
        ours = f", {NUM_COPIES} times {human_bytes(image_bytes)} of it for our images" if image_bytes else ""
        return Check(
            name="disk",
            problem=f"the disk of {folder} must have {human_bytes(need)} free{ours}, got "
            f"{human_bytes(free)}; docker system prune frees what Docker no longer needs",
        )
    return Check(name="disk", detail=f"{human_bytes(free)} free in {folder}")


def checks(*, new_cluster: bool = True, image_bytes: int = 0) -> Iterable[Check]:
    """Runs every check; those that need a missing tool are left out.

    Ports must be free for a new cluster alone. `image_bytes` is the size of the images that the nodes lack.
    """
    tools = [tool(docker()), tool("kind"), tool("kubectl")]
    yield from tools
    if not tools[0].problem:
        yield docker_engine()
        yield docker_builder()
    yield inotify()
    yield disk(image_bytes=image_bytes)
    if new_cluster:
        for number, purpose in PORTS.items():
            yield port(number, purpose)


def require_all(found: Iterable[Check]) -> None:
    """Raises ClusterError with every problem that was found."""
    problems = [check.problem for check in found if check.problem]
    if problems:
        raise ClusterError("\n".join(problems))
