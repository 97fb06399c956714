"""Filters the output of torchrun and its processes: writes all of it to a file, and shows the lines that matter.

When a process dies, the others fail as well, each with a traceback of 75 lines, and torchrun restarts all of them. Such
a restart is normal and is shown as one line.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

LOGS = "logs"
"""Subfolder of a run folder, with the output of each pod."""

# Log lines of libraries, which begin with a level, a date and a process id, or with a source location.
_LIBRARY = re.compile(
    r"\[?[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+|\[?/\S+\.(cc|cpp|h|py):\d+|frame #\d+|Exception raised from "
)
_RANK = re.compile(r"\[rank\d+\]: ?")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|(During handling of|The above exception)")
_DIED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_SUMMARY = re.compile(r"\S*ChildFailedError: ?$|=+$")


class Output:
    """Writes every line to a file, and shows those that matter to people."""

    def __init__(self, path: Path, show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)):
        self.path, self.show = path, show
        self.file: IO[str] | None = None
        self.in_traceback = self.in_summary = False
        self.error = ""
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, line: str) -> None:
        """Writes a line to the file, and shows it, or a summary, if it matters to people."""
        self._keep(line)
        died = _DIED.search(line)
        if died:
            because = f" ({self.error})" if self.error and int(died[1]) > 0 else ""
            how = _ended(int(died[1])) + because
            self.show(
                f"process {died[2]} {how}; if restarts remain, training resumes from the latest checkpoint; "
                f"full output: {self.path}"
            )
            self.error = ""
        elif self._is_for_people(_RANK.sub("", line)):
            self.show(line)

    def _keep(self, line: str) -> None:
        try:
            if self.file is None:
                self.file = self.path.open("a", buffering=1)
            self.file.write(line + "\n")
        except OSError as error:  # lines must still be shown if the volume is full or unavailable
            if self.file is not None:
                self.show(f"{self.path} cannot be written: {error}")
            self.file = None

    def _is_for_people(self, line: str) -> bool:
        if _SUMMARY.match(line):
            self.in_summary = True
        if self.in_summary or _LIBRARY.match(line):
            return False
        if _TRACEBACK.match(line):
            self.in_traceback = True
            return False
        if line[:1].isspace() or not line:
            return False
        if self.in_traceback:  # the last line of a traceback is the error
            self.in_traceback = False
            self.error = line
            return False
        return True

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def _ended(status: int) -> str:
    import signal

    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
