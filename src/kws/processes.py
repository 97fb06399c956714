"""Worker processes."""

import ctypes
import math
import multiprocessing
import os
import sys
import threading
from pathlib import Path

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Within a container: microseconds of all cores, or max, and of how many."""


def num_cores() -> int:
    """Returns how many cores this process may use: those it is bound to, and no more than its container's limit."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return bound if quota == "max" else min(bound, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control group of the second version
        return bound


def end_with_parent() -> None:
    """Lets a worker end when the process that started it was killed, and could not say so.

    Without it the workers of a killed `ProcessPoolExecutor` wait for work for ever: each holds the queue open for the
    others.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def keep_freed_memory() -> None:
    """Lets this process use freed memory again, where the C library would give it back to the system.

    A training step allocates and frees the same tens of megabytes again and again, and glibc returns them each time:
    3,500 page faults a step, a fifth of its time on the CPU. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # the numbers of malloc.h
        library.mallopt(mmap_threshold, 32 << 20)  # the most that glibc takes
        library.mallopt(trim_threshold, 1 << 30)
