"""Features of the compiled kernel, compared with those of PyTorch, which a recognizer uses."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchaudio

from kws.preprocess.audio import read_clip
from kws.preprocess.feature_kernel import FeatureKernel
from kws.preprocess.features import MelSpectrogram
from kws.recipe import RECIPES, FeatureConfig

OTHERS = [
    FeatureConfig(n_fft=400),
    FeatureConfig(n_fft=1024),
    FeatureConfig(n_fft=1024, win_length=640, hop_length=160),
    FeatureConfig(n_fft=442, win_length=299, hop_length=77, num_mels=40),
    FeatureConfig(num_samples=12_345),
    FeatureConfig(sample_rate=8000, num_samples=8000, f_max=4000),
    FeatureConfig(hop_length=1000, num_samples=300),
]

ROUNDING = 2**-8
"""Half a step of float16 around -13, which quiet bins have. Two transforms in float32 differ by up to that in bins that
hear little beside loud ones: by the rounding of these, 60 dB and more above the offset of the logarithm."""


def compute(
    waveforms: npt.NDArray[np.float32], config: FeatureConfig, dtype: str = "float32"
) -> npt.NDArray[np.generic]:
    features = np.full((len(waveforms), config.num_mels, config.num_frames), np.nan, dtype)
    FeatureKernel(config)(waveforms, features)
    return features


def noise(config: FeatureConfig, num_clips: int = 3) -> npt.NDArray[np.float32]:
    samples = np.random.default_rng(0).standard_normal((num_clips, config.num_samples), np.float32)
    return samples * np.float32(0.1)


def assert_close_to_torch(waveforms: npt.NDArray[np.float32], config: FeatureConfig, tolerance: float) -> None:
    expected = MelSpectrogram(config)(torch.from_numpy(waveforms)).numpy()
    features = compute(waveforms, config)
    if config.log:
        np.testing.assert_allclose(features, expected, atol=tolerance, rtol=0)
    else:
        np.testing.assert_allclose(features, expected, atol=1e-3, rtol=tolerance)


@pytest.mark.parametrize("preset", ["default", "baseline"])
@pytest.mark.parametrize("recordings", ["real_corpus", "real_digits"])
def test_features_of_real_clips_are_those_of_torch(
    preset: str, recordings: str, request: pytest.FixtureRequest
) -> None:
    config = RECIPES[preset].features
    folder: Path = request.getfixturevalue(recordings)
    paths = [path for word in sorted(folder.glob("[a-z]*/")) for path in islice(sorted(word.glob("*.wav")), 5)]
    assert len(paths) >= 10
    assert_close_to_torch(np.stack([read_clip(path, config) for path in paths]), config, ROUNDING)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_features_of_silence_noise_and_single_samples_are_those_of_torch(preset: str) -> None:
    config = RECIPES[preset].features
    time = np.arange(16_000)
    random = np.random.default_rng(0)
    waveforms = [np.zeros(16_000), 1e-4 * random.standard_normal(16_000), random.uniform(-1, 1, 16_000)]
    waveforms += [time == place for place in (0, 7, 8000, 15_999)]
    assert_close_to_torch(np.stack(waveforms).astype(np.float32), config, 1e-3)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_features_of_full_scale_tones_are_as_exact_as_a_transform_in_float32_can_be(preset: str) -> None:
    config = RECIPES[preset].features
    time = np.arange(16_000)
    tones = [np.ones(16_000), np.where(time % 2, 1, -1), np.where(time // 20 % 2, 1, -1), np.sin(0.3 * time)]
    waveforms = np.stack(tones).astype(np.float32)
    exactly = torchaudio.transforms.MelSpectrogram(
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        f_min=config.f_min,
        f_max=config.f_max,
        n_mels=config.num_mels,
        mel_scale=config.mel_scale,
    ).double()
    exactly.spectrogram.window = torch.hann_window(config.win_length, dtype=torch.float64)
    power = exactly(torch.from_numpy(waveforms).double()).numpy()
    expected = np.log(power + config.log_offset) if config.log else power
    np.testing.assert_allclose(compute(waveforms, config), expected, atol=3e-3, rtol=0 if config.log else 1e-3)
    assert_close_to_torch(waveforms, config, ROUNDING)


@pytest.mark.parametrize("config", OTHERS)
def test_features_of_other_settings_are_those_of_torch(config: FeatureConfig) -> None:
    assert_close_to_torch(noise(config), config, 1e-3)


@pytest.mark.parametrize("preset", ["default", "baseline"])
def test_a_clip_gives_the_same_bits_wherever_it_stands(preset: str) -> None:
    config = RECIPES[preset].features
    waveforms = noise(config, 5)
    together = compute(waveforms, config)
    np.testing.assert_array_equal(compute(waveforms[::-1].copy(), config)[::-1], together)
    for waveform, expected in zip(waveforms, together, strict=True):
        np.testing.assert_array_equal(compute(waveform[None], config)[0], expected)


def test_halves_are_rounded_as_numpy_rounds() -> None:
    # Levels at which the logarithm crosses zero, and lies around the smallest numbers of a half.
    config = FeatureConfig(log_offset=1.0)
    waveforms = noise(config, 40) * np.logspace(-8, 1, 40, dtype=np.float32)[:, None]
    features = compute(waveforms, config)
    assert (np.abs(features[features != 0]) < 2**-14).any()
    assert (features > 4).any()
    np.testing.assert_array_equal(compute(waveforms, config, "float16"), features.astype(np.float16))
    config = FeatureConfig()
    waveforms = noise(config)
    np.testing.assert_array_equal(compute(waveforms, config, "float16"), compute(waveforms, config).astype(np.float16))


def test_sums_are_those_of_the_clips_that_count() -> None:
    config = FeatureConfig()
    waveforms = noise(config, 6)
    counted = np.array([True, False, True, True, False, True])
    features = np.empty((6, config.num_mels, config.num_frames), np.float16)
    sums = np.full((2, config.num_mels), 1000.0)
    kernel = FeatureKernel(config)
    kernel(waveforms, features, counted, sums)
    kernel(waveforms, features)
    exact = compute(waveforms, config)[counted].astype(np.float64)
    np.testing.assert_allclose(sums[0] - 1000, exact.sum(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(sums[1] - 1000, np.square(exact).sum(axis=(0, 2)), rtol=1e-5)


def test_plain_recordings_are_preprocessed_without_torch(tone_corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "import kws.preprocess.features; from kws.preprocess.step import preprocess\n"
        "assert not {'numba', 'torch'} & set(sys.modules)\n"
        "preprocess(Path(sys.argv[1]), Path(sys.argv[2]), words='auto', num_processes=1)\n"
        "assert 'numba' in sys.modules and 'torch' not in sys.modules"
    )
    # A folder that cannot be written to, as in a container: nothing that is compiled needs to be kept.
    subprocess.run([sys.executable, "-c", code, tone_corpus, tmp_path], check=True, env={"HOME": "/nonexistent"})
