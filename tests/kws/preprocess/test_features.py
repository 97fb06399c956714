"""Features are torchaudio's, bit for bit; those of the numpy twin are the same but for rounding."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio

from kws.preprocess import numpy_features
from kws.preprocess.audio import read_clip
from kws.preprocess.features import BATCH, MelSpectrogram, mel_spectrogram
from kws.recipe import RECIPES, FeatureConfig

SETTINGS = [
    FeatureConfig(),
    RECIPES["baseline"].features,
    FeatureConfig(n_fft=400),
    FeatureConfig(n_fft=1024, win_length=640, hop_length=160, num_mels=40),
    FeatureConfig(n_fft=442, win_length=299, hop_length=77, num_mels=40),
    FeatureConfig(sample_rate=8000, num_samples=8000, f_max=4000),
    FeatureConfig(num_samples=12_345),
    FeatureConfig(hop_length=1000, num_samples=300),
]


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
        norm=None,
        power=2.0,
        center=True,
        pad_mode="reflect",
    )(waveforms)
    return (power + config.log_offset).log() if config.log else power


def waveforms_for(config: FeatureConfig) -> torch.Tensor:
    """Noise, faint noise, silence, a single sample, and tones at full scale."""
    random, size = torch.Generator().manual_seed(0), config.num_samples
    time = torch.arange(size)
    return torch.stack(
        [
            torch.randn(size, generator=random).clamp(-1, 1),
            1e-4 * torch.randn(size, generator=random),
            torch.zeros(size),
            (time == size // 2).float(),
            torch.sin(0.3 * time),
            1 - 2.0 * (time % 2),
        ]
    )


@pytest.mark.parametrize("config", SETTINGS)
def test_features_are_the_bits_of_torchaudio(config: FeatureConfig) -> None:
    waveforms = waveforms_for(config)
    values = MelSpectrogram(config)(waveforms)
    assert values.shape == (len(waveforms), config.num_mels, config.num_frames)
    torch.testing.assert_close(values, reference(waveforms, config), atol=0, rtol=0)


@pytest.mark.parametrize("preset", ["default", "baseline"])
@pytest.mark.parametrize("recordings", ["real_corpus", "real_digits"])
def test_features_of_real_clips_are_the_bits_of_torchaudio(
    preset: str, recordings: str, request: pytest.FixtureRequest
) -> None:
    config = RECIPES[preset].features
    folder: Path = request.getfixturevalue(recordings)
    paths = [path for word in sorted(folder.glob("[a-z]*/")) for path in islice(sorted(word.glob("*.wav")), 5)]
    assert len(paths) > BATCH
    waveforms = torch.from_numpy(np.stack([read_clip(path, config) for path in paths]))
    alone = torch.cat([reference(waveform[None], config) for waveform in waveforms])
    torch.testing.assert_close(MelSpectrogram(config)(waveforms), alone, atol=0, rtol=0)


def test_baseline_is_what_torchaudio_gives_with_its_own_defaults() -> None:
    waveforms = waveforms_for(FeatureConfig())
    expected = torchaudio.transforms.MelSpectrogram(n_mels=128)(waveforms)
    torch.testing.assert_close(MelSpectrogram(RECIPES["baseline"].features)(waveforms), expected, atol=0, rtol=0)


@pytest.mark.parametrize(("preset", "num_empty"), [("default", 0), ("baseline", 4)])
def test_default_filter_bank_has_no_empty_filter_where_the_baseline_has_four(preset: str, num_empty: int) -> None:
    filters = MelSpectrogram(RECIPES[preset].features).filters
    assert filters.shape[1] == 128
    assert int((filters.sum(dim=0) == 0).sum()) == num_empty


@pytest.mark.filterwarnings("error")
def test_empty_filters_of_the_baseline_are_no_warning_to_the_user() -> None:
    MelSpectrogram(RECIPES["baseline"].features)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_a_second_gives_128_bins_and_81_frames(preset: str) -> None:
    config = RECIPES[preset].features
    assert (config.num_mels, config.num_frames, config.hop_length) == (128, 81, 200)
    assert mel_spectrogram(config)(torch.zeros(1, 16_000)).shape == (1, 128, 81)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_a_clip_gives_the_same_bits_wherever_it_stands(preset: str) -> None:
    waveforms = 0.1 * torch.randn(11, 16_000, generator=torch.Generator().manual_seed(0))
    spectrogram = MelSpectrogram(RECIPES[preset].features)
    together = spectrogram(waveforms)
    assert torch.equal(spectrogram(waveforms.flip(0)).flip(0), together)
    assert torch.equal(torch.cat([spectrogram(waveform[None]) for waveform in waveforms]), together)


def test_stored_types_hold_the_loudest_clip() -> None:
    loudest = torch.ones(1, 16_000) * torch.tensor([1.0, -1.0]).repeat(8000)
    for recipe in RECIPES.values():
        values = MelSpectrogram(recipe.features)(loudest).numpy().astype(recipe.features.dtype)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("config", SETTINGS)
def test_filters_of_the_numpy_twin_are_those_of_torchaudio(config: FeatureConfig) -> None:
    expected = MelSpectrogram(config).filters
    found = torch.from_numpy(numpy_features.mel_filters(config))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", SETTINGS)
def test_frames_of_the_numpy_twin_are_those_of_torchaudio_within_rounding(config: FeatureConfig) -> None:
    waveforms = waveforms_for(config)
    edge = config.n_fft // 2
    padded = torch.nn.functional.pad(waveforms, (edge, edge), mode="reflect").numpy()
    margin = (config.n_fft - config.win_length) // 2  # torchaudio centres a window shorter than n_fft
    twin = numpy_features.MelSpectrogram(config)
    for samples, exact in zip(padded, reference(waveforms, config), strict=True):
        frames = twin(samples[margin:])[: config.num_frames].T
        # Two transforms in float32 differ by their rounding in bins that hear little beside loud ones.
        tolerance = {"atol": 4e-3, "rtol": 0.0} if config.log else {"atol": 1e-3, "rtol": 1e-3}
        np.testing.assert_allclose(frames, exact.numpy(), **tolerance)
