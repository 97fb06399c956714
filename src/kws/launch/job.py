"""One training, whatever starts it, and the protocol of what starts it. Needs no torch."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kws.config import require

TRAINER = "kws.train.trainer"
"""The module that trains: torchrun starts one process of it for every device or few cores."""

MAX_RESTARTS = 3
"""How often torchrun starts the processes of a job again after one died; they resume from the last checkpoint."""

MAX_NAME_LENGTH = 46
"""Longest name of a job: a pod of a TrainJob adds -node-0-999-abcde, one of a PyTorchJob -worker-999, and its name is a
DNS label of at most 63 characters. JobSet refuses a longer name only after the TrainJob was accepted."""

FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Environment of torchrun that lets killed processes be started again. By default, torchrun keeps one store for all
attempts, and a process may read there the address of one that is dead (pytorch issue 135712)."""


HOPELESS_STATUS = 65
"""Exit status of a pod whose training failed of what starting again cannot mend (EX_DATAERR of sysexits.h)."""

ORPHANED_STATUS = 75
"""Exit status of a pod whose step did not come back (EX_TEMPFAIL)."""


class LaunchError(Exception):
    """Training failed; the message is the job's own."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, whatever starts it."""

    name: str
    """The same for every attempt, as a step that is tried again must find its own job: `job_name(run id)`."""

    arguments: tuple[str, ...]
    """The command line of `python -m kws.train.trainer`."""

    folder: Path
    """Of the run, on the volume: logs and the lease of the job lie there."""

    num_nodes: int
    """Machines to train on."""

    processes_per_node: int
    """Training processes of a machine."""

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name) and len(self.name) <= MAX_NAME_LENGTH
        require(bool(fits), "name", f"be at most {MAX_NAME_LENGTH} of a-z, 0-9 and -, begin with a letter and not end "
                "with -", self.name)  # fmt: skip
        for name in ("num_nodes", "processes_per_node"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))


class Launcher(Protocol):
    """What starts a training and waits for its end."""

    def run(self, job: Training, manifest_path: Path | None = None) -> None:
        """Returns only when training succeeded.

        Args:
            job: what to train.
            manifest_path: where to write, as YAML, what was started; None writes nothing.

        Raises:
            LaunchError: training failed; the message is the job's own.
            ValueError: the job cannot run here.
            SystemExit: this process was told to stop (SIGTERM: status 143, SIGINT: 130), and training with it.
        """


def job_name(run_id: str) -> str:
    """Returns the name of the job that trains a run: always the same, and one that Kubernetes takes.

    An id that is too long, or has other characters than a-z, 0-9 and -, is cut and gets a digest of the whole.
    """
    require(run_id != "", "run_id", "not be empty", run_id)
    slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    name = f"kws-{slug}"
    if slug == run_id and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME_LENGTH - 9].rstrip('-')}-{digest}"
