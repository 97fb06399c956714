"""Throughput of preprocessing, from WAV files in the page cache to the finished tensors folder."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure, plain
from benchmarks.measure import Effort, Row
from kws.cores import num_cores
from kws.download.recordings import list_recordings
from kws.preprocess.features import MelSpectrogram
from kws.preprocess.step import CLIPS_PER_TASK, PRELOAD, preprocess, workers
from kws.recipe import RECIPES, FeatureConfig

FEATURES = RECIPES["default"].features


def versus_plain(effort: Effort) -> Row:
    """Against soundfile, torchaudio and torch.save, clip by clip."""
    _start_server()
    recordings = measure.many_recordings()
    clips = _clips(recordings)[: 200 * effort.steps]
    with measure.threads(num_cores()):
        rates = measure.in_turns(lambda: _preprocess(recordings), lambda: _plain(clips), effort.repeats)
    return Row(row="preprocess_vs_plain", goal=12, unit="clips/s", **rates)


def versus_limit(effort: Effort) -> Row:
    """Against reading the bytes, the window and the Fourier transform alone, in as many processes."""
    _start_server()
    recordings = measure.many_recordings()
    clips = _clips(recordings)
    rates = measure.in_turns(lambda: _preprocess(recordings), lambda: _limit(clips), effort.repeats)
    return Row(row="preprocess_vs_limit", goal=0.6, unit="clips/s", **rates)


def _start_server() -> None:
    """Preloads what each worker would import: PyTorch for the limit, and the main module of this program."""
    multiprocessing.set_forkserver_preload([*PRELOAD, "benchmarks.__main__"])
    forkserver.ensure_running()


def _clips(recordings: Path) -> list[Path]:
    words = [folder.name for folder in recordings.iterdir() if folder.is_dir()]
    return [recordings / clip for clip in list_recordings(recordings).clips_of(words)]


def _preprocess(recordings: Path) -> float:
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        started = time.perf_counter()
        preprocess(recordings, Path(folder), words="auto")
        seconds = time.perf_counter() - started
    return len(_clips(recordings)) / seconds


def _plain(clips: Sequence[Path]) -> float:
    dataset = plain.Clips(clips, FEATURES)
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        started = time.perf_counter()
        for index in range(len(dataset)):
            torch.save(dataset[index], f"{folder}/{index}.pt")
        return len(dataset) / (time.perf_counter() - started)


def _limit(clips: Sequence[Path]) -> float:
    started = time.perf_counter()
    with workers(num_cores()) as run:
        parts = [clips[first : first + CLIPS_PER_TASK] for first in range(0, len(clips), CLIPS_PER_TASK)]
        assert sum(run(_read_and_transform, parts)) == len(clips)
    return len(clips) / (time.perf_counter() - started)


def _read_and_transform(clips: Sequence[Path], config: FeatureConfig = FEATURES) -> int:
    """Does only what cannot be left out, in memory that is reused."""
    torch.set_num_threads(1)
    batch = MelSpectrogram.BATCH
    samples = torch.zeros(batch, config.num_samples + config.win_length, dtype=torch.int16)
    rows = samples.numpy()
    frames = samples.unfold(-1, config.win_length, config.hop_length)
    window = torch.hann_window(config.win_length)
    windowed = torch.zeros(batch, config.num_frames, config.n_fft)
    spectrum = torch.empty(batch, config.num_frames, config.n_fft // 2 + 1, dtype=torch.complex64)
    for first in range(0, len(clips), batch):
        for index, clip in enumerate(clips[first : first + batch]):
            descriptor = os.open(clip, os.O_RDONLY)
            clip_samples = np.frombuffer(os.read(descriptor, 1 << 16), "<i2", offset=44)[: config.num_samples]
            os.close(descriptor)
            rows[index, : len(clip_samples)] = clip_samples
        torch.mul(frames, window, out=windowed[:, :, : config.win_length])
        torch.fft.rfft(windowed, out=spectrum)
    return len(clips)
