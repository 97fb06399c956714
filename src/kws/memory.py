"""Memory: the limit of a container, whether it was exceeded, and what the steps need."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")

LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Files with the limit of a control group in bytes, or max: of control groups v2, and v1."""

EVENTS = ("memory.events", "memory.oom_control")
"""Files in which the line "oom_kill N" counts the processes that were killed for lack of memory."""

LEAST = {"preprocess": 384, "training": 512, "evaluate": 448, "promote": 512}
"""Megabytes (2**20 bytes) with which each works on one core, with one process and the default settings: measured, see
docs/reliability.md."""


def limit() -> int | None:
    """Returns the memory in bytes that this process and its relatives may use; None if the system does not say."""
    found = []
    for path in _files(LIMITS):
        text = path.read_text().strip()
        if text.isdecimal():
            found.append(int(text))
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def num_killed() -> int:
    """Returns how many processes of this container were killed for lack of memory, as far as the system says."""
    found = [0]
    for path in _files(EVENTS):
        counts = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
        found.append(int(counts.get("oom_kill", 0)))
    return max(found)


def warn_if_scarce(what: str) -> None:
    """Warns if there is less memory than something in LEAST needs, as the system would kill it later without a word."""
    available = limit()
    if available is not None and available < LEAST[what] << 20:
        log.warning(
            "%s needs %d MB of memory or more, and may use %d MB here: if it is killed, raise the memory limit",
            what,
            LEAST[what],
            available >> 20,
        )


def _files(names: tuple[str, ...]) -> Iterator[Path]:
    """Yields the readable files of these names in the control groups of this process, from its own to the top.

    A container sees its own group at the top; the names of groups that its processes read may be those of the host,
    which do not exist there.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            top = CONTROL_GROUPS / controllers
            own = top / name.lstrip("/")
            folders = [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
            yield from (folder / file for folder in folders for file in names if os.access(folder / file, os.R_OK))
