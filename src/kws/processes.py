"""Processes: how they end together, what signals do, what becomes of their memory."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None)  # opened here, as that takes a lock which a forked child might find taken for ever
_PR_SET_PDEATHSIG = 1


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
