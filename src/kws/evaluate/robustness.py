"""Robustness: the accuracy on clips that are changed by noise, filters, shifts and gains.

The noise is the part of the background noise that is kept out of training (`classes.HELD_OUT_NOISE`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from kws.data.clip import Clip
from kws.data.sources import list_recordings
from kws.evaluate.accuracy import BATCH, compare
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, read, resample
from kws.preprocess.step import noise_pieces

Change = Callable[[int, Waveform], Waveform]
"""A condition: maps the number of a clip and its waveform to the changed waveform."""


def add_noise(noises: Sequence[Waveform], snr_db: float) -> Change:
    """Returns a condition that adds noise at a signal-to-noise ratio, in dB of mean power over the clip."""

    def change(number: int, waveform: Waveform) -> Waveform:
        noise = noises[number % len(noises)]
        power, noise_power = np.mean(waveform**2), np.mean(noise**2) + 1e-12
        louder = float(np.sqrt(power / noise_power / 10 ** (snr_db / 10)))
        return waveform + noise * np.float32(louder)

    return change


def shift(samples: int) -> Change:
    """Returns a condition that shifts the word later (earlier if negative), and fills the gap with silence."""

    def change(number: int, waveform: Waveform) -> Waveform:
        moved = np.zeros_like(waveform)
        if samples >= 0:
            moved[samples:] = waveform[: waveform.size - samples]
        else:
            moved[:samples] = waveform[-samples:]
        return moved

    return change


def gain(factor: float) -> Change:
    """Returns a condition that scales the waveform, and clips it at full scale as a recorder does."""
    return lambda number, waveform: (waveform * factor).clip(-1, 1)


def bandwidth(sample_rate: int, new_rate: int) -> Change:
    """Returns a condition that limits the bandwidth to that of a lower sample rate, in Hz."""
    return lambda number, waveform: resample(resample(waveform, sample_rate, new_rate), new_rate, sample_rate)


def conditions(recordings: Path, recognizer: AnyRecognizer) -> dict[str, Change]:
    """Returns all conditions by name; those with noise only if the recordings have any."""
    features = recognizer.features
    tenth = features.sample_rate // 10
    found: dict[str, Change] = {
        "clean": lambda number, waveform: waveform,
        "100 ms earlier": shift(-tenth),
        "100 ms later": shift(tenth),
        "half gain": gain(0.5),
        "double gain": gain(2.0),
        "8 kHz": bandwidth(features.sample_rate, 8000),
    }
    noises = [
        piece
        for noise in list_recordings(recordings).noise
        for piece in noise_pieces(recordings / noise, features, held_out=True)
    ]
    if noises:
        found |= {f"noise at {snr} dB": add_noise(noises, snr) for snr in (20, 10, 5, 0)}
    return found


def measure(recognizer: AnyRecognizer, recordings: Path, clips: Sequence[Clip]) -> Mapping[str, float]:
    """Returns the accuracy under every condition, 0 to 1.

    Raises:
        ValueError: a recording cannot be read.
        FileNotFoundError: a recording no longer exists.
    """
    waveforms = [read(recordings, clip, recognizer.features) for clip in clips]
    truth = [clip.label(recognizer.words) for clip in clips]
    found = {}
    for name, change in conditions(recordings, recognizer).items():
        changed = [change(number, waveform) for number, waveform in enumerate(waveforms)]
        heard = [recognizer.predict(np.stack(changed[first : first + BATCH])) for first in range(0, len(clips), BATCH)]
        found[name] = compare(recognizer.words, torch.from_numpy(np.concatenate(heard)), truth, clips).accuracy
    return found
