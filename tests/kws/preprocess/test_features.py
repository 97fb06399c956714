"""Mel spectrograms, compared with torchaudio's."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from kws.preprocess.audio import read_clip
from kws.preprocess.features import MelSpectrogram
from kws.recipe import RECIPES, FeatureConfig


def reference(waveforms: torch.Tensor, config: FeatureConfig) -> torch.Tensor:
    power = torchaudio.transforms.MelSpectrogram(
        config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        f_min=config.f_min,
        f_max=config.f_max,
        n_mels=config.num_mels,
        mel_scale=config.mel_scale,
    )(waveforms)
    return (power + config.log_offset).log() if config.log else power


def assert_equals_torchaudio(waveforms: torch.Tensor, config: FeatureConfig) -> None:
    values = MelSpectrogram(config)(waveforms)
    expected = reference(waveforms, config)
    assert values.shape == expected.shape == (len(waveforms), config.num_mels, config.num_frames)
    assert values.dtype == torch.float32
    if config.log:
        torch.testing.assert_close(values, expected, atol=2e-3, rtol=0)  # a fourth of float16's step at such values
    else:
        torch.testing.assert_close(values, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("preset", ["default", "baseline"])
@pytest.mark.parametrize("recordings", ["real_corpus", "real_digits"])
def test_features_of_real_clips_equal_torchaudio(preset: str, recordings: str, request: pytest.FixtureRequest) -> None:
    config = RECIPES[preset].features
    folder: Path = request.getfixturevalue(recordings)
    paths = [path for word in sorted(folder.glob("[a-z]*/")) for path in islice(sorted(word.glob("*.wav")), 5)]
    assert len(paths) >= 9
    assert_equals_torchaudio(torch.from_numpy(np.stack([read_clip(path, config) for path in paths])), config)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_features_of_noise_and_of_silence_equal_torchaudio(preset: str) -> None:
    torch.manual_seed(0)
    assert_equals_torchaudio(torch.stack([torch.randn(16_000), torch.zeros(16_000)]), RECIPES[preset].features)


@pytest.mark.parametrize(
    "config",
    [
        FeatureConfig(n_fft=400),
        FeatureConfig(n_fft=1024, win_length=640, hop_length=160, num_mels=40),
        FeatureConfig(sample_rate=8000, num_samples=8000, f_max=4000),
        FeatureConfig(num_samples=12_345),
    ],
)
def test_features_of_other_settings_equal_torchaudio(config: FeatureConfig) -> None:
    torch.manual_seed(0)
    assert_equals_torchaudio(torch.randn(2, config.num_samples), config)


def test_baseline_is_what_torchaudio_gives_with_its_own_defaults() -> None:
    torch.manual_seed(0)
    waveform = torch.randn(1, 16_000)
    expected = torchaudio.transforms.MelSpectrogram(n_mels=128)(waveform)
    torch.testing.assert_close(MelSpectrogram(RECIPES["baseline"].features)(waveform), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("preset", "num_empty"), [("default", 0), ("baseline", 4)])
def test_default_filter_bank_has_no_empty_filter_where_the_baseline_has_four(preset: str, num_empty: int) -> None:
    filters = MelSpectrogram(RECIPES[preset].features).filters
    assert filters.shape[1] == 128
    assert int((filters.sum(dim=0) == 0).sum()) == num_empty


@pytest.mark.parametrize("config", [*(preset.features for preset in RECIPES.values()), FeatureConfig(n_fft=1024)])
def test_mel_filters_are_those_of_torchaudio(config: FeatureConfig) -> None:
    expected = torchaudio.functional.melscale_fbanks(
        config.n_fft // 2 + 1,
        config.f_min,
        config.f_max,
        config.num_mels,
        config.sample_rate,
        mel_scale=config.mel_scale,
    )
    torch.testing.assert_close(MelSpectrogram(config).filters, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_a_second_gives_128_bins_and_81_frames(preset: str) -> None:
    config = RECIPES[preset].features
    assert (config.num_mels, config.num_frames, config.hop_length) == (128, 81, 200)
    assert MelSpectrogram(config)(torch.zeros(1, 16_000)).shape == (1, 128, 81)


def test_features_of_a_clip_do_not_depend_on_the_batch_it_is_in() -> None:
    torch.manual_seed(0)
    waveforms = torch.randn(11, 16_000)
    spectrogram = MelSpectrogram(FeatureConfig())
    alone = torch.cat([spectrogram(waveform[None]) for waveform in waveforms])
    torch.testing.assert_close(spectrogram(waveforms), alone, atol=1e-5, rtol=1e-5)


def test_stored_types_hold_the_loudest_clip() -> None:
    loudest = torch.ones(1, 16_000) * torch.tensor([1.0, -1.0]).repeat(8000)
    for preset in RECIPES.values():
        values = MelSpectrogram(preset.features)(loudest).numpy().astype(preset.features.dtype)
        assert np.isfinite(values).all()
