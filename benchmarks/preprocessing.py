"""Throughput of preprocessing, from WAV files in the page cache to the finished tensors folder."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import measure, plain
from benchmarks.measure import Effort, Row
from kws.cores import num_cores
from kws.data.sources import list_recordings
from kws.preprocess.step import preprocess
from kws.recipe import RECIPES

FEATURES = RECIPES["default"].features


def versus_plain(effort: Effort) -> Row:
    """Against soundfile, torchaudio and torch.save, clip by clip."""
    recordings = measure.many_recordings()
    clips = _clips(recordings)[: 200 * effort.steps]
    with measure.threads(num_cores()):
        rates = measure.in_turns(lambda: _preprocess(recordings), lambda: _plain(clips), effort.repeats)
    return Row(row="preprocess_vs_plain", goal=5, unit="clips/s", **rates)


def _clips(recordings: Path) -> list[Path]:
    words = [folder.name for folder in recordings.iterdir() if folder.is_dir()]
    return [recordings / clip.file for clip in list_recordings(recordings).clips_of(words)]


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
