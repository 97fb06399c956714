"""Processes: ending together with their parent, signal handlers, and memory settings."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None)  # opened at import, as this takes a lock that a forked child might inherit locked
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Makes a worker process exit when its parent has been killed.

    Otherwise the workers of a killed `ProcessPoolExecutor` would wait for work forever, as each holds the queue open
    for the others.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for reuse instead of returning it to the system.

    Every training step allocates and frees the same tens of megabytes. Returning them each time costs 3,500 page faults
    per step, a fifth of its time on the CPU. Does nothing with other C libraries.
    """
    if hasattr(_LIBC, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # constants of malloc.h
        _LIBC.mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc accepts
        _LIBC.mallopt(trim_threshold, 1 << 30)


def die_with_parent(parent: int | None = None) -> None:
    """Asks the kernel to send this process SIGTERM when its parent dies, even by kill -9; only on Linux.

    torchrun puts every training process in its own session, so nothing else would end them. The signal lets them write
    a checkpoint. The parent is given if it may have died before this call.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def handle_signals(handler: "signal._HANDLER", *signals: signal.Signals) -> Iterator[None]:
    """Handles signals, by default SIGTERM and SIGINT; does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals or (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def children(parent: int | str = "self") -> list[int]:
    """Returns the ids of the child processes of a process, as far as the system tells: only Linux does."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # the parent has ended
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def pass_on(signum: int) -> list[int]:
    """Sends a signal to all processes below this one in its process group, which Ctrl-C would reach in a terminal.

    Returns:
        Their ids.
    """
    found, reached = children(), []
    while found:
        one = found.pop()
        found += children(one)
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(one) == os.getpgrp():
                os.kill(one, signum)
                reached.append(one)
    return reached


def is_alive(process: int) -> bool:
    """Tells whether a process runs, as far as the system tells: only Linux does."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")  # nobody may have asked for its exit status
