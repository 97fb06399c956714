"""Mel spectrograms of clips by torchaudio, in preprocessing, training, evaluation and prediction alike.

Two twins compute the same where there is no torch, and are tested against this: `numpy_features`, frame by frame, for
streams, and the graph inside an ONNX file (`kws.model.onnx`).
"""

import functools
import warnings

import torch
import torchaudio
from torch import Tensor

from kws.recipe import FeatureConfig

VERSION = 5
"""Part of the fingerprint of tensors: increase it when the same recording gives different features, or becomes
unreadable."""

BATCH = 8
"""Clips computed at a time: more leave the cache of a core, which makes 64 clips a quarter slower, and 256 a half."""


class MelSpectrogram:
    """`torchaudio.transforms.MelSpectrogram`, and its logarithm if the settings say so.

    What the settings do not name stays at torchaudio's defaults: a Hann window, power 2, centred frames with
    reflected edges, no normalization. The features of a clip do not depend on the batch it is in. Threads may share an
    instance.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        with warnings.catch_warnings():  # four of the baseline's filters lie between two bins and are empty
            warnings.simplefilter("ignore", UserWarning)
            self._power = torchaudio.transforms.MelSpectrogram(
                config.sample_rate,
                n_fft=config.n_fft,
                win_length=config.win_length,
                hop_length=config.hop_length,
                f_min=config.f_min,
                f_max=config.f_max,
                n_mels=config.num_mels,
                mel_scale=config.mel_scale,
            )

    @property
    def filters(self) -> Tensor:
        """The triangular mel filters, float32 [bins, num_mels]."""
        filters: Tensor = self._power.mel_scale.fb
        return filters

    def __call__(self, waveforms: Tensor) -> Tensor:
        """Computes features.

        Args:
            waveforms: float32 [clips, num_samples] in -1 to 1.

        Returns:
            float32 [clips, num_mels, num_frames]: the natural logarithm of mel power + log_offset, or the mel power.
        """
        return torch.cat([self._compute(few) for few in torch.split(waveforms, BATCH)])

    def _compute(self, waveforms: Tensor) -> Tensor:
        power: Tensor = self._power(waveforms)
        return power.add_(self.config.log_offset).log_() if self.config.log else power


@functools.cache
def mel_spectrogram(config: FeatureConfig) -> MelSpectrogram:
    """Returns the cached `MelSpectrogram` of these settings, as making one takes longer than the features of a clip."""
    return MelSpectrogram(config)
