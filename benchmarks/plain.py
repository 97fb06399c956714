"""The plain alternatives to compare with: straightforward code with torchaudio and torch alone."""

from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor, nn
from torch.utils.data import Dataset

from kws.recipe import FeatureConfig


def mel_spectrogram(config: FeatureConfig) -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        f_min=config.f_min,
        f_max=config.f_max,
        n_mels=config.num_mels,
        mel_scale=config.mel_scale,
    )


class Clips(Dataset[tuple[Tensor, int]]):
    """Reads each recording and computes its features on access."""

    def __init__(self, paths: Sequence[Path], config: FeatureConfig) -> None:
        self.paths = list(paths)
        self.words = sorted({path.parent.name for path in paths})
        self.config = config
        self.spectrogram = mel_spectrogram(config)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        samples, _ = soundfile.read(self.paths[index], dtype="float32")
        waveform = torch.from_numpy(samples)[: self.config.num_samples]
        waveform = nn.functional.pad(waveform, (0, self.config.num_samples - len(waveform)))
        features = (self.spectrogram(waveform) + self.config.log_offset).log()
        return features, self.words.index(self.paths[index].parent.name)


class Transformer(nn.Module):
    """`nn.TransformerEncoder` over the frames, their mean, and a linear layer."""

    def __init__(self, config: FeatureConfig, feedforward: int, num_words: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(config.num_mels, 4, feedforward, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(config.num_mels, num_words)

    def forward(self, features: Tensor) -> Tensor:
        """Scores words: [clips, num_mels, num_frames] to [clips, words]."""
        scores: Tensor = self.head(self.encoder(features.transpose(1, 2)).mean(dim=1))
        return scores
