"""Trains on this machine: starts torchrun, or a single training process, and waits for its end."""

import contextlib
import errno
import json
import logging
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

from kws import memory
from kws.cores import num_cores, num_gpus
from kws.files import write_json
from kws.launch.job import FRESH_STORE, MAX_RESTARTS, TRAINER, LaunchError, Training
from kws.launch.output import LOGS, Output
from kws.processes import die_with_parent, handle_signals

log = logging.getLogger(__name__)

_GRACE_SECONDS = 40
"""Seconds before torchrun is killed; after a signal, it gives its own processes 30 s to end."""

_ASK_SECONDS = 2.0

_HOPELESS = re.compile(
    r"\w*(Value|FloatingPoint|Type|Assertion|Attribute|Key|Index|Name|Import|ModuleNotFound|PackageNotFound|Decode)Error\b"
    rf"|OSError: \[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]"
)
"""Errors that recur after every restart: of the code, of settings, and of a full volume. Other failures of a machine, a
network or a volume are OSError or RuntimeError."""


@dataclass(frozen=True, kw_only=True)
class TorchrunLauncher:
    """Trains on this machine, in a process group of its own: several processes under torchrun, or a single one.

    A single process needs no torchrun, which would take as much memory as torch itself and seconds to start.
    """

    module: str = TRAINER
    """Python module that every process runs."""

    max_restarts: int = MAX_RESTARTS
    """How often all processes are restarted after one of them died."""

    def run(self, job: Training, manifest_path: Path | None = None) -> None:
        """Trains and waits for the end; see `Launcher.run`.

        Shows output immediately. SIGTERM and SIGINT are passed on as SIGTERM to the training processes, which have 30 s
        to write a checkpoint. If this process is killed, the kernel signals the others.
        """
        if job.num_nodes > 1:
            raise ValueError(
                f"num_nodes must be 1 without a cluster, got {job.num_nodes}: "
                "submit the pipeline to Kubeflow, or raise processes_per_node"
            )
        with tempfile.TemporaryDirectory(prefix="kws-torchrun-") as folder:
            error_file = Path(folder) / "error.json"
            is_alone = job.processes_per_node == 1
            command = [sys.executable]
            if not is_alone:
                command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes_per_node}"]
                command += [f"--max-restarts={self.max_restarts}", f"--log-dir={folder}"]
            command += ["-m", self.module, *job.arguments]
            changes = {
                **({} if is_alone else FRESH_STORE),
                # By default torchrun gives several processes one thread each, and a single process all cores.
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads_per_process(job)),
                # Receives the first error that a training process recorded.
                "TORCHELASTIC_ERROR_FILE": str(error_file),
            }
            if manifest_path is not None:
                write_json(manifest_path, {"command": command, "env": changes})  # JSON is YAML
            for restarts in range(self.max_restarts if is_alone else 0, -1, -1):
                error_file.unlink(missing_ok=True)
                # On a terminal the trainer draws its progress bar itself, which needs an unfiltered stream.
                output = None if sys.stderr.isatty() else Output(job.folder / LOGS / "torchrun.log")
                watch = ErrorWatch(Path(folder), output)
                status = run_group(command, os.environ | changes, output, watch.hopeless)
                if status == 0:
                    return
                error = watch.hopeless() or recorded_error(error_file)
                out_of_memory = status == -signal.SIGKILL and watch.is_out_of_memory()
                if not restarts or out_of_memory or watch.hopeless() or _HOPELESS.match(error):
                    who = "the training process" if is_alone else "torchrun"
                    raise LaunchError(f"training failed: {error or describe(status, who, out_of_memory)}")
                log.warning(
                    "%s; training starts again and resumes from the latest checkpoint",
                    error or describe(status, "the training process"),
                )

    def cores_and_gpus(self) -> tuple[float, int]:
        """Counts those of this machine; see `Launcher.cores_and_gpus`."""
        return num_cores(), num_gpus()

    def clean_up(self, job: Training) -> None:
        """Does nothing, as the kernel ended the training processes with the attempt; see `Launcher.clean_up`."""


