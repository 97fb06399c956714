"""Features of running speech, from which training composes streams: long recordings in one array."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kws.config import RUNNING_SPEECH
from kws.data.listing import Listing
from kws.data.speech import Talk
from kws.download.sentences import Sentence, speak_sentences
from kws.preprocess.audio import read_waveform
from kws.preprocess.features import mel_spectrogram
from kws.progress import progress
from kws.recipe import FeatureConfig
from kws.text import printable

log = logging.getLogger(__name__)

ARRAY = "speech.features"
"""float16 [frames, num_mels], without a header: the logarithm of mel power of all recordings, one after the other."""

TABLE = "speech.npz"
"""`lengths`, int64 [recordings], in frames; `usable`, bool [frames]: no word of the model is spoken there."""

BLOCK_SECONDS = 30
"""Seconds that are computed at a time."""

NUM_SENTENCES = 240
"""Sentences by synthetic voices where there is no running speech."""

QUIET = 1e-3
"""Speech begins with the first frame, and ends with the last, whose power is above this share of the loud ones'."""

Run = Callable[..., Iterator[Any]]


def save_speech(
    listing: Listing, folder: Path, features: FeatureConfig, words: Sequence[str], run: Run
) -> tuple[int, dict[str, str]]:
    """Saves the running speech of the training split; if there is none, sentences by synthetic voices.

    Args:
        listing: the recordings.
        folder: where to write ARRAY and TABLE.
        features: the feature settings.
        words: the words of the model; where a text has one of them, the speech is not usable as speech without it.
        run: maps a function over recordings, in threads.

    Returns:
        The number of seconds, and the recordings that cannot be read, with the reasons.
    """
    talks: list[Talk | Sentence] = [talk for talk in listing.speech if talk.split == "train"]
    if not talks:
        log.warning(
            "there is no running speech in %s (%s): synthetic voices read %d sentences, which are no substitute for it",
            printable(listing.folder),
            RUNNING_SPEECH,
            NUM_SENTENCES,
        )
        talks += speak_sentences(NUM_SENTENCES, features.sample_rate, [0], without=words)
    lengths: list[int] = []
    usable: list[npt.NDArray[np.bool_]] = []
    reasons: dict[str, str] = {}
    with (folder / ARRAY).open("wb") as file, progress(len(talks), "recordings", "running speech") as bar:
        for talk, (frames, free, reason) in zip(
            talks, run(partial(_compute, listing.folder, features, words), talks), strict=True
        ):
            if isinstance(talk, Talk) and reason:
                reasons[talk.file] = reason
                log.warning("%s is left out: %s", printable(talk.file), reason)
            else:
                file.write(frames.data)
                lengths.append(len(frames))
                usable.append(free)
            bar.update(1)
    np.savez(
        folder / TABLE,
        lengths=np.array(lengths, np.int64),
        usable=np.concatenate(usable) if usable else np.empty(0, np.bool_),
    )
    return round(sum(lengths) * features.hop_length / features.sample_rate), reasons


def _compute(
    root: Path, features: FeatureConfig, words: Sequence[str], talk: Talk | Sentence
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_], str]:
    """Returns the features of a recording, where it is usable, and why it cannot be read, or an empty text."""
    nothing = np.empty((0, features.num_mels), np.float16), np.empty(0, np.bool_)
    if isinstance(talk, Sentence):
        waveform = talk.sound
    else:
        try:
            waveform = read_waveform(root / talk.file, features.sample_rate)
        except (ValueError, OSError) as error:
            return *nothing, str(error)
    size = BLOCK_SECONDS * features.sample_rate // features.hop_length * features.hop_length
    spectrogram = mel_spectrogram(features)
    parts = []
    for first in range(0, waveform.size, size):
        block = waveform[first : first + size]
        if block.size > features.n_fft:  # reflected edges need as much
            parts.append(spectrogram(torch.from_numpy(block)[None])[0, :, : block.size // features.hop_length].T)
    if not parts:
        return *nothing, f"it must be longer than {features.n_fft} samples, got {waveform.size}"
    power = (torch.cat(parts).exp() - features.log_offset).clamp_(min=0)
    energy = power.sum(1)
    mean = float(energy.mean())
    if mean <= features.log_offset:
        return *nothing, "it is silent"
    free = np.ones(len(power), np.bool_)
    per_second = features.sample_rate / features.hop_length
    loud = (energy > QUIET * energy.quantile(0.95)).nonzero()[:, 0]
    if isinstance(talk, Talk):
        for begin, end in talk.stretches_of(words, int(loud[0]) / per_second, (int(loud[-1]) + 1) / per_second):
            free[max(0, int(begin * per_second)) : int(end * per_second) + 1] = False
    # What is 80 dB below the mean is silence; the logarithm must fit into float16.
    return (power / mean).add_(1e-8).log_().to(torch.float16).numpy(), free, ""
