"""Plots for reports and TensorBoard."""

import base64
import functools
import io
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager, image
from matplotlib.figure import Figure
from torch import Tensor

log = logging.getLogger(__name__)


def confusion(matrix: npt.NDArray[np.float64], words: Sequence[str]) -> Figure:
    """Draws a confusion matrix, coloured by the fraction of each row's clips and labelled with counts.

    Of more than LARGEST words, only the hardest are drawn, so that a thousand words take no more memory than these. The
    matrix has counts [true words, predicted words].
    """
    drawn = hardest(matrix)
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[np.ix_(drawn, drawn)]
    counts = matrix[np.ix_(drawn, drawn)]
    names = [words[index] for index in drawn]
    fonts = _fonts_for("".join(names))
    labels = [
        name if _missing(name, fonts) == set() else f"#{index + 1}" for index, name in zip(drawn, names, strict=True)
    ]
    labels = [label.replace("$", r"\$") for label in labels]  # two of them would enclose a formula
    size = max(4.5, 0.32 * len(drawn) + 1.5)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(drawn)), labels, rotation=90, fontfamily=fonts)
    axes.set_yticks(range(len(drawn)), labels, fontfamily=fonts)
    axes.set_xlabel("predicted word")
    axes.set_ylabel("true word")
    if len(drawn) < len(words):
        axes.set_title(f"the {len(drawn)} hardest of {len(words):,} words")
    return figure


WEBP_QUALITY = 40
"""Of 100: a strip of three seconds takes 4 KB."""

LARGEST = 60
"""Number of words up to which all of a confusion matrix is shown."""


def hardest(matrix: npt.NDArray[np.float64]) -> list[int]:
    """Returns the LARGEST words that take part in most mistakes, in the order of the classes; all if there are fewer.

    The matrix has counts [true words, predicted words].
    """
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    chosen = np.argsort(-mistakes, kind="stable")[:LARGEST]
    return sorted(chosen.tolist())


def _fonts_for(text: str) -> list[str]:
    """Returns the installed fonts with which a text can be drawn, beginning with the default one."""
    missing = frozenset(_missing(text, [DEFAULT_FONT]))
    return [DEFAULT_FONT, *_fonts_with(missing)] if missing else [DEFAULT_FONT]


DEFAULT_FONT = "DejaVu Sans"


@functools.cache
def _fonts_with(characters: frozenset[int]) -> list[str]:
    """Returns further fonts that have some characters; says which characters none has."""
    found: list[str] = []
    left = set(characters)
    for font in _installed():
        if not left or "Last Resort" in font.name or font.name in found:
            continue
        if has := left & _characters_of(font.name):
            found.append(font.name)
            left -= has
    if left:
        scripts = sorted({_script(chr(code)) for code in left})
        log.warning(
            "no installed font has the characters of some words (%s): pictures show their numbers instead, reports and "
            "tables the words (to draw them, too, install for example the package fonts-noto-cjk or fonts-noto-core)",
            ", ".join(scripts[:5]),
        )
    return found


def _script(char: str) -> str:
    """Returns the script of a letter, as its name in Unicode begins."""
    return unicodedata.name(char, "unknown").split()[0].lower() if unicodedata.category(char)[0] in "LMN" else "symbols"


def _missing(text: str, fonts: Sequence[str]) -> set[int]:
    """Returns the code points of a text that no font has, without those that are not seen."""
    seen = {ord(char) for char in text if unicodedata.category(char) not in ("Cf", "Zs")}
    return seen.difference(*(_characters_of(font) for font in fonts))


@functools.cache
def _characters_of(font: str) -> frozenset[int]:
    # Not by `findfont`, which warns of every font that has no upright and regular face.
    path = next((one.fname for one in _installed() if one.name == font), None)
    try:
        return frozenset(font_manager.get_font(path).get_charmap()) if path else frozenset()
    except (OSError, RuntimeError):  # not an outline font
        return frozenset()


@functools.cache
def _installed() -> list[font_manager.FontEntry]:
    """Returns the installed fonts, upright and regular faces first."""
    return sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400))


def spectrograms(features: Tensor, titles: Sequence[str]) -> Figure:
    """Draws features [clips, num_mels, num_frames] side by side, with low frequencies at the bottom."""
    figure = Figure(figsize=(3 * len(titles), 3), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    fonts = _fonts_for("".join(titles))
    for axes, values, title in zip(panels, features, titles, strict=True):
        axes.imshow(values.float(), origin="lower", aspect="auto", cmap="magma")
        axes.set_title(title.replace("$", r"\$"), fontfamily=fonts)
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
    """Draws loss, accuracy and learning rate over the epochs of a training.

    Args:
        epochs: for each in turn, train_loss, validation_loss, train_accuracy, validation_accuracy and learning_rate.
    """
    figure = Figure(figsize=(9, 3), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    numbers = range(1, len(epochs) + 1)
    for axes, what, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for split in ("train", "validation"):
            axes.plot(numbers, [factor * epoch[f"{split}_{what}"] for epoch in epochs], marker=".", label=split)
        axes.set_ylabel(what if factor == 1 else f"{what}, %")
    loss.legend()
    rate.plot(numbers, [epoch["learning_rate"] for epoch in epochs], marker=".", color="#555555")
    rate.set_ylabel("learning rate")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return figure


def strip(features: Tensor) -> bytes:
    """Draws features [num_mels, num_frames] as WebP, a pixel for each value."""
    buffer = io.BytesIO()
    image.imsave(
        buffer, features.numpy(), cmap="magma", origin="lower", format="webp", pil_kwargs={"quality": WEBP_QUALITY}
    )
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """Renders a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Encodes content of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
