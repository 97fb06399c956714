"""Trains on this machine: starts torchrun and waits for its end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kws.cores import num_cores
from kws.files import write_json
from kws.launch.job import FRESH_STORE, MAX_RESTARTS, TRAINER, LaunchError, Training
from kws.launch.output import LOGS, Output
from kws.processes import die_with_parent, handle_signals

_GRACE_SECONDS = 40
"""torchrun gives its processes 30 s to end after a signal; then it kills them."""

_ASK_SECONDS = 2.0

_HOPELESS = re.compile(
    r"\w*(Value|FloatingPoint|Type|Assertion|Attribute|Key|Index|Name|Import|ModuleNotFound|PackageNotFound|Decode)Error\b"
)
"""Errors that come back however often training is started again; what a machine, a network or a volume does is an
OSError or a RuntimeError."""


@dataclass(frozen=True, kw_only=True)
class TorchrunLauncher:
    """Trains on this machine, with torchrun in a process group of its own."""

    module: str = TRAINER
    """What every process runs."""

    max_restarts: int = MAX_RESTARTS
    """How often all processes are started again after one of them died."""

    def run(self, job: Training, manifest_path: Path | None = None) -> None:
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
            # On a terminal the bar of the trainer is drawn, and nothing may stand between.
            output = None if sys.stderr.isatty() else Output(job.folder / LOGS / "torchrun.log")
            watch = ErrorWatch(Path(folder))
            status = run_group(command, os.environ | changes, output, lambda: watch.hopeless() != "")
            if status != 0:
                error = watch.hopeless() or recorded_error(error_file) or describe(status)
                raise LaunchError(f"training failed: {error}")


def threads_per_process(job: Training) -> int:
    """Returns the compute threads that each training process may have on this machine."""
    return max(1, num_cores() // job.processes_per_node)


class ErrorWatch:
    """Finds among the errors that the processes recorded one that starting again cannot mend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Of torchrun's --log-dir."""

    def hopeless(self) -> str:
        """Returns the error, or "" while there is none."""
        for path in sorted(self.folder.glob("*/attempt_*/*/error.json")):
            error = recorded_error(path)
            if _HOPELESS.match(error):
                return error
        return ""


def run_group(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Output | None = None,
    must_end: Callable[[], bool] = lambda: False,
) -> int:
    """Runs a command in a process group of its own and returns its exit status.

    SIGTERM is passed on, and SIGINT as SIGTERM: Ctrl-C too is to end training in order, with a checkpoint.

    Args:
        command: what to run.
        environment: all of it.
        output: gets what the command prints, line by line; None leaves it to this process's own streams.
        must_end: asked every few seconds; when it says so, the command is ended in order.

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
    with handle_signals(pass_on), contextlib.ExitStack() as stack:
        # Between fork and exec nothing but one system call happens here, so threads of this process do no harm.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, process_group=0,
            stdout=None if output is None else subprocess.PIPE, stderr=None if output is None else subprocess.STDOUT,
            preexec_fn=lambda: die_with_parent(parent),
        )  # fmt: skip
        if output is not None:
            stack.callback(_read(process, output).join)
        try:
            if received:  # before there was a process
                _signal_group(process, signal.SIGTERM)
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(_ASK_SECONDS)
                    break
                if must_end():
                    _end_group(process)
        finally:
            if process.poll() is None:
                _end_group(process)
    if received:
        name = signal.Signals(received[0]).name
        print(f"stopped by {name}; started again, training resumes from its last checkpoint", file=sys.stderr)
        raise SystemExit(128 + received[0])
    return status


def _read(process: "subprocess.Popen[bytes]", output: Output) -> threading.Thread:
    """Starts what hands on the lines of a process until its end."""
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        for line in stream:
            with contextlib.suppress(OSError):  # nobody reads: the training goes on all the same
                output.write(line.decode(errors="replace").rstrip("\r\n"))
        output.close()

    thread = threading.Thread(target=read, name="output of torchrun", daemon=True)
    thread.start()
    return thread


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


def recorded_error(error_file: Path) -> str:
    """Returns what `torch.distributed.elastic.multiprocessing.errors.record` wrote: "ValueError: …"; "" if nothing."""
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
    except (FileNotFoundError, ValueError):
        return ""
    return str(message["message"] if isinstance(message, dict) else message)


def describe(status: int) -> str:
    """Says how torchrun ended where no process recorded an error."""
    if status == -signal.SIGKILL:
        return "torchrun was killed by SIGKILL, as the system does for want of memory: a larger limit helps"
    if status < 0:
        return f"torchrun was killed by {signal.Signals(-status).name}"
    return (
        f"torchrun ended with status {status} and no process recorded an error; "
        "one may have been killed for want of memory: see the output above"
    )
