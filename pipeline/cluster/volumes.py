"""Reads the volume of a cluster: as a folder of this machine, or through a pod that mounts it."""

import contextlib
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from pipeline.shell import ClusterError, run

READER = "kws-reader"
WRITER = "kws-rollback"
"""Name of pods that mount the volume for writing. They may call a Model Registry; readers may connect to nothing."""

READER_SECONDS = 1800
"""Seconds after which Kubernetes ends the reader pod, whatever it is doing."""

IDLE_SECONDS = 120
"""Seconds without any read after which the reader pod ends by itself: the process that created it was killed."""

_READ = """\
idle=0 before=
while [ $idle -lt %d ]; do
    sleep 5
    idle=$((idle + 5)) now=
    for process in /proc/[0-9]*; do
        [ $process = /proc/1 ] && continue
        { read -r _ bytes <$process/io; } 2>/dev/null || bytes=$idle
        now="$now $process $bytes"
    done
    [ "$now" = "$before" ] || idle=0
    before=$now
done
"""
"""The command of the reader pod. A process whose client is gone may stay, waiting for its output to be read."""


class Volume(Protocol):
    """Read access to the data root of a cluster."""

    def names(self, folder: str) -> list[str]:
        """Returns what is in a folder; empty if there is no such folder."""

    def read(self, path: str) -> bytes | None:
        """Returns the content of a file; None where there is none."""

    def copy(self, path: str, target: IO[bytes]) -> None:
        """Copies a file."""


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

    def copy(self, path: str, target: IO[bytes]) -> None:
        """See Volume."""
        with (self.root / path).open("rb") as source:
            shutil.copyfileobj(source, target)


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
        done = self._cat(path, subprocess.PIPE)
        return None if done is None else done.stdout

    def copy(self, path: str, target: IO[bytes]) -> None:
        """See Volume."""
        if self._cat(path, target) is None:
            raise FileNotFoundError(f"{path} must be on the volume, got none; publish the version again")

    def _cat(self, path: str, to: IO[bytes] | int) -> "subprocess.CompletedProcess[bytes] | None":
        """Runs cat in the pod; None where there is no such file."""
        command = [*self.exec, "cat", f"{self.mount_path}/{path}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.PIPE)
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode and "No such file" in said:
            return None
        if done.returncode:
            raise ClusterError(f"{path} must be readable in the reader pod, got: {said}; start again")
        return done


@contextlib.contextmanager
def reader_pod(
    kubectl: list[str], *, claim: str, image: str, mount_path: str = "/data", read_only: bool = True
) -> Iterator[PodVolume]:
    """Runs a pod that does nothing but mount the volume, and deletes it at the end.

    If this process is killed, the pod ends by itself after about two minutes, and the next call deletes it.

    Args:
        kubectl: the command with its flags for cluster and namespace.
        claim: the PersistentVolumeClaim.
        image: any image with sh, cat and sleep that the nodes have.
        mount_path: where the pod has the volume.
        read_only: whether to mount it read-only.
    """
    # Pods that killed commands left, which have ended by themselves.
    run(
        *kubectl,
        "delete",
        "pods",
        "--selector",
        f"app.kubernetes.io/name in ({READER},{WRITER})",
        "--wait=false",
        "--field-selector",
        "status.phase!=Pending,status.phase!=Running",
    )
    name = f"{READER if read_only else WRITER}-{uuid.uuid4().hex[:8]}"
    pod = reader_manifest(name, claim=claim, image=image, mount_path=mount_path, read_only=read_only)
    run(*kubectl, "apply", "-f", "-", stdin=json.dumps(pod))
    try:
        run(
            *kubectl,
            "wait",
            "--for=condition=Ready",
            f"pod/{name}",
            "--timeout=300s",
            remedy=f"kubectl describe pod {name} tells why; --image names another image",
        )
        yield PodVolume(kubectl, name, mount_path)
    finally:
        run(*kubectl, "delete", "pod", name, "--wait=false", "--ignore-not-found")


def reader_manifest(name: str, *, claim: str, image: str, mount_path: str, read_only: bool = True) -> dict[str, Any]:
    """Returns the reader pod, allowed in a namespace with the restricted pod security standard."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": READER if read_only else WRITER, "app.kubernetes.io/part-of": "kws"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": READER_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "reader",
                    "image": image,
                    "command": ["sh", "-c", _READ % IDLE_SECONDS],
                    "resources": {
                        "requests": {"cpu": "50m", "memory": "64Mi"},
                        "limits": {"cpu": "500m", "memory": "256Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "data", "mountPath": mount_path, "readOnly": read_only},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            ],
        },
    }
