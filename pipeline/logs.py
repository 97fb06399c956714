"""Extracts a step's own output from a log to which Kubeflow Pipelines and Argo write as well."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

_MACHINERY = re.compile(
    r"time=\S+ level=\w+ msg="  # Argo's executor
    r"|[IWEF]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\]"  # the launcher
    r"|\[KFP Executor |Wrote executor output file to |Error: exit status \d+$|[- ]*$"
)
_OUTPUT = re.compile(r"I\d{4} .*\] ExecutorOutput: \{$")
_TRACEBACK = "Traceback (most recent call last):"
_BETWEEN = ("During handling of the above exception", "The above exception was the direct cause")


class OwnLines:
    """Drops the lines of Kubeflow Pipelines and Argo, and of a traceback all but the exceptions.

    It keeps its state from call to call. The complete log is in kubectl logs and in the UI.
    """

    def __init__(self) -> None:
        self.in_dump = False
        self.in_traceback = False

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        """Yields the step's own lines among the next lines of a log."""
        for line in lines:
            line = line.rstrip()
            if self.in_dump:
                self.in_dump = line != "}"
            elif _MACHINERY.match(line):
                self.in_dump = line.endswith(("Got executor_input:", "ExecutorOutput: {"))
            elif line == _TRACEBACK:
                self.in_traceback = True
            elif not (self.in_traceback and line.startswith(" ")) and not line.startswith(_BETWEEN):
                self.in_traceback = False
                yield line


def artifacts_of(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the artifacts of a step by name, each with `uri` and `metadata`, as the launcher writes them to the log.

    The API of Kubeflow Pipelines 2.17 has no call for them. A step that failed has none.
    """
    taken: list[str] | None = None
    for line in lines:
        if taken is not None:
            taken.append(line)
            if line == "}":
                break
        elif _OUTPUT.match(line):
            taken = ["{"]
    try:
        listed = json.loads("\n".join(taken or ["{}"])).get("artifacts", {})
    except ValueError:  # cut off in the middle
        return {}
    return {name: each["artifacts"][0] for name, each in listed.items() if each.get("artifacts")}
