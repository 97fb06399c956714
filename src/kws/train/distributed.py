"""The group of processes that train together."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

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
    def leads(self) -> bool:
        """Whether this process has rank 0, which writes all files."""
        return self.rank == 0

    def tell(self, value: T) -> T:
        """Broadcasts the value of rank 0: returns it in every process."""
        told = [value]
        if self.size > 1:
            dist.broadcast_object_list(told)
        return told[0]

    def sum(self, *values: Tensor) -> list[Tensor]:
        """Sums each value over all processes (all-reduce), in place."""
        if self.size > 1:
            for value in values:
                dist.all_reduce(value)
        return list(values)

    def ask(self, here: bool) -> Callable[[], bool]:
        """Asks whether `here` is true in any process, and returns a function that waits for the answer.

        The answer is the same in all processes. Asking before a training step and reading the answer after it overlaps
        the communication with the computation: waiting at once took a tenth of the time.
        """
        if self.size == 1:
            return lambda: here
        asked = torch.tensor(float(here), device=self.device)
        question = dist.all_reduce(asked, async_op=True)
        assert question is not None

        def answer() -> bool:
            question.wait()
            return bool(asked)

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
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if size > 1:
            dist.destroy_process_group()
