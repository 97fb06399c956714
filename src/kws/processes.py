"""Worker processes."""

import ctypes
import multiprocessing
import os
import sys
import threading


def num_cores() -> int:
    """Returns how many cores this process may use: where it is bound to some of them, only those."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        assert library is not None
        trim_threshold, mmap_threshold = -1, -3  # the numbers of malloc.h
        library.mallopt(mmap_threshold, 32 << 20)  # the most that glibc takes
        library.mallopt(trim_threshold, 1 << 30)
