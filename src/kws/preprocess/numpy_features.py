"""The numpy twin of `features`, for machines without torch: mel spectra of single frames, as a stream needs them."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kws.recipe import FeatureConfig

Floats = npt.NDArray[np.float32]


class MelSpectrogram:
    """`kws.preprocess.features.MelSpectrogram` without its edges: frames of whole windows, not of clips."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        angle = 2 * np.pi / config.win_length
        self._places = np.arange(config.win_length)
        self._window = (0.5 - 0.5 * np.cos(angle * self._places)).astype(np.float32)
        self._filters = mel_filters(config)

    def __call__(self, samples: Floats) -> Floats:
        """Computes a frame for every window that lies within float32 [samples]: float32 [frames, num_mels].

        Zeros behind a window instead of around it, as torchaudio pads it to n_fft, only change the phases.
        """
        config = self.config
        starts = np.arange(0, samples.size - config.win_length + 1, config.hop_length)
        frames = samples[starts[:, None] + self._places]  # sliding_window_view takes longer for a stream's few frames
        spectrum = np.fft.rfft(frames * self._window, config.n_fft)
        mel: Floats = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(
            np.float32, copy=False
        ) @ self._filters
        return np.log(mel + np.float32(config.log_offset)) if config.log else mel


def mel_filters(config: FeatureConfig) -> Floats:
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
