"""A model and its mel spectrogram as one module, from waveforms to probabilities: what the formats of `formats` export.

The Fourier transform is a matrix product, so that a converter needs no operator for it.
"""

import copy
import math

import torch
from torch import Tensor

from kws.model.bundle import Recognizer
from kws.preprocess.features import mel_spectrogram
from kws.recipe import FeatureConfig
from kws.settings import require


class WaveformToWords(torch.nn.Module):
    """Maps waveforms, float32 [clips, num_samples], to probabilities, float32 [clips, words].

    With features, mel spectrograms that were computed elsewhere, float32 [clips, num_mels, num_frames], their results
    follow those of the waveforms. If tokens get scores, those of every token are a second result: of streams of any
    length, float32 [streams, tokens, words].
    """

    blocks: Tensor
    backwards: Tensor
    cosines: Tensor
    sines: Tensor
    mel_filters: Tensor

    def __init__(self, recognizer: Recognizer) -> None:
        """Copies a model.

        Raises:
            ValueError: the length of its window is odd.
        """
        super().__init__()
        self.probabilities = recognizer.probabilities
        self.model = copy.deepcopy(recognizer.model).cpu().eval()
        self.of_tokens = self.model.config.scores == "tokens"
        self.config = config = recognizer.features
        require(config.win_length % 2 == 0, "win_length", "be even for an export", config.win_length)
        self.reach = config.win_length // 2
        self.block = math.gcd(self.reach, config.hop_length)
        for name, value in _spectrum(config, self.block).items():
            self.register_buffer(name, value)

    def forward(self, waveforms: Tensor, features: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Computes the probabilities of clips, and of features."""
        mel = self.mel(waveforms)
        if features is None:
            return self.probabilities(self.model(mel))
        if self.of_tokens:
            return self.probabilities(self.model(mel)), self.probabilities(self.model.token_scores(features))
        return self.probabilities(self.model(torch.cat((mel, features))))

    def mel(self, waveforms: Tensor) -> Tensor:
        """Computes mel spectrograms, float32 [clips, num_mels, num_frames]."""
        config, half = self.config, self.reach
        edge = config.n_fft // 2
        padded = torch.nn.functional.pad(waveforms[:, None], (edge, edge), mode="reflect")[:, 0]
        behind = self._halves(padded, edge)  # [N, T, win_length / 2], from the middle of a window onwards
        before = self._halves(padded, edge - half + 1)[:, :, self.backwards]
        # About the middle of a window cosines are even and sines odd, so half of the products are enough.
        power = ((behind + before) @ self.cosines).square() + ((behind - before) @ self.sines).square()
        mel = power @ self.mel_filters
        if config.log:
            mel = (mel + config.log_offset).log()
        return mel.transpose(1, 2)

    def _halves(self, padded: Tensor, first: int) -> Tensor:
        """Gathers half windows from blocks of samples; the first half window starts at sample `first`."""
        num_blocks = (self.config.hop_length * (self.config.num_frames - 1) + self.reach) // self.block
        # No -1, which onnxruntime cannot infer if there are no clips.
        blocks = padded[:, first : first + num_blocks * self.block].reshape(padded.size(0), num_blocks, self.block)
        halves: Tensor = blocks[:, self.blocks].reshape(padded.size(0), self.config.num_frames, self.reach)
        return halves


def _spectrum(config: FeatureConfig, block: int) -> dict[str, Tensor]:
    """Returns the constants of the mel spectrogram.

    Returns:
        `blocks`, the blocks of samples in each half window, int64 [frames, win_length / 2 / block]; `cosines` and
        `sines`, the windowed Fourier transform, float32 [win_length / 2, bins]; and `mel_filters`, float32
        [bins, num_mels].
    """
    half = config.win_length // 2
    hop = config.hop_length // block
    angles = 2 * math.pi / config.n_fft * torch.outer(torch.arange(half).double(), torch.arange(config.n_fft // 2 + 1))
    window = torch.hann_window(config.win_length, dtype=torch.float64)[half:, None]
    window[0] /= 2  # the middle is in both halves
    return {
        "backwards": torch.arange(
            half - 1, -1, -1
        ),  # not flip, a slice with a negative step, which not all converters know
        "blocks": hop * torch.arange(config.num_frames)[:, None] + torch.arange(half // block),
        "cosines": (angles.cos() * window).float(),
        "sines": (angles.sin() * window).float(),
        "mel_filters": mel_spectrogram(config).filters,
    }
