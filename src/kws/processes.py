"""Worker processes."""

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
