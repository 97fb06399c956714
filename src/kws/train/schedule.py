"""What changes from step to step: the learning rate, and the factors that follow from the number of the step."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kws.recipe import TrainConfig

BETAS = (0.9, 0.999)
"""Decay per step of Adam's averages of the gradients and of their squares."""


class Rates(NamedTuple):
    """The numbers of a step: floats on a CPU, tensors without dimensions on a GPU.

    A CUDA graph keeps every float for ever as it was when the graph was captured, so on a GPU they must be tensors. On
    a CPU floats keep the precision of 64 bits up to the last operation.
    """

    learning_rate: float | Tensor
    mean_correction: float | Tensor
    """What Adam's averages of gradients must be divided by, as they started from zero: 1 - β₁^step."""
    square_correction: float | Tensor
    """The same for the roots of its averages of squares: √(1 - β₂^step)."""
    average_weight: float | Tensor
    """Weight of the new weights in their moving average."""


def rates(config: TrainConfig, rate: float, step: int) -> Rates:
    """Returns the numbers of a step, given the learning rate and how many steps were taken before."""
    # The average is faster early on, so that the initial weights are forgotten.
    decay = min(config.ema_decay, (1 + step) / (10 + step))
    corrections = [1 - beta ** (step + 1) for beta in BETAS]
    return Rates(rate, corrections[0], corrections[1] ** 0.5, 1 - decay)


def learning_rate(config: TrainConfig, world_size: int, epoch: int, done: float, step: float) -> float:
    """Returns a learning rate, given the shares of the run that are done and that a step takes."""
    peak = config.learning_rate * (world_size if config.scale_with_processes else 1)
    if config.schedule == "step":
        return float(peak * 0.9 ** (epoch // 3))
    if done < config.warmup:
        return float(peak * (done + step) / config.warmup)
    return float(peak * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup))))


def on_gpu(rates: Rates, device: torch.device) -> Tensor:
    """Returns the numbers as float32 [4] on a GPU, without waiting for it."""
    return torch.tensor(rates, dtype=torch.float32).pin_memory().to(device, non_blocking=True)
