"""Copies a published version from the volume of a cluster to this machine, and verifies it."""

import contextlib
import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console

from kws import files
from kws.model import versions
from pipeline.shell import ClusterError, run

console = Console(stderr=True, highlight=False)

CHAMPION = "champion"
CHUNK = 1 << 20
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

    def open(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Opens a file.

        Raises:
            FileNotFoundError: there is no such file.
        """


class HostVolume:
    """The volume as a folder of this machine: the case of kind, and of any mounted share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        """See Volume."""
        path = self.root / folder
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def open(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """See Volume."""
        return (self.root / path).open("rb")


class PodVolume:
    """The volume as mounted by a reader pod; files are transferred through the Kubernetes API."""

    def __init__(self, kubectl: list[str], pod: str, mount_path: str) -> None:
        self.exec = [*kubectl, "exec", pod, "--"]
        self.mount_path = mount_path

    def names(self, folder: str) -> list[str]:
        """See Volume."""
        return run(*self.exec, "sh", "-c", 'ls "$0" 2>/dev/null || true', f"{self.mount_path}/{folder}").split()

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """See Volume."""
        process = subprocess.Popen(
            [*self.exec, "cat", f"{self.mount_path}/{path}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
            said = process.stderr.read().decode(errors="replace").strip()
            if process.wait():
                if "No such file" in said:
                    raise FileNotFoundError(path)
                raise ClusterError(f"{path} must be readable in the reader pod, got: {said}; start again")
        finally:
            process.kill()
            process.wait()


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


def pull(volume: Volume, to: Path, version: str = CHAMPION) -> Path:
    """Copies models/<version>/ of a volume to a folder of that name, and verifies the SHA-256 of every file.

    The folder appears only when it is complete and correct; after an interruption the copy starts over. A folder that
    is complete already is only verified.

    Args:
        volume: where from.
        to: the folder that gets the folder of the version.
        version: its name, or champion for the one in use.

    Returns:
        The folder `to`/<version>.

    Raises:
        ValueError: there is no such version, or its manifest is damaged.
        ClusterError: a file is damaged or cannot be read.
    """
    if version == CHAMPION:
        champion = _read(volume, f"models/{versions.CHAMPION}")
        if champion is None:
            raise ValueError(
                f"{_there_are(volume)}: there must be a champion, got none; make pipeline trains one, "
                "which must reach min_accuracy"
            )
        version = str(versions.parse_champion(champion, f"models/{versions.CHAMPION} on the volume")["version"])
    if not versions.is_name(version):
        raise ValueError(f"version must be the name of a folder of models/, got {version!r}")
    text = _read(volume, f"models/{version}/{files.MANIFEST}")
    if text is None:
        raise ValueError(f"version must be one of those on the volume ({_there_are(volume)}), got {version!r}")
    manifest = versions.parse_manifest(text, f"{files.MANIFEST} of {version}")
    digests: dict[str, str] = manifest["files"]

    def build(staging: Path) -> None:
        for name, digest in digests.items():
            _copy(volume, f"models/{version}/{name}", staging / name, digest)
        files.write_json(staging / files.MANIFEST, manifest)

    folder = to / version
    to.mkdir(parents=True, exist_ok=True)
    if not files.build_folder(folder, build):
        for name, digest in digests.items():
            found = files.sha256_of(folder / name) if (folder / name).is_file() else "no file"
            if found != digest:
                raise ClusterError(
                    f"{folder / name} must have the sha256 {digest}, got {found}; delete {folder} and start again"
                )
    return folder


def _read(volume: Volume, path: str) -> bytes | None:
    """Reads a file; None where there is none."""
    try:
        with volume.open(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _there_are(volume: Volume) -> str:
    found = [name for name in volume.names("models") if not name.startswith(".") and name != versions.CHAMPION]
    return f"versions: {', '.join(found)}" if found else "no version was published yet"


def _copy(volume: Volume, path: str, target: Path, digest: str) -> None:
    """Copies a file and verifies its digest."""
    hasher = hashlib.sha256()
    with volume.open(path) as source, target.open("wb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            hasher.update(chunk)
    if hasher.hexdigest() != digest:
        raise ClusterError(
            f"{path} must have the sha256 {digest}, got {hasher.hexdigest()}; start again, or publish the version again"
        )
    console.print(f"{target.name}  {files.human_bytes(target.stat().st_size)}  sha256 {digest}")
