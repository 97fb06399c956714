"""The command of a pod of a training job: runs torchrun, keeps its log, and watches the lease.

    python -m kws.launch.node --run DIR [--lease SECONDS] -- ARGUMENTS OF TORCHRUN

Writes the output of torchrun and its processes to `logs/` in the run folder, as the pod and its log may be deleted
within a second, and shows the lines that matter to people. Ends training with a checkpoint when the lease of the train
step has expired, and gives up at once on an error that would recur. Needs no torch itself.
"""

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kws.heartbeat import LEASE, Watch
from kws.launch.job import HOPELESS_STATUS, ORPHANED_STATUS, job_name
from kws.launch.output import LOGS, Output
from kws.launch.torchrun import ErrorWatch, describe, recorded_error, run_group

CLOCKS_AGREE_WITHIN = 10.0
"""Seconds by which the clock of a pod may differ without a warning. The pods' torchruns compare each other's clocks: a
pod whose heartbeat seems 15 s old counts as dead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs torchrun and returns the exit status of the pod."""
    parser = argparse.ArgumentParser(
        prog="kws.launch.node", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--lease",
        type=float,
        default=0,
        metavar="SECONDS",
        help="end when the lease was not renewed for this long (default: never)",
    )
    parser.add_argument("torchrun", nargs="+", metavar="ARGUMENT", help="arguments of torchrun")
    options = parser.parse_args(argv)
    watch = Watch(options.run / LEASE, options.lease) if options.lease else None
    orphaned = f"no step has waited for this job for {options.lease:.0f} s: it ends; a retry of the step will resume it"
    if watch is not None and watch.has_ended():
        print(orphaned, file=sys.stderr)
        return ORPHANED_STATUS
    warn_of_clock(options.run)
    with tempfile.TemporaryDirectory(prefix="kws-torchrun-") as folder:
        error_file = Path(folder) / "error.json"
        output = Output(log_file(options.run, socket.gethostname()))
        errors = ErrorWatch(Path(folder), output)
        ended = []

        def must_end() -> bool:
            if watch is not None and watch.has_ended():
                ended.append(True)
            return bool(ended) or errors.hopeless() != ""

        command = [sys.executable, "-m", "torch.distributed.run", f"--log-dir={folder}", *options.torchrun]
        status = run_group(command, os.environ | {"TORCHELASTIC_ERROR_FILE": str(error_file)}, output, must_end)
        if ended:
            print(orphaned, file=sys.stderr)
            return ORPHANED_STATUS
        if status == 0:
            return 0
        hopeless = errors.hopeless()
        print(f"error: {hopeless or recorded_error(error_file) or describe(status)}", file=sys.stderr)
        return HOPELESS_STATUS if hopeless else 1


def warn_of_clock(run: Path) -> None:
    """Prints a warning if the clock of this machine differs from that of the volume.

    A server of NFS stamps files with its own clock, which all pods have in common.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=run, prefix=".clock-") as file:
            os.utime(file.name)
            ahead = time.time() - os.stat(file.name).st_mtime
    except OSError:
        return
    if abs(ahead) > CLOCKS_AGREE_WITHIN:
        print(
            f"warning: the clocks of all pods must agree within 15 s, got one that is {abs(ahead):.0f} s "
            f"{'ahead of' if ahead > 0 else 'behind'} the volume's: synchronize the clocks of the machines, or "
            "training may not start",
            file=sys.stderr,
        )


def log_file(run: Path, host: str) -> Path:
    """Returns the log file of a pod, which has the pod's name without that of the job, such as logs/worker-0.log."""
    return run / LOGS / f"{host.removeprefix(job_name(run.name) + '-')}.log"


if __name__ == "__main__":
    sys.exit(main())
