"""Calibration of probabilities by temperature scaling."""

import math

import torch
from torch import Tensor

LEAST = 0.5
"""Lowest temperature; if all clips are recognized, the likelihood alone would drive it to zero."""


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Returns the temperature that maximizes the likelihood of the labels (Guo et al., arXiv 1706.04599).

    Args:
        scores: float [clips, words], not yet divided by a temperature.
        labels: int64 [clips].
    """
    scores = scores.double()

    def loss(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores / torch.tensor(log_temperature).exp(), labels))

    low, high = math.log(LEAST), math.log(20)
    for _ in range(60):  # the loss is convex in the inverse temperature, so it has one minimum
        first, second = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, second) if loss(first) < loss(second) else (first, high)
    return float(torch.tensor((low + high) / 2).exp())


def expected_calibration_error(confidence: Tensor, correct: Tensor, num_bins: int = 15) -> float:
    """Returns the mean gap between confidence and accuracy over bins of confidence, weighted by their clips, 0 to 1.

    Args:
        confidence: float [clips], the probability of the word that was recognized.
        correct: bool [clips], whether it was said.
        num_bins: number of bins, which have equal widths.
    """
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    gap = torch.zeros(num_bins, dtype=torch.double)
    gap.index_add_(0, bins, correct.double() - confidence.double())
    return float(gap.abs().sum() / len(correct))
