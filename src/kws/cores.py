"""CPU cores: how many a process may use, how many threads torch computes with, and how many GPUs there are."""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""The CPU limit of a container (control groups v2): microseconds of CPU time, or max, per period of microseconds."""

CPU_LIMITS_1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
"""The same for control groups v1, where -1 stands for max."""


def num_cores() -> int:
    """Returns the number of cores that this process may use, by its CPU affinity and its container's CPU limit."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0))
    for limits in ((CPU_LIMIT,), CPU_LIMITS_1):
        try:
            quota, period = " ".join(file.read_text() for file in limits).split()
            return bound if quota in ("max", "-1") else min(bound, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # no control groups of this version
            continue
    return bound


def num_gpus() -> int:
    """Returns the number of NVIDIA GPUs that this process may use, without the seconds that importing torch takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return found if visible is None else min(found, len([name for name in visible.split(",") if name.strip()]))


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Limits torch to `num_cores` threads for the block.

    By default torch starts a thread for every core of the machine, whatever the limit of the container, so that all of
    them are throttled whenever the limit is used up. OMP_NUM_THREADS overrides this. Does nothing within another such
    block, and if torch has not been imported.
    """
    torch = sys.modules.get("torch")
    if torch is None or _computing.locked():
        yield
        return
    before = torch.get_num_threads()
    with _computing:
        if not os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(min(before, num_cores()))
        try:
            yield
        finally:
            torch.set_num_threads(before)


_computing = threading.Lock()
