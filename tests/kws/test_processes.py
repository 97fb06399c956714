"""Freed memory of a process is kept."""

import multiprocessing
import resource
import sys

import numpy as np
import pytest

from kws.processes import keep_freed_memory


def page_faults(repeats: int) -> int:
    """Allocates, fills and frees 60 MB again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        arrays = [np.ones(20 << 20, np.uint8) for _ in range(3)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_before_and_after() -> tuple[int, int]:
    page_faults(3)
    before = page_faults(20)
    keep_freed_memory()
    page_faults(3)
    return before, page_faults(20)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_freed_memory_is_used_again() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(count_before_and_after)
    assert after < before / 20
