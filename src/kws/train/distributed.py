"""The group of processes that train together."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The process group, as seen by one of its processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process has rank 0, which writes all files."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Returns the value of rank 0 in every process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def all_reduce(self, *values: Tensor) -> list[Tensor]:
        """Sums each value over all processes, in place."""
        if self.size > 1:
            for value in values:
                dist.all_reduce(value)
        return list(values)

    def minimum(self, value: float) -> float:
        """Returns the smallest value of all processes."""
        smallest = torch.tensor(value, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return float(smallest)

    def start_any(self, here: bool) -> Callable[[], bool]:
        """Starts to ask whether `here` is true in any process; returns a function that waits for the answer.

        The answer is the same in all processes. Asking before a training step and reading the answer after it overlaps
        the communication with the computation: waiting at once took a tenth of the time. The answer is on the host, so
        that reading it does not wait for a GPU.
        """
        if self.size == 1:
            return lambda: here
        number = torch.tensor(float(here))
        work = dist.all_reduce(number, async_op=True)
        assert work is not None

        def answer() -> bool:
            work.wait()
            return bool(number)

        return answer


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Joins the process group that torchrun's environment variables describe; without torchrun, a group of one.

    Raises:
        ValueError: this node has GPUs, but fewer than processes.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"processes_per_node must be at most {torch.cuda.device_count()}, the GPUs of this node, "
                f"got {os.environ.get('LOCAL_WORLD_SIZE', 'more')}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if size > 1:
        # Gradients on GPUs by NCCL; everything that is on the host, also then, by gloo.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if size > 1:
            dist.destroy_process_group()
