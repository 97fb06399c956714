"""Mel spectrograms of clips, with PyTorch."""

import functools
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kws.recipe import FeatureConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VERSION = 3
"""Part of the fingerprint of tensors: increase it when the same recording gives different features, or becomes
unreadable."""


def mel_filters(config: FeatureConfig) -> npt.NDArray[np.float32]:
    """Returns the triangular mel filters of `torchaudio.functional.melscale_fbanks`, float32 [bins, num_mels]."""
    to_mel, to_hertz = _MEL_SCALES[config.mel_scale]
    mels = np.linspace(to_mel(config.f_min), to_mel(config.f_max), config.num_mels + 2)
    edges = to_hertz(mels)
    bins = np.linspace(0, config.sample_rate // 2, config.n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges[:-1])
    falling = (edges[2:] - bins) / np.diff(edges[1:])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _slaney_mel(hertz: float) -> float:
    """Converts Hz to mels of Slaney's scale: linear up to 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _slaney_hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))


_MEL_SCALES: dict[str, tuple[Callable[[float], float], Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]]]
_MEL_SCALES = {
    "slaney": (_slaney_mel, _slaney_hertz),
    "htk": (lambda hertz: 2595 * math.log10(1 + hertz / 700), lambda mels: 700 * (10 ** (mels / 2595) - 1)),
}


class MelSpectrogram:
    """Computes the mel spectrogram of `torchaudio.transforms.MelSpectrogram`, and its logarithm if the settings say so.

    The power spectrum over centred Hann windows with reflected edges is multiplied by a bank of triangular mel filters.
    On one thread this is several times as fast as torchaudio: it computes a few clips at a time, in reused memory that
    fits the cache, and multiplies groups of filters by only the bins that they span.

    An instance must not be used by two threads at the same time, as they would share its buffers.
    """

    BATCH = 8
    """Number of clips computed at a time, so that the working set fits a core's cache."""

    GROUP = 16
    """Number of filters per matrix product. Fewer would skip more zeros, but small products are slow."""

    def __init__(self, config: FeatureConfig, device: "torch.device | str" = "cpu") -> None:
        import torch

        self.config = config
        self.window = torch.hann_window(config.win_length, device=device)
        self.filters = torch.from_numpy(mel_filters(config)).to(device)
        # The squares of the real and imaginary part of a bin have the same weight, so the products sum them as well.
        weights = self.filters.repeat_interleave(2, dim=0)
        self._groups: list[tuple[slice, slice, Tensor]] = []
        for first in range(0, config.num_mels, self.GROUP):
            filters = slice(first, first + self.GROUP)
            used = weights[:, filters].any(dim=1).nonzero()
            bins = slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 0)
            self._groups.append((bins, filters, weights[bins, filters].contiguous()))
        before = config.n_fft // 2 - (config.n_fft - config.win_length) // 2
        self._edges = before, config.win_length - before
        self._padded = torch.empty(self.BATCH, config.num_samples + config.win_length, device=device)
        # Zeros after the window instead of around it only change phases, which do not affect the power.
        self._windowed = torch.zeros(self.BATCH, config.num_frames, config.n_fft, device=device)
        self._spectrum = torch.empty(
            self.BATCH, config.num_frames, config.n_fft // 2 + 1, dtype=torch.complex64, device=device
        )

    def __call__(self, waveforms: "Tensor") -> "Tensor":
        """Computes features.

        Args:
            waveforms: float32 [clips, num_samples] in -1 to 1.

        Returns:
            float32 [clips, num_mels, num_frames]: the natural logarithm of mel power + log_offset, or the mel power.
        """
        import torch

        config = self.config
        mel = waveforms.new_empty(len(waveforms), config.num_frames, config.num_mels)
        for few, result in zip(torch.split(waveforms, self.BATCH), torch.split(mel, self.BATCH), strict=True):
            self._compute(few, result.view(-1, config.num_mels))
        return mel.transpose(1, 2)

    def _compute(self, waveforms: "Tensor", mel: "Tensor") -> None:
        """Fills [clips · frames, num_mels] with the features of at most BATCH clips."""
        import torch

        config, clips = self.config, len(waveforms)
        before, behind = self._edges
        padded = self._padded[:clips]
        padded[:, before:-behind] = waveforms
        padded[:, :before] = waveforms[:, 1 : before + 1].flip(1)
        padded[:, -behind:] = waveforms[:, -behind - 1 : -1].flip(1)
        windowed, spectrum = self._windowed[:clips], self._spectrum[:clips]
        frames = padded.unfold(-1, config.win_length, config.hop_length)  # [clips, frames, win_length]
        torch.mul(frames, self.window, out=windowed[:, :, : config.win_length])
        torch.fft.rfft(windowed, out=spectrum)
        squares = torch.view_as_real(spectrum).square_().view(len(mel), -1)  # [clips · frames, 2 · bins]
        for bins, filters, weights in self._groups:
            torch.mm(squares[:, bins], weights, out=mel[:, filters])
        if config.log:
            mel.add_(config.log_offset).log_()


def mel_spectrogram(config: FeatureConfig) -> MelSpectrogram:
    """Returns the cached `MelSpectrogram` of this thread, as making one takes longer than the features of a clip."""
    return _make(config, threading.get_ident())


@functools.cache
def _make(config: FeatureConfig, thread: int) -> MelSpectrogram:
    import torch

    with torch.inference_mode(False):  # or its tensors could not be used outside inference mode
        return MelSpectrogram(config)
