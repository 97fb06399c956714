"""CPU cores: how many a process may use, and how its threads share them with other processes."""

import contextlib
import ctypes
import math
import os
import sys
import threading
import time
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


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Limits torch to `num_cores` threads, which yield to neighbouring processes, for the block.

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
            with yield_to_neighbours():
                yield
        finally:
            torch.set_num_threads(before)


_computing = threading.Lock()


@contextlib.contextmanager
def yield_to_neighbours() -> Iterator[None]:
    """Binds the compute threads of this process to one core while other processes need the rest, for the block.

    OpenMP threads wait for each other hundreds of times per training step, spinning. When one of them loses its core
    for a time slice, the others waste theirs: with one busy process beside two threads, training takes three times as
    long as on one thread. Bound to the same core, the threads take turns and waste nothing; the result is the same to
    the last bit, as their number does not change. They spread again when a core is idle.

    Only does something on Linux, with several threads, and if there are no more cores than threads.
    """
    library = _openmp() if sys.platform == "linux" else None
    num_threads = 1 if library is None else library.omp_get_max_threads()
    if library is None or num_threads < 2 or len(os.sched_getaffinity(0)) > num_threads:
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_Cores(library).share_until, args=(done,), name="neighbours", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _openmp() -> "ctypes.CDLL | None":
    """Returns the OpenMP library that torch uses, if it is GNU's and has been loaded."""
    with contextlib.suppress(OSError):
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        for path in sorted(paths, key=lambda path: "torch" not in path):
            return ctypes.CDLL(path)
    return None


class _Cores:
    """Watches the cores of this process, and binds its threads."""

    INTERVAL = 0.5
    """Seconds between two measurements; two consecutive ones must agree before threads are bound or released."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.all = os.sched_getaffinity(0)
        self.bound: int | None = None
        self.free = threading.Event()

    def share_until(self, done: threading.Event) -> None:
        """Binds the threads to one core while other processes need the rest, until `done` is set."""
        before, agreed, then = self._look(), 0, time.monotonic()
        while not done.wait(self.INTERVAL):
            now, at = self._look(), time.monotonic()
            passed = at - then
            waited = {
                task: (now[0][task][0] - before[0][task][0]) / passed for task in now[0].keys() & before[0].keys()
            }
            idle = {core: (now[1][core] - before[1][core]) / passed for core in now[1]}
            cpu = (now[2] - before[2]) / passed
            before, then = now, at
            if self.bound is None:
                wanted = sum(waited.values()) > 0.25
            else:
                wanted = max(idle[core] for core in self.all - {self.bound}) > 0.6 or cpu < 0.6
            agreed = agreed + 1 if wanted else 0
            if agreed < 2:
                continue
            agreed = 0
            if self.bound is None:
                quietest = min(
                    (task for task in waited if now[0][task][2]), key=lambda task: waited[task], default=None
                )
                self._bind(min(self.all) if quietest is None else now[0][quietest][1])
            elif cpu < 0.6 and max(idle.values()) <= 0.6:  # other processes use this core as well
                cores = sorted(self.all)
                self._bind(cores[(cores.index(self.bound) + 1) % len(cores)])
            else:
                self._bind(None)
        self._bind(None)

    def _look(self) -> tuple[dict[str, tuple[float, int, bool]], dict[int, float], float]:
        """Reads the counters of the system, in seconds.

        Returns:
            For each thread, how long it waited for a core, its core, and whether it is a compute thread; for each core,
            how long it was idle; the CPU time of this process.
        """
        tasks = {}
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):
                ran, waited = map(int, Path(f"/proc/self/task/{task}/schedstat").read_text().split()[:2])
                core = int(Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[36])
                tasks[task] = (waited / 1e9, core, ran > 1e9)
        ticks = os.sysconf("SC_CLK_TCK")
        cores = {}
        for line in Path("/proc/stat").read_text().splitlines():
            name, *times = line.split()
            if name[3:].isdigit() and name.startswith("cpu") and int(name[3:]) in self.all:
                cores[int(name[3:])] = int(times[3]) / ticks
        return tasks, cores, time.process_time()

    def _bind(self, core: int | None) -> None:
        if core == self.bound:
            return
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task), self.all if core is None else {core})
        if core is None:
            self.free.set()
        elif self.bound is None:
            self.free = threading.Event()
            threading.Thread(target=self._spin_less, args=(self.free,), name="spin less", daemon=True).start()
        self.bound = core

    def _spin_less(self, until: threading.Event) -> None:
        """Makes waiting threads yield their core instead of spinning, until the event is set.

        GNU's OpenMP does so while it has more threads than cores, so this adds a thread, which sleeps.
        """
        nothing = ctypes.cast(self.library.omp_get_level, ctypes.c_void_p)
        self.library.GOMP_parallel(nothing, None, ctypes.c_uint(2), ctypes.c_uint(0))
        until.wait()
