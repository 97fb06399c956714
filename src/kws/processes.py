"""Processes: how a command ends, how many cores they have, how they end together, what signals do."""

import contextlib
import ctypes
import errno
import io
import math
import multiprocessing
import os
import pwd
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Within a container: microseconds of all cores, or max, and of how many."""

CPU_LIMITS_1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
"""The same in control groups of the first version, where -1 stands for max."""


_LIBC = ctypes.CDLL(None)  # opened here, as that takes a lock which a forked child might find taken for ever
_PR_SET_PDEATHSIG = 1


class Unfailing(io.TextIOBase):
    """What is told to people on the way: a closed pipe or a full disk behind it must not end the work."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text, if that can be."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Lets through what is held back, if that can be."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.flush()

    def isatty(self) -> bool:
        """Tells whether people read it as it comes."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Returns the file descriptor, for processes that write to the same."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Returns the encoding of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"


class CommandFailed(Exception):
    """What a command was to do failed, through no fault of its arguments; the message is for people."""


CLOSED_PIPE = 141
"""Exit status when nobody reads the output any more: 128 + SIGPIPE, as of other programs."""


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Ends the block, a whole command, as a command line should: with a line for an error, never with a traceback.

    Status 1 is CommandFailed, 2 an error of the user or of the machine, 130 Ctrl-C, 141 an output that nobody reads any
    more.

    Raises:
        SystemExit: always where the block does not end by itself.
    """
    settle_user()
    quiet_threads()
    before = sys.stdout, sys.stderr
    sys.stderr = Unfailing(sys.stderr)
    sys.stdout = sys.stdout or io.StringIO()  # closed by who started this
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, while it can still be told that the disk is full
    except CommandFailed as error:
        status = _end(1, str(error))
    except KeyboardInterrupt:
        status = _end(130, "")
    except BrokenPipeError:
        status = CLOSED_PIPE
    except MemoryError:
        status = _end(2, f"this takes more memory than there is: {ENOUGH_MEMORY}")
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        status = _end(2, f"{error}{'; free some and start again, what is done stays' if is_full else ''}")
    except (ValueError, FloatingPointError) as error:
        status = _end(2, str(error))
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        status = _end(2, f"this takes more memory than there is: {ENOUGH_MEMORY}")
    else:
        return
    finally:
        sys.stderr.flush()
        _forget_unwritten(sys.stdout)
        if before[1] is not None:
            _forget_unwritten(before[1])
        sys.stdout, sys.stderr = before
    sys.exit(status)


ENOUGH_MEMORY = "a smaller --batch-size, fewer processes or a larger limit help"


def _end(status: int, message: str) -> int:
    line = f"error: {message}" if message else "stopped; run the same command again to resume"
    print(line, file=sys.stderr)
    return status


def _forget_unwritten(stream: TextIO) -> None:
    """Keeps Python from complaining, as it exits, of what it could not write."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def quiet_threads() -> None:
    """Lets a thread that a full disk or a closed pipe ended say so in a line.

    TensorBoard writes in a thread, and raises in the main one as well when that writes next.
    """

    def say(what: threading.ExceptHookArgs) -> None:
        if isinstance(what.exc_value, OSError):
            print(f"error: {what.exc_value}", file=sys.stderr)
        else:
            threading.__excepthook__(what)

    threading.excepthook = say


def settle_user() -> None:
    """Gives a user whom the system does not know a name and a home, as libraries ask for both.

    Kubernetes and OpenShift start containers as users that no passwd file lists.
    """
    uid = os.getuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        os.environ.setdefault("USER", f"user{uid}")
        os.environ.setdefault("HOME", tempfile.gettempdir())
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):  # where matplotlib keeps what it knows of fonts
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{uid}"))


def num_cores() -> int:
    """Returns how many cores this process may use: those it is bound to, and no more than its container's limit."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0))
    for limits in ((CPU_LIMIT,), CPU_LIMITS_1):
        try:
            quota, period = " ".join(file.read_text() for file in limits).split()
            return bound if quota in ("max", "-1") else min(bound, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):  # no control group of this version
            continue
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


@contextlib.contextmanager
def yield_to_neighbours() -> Iterator[None]:
    """Lets the computing threads of this process share one core for as long as another process wants the others.

    Threads that compute together wait for each other hundreds of times a step, spinning. When one of them loses its
    core for a time slice the others burn theirs: with one busy process beside two threads, training takes three times
    as long as on one thread. Bound together to the core that is theirs, the threads take turns, and waste
    nothing; what they compute is the same to the last bit, as their number is. They spread again when a core is idle.

    Does nothing but on Linux, where there are more cores than threads, and for one thread.
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
    """Returns the OpenMP library that torch computes with, if it is GNU's and loaded."""
    with contextlib.suppress(OSError):
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        for path in sorted(paths, key=lambda path: "torch" not in path):
            return ctypes.CDLL(path)
    return None


class _Cores:
    """The cores of this process, and who has them."""

    INTERVAL = 0.5
    """Seconds between two looks; two that agree decide."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.all = os.sched_getaffinity(0)
        self.bound: int | None = None
        self.free = threading.Event()

    def share_until(self, done: threading.Event) -> None:
        """Binds the threads to one core while others want the rest, until `done`."""
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
            elif cpu < 0.6 and max(idle.values()) <= 0.6:  # this core has others too
                cores = sorted(self.all)
                self._bind(cores[(cores.index(self.bound) + 1) % len(cores)])
            else:
                self._bind(None)
        self._bind(None)

    def _look(self) -> tuple[dict[str, tuple[float, int, bool]], dict[int, float], float]:
        """Returns what the system counts, in seconds.

        Returns:
            For each thread how long it waited for a core, which core it is on, and whether it computes; for each core
            how long it was idle; how long this process computed.
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
        """Lets threads that wait for each other give up their core at once, until the event.

        GNU's library does so while it has more threads than cores: this makes one more, which sleeps.
        """
        nothing = ctypes.cast(self.library.omp_get_level, ctypes.c_void_p)
        self.library.GOMP_parallel(nothing, None, ctypes.c_uint(2), ctypes.c_uint(0))
        until.wait()


def die_with_parent(parent: int | None = None) -> None:
    """Asks the kernel to send this process SIGTERM when the process that started it dies, even by kill -9.

    torchrun puts every training process in a session of its own, so that nothing else would end them after it. The
    signal lets them write a checkpoint. Does nothing but on Linux.

    Args:
        parent: its process id, where the caller knows it and it may have died already.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def handle_signals(handler: "signal._HANDLER") -> Iterator[None]:
    """Handles SIGTERM and SIGINT for the block, but does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)
