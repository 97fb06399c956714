"""Throughput of preprocessing, from WAV files in the page cache to the finished tensors folder."""

import os
import shutil
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


def of_added(effort: Effort) -> Row:
    """Preprocessing a folder after 1 % of its recordings were added, against preprocessing all of them."""
    recordings = measure.many_recordings()
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as scratch:
        before = Path(scratch) / "before"
        for number, path in enumerate(_clips(recordings)):
            if number % 100:
                target = before / "recordings" / path.relative_to(recordings)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
        preprocess(before / "recordings", before / "data", words="auto")

        def add() -> float:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                shutil.copytree(before / "data" / "features", Path(folder) / "features", copy_function=os.link)
                return _seconds(recordings, Path(folder))

        def anew() -> float:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                return _seconds(recordings, Path(folder))

        seconds = measure.in_turns(add, anew, min(3, effort.repeats))
    return Row(row="preprocess_added_vs_anew", goal=0.3, at_most=True, unit="s", **seconds)


def growth(effort: Effort) -> Row:
    """Time of a clip among 20,000 against one among 4,000."""
    few, many = (measure.many_recordings(number) for number in (4_000, 20_000))
    times = measure.in_turns(
        lambda: 1e6 / _preprocess(many), lambda: 1e6 / _preprocess(few), repeats=min(3, effort.repeats)
    )
    return Row(row="preprocess_time_growth", goal=1.1, at_most=True, unit="µs/clip", **times)


def _clips(recordings: Path) -> list[Path]:
    words = [folder.name for folder in recordings.iterdir() if folder.is_dir()]
    return [recordings / clip.file for clip in list_recordings(recordings).clips.of_words(words)]


def _preprocess(recordings: Path) -> float:
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        return len(_clips(recordings)) / _seconds(recordings, Path(folder))


def _seconds(recordings: Path, data_root: Path) -> float:
    started = time.perf_counter()
    preprocess(recordings, data_root, words="auto")
    return time.perf_counter() - started


def _plain(clips: Sequence[Path]) -> float:
    dataset = plain.Clips(clips, FEATURES)
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        started = time.perf_counter()
        for index in range(len(dataset)):
            torch.save(dataset[index], f"{folder}/{index}.pt")
        return len(dataset) / (time.perf_counter() - started)
