"""Augmentation of features on the training device, drawn anew for every clip and training step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kws.preprocess.features import mel_spectrogram
from kws.recipe import AugmentConfig, FeatureConfig


class Augment:
    """Changes log-mel features as another speaker, place or microphone would."""

    def __init__(self, config: AugmentConfig, features: FeatureConfig, mean: Tensor, noise: Tensor | None) -> None:
        """Initializes the augmentation.

        Args:
            config: what to change, and by how much.
            features: the feature settings.
            mean: [num_mels], the value that fills masked regions.
            noise: features of background noise, [pieces, num_mels, num_frames], or None to add no noise.

        Raises:
            ValueError: `config` changes something, but the features are not logarithmic.
        """
        if config.is_on and not features.log:
            raise ValueError("log must be True where clips are augmented, got False")
        self.config = config
        self.offset = features.log_offset
        self.mean = mean[:, None]
        self.silence = float(torch.tensor(features.log_offset).log())
        self.noise = noise if config.noise_probability else None
        centres = mel_spectrogram(features).filters.argmax(dim=0) * (features.sample_rate / features.n_fft)
        self.first_cut = int((centres < config.bandlimit_hz).sum())
        """Lowest mel bin at which a band limit may cut."""

    def __call__(self, features: Tensor) -> Tensor:
        """Returns augmented features.

        Args:
            features: float32 [clips, num_mels, num_frames].
        """
        config = self.config
        if config.time_shift or config.time_stretch or config.frequency_warp:
            features = self._warp(features)
        if any(config.gain_db) or self.noise is not None:
            features = self._change_power(features)
        if config.bandlimit_probability:
            features = self._limit_band(features)
        for _ in range(config.num_time_masks):
            features = self._mask(features, config.time_mask, axis=2)
        for _ in range(config.num_frequency_masks):
            features = self._mask(features, config.frequency_mask, axis=1)
        return features

    def _warp(self, features: Tensor) -> Tensor:
        """Shifts and stretches the time axis and stretches the mel axis, by linear interpolation.

        Frames from outside the clip are filled with silence, bins from outside the mel axis with the highest bin.
        """
        clips, mels, frames = features.shape
        config, device = self.config, features.device
        shift = uniform((clips,), -config.time_shift, config.time_shift, device) * (2 / (frames - 1))
        rate = torch.exp(uniform((clips,), -config.time_stretch, config.time_stretch, device))
        time = torch.linspace(-1, 1, frames, device=device) * rate[:, None] - shift[:, None]  # [clips, frames]
        features = _interpolate(features, time, fill=self.silence)
        if config.frequency_warp:
            warp = torch.exp(uniform((clips,), -config.frequency_warp, config.frequency_warp, device))
            bins = (torch.linspace(0, 2, mels, device=device) * warp[:, None] - 1).clamp(max=1)  # anchored at 0 Hz
            features = _interpolate(features.transpose(1, 2), bins, fill=self.silence).transpose(1, 2)
        return features

    def _change_power(self, features: Tensor) -> Tensor:
        """Changes the level and adds background noise, in the power domain: powers of independent sounds add up."""
        config, clips, device = self.config, len(features), features.device
        power = (features.exp() - self.offset).clamp_(min=0)
        if any(config.gain_db):
            power *= power_ratio(uniform((clips, 1, 1), *config.gain_db, device))
        if self.noise is not None:
            pieces = torch.randint(len(self.noise), (clips,), device=device)
            noise = (self.noise.index_select(0, pieces).float().exp() - self.offset).clamp_(min=0)
            snr = power_ratio(uniform((clips, 1, 1), *config.noise_snr_db, device))
            scale = _mean(power) / (_mean(noise).clamp(min=self.offset) * snr)
            scale *= torch.rand(clips, 1, 1, device=device) < config.noise_probability
            power += noise.mul_(scale)
        return power.add_(self.offset).log_()

    def _limit_band(self, features: Tensor) -> Tensor:
        """Silences all bins above a random one in some of the clips."""
        clips, mels, device = len(features), features.size(1), features.device
        cut = torch.randint(self.first_cut, mels + 1, (clips, 1), device=device)
        cut = cut.masked_fill(torch.rand(clips, 1, device=device) >= self.config.bandlimit_probability, mels)
        silenced = torch.arange(mels, device=device) >= cut  # [clips, mels]
        return features.masked_fill(silenced[:, :, None], self.silence)

    def _mask(self, features: Tensor, longest: int, axis: int) -> Tensor:
        """Replaces one random span of an axis by the mean, as SpecAugment does (arXiv 1904.08779).

        torchaudio's masks are not the same: they fill with one number, where this fills with the mean of each mel bin.
        """
        clips, device = len(features), features.device
        size = features.size(axis)
        length = torch.randint(longest + 1, (clips, 1), device=device)
        start = (torch.rand(clips, 1, device=device) * (size - length + 1)).long()
        place = torch.arange(size, device=device)
        masked = (place >= start) & (place < start + length)  # [clips, size]
        return torch.where(masked[:, None, :] if axis == 2 else masked[:, :, None], self.mean, features)


def uniform(shape: Sequence[int], low: float, high: float, device: torch.device) -> Tensor:
    """Draws numbers between two limits."""
    return torch.empty(shape, device=device).uniform_(low, high)


def power_ratio(decibels: Tensor) -> Tensor:
    """Converts decibels to ratios of power."""
    return 10 ** (decibels / 10)


def _mean(power: Tensor) -> Tensor:
    """Averages [clips, num_mels, num_frames] within each clip: [clips, 1, 1]."""
    return power.mean(dim=(1, 2), keepdim=True)


def _interpolate(values: Tensor, places: Tensor, fill: float) -> Tensor:
    """Interpolates values [clips, channels, length] linearly at places [clips, new length].

    Places -1 and 1 are the first and the last value; outside them the result is `fill`. The interpolation is a matrix
    product with hat functions, which for spectrograms is several times faster than gathering neighbours, on a CPU and
    on a GPU.
    """
    length = values.size(2)
    index = (places + 1) * ((length - 1) / 2)
    weights = (1 - (index[:, None] - torch.arange(length, device=values.device)[:, None]).abs()).clamp_(min=0)
    return ((values - fill) @ weights).add_(fill)
