"""Starts the training processes: with torchrun where there is no cluster, as a PyTorchJob where there is one.

`launcher()` chooses between the two; nothing else in the code knows the difference. This module needs no torch, as the
step that launches a PyTorchJob runs in an image without it.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from kws.config import require
from kws.files import write_json
from kws.processes import num_cores

TRAINER = "kws.trainer"
"""The module that trains: torchrun starts one process of it for every device or few cores."""

MAX_RESTARTS = 3
"""How often torchrun starts the processes of a job again after one died; they go on from the last checkpoint."""

MAX_NAME_LENGTH = 50
"""Longest name of a job: a pod adds -worker-999, and is a DNS label of at most 63 characters."""

FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Environment of torchrun that lets killed processes be started again. By default, torchrun keeps one store for all
attempts, and a process may read there the address of one that is dead (pytorch issue 135712)."""

_LIBC = ctypes.CDLL(None)  # opened here, as that takes a lock which a forked child might find taken for ever
_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 40
"""torchrun gives its processes 30 s to end after a signal; then it kills them."""


class LaunchError(Exception):
    """Training failed; the message is the job's own."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training, whatever starts it."""

    name: str
    """The same for every attempt, as a step that is tried again must find its own job: `job_name(run id)`."""

    arguments: tuple[str, ...]
    """The command line of `python -m kws.trainer`."""

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

    def run(self, job: TrainJob, manifest_path: Path | None = None) -> None:
        """Returns only when training succeeded.

        Args:
            job: what to train.
            manifest_path: where to write, as YAML, what was started; None writes nothing.

        Raises:
            LaunchError: training failed; the message is the job's own.
            ValueError: the job cannot run here.
            SystemExit: this process was told to stop (SIGTERM: status 143, SIGINT: 130), and training with it.
        """


def launcher() -> Launcher:
    """Returns what starts a training here: a PyTorchJob inside a cluster, torchrun elsewhere.

    The environment variable KWS_LAUNCHER (torchrun or pytorchjob) decides otherwise.

    Raises:
        ValueError: KWS_LAUNCHER is neither, or KWS_PYTORCHJOB does not describe the cluster.
    """
    here = "pytorchjob" if "KUBERNETES_SERVICE_HOST" in os.environ else "torchrun"
    choice = os.environ.get("KWS_LAUNCHER") or here
    require(choice in ("torchrun", "pytorchjob"), "KWS_LAUNCHER", "be torchrun or pytorchjob", choice)
    if choice == "torchrun":
        return TorchrunLauncher()

    from kws.pytorchjob import ClusterConfig, PyTorchJobLauncher

    return PyTorchJobLauncher(ClusterConfig.from_environment())


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


@dataclass(frozen=True, kw_only=True)
class TorchrunLauncher:
    """Trains on this machine, with torchrun in a process group of its own."""

    module: str = TRAINER
    """What every process runs."""

    max_restarts: int = MAX_RESTARTS
    """How often all processes are started again after one of them died."""

    def run(self, job: TrainJob, manifest_path: Path | None = None) -> None:
        """Runs torchrun and waits for its end; see `Launcher.run`.

        Output appears as it comes. SIGTERM and SIGINT reach torchrun, and from there, both as SIGTERM, the training
        processes, which have 30 s to write a checkpoint. Should this process be killed, the kernel tells torchrun.
        """
        if job.num_nodes > 1:
            raise ValueError(
                f"num_nodes must be 1 where there is no cluster, got {job.num_nodes}: "
                "submit the pipeline to Kubeflow, or raise processes_per_node"
            )
        with tempfile.TemporaryDirectory(prefix="kws-torchrun-") as folder:
            error_file = Path(folder) / "error.json"
            command = [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={job.processes_per_node}", f"--max-restarts={self.max_restarts}",
                f"--log-dir={folder}", "-m", self.module, *job.arguments,
            ]  # fmt: skip
            changes = {
                **FRESH_STORE,
                # Left alone, torchrun gives several processes one thread each, and one process all cores.
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads_per_process(job)),
                # torchrun copies the first error that a process recorded to this file.
                "TORCHELASTIC_ERROR_FILE": str(error_file),
            }
            if manifest_path is not None:
                write_json(manifest_path, {"command": command, "env": changes})  # JSON is YAML
            status = _run_group(command, os.environ | changes)
            if status != 0:
                raise LaunchError(f"training failed: {_recorded_error(error_file) or _describe(status)}")


def threads_per_process(job: TrainJob) -> int:
    """Returns the compute threads that each training process may have on this machine."""
    return max(1, num_cores() // job.processes_per_node)


def die_with_parent(parent: int | None = None) -> None:
    """Asks the kernel to send this process SIGTERM when the process that started it dies, even by kill -9.

    torchrun puts every training process in a session of its own, so that nothing else would end them after it. The
    signal lets them write a checkpoint. Does nothing but on Linux.

    Args:
        parent: its process id, where the caller knows it and it may have died already.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _run_group(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command in a process group of its own and returns its exit status.

    SIGTERM is passed on, and SIGINT as SIGTERM: Ctrl-C too is to end training in order, with a checkpoint.

    Raises:
        SystemExit: a signal came; raised after the command has ended.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if process is not None:
            _signal_group(process, signal.SIGTERM)

    parent = os.getpid()
    with handle_signals(pass_on):
        # Between fork and exec nothing but one system call happens here, so threads of this process do no harm.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, process_group=0,
            preexec_fn=lambda: die_with_parent(parent),
        )  # fmt: skip
        try:
            if received:  # before there was a process
                _signal_group(process, signal.SIGTERM)
            status = process.wait()
        finally:
            if process.poll() is None:
                _end_group(process)
    if received:
        name = signal.Signals(received[0]).name
        print(f"stopped by {name}; started again, training goes on from its last checkpoint", file=sys.stderr)
        raise SystemExit(128 + received[0])
    return status


@contextlib.contextmanager
def handle_signals(handler: "signal._HANDLER") -> Iterator[None]:
    """Handles SIGTERM and SIGINT for the block, but does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def _signal_group(process: "subprocess.Popen[bytes]", signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _recorded_error(error_file: Path) -> str:
    """Returns what `torch.distributed.elastic.multiprocessing.errors.record` wrote: "ValueError: …"; "" if nothing."""
    try:
        message = json.loads(error_file.read_text())["message"]
    except FileNotFoundError:
        return ""
    return str(message["message"] if isinstance(message, dict) else message)


def _describe(status: int) -> str:
    if status < 0:
        return f"torchrun was killed by {signal.Signals(-status).name}"
    return (
        f"torchrun ended with status {status} and no process recorded an error; "
        "one may have been killed for want of memory: see the output above"
    )
