"""Tells the lines of a program from those that others write into its log: libraries, Argo, Kubeflow, tracebacks."""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

_FOREIGN = re.compile(
    r"time=\S+ level=\w+ msg="  # Argo's executor
    r"|\[?[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+"  # klog and glog: Kubeflow's launcher, kubectl, torch
    r"|\[?/\S+\.(cc|cpp|h|py):\d+|frame #\d+|Exception raised from "  # other lines of libraries in C++
    r"|\[KFP Executor |Wrote executor output file to |Error: exit status \d+$"
    r"|[- ]*$"
)
_DUMP = ("Got executor_input:", "ExecutorOutput: {")
"""Ends of lines that are followed by JSON over many lines, up to a } of its own."""

_RANK = re.compile(r"\[rank\d+\]: ?")
_SUMMARY = re.compile(r"\S*ChildFailedError: ?$")
"""What torchrun says at its end, to which the table of its processes belongs."""

_BETWEEN = ("During handling of the above exception", "The above exception was the direct cause")

Kind = Literal["own", "foreign", "frame", "exception"]


class LineSorter:
    """Sorts the lines of a log, one after the other."""

    def __init__(self) -> None:
        self.in_dump = self.in_traceback = self.in_summary = False

    def kind(self, line: str) -> Kind:
        """Returns what the next line is: the program's own, foreign, of a traceback, or the exception at its end."""
        line = _RANK.sub("", line.rstrip())
        if self.in_dump:
            self.in_dump = line != "}"
            return "foreign"
        if self.in_summary or _SUMMARY.match(line):
            self.in_summary = True
            return "foreign"
        if _FOREIGN.match(line):
            self.in_dump = line.endswith(_DUMP)
            return "foreign"
        if line.startswith("Traceback (most recent call last)"):
            self.in_traceback = True
            return "frame"
        if line.startswith(_BETWEEN) or (self.in_traceback and line.startswith(" ")):
            return "frame"
        if self.in_traceback:
            self.in_traceback = False
            return "exception"
        return "own"

    def own(self, lines: Iterable[str]) -> Iterator[str]:
        """Yields the program's own lines, and of a traceback the exception, among the next lines of a log."""
        return (line.rstrip() for line in lines if self.kind(line) in ("own", "exception"))
