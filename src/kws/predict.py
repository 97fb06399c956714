"""Naming the word in recordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kws.audio import read_clip
from kws.bundle import Recognizer
from kws.features import mel_spectrogram


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A word, and how probable the model finds it."""

    word: str
    probability: float


@torch.inference_mode()
def predict(recognizer: Recognizer, path: Path, top: int = 1) -> list[Prediction]:
    """Returns the most probable words of a recording, the most probable first.

    Args:
        recognizer: a model that `kws.bundle.load` read.
        path: a recording of any rate, width and channels; the second with the most energy counts.
        top: how many words.

    Raises:
        ValueError: the file cannot be read as a recording.
        FileNotFoundError: there is no such file.
    """
    waveform = torch.from_numpy(read_clip(path, recognizer.features))
    features = mel_spectrogram(recognizer.features)(waveform[None])
    probabilities = recognizer.probabilities(recognizer.model(features))[0]
    best = probabilities.topk(min(top, len(recognizer.words)))
    return [
        Prediction(word=recognizer.words[index], probability=probability)
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def expand(paths: Sequence[Path]) -> list[Path]:
    """Returns files as they are, and for each folder the WAV files in it, sorted (itself, where it has none)."""
    return [file for path in paths for file in sorted(path.rglob("*.wav")) or [path]]