def threads_per_process(job: Training) -> int:
    """Returns the number of compute threads for each training process on this machine."""
    return max(1, num_cores() // job.processes_per_node)


class ErrorWatch:
    """Looks for an error of a training process that would recur after a restart.

    Args:
        folder: the folder of torchrun's --log-dir, with the errors that the processes recorded.
        output: tells of processes that were killed; None: nothing does.
    """

    def __init__(self, folder: Path, output: Output | None) -> None:
        self.folder, self.output = folder, output
        self.num_killed = memory.num_killed()

    def is_out_of_memory(self) -> bool:
        """Tells whether the system has killed a process for lack of memory; on a desktop it need not be one of ours."""
        return memory.num_killed() > self.num_killed

    def hopeless(self) -> str:
        """Returns the first such error, or "" if there is none yet."""
        if self.output is not None and self.output.was_killed and self.is_out_of_memory():
            return describe(-signal.SIGKILL, "a training process", out_of_memory=True)
        for path in sorted(self.folder.glob("*/attempt_*/*/error.json")):
            error = recorded_error(path)
            if _HOPELESS.match(error):
                return error
        return ""


def run_group(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Output | None = None,
    must_end: Callable[[], object] = lambda: False,
) -> int:
    """Runs a command in its own process group and returns its exit status.

    Passes on SIGTERM, and SIGINT as SIGTERM, so that Ctrl-C also ends training with a checkpoint.

    Args:
        command: the command line.
        environment: the complete environment of the command.
        output: receives the output of the command line by line; None: the command inherits this process's streams.
        must_end: called every few seconds; once it returns true, the command is stopped with SIGTERM.

    Raises:
        SystemExit: a signal arrived; raised after the command has ended.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if process is not None and len(received) == 1:  # a second one would end torchrun before its processes
            _signal_group(process, signal.SIGTERM)

    parent = os.getpid()
    with handle_signals(pass_on), contextlib.ExitStack() as stack:
        # preexec_fn makes a single system call, so that other threads of this process cannot deadlock it.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            stdout=None if output is None else subprocess.PIPE,
            stderr=None if output is None else subprocess.STDOUT,
            preexec_fn=lambda: die_with_parent(parent),
        )
        if output is not None:
            stack.callback(_read(process, output).join)
        try:
            if received:  # before the process existed
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
        print(f"stopped by {name}; when started again, training resumes from the latest checkpoint", file=sys.stderr)
        raise SystemExit(128 + received[0])
    return status


def _read(process: "subprocess.Popen[bytes]", output: Output) -> threading.Thread:
    """Starts a thread that passes the output lines of a process to `output` until it ends."""
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        for line in stream:
            with contextlib.suppress(OSError):  # training must go on even if nobody reads its output
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
    """Returns the error, such as "ValueError: …", that torch's `record` decorator wrote to a file, or ""."""
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
    except (FileNotFoundError, ValueError):
        return ""
    return str(message["message"] if isinstance(message, dict) else message)


def describe(status: int, who: str = "torchrun", out_of_memory: bool = False) -> str:
    """Describes the exit status of torchrun or of a single training process, if no process recorded an error.

    The status is minus the signal, if there was one. `out_of_memory`: whether the system says that it killed a process
    for that.
    """
    if status == -signal.SIGKILL:
        available = memory.limit()
        here = "" if available is None else f", which is {available >> 20} MB here"
        why = "for" if out_of_memory else "probably for"
        remedy = f"raise the memory limit{here} (on a cluster: MEMORY= of make pipeline)"
        return f"{who} was killed by SIGKILL, {why} lack of memory: {remedy}"
    if status < 0:
        return f"{who} was killed by {signal.Signals(-status).name}"
    killed = "; one may have been killed for lack of memory" if who == "torchrun" else ""
    return f"{who} ended with status {status} and no process recorded an error{killed}: see the output above"
