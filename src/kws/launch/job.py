"""The description of a training, independent of how it is launched, and the protocol of launchers. Needs no torch."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kws.settings import require

TRAINER = "kws.train"
"""The module that trains; torchrun starts one process of it for every GPU, or for every few CPU cores."""

MAX_RESTARTS = 3
"""How often torchrun restarts the processes of a job after one died; they resume from the latest checkpoint."""

MAX_NAME_LENGTH = 46
"""Longest name of a job. Pod names are DNS labels of at most 63 characters, and add -node-0-999-abcde (TrainJob) or
-worker-999 (PyTorchJob). JobSet would refuse a longer name, but only after the TrainJob was accepted."""

FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Environment of torchrun under which killed processes can be restarted. By default, torchrun shares one store among
all attempts, in which a process may find the address of a dead one (pytorch issue 135712)."""


HOPELESS_STATUS = 65
"""Exit status of a pod whose training failed with an error that would recur (EX_DATAERR of sysexits.h)."""

ORPHANED_STATUS = 75
"""Exit status of a pod whose train step was lost and not retried (EX_TEMPFAIL)."""


class LaunchError(Exception):
    """Raised if training failed; the message is the job's own."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training to launch."""

    name: str
    """Name of the job, `job_name(folder.name)`: the same in every attempt, so that a retried step finds its own job."""

    arguments: tuple[str, ...]
    """The command line of `python -m kws.train`."""

    folder: Path
    """The run folder, on the volume, which also holds the logs and the lease of the job."""

    num_nodes: int
    """Number of machines to train on."""

    processes_per_node: int
    """Training processes on each machine."""

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name) and len(self.name) <= MAX_NAME_LENGTH
        require(
            bool(fits),
            "name",
            f"be at most {MAX_NAME_LENGTH} of a-z, 0-9 and -, begin with a letter and not end with -",
            self.name,
        )
        for name in ("num_nodes", "processes_per_node"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))


class Launcher(Protocol):
    """Starts a training and waits for its end."""

    def run(self, job: Training, manifest_path: Path | None = None) -> None:
        """Runs the training to its end; returns only if it succeeded.

        Args:
            job: what to train.
            manifest_path: if given, the file to which the started job or command is written as YAML.

        Raises:
            LaunchError: training failed; the message is the job's own.
            ValueError: the job cannot run here.
            SystemExit: a signal stopped this process (SIGTERM: status 143, SIGINT: 130) and the training.
        """

    def cores_and_gpus(self) -> tuple[float, int]:
        """Returns how many CPU cores and GPUs a node has."""

    def clean_up(self, job: Training) -> None:
        """Removes what an earlier attempt at a training that is complete may have left, if it was killed."""


def job_name(run_id: str) -> str:
    """Returns the name of the job for a run: always the same, and valid in Kubernetes.

    An id that is too long, or has characters other than a-z, 0-9 and -, is shortened and gets a digest of the whole id.

    Raises:
        ValueError: the id is empty.
    """
    require(run_id != "", "run_id", "not be empty", run_id)
    slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    name = f"kws-{slug}"
    if slug == run_id and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME_LENGTH - 9].rstrip('-')}-{digest}"
