"""Evaluation under difficult conditions."""

import numpy as np
import pytest

from kws.evaluate import robustness

TONE = np.sin(np.arange(16_000) * (2 * np.pi * 1000 / 16_000)).astype(np.float32) * 0.25


def test_noise_has_the_ratio_that_was_asked_for() -> None:
    noise = np.random.default_rng(1).normal(size=16_000).astype(np.float32)
    added = robustness.add_noise([noise], 10.0)(3, TONE) - TONE
    assert 10 * np.log10(np.mean(TONE**2) / np.mean(added**2)) == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize("samples", [1600, -1600, 0])
def test_a_shift_moves_the_word_and_leaves_silence(samples: int) -> None:
    pulse = np.zeros(16_000, dtype=np.float32)
    pulse[8000] = 1
    moved = robustness.shift(samples)(0, pulse)
    assert moved.argmax() == 8000 + samples
    assert moved.sum() == 1


def test_double_gain_is_clipped_at_full_scale() -> None:
    assert robustness.gain(8.0)(0, TONE).max() == 1
    assert robustness.gain(0.5)(0, TONE).max() == pytest.approx(0.125, abs=1e-3)


def test_a_lower_rate_keeps_1_khz_and_loses_6_khz() -> None:
    high = np.sin(np.arange(16_000) * (2 * np.pi * 6000 / 16_000)).astype(np.float32)
    limit = robustness.bandwidth(16_000, 8000)
    assert np.std(limit(0, TONE)[500:-500]) == pytest.approx(np.std(TONE), rel=0.02)
    assert np.std(limit(0, high)[500:-500]) < 0.05
