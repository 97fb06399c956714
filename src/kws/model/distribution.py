"""Distributions of what a model hears and how sure it is, in the same bins on the test split and at work."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.preprocess.audio import Waveform

CONFIDENCE_BOUNDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper bounds of the bins of the highest probability of a clip."""

LEVEL_BOUNDS = (-80.0, -70.0, -60.0, -55.0, -50.0, -45.0, -40.0, -35.0, -30.0, -25.0, -20.0, -15.0, -10.0, -5.0, 0.0)
"""Upper bounds of the bins of the level of a clip, in dBFS."""

SILENT_DBFS = -120.0
"""The level of digital silence."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How many values lie in each bin."""

    bounds: Sequence[float]
    """Upper bounds of the bins, the last of which has none."""
    counts: Sequence[int]
    """One more than the bounds."""
    total: float
    """Sum of the values."""

    @classmethod
    def of(cls, values: npt.NDArray[Any], bounds: Sequence[float]) -> "Distribution":
        """Counts values, [any]."""
        counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
        return cls(bounds=list(bounds), counts=counts.tolist(), total=float(values.sum()))

    @classmethod
    def from_json(cls, value: object) -> "Distribution | None":
        """Reads what `dataclasses.asdict` wrote; returns None for anything else."""
        if not isinstance(value, Mapping) or value.keys() != {"bounds", "counts", "total"}:
            return None
        found = cls(**value)
        numbers = [*found.bounds, *found.counts, found.total]
        fits = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
        return found if fits and len(found.counts) == len(found.bounds) + 1 else None


def levels(waveforms: Waveform) -> npt.NDArray[np.float64]:
    """Returns the level (RMS) of clips, float32 [clips, samples], in dB relative to full scale, float64 [clips].

    A square wave of full amplitude has 0 dBFS.
    """
    power = np.einsum("ij,ij->i", waveforms, waveforms, dtype=np.float64) / max(waveforms.shape[1], 1)
    silent = 10 ** (SILENT_DBFS / 10)
    return np.asarray(10 * np.log10(np.maximum(power, silent)))
