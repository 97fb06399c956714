"""Two processes that work together, as those of a training do."""

import multiprocessing
from collections.abc import Callable

import torch


def run_together(call: Callable[..., None], *arguments: object) -> None:
    """Calls a function with rank 0 and 1 in two forked processes, which have torch already, and waits for both.

    They have one thread each: a fork has no threads of its parent, and would wait for them for ever.
    """
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_alone, args=(call, rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def _alone(call: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)
    call(*arguments)
