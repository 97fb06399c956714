"""Reads the volume of a cluster: as a folder of this machine, or through a pod that mounts it."""

import contextlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import yaml

from kws.kube.errors import Refused
from pipeline.cluster.connect import Cluster
from pipeline.cluster.readiness import wait_for_pod
from pipeline.shell import ROOT, ClusterError, run

READER = "kws-reader"
WRITER = "kws-rollback"
"""Name of pods that mount the volume for writing. They may call a Model Registry; readers may connect to nothing."""

MANIFEST = ROOT / "manifests" / "reader" / "pod.yaml"
MOUNTED = "/data"
"""Where the pod has the volume."""


class Volume(Protocol):
    """Read access to the data root of a cluster."""

    def names(self, folder: str) -> list[str]:
        """Returns what is in a folder; empty if there is no such folder."""

    def read(self, path: str) -> bytes | None:
        """Returns the content of a file; None where there is none."""


class HostVolume:
    """The volume as a folder of this machine: the case of kind, and of any mounted share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        """See Volume."""
        path = self.root / folder
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def read(self, path: str) -> bytes | None:
        """See Volume."""
        return (self.root / path).read_bytes() if (self.root / path).exists() else None


class PodVolume:
    """The volume as mounted by a reader pod; files are transferred through the Kubernetes API."""

    def __init__(self, kubectl: list[str], pod: str, mount_path: str) -> None:
        self.exec = [*kubectl, "exec", pod, "--"]
        self.mount_path = mount_path

    def names(self, folder: str) -> list[str]:
        """See Volume."""
        return run(*self.exec, "sh", "-c", 'ls "$0" 2>/dev/null || true', f"{self.mount_path}/{folder}").split()

    def read(self, path: str) -> bytes | None:
        """See Volume."""
        command = [*self.exec, "cat", f"{self.mount_path}/{path}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode and "No such file" in said:
            return None
        if done.returncode:
            raise ClusterError(f"{path} must be readable in the reader pod, got: {said}; start again")
        return done.stdout


@contextlib.contextmanager
def reader_pod(cluster: Cluster, *, claim: str, image: str, read_only: bool = True) -> Iterator[PodVolume]:
    """Runs a pod that does nothing but mount the volume, and deletes it at the end.

    If this process is killed, the pod ends by itself after about two minutes, and the next call deletes it. It needs
    any image with sh, cat and sleep that the nodes have.

    Raises:
        ClusterError: there is no such claim, or the pod does not start; the message says why.
    """
    with contextlib.suppress(Refused):  # a role may allow pods alone
        cluster.claim(claim)  # without it the pod would wait in vain
    kubectl = cluster.kubectl
    # Pods that killed commands left, which have ended by themselves.
    left = f"--selector=app.kubernetes.io/name in ({READER},{WRITER})"
    ended = "--field-selector=status.phase!=Pending,status.phase!=Running"
    run(*kubectl, "delete", "pods", left, ended, "--wait=false")
    name = f"{READER if read_only else WRITER}-{uuid.uuid4().hex[:8]}"
    pod = reader_manifest(name, claim=claim, image=image, read_only=read_only)
    run(*kubectl, "apply", "-f", "-", stdin=json.dumps(pod))
    try:
        wait_for_pod(kubectl, name, f"--image names another image than {image}")
        yield PodVolume(kubectl, name, MOUNTED)
    finally:
        run(*kubectl, "delete", "pod", name, "--wait=false", "--ignore-not-found")


def reader_manifest(name: str, *, claim: str, image: str, read_only: bool = True) -> dict[str, Any]:
    """Returns the reader pod, allowed in a namespace with the restricted pod security standard."""
    pod: dict[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    pod["metadata"]["name"] = name
    pod["metadata"]["labels"]["app.kubernetes.io/name"] = READER if read_only else WRITER
    container, (data, _) = pod["spec"]["containers"][0], pod["spec"]["volumes"]
    container["image"] = image
    container["volumeMounts"][0]["readOnly"] = read_only
    data["persistentVolumeClaim"] |= {"claimName": claim, "readOnly": read_only}
    return pod
