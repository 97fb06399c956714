"""Several training processes on one machine, as torchrun starts them, but from a process that has imported torch.

    python -m kws.launch.fork --nproc-per-node N [--max-restarts N] --log-dir DIR --run MODULE [ARGUMENT …]

torchrun starts N interpreters beside its own, each of which imports torch: 4 s of processor time and hundreds of
megabytes, more than a second process saves in a short run. Here torch is imported once, and the processes are forks,
which share its memory. Forking is safe as nothing has computed yet, so there are no threads and no CUDA.

Environment variables, restarts and the files of errors are those of torchrun.
"""

import argparse
import gc
import importlib
import os
import runpy
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from kws.processes import die_with_parent, handle_signals

GRACE_SECONDS = 30
"""Seconds from SIGTERM to SIGKILL, as torchrun's."""

PRELOADED = ("torch._dynamo", "torch.distributed.elastic.multiprocessing.errors", "kws.train.process")
"""Modules that all processes need (`DistributedDataParallel` imports torch._dynamo, of 120 MB); what only the first
needs, such as TensorBoard, it imports itself."""


class Group:
    """The processes of an attempt, as seen by their parent."""

    def __init__(self, processes: dict[int, int]) -> None:
        self.ranks = processes
        """The rank of each process, by its id."""
        self.asked_to_stop = False
        self.is_ending = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal to stop."""
        self.asked_to_stop = True
        self.end()

    def end(self) -> None:
        """Tells all processes to end, and kills them if they do not."""
        if not self.is_ending:
            self.is_ending = True
            timer = threading.Timer(GRACE_SECONDS, self._signal, (signal.SIGKILL,))
            timer.daemon = True
            timer.start()
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for process in list(self.ranks):
            os.kill(process, number)  # a child that has ended keeps its id until it is waited for

    def wait(self) -> tuple[int, int] | None:
        """Waits for all processes; once one has failed, stops the others. Returns rank and status of the first."""
        failed = None
        while self.ranks:
            process, state = os.wait()
            rank, status = self.ranks.pop(process), os.waitstatus_to_exitcode(state)
            if status and failed is None:
                failed = (rank, status)
                # In torchrun's words, which `kws.launch.output` knows.
                print(f"failed (exitcode: {status}) local_rank: {rank} (pid: {process})", file=sys.stderr, flush=True)
                self.end()
        return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the processes and waits for them; in each of them, runs the module.

    The process that forks becomes, by exec, a small one that waits, and when it must start them again the other way
    round: otherwise the memory of torch would lie idle in it.
    """
    parser = argparse.ArgumentParser(
        prog="kws.launch.fork", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nproc-per-node", type=int, required=True, metavar="N", help="number of processes")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="how often to start them again")
    parser.add_argument("--log-dir", type=Path, required=True, metavar="DIR", help="where errors are recorded")
    parser.add_argument("--attempt", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--wait-for", type=int, nargs="*", metavar="PID", help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=argparse.REMAINDER, required=True, metavar="MODULE", help="and its arguments")
    options = parser.parse_args(argv)
    errors = options.log_dir / "forked" / f"attempt_{options.attempt}"
    if options.wait_for is None:
        return _start(options, errors)
    group = Group({process: rank for rank, process in enumerate(options.wait_for)})
    with handle_signals(group.stop):
        failed = group.wait()
    if failed is None:
        return 0
    _record_first(errors)
    if group.asked_to_stop:
        return 128 + signal.SIGTERM
    if options.attempt < options.max_restarts:
        _become(options, options.attempt + 1, [])
    return 1


def _start(options: argparse.Namespace, errors: Path) -> int:
    """Forks the processes; returns in each of them, when it has run the module, but not in their parent."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or the collector would write to, and so copy, memory that the processes share
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    parent, processes = os.getpid(), []
    for rank in range(options.nproc_per_node):
        file = errors / str(rank) / "error.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        process = os.fork()
        if process == 0:
            die_with_parent(parent)
            os.environ.update(_environment(rank, options.nproc_per_node, options.attempt, port, file))
            sys.argv = options.run
            runpy.run_module(options.run[0], run_name="__main__", alter_sys=True)
            return 0
        processes.append(process)
    _become(options, options.attempt, ["--wait-for", *map(str, processes)])
    raise AssertionError("exec returned")


def _become(options: argparse.Namespace, attempt: int, more: Sequence[str]) -> None:
    """Replaces this process by another of this module, which has the same children."""
    flags = (f"--nproc-per-node={options.nproc_per_node}", f"--max-restarts={options.max_restarts}")
    command = ["-m", "kws.launch.fork", *flags, f"--log-dir={options.log_dir}", f"--attempt={attempt}", *more]
    os.execv(sys.executable, [sys.executable, *command, "--run", *options.run])


def _environment(rank: int, size: int, attempt: int, port: int, errors: Path) -> dict[str, str]:
    """Returns the variables that torchrun sets, as far as torch and the trainer read them."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": attempt,
        "TORCHELASTIC_ERROR_FILE": errors,
    }
    return {name: str(value) for name, value in values.items()}


def _record_first(attempt: Path) -> None:
    """Copies the error that was recorded first to where the launcher looks for it."""
    recorded = sorted(attempt.glob("*/error.json"), key=lambda path: path.stat().st_mtime_ns)
    if recorded and (target := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        shutil.copyfile(recorded[0], target)


if __name__ == "__main__":
    sys.exit(main())
