"""Plots for reports and TensorBoard."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor


def confusion(matrix: npt.NDArray[np.float64], words: Sequence[str]) -> Figure:
    """Draws a confusion matrix, coloured by the fraction of each row's clips and labelled with counts.

    Args:
        matrix: counts [true words, predicted words].
        words: names of rows and columns.
    """
    words = [word.replace("$", r"\$") for word in words]  # two of them would enclose a formula
    size = max(4.5, 0.32 * len(words) + 1.5)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{int(matrix[row, column])}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(words)), words, rotation=90)
    axes.set_yticks(range(len(words)), words)
    axes.set_xlabel("predicted word")
    axes.set_ylabel("true word")
    return figure


def spectrograms(features: Tensor, titles: Sequence[str]) -> Figure:
    """Draws features [clips, num_mels, num_frames] side by side, with low frequencies at the bottom."""
    figure = Figure(figsize=(3 * len(titles), 3), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, values, title in zip(panels, features, titles, strict=True):
        axes.imshow(values.float(), origin="lower", aspect="auto", cmap="magma")
        axes.set_title(title.replace("$", r"\$"))
        axes.set_xlabel("frame")
    panels[0].set_ylabel("mel bin")
    return figure


def detection(curves: Mapping[str, Sequence[tuple[float, float]]], points: Mapping[str, tuple[float, float]]) -> Figure:
    """Draws the miss rate against false alarms per hour, with a curve for each condition.

    Args:
        curves: by condition, pairs of false alarms per hour and miss rate (0 to 1), in the order of the thresholds.
        points: by condition, the pair at the chosen thresholds.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    least = 0.1
    for name, pairs in curves.items():
        alarms, missed = [max(pair[0], least) for pair in pairs], [100 * pair[1] for pair in pairs]
        (line,) = axes.plot(alarms, missed, label=name)
        if name in points:
            axes.plot(max(points[name][0], least), 100 * points[name][1], "o", color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlim(least, 300)
    axes.set_ylim(0, 100)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("false alarms per hour (0.1: that or fewer)")
    axes.set_ylabel("words missed, %")
    axes.grid(alpha=0.3)
    axes.legend(title="dots: chosen thresholds")
    return figure


def conditions(accuracy: Mapping[str, float]) -> Figure:
    """Draws the accuracy (0 to 1) under each condition as bars, from the best to the worst."""
    figure = Figure(figsize=(6, 0.32 * len(accuracy) + 1), layout="constrained")
    axes = figure.add_subplot()
    rows = sorted(accuracy.items(), key=lambda row: row[1])
    bars = axes.barh([name for name, _ in rows], [100 * value for _, value in rows], color="#3778bf")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy, %")
    return figure


def training(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws loss and accuracy over the epochs of a training.

    Args:
        epochs: for each epoch, train_loss, validation_loss, train_accuracy and validation_accuracy.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    numbers = [1 + int(epoch["epoch"]) for epoch in epochs]
    for axes, what, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for split in ("train", "validation"):
            axes.plot(numbers, [factor * epoch[f"{split}_{what}"] for epoch in epochs], label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what if factor == 1 else f"{what}, %")
        axes.grid(alpha=0.3)
    loss.legend()
    return figure


def thumbnail(features: Tensor) -> Figure:
    """Draws features [num_mels, num_frames] as a small picture without axes."""
    figure = Figure(figsize=(1.2, 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(features.float(), origin="lower", aspect="auto", cmap="magma")
    return figure


def png(figure: Figure) -> bytes:
    """Renders a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Encodes content of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
