"""The output of torchrun and its processes: all of it goes to a file, and what matters to people is shown.

When a process dies, the others fail as well, each with a traceback of 75 lines, and torchrun restarts all of them. Such
a restart is normal and is shown as one line.
"""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from kws.kube.log_lines import LineSorter

LOGS = "logs"
"""Subfolder of a run folder, with the output of each pod."""

_DIED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")


class Output:
    """Writes every line to a file, and shows those that matter to people."""

    def __init__(self, path: Path, show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)):
        self.path, self.show = path, show
        self.file: IO[str] | None = None
        self.lost = False
        """Whether lines could not be written, which is said once."""
        self.lines = LineSorter()
        self.error = ""
        self.was_killed = False
        """Whether a process was killed, by SIGKILL."""
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, line: str) -> None:
        """Writes a line to the file, and shows it, or a summary, if it matters to people."""
        self._keep(line)
        kind = self.lines.kind(line)
        if died := _DIED.search(line):
            status = int(died[1])
            how = f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
            because = f" ({self.error})" if self.error and status > 0 else ""
            self.show(
                f"process {died[2]} {how}{because}; if restarts remain, training resumes from the latest checkpoint; "
                f"full output: {self.path}"
            )
            self.error = ""
            self.was_killed |= status == -signal.SIGKILL
        elif kind == "exception":
            self.error = line
        elif kind == "own" and not line[0].isspace():  # what is indented belongs to a message of a library
            self.show(line)

    def _keep(self, line: str) -> None:
        try:
            if self.file is None:
                self.file = self.path.open("a", buffering=1)
            self.file.write(line + "\n")
        except OSError as error:  # lines must still be shown if the volume is full or unavailable
            if not self.lost:
                self.show(f"{self.path} cannot be written: {error}")
            self.file, self.lost = None, True

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
