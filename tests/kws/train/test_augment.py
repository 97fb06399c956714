"""Augmentation does to features what it says, and nothing more."""

import dataclasses

import pytest
import torch
from torch import Tensor

from kws.preprocess.features import MelSpectrogram
from kws.recipe import NO_AUGMENTATION, FeatureConfig
from kws.train.augment import Augment

FEATURES = FeatureConfig()
MEAN = torch.linspace(-9, -3, 128)
SILENCE = float(torch.tensor(FEATURES.log_offset).log())


@pytest.fixture
def clips() -> Tensor:
    """Log-mel features [12, 128, 81] of noise bursts in the middle of silence."""
    torch.manual_seed(0)
    waveforms = torch.zeros(12, 16_000)
    waveforms[:, 6000:10_000] = 0.2 * torch.randn(12, 4000)
    return MelSpectrogram(FEATURES)(waveforms)


@pytest.fixture
def noise() -> Tensor:
    """Features [5, 128, 81] of noise."""
    torch.manual_seed(1)
    return MelSpectrogram(FEATURES)(0.05 * torch.randn(5, 16_000))


def augment(noise: Tensor | None = None, **settings: object) -> Augment:
    return Augment(dataclasses.replace(NO_AUGMENTATION, **settings), FEATURES, MEAN, noise)


def power(features: Tensor) -> Tensor:
    return (features.double().exp() - FEATURES.log_offset).clamp(min=0)


ALL = {
    "time_shift": 10,
    "gain_db": (-6.0, 6.0),
    "noise_probability": 0.8,
    "time_stretch": 0.1,
    "frequency_warp": 0.1,
    "num_time_masks": 2,
    "time_mask": 10,
    "num_frequency_masks": 2,
    "frequency_mask": 12,
}


def test_nothing_to_change_returns_the_features_themselves(clips: Tensor, noise: Tensor) -> None:
    before = clips.clone()
    assert torch.equal(augment(noise)(clips), before)


def test_everything_at_once_keeps_shape_and_type_and_leaves_the_input_alone(clips: Tensor, noise: Tensor) -> None:
    before = clips.clone()
    changed = augment(noise.half(), **ALL)(clips)
    assert changed.shape == clips.shape
    assert changed.dtype == torch.float32
    assert changed.isfinite().all()
    assert torch.equal(clips, before)
    assert all(not torch.equal(one, other) for one, other in zip(changed, before, strict=True))


def test_same_seed_changes_alike_and_another_otherwise(clips: Tensor, noise: Tensor) -> None:
    change = augment(noise, **ALL)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(change(clips))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_shift_moves_the_energy_by_at_most_its_frames_and_brings_silence_in(clips: Tensor) -> None:
    frames = torch.arange(81, dtype=torch.double)

    def centre(features: Tensor) -> Tensor:
        energy = power(features).sum(dim=1)
        return (energy * frames).sum(-1) / energy.sum(-1)

    torch.manual_seed(0)
    shifted = augment(time_shift=12)(clips)
    moved = centre(shifted) - centre(clips)
    assert moved.abs().max() <= 12.1
    assert moved.min() < -4
    assert moved.max() > 4
    torch.testing.assert_close(power(shifted).sum(dim=(1, 2)), power(clips).sum(dim=(1, 2)), rtol=0.2, atol=0)
    right = int(moved.argmax())
    assert (shifted[right, :, : int(moved[right])] == SILENCE).all()


def test_stretch_changes_how_long_the_word_is_within_its_limit(clips: Tensor) -> None:
    def length(features: Tensor) -> Tensor:
        return (features.mean(dim=1) > -4).sum(-1).double()

    torch.manual_seed(0)
    ratio = length(augment(time_stretch=0.3)(clips)) / length(clips)
    assert ratio.min() < 0.9
    assert ratio.max() > 1.1
    assert ratio.min() > 0.65
    assert ratio.max() < 1.45


def test_frequency_warp_moves_a_tone_in_proportion_to_its_bin() -> None:
    tones = torch.full((64, 128, 81), SILENCE)
    tones[:, 60] = 0.0
    torch.manual_seed(0)
    warped = augment(frequency_warp=0.1)(tones)
    peaks = warped[:, :, 40].argmax(dim=1)
    assert 52 <= int(peaks.min()) <= 58
    assert 62 <= int(peaks.max()) <= 68
    assert torch.equal(warped[:, :, :1].expand(-1, -1, 81), warped)


def test_gain_raises_every_bin_by_the_same_decibels_within_the_range(clips: Tensor) -> None:
    torch.manual_seed(0)
    louder = augment(gain_db=(-20.0, 6.0))(clips)
    loud = power(clips) > 1e-2
    assert loud.any(dim=(1, 2)).all()
    levels = []
    for one, other, where in zip(power(louder), power(clips), loud, strict=True):
        decibels = 10 * (one[where] / other[where]).log10()
        assert float(decibels.max() - decibels.min()) < 0.05
        levels.append(float(decibels.mean()))
    assert -20.01 <= min(levels) < -6
    assert 2 < max(levels) <= 6.01


@pytest.mark.parametrize("snr", [-5.0, 10.0, 25.0])
def test_noise_reaches_the_signal_to_noise_ratio_in_mel_power(clips: Tensor, noise: Tensor, snr: float) -> None:
    noisy = augment(noise, noise_probability=1.0, noise_snr_db=(snr, snr))(clips)
    added = power(noisy) - power(clips)
    reached = 10 * (power(clips).mean(dim=(1, 2)) / added.mean(dim=(1, 2))).log10()
    torch.testing.assert_close(reached, torch.full_like(reached, snr), atol=0.05, rtol=0)


def test_noise_comes_to_its_share_of_the_clips(clips: Tensor, noise: Tensor) -> None:
    torch.manual_seed(0)
    many = clips.repeat(50, 1, 1)
    changed = (augment(noise, noise_probability=0.3)(many) - many).abs().amax(dim=(1, 2)) > 0.01
    assert float(changed.double().mean()) == pytest.approx(0.3, abs=0.06)


def test_without_noise_recordings_none_is_added(clips: Tensor) -> None:
    assert torch.equal(augment(None, noise_probability=1.0)(clips), clips)


@pytest.mark.parametrize(("axis", "name", "longest"), [(2, "time", 20), (1, "frequency", 30)])
def test_mask_is_one_stretch_of_the_mean_no_longer_than_its_limit(
    clips: Tensor, axis: int, name: str, longest: int
) -> None:
    torch.manual_seed(0)
    many = clips.repeat(20, 1, 1)
    masked = augment(None, **{f"num_{name}_masks": 1, f"{name}_mask": longest})(many)
    other = 3 - axis
    hidden = (masked == MEAN[:, None]).all(dim=other)  # [clips, length of the axis]
    assert torch.equal((masked != many).any(dim=other), hidden)
    lengths = hidden.sum(dim=1)
    assert (int(lengths.min()), int(lengths.max())) == (0, longest)
    starts = (hidden[:, 1:] & ~hidden[:, :-1]).sum(dim=1) + hidden[:, 0]
    assert int(starts.max()) == 1
    assert hidden.any(dim=0).all()  # every place is hidden some time


def test_raw_power_is_not_augmented() -> None:
    raw = FeatureConfig(log=False)
    with pytest.raises(ValueError, match="log must be True where clips are augmented, got False"):
        Augment(dataclasses.replace(NO_AUGMENTATION, gain_db=(-3.0, 3.0)), raw, MEAN, None)
    Augment(NO_AUGMENTATION, raw, MEAN, None)
