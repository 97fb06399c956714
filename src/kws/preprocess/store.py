"""Features in parts that are named by content: what was computed for a clip serves every data set that has it.

A part is a folder `features/<settings>/<digest of its keys>/` under the data root, written once, with up to PART_CLIPS
clips: their features, keys (see `kws.data.digest`), digests of their sounds, and sums for the normalization. The
settings are those of the features, and the versions of the code.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from kws import files
from kws.config import SILENCE
from kws.data.digest import KEY, Keys
from kws.data.index import Index
from kws.preprocess.audio import read, require_varied
from kws.preprocess.features import BATCH, VERSION, mel_spectrogram
from kws.progress import progress
from kws.recipe import FeatureConfig
from kws.volume import use

log = logging.getLogger(__name__)

PART_CLIPS = 16384
"""The most clips of a part: 340 MB of the default features, which two cores compute in some seconds."""

CLIPS_PER_TASK = 256

CLIPS_PER_SUM = 4096

LAYOUT = 1
"""Version of what is in a part."""

FEATURES, KEYS, SOUNDS, SUMS = "features.npy", "keys.npy", "sounds.npy", "sums.npy"
"""Arrays of a part, each [clips, …]: [num_mels, num_frames], as they are stored; KEY, zeros where a clip could not be
read; uint64, 0 where a clip is silence; float64 [2, num_mels], sums of features and of their squares over time."""

NO_KEY = np.zeros((), KEY)

Run = Callable[..., Iterator[Any]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the features of clips are."""

    parts: Mapping[Path, int]
    """The folders of the parts, and the number of clips of each."""
    rows: npt.NDArray[np.int64]
    """The rows of the clips, [clips], counted through all parts; -1 for those that are in none."""

    def take(self, name: str) -> npt.NDArray[Any]:
        """Returns the rows of an array of the parts, [clips, …]; zeros for clips that are in none."""
        folders, ends = list(self.parts), np.cumsum([*self.parts.values()], dtype=np.int64)
        of_part = np.where(self.rows < 0, -1, np.searchsorted(ends, self.rows, side="right"))
        found: npt.NDArray[Any] = np.zeros(len(self.rows))
        for number, part in enumerate(np.unique(of_part[of_part >= 0]).tolist()):
            array = np.load(folders[part] / name, mmap_mode="r")
            found = found if number else np.zeros((len(self.rows), *array.shape[1:]), array.dtype)
            here = np.flatnonzero(of_part == part)
            found[here] = array[self.rows[here] - (ends[part] - len(array))]
        return found

    def total(self, name: str) -> npt.NDArray[np.float64]:
        """Returns the sum of an array over the clips, in their order: the same to the last bit whatever the parts."""
        blocks = np.split(self.rows, range(CLIPS_PER_SUM, len(self.rows), CLIPS_PER_SUM))
        total: npt.NDArray[np.float64] = sum(dataclasses.replace(self, rows=some).take(name).sum(0) for some in blocks)
        return total


class Store:
    """The features of all data sets under a data root, of one setting."""

    def __init__(self, data_root: Path, config: FeatureConfig) -> None:
        settings = json.dumps([VERSION, LAYOUT, dataclasses.asdict(config)], sort_keys=True)
        self.folder = data_root / "features" / hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.config = config

    def find(self, keys: Keys) -> Rows:
        """Returns where the features of clips are; names only the parts that hold some."""
        parts = [path.parent for path in sorted(self.folder.glob(f"[!.]*/{files.MANIFEST}"))]
        columns = [np.load(part / KEYS) for part in parts]
        known = np.concatenate([*columns, np.zeros(1, KEY)])
        order = np.argsort(known, kind="stable")
        at = np.searchsorted(known, keys, sorter=order)
        rows = order[np.minimum(at, len(known) - 1)]
        rows = np.where((known[rows] == keys) & (keys != NO_KEY), rows, -1)
        ends = np.cumsum([len(column) for column in columns], dtype=np.int64)
        of_part = np.searchsorted(ends, rows, side="right")
        counts = np.bincount(of_part[rows >= 0], minlength=len(parts))
        unused = np.cumsum([0 if counts[part] else len(column) for part, column in enumerate(columns)], dtype=np.int64)
        if len(parts):
            rows = np.where(rows >= 0, rows - unused[np.minimum(of_part, len(parts) - 1)], -1)
        used = {part: len(column) for part, column, count in zip(parts, columns, counts, strict=True) if count}
        if not use(self.folder.parents[1], *used):
            return self.find(keys)  # what was deleted meanwhile is computed again
        return Rows(parts=used, rows=rows.astype(np.int64))

    def add(self, recordings: Path, clips: Index, keys: Keys, run: Run) -> dict[bytes, str]:
        """Computes the features of clips that the store lacks.

        Args:
            recordings: the folder of the data set.
            clips: the clips.
            keys: their keys, [clips].
            run: maps a function over tasks, in threads.

        Returns:
            By their keys, why clips cannot be read.
        """
        missing = np.flatnonzero(self.find(keys).rows < 0)
        missing = np.sort(missing[np.unique(keys[missing], return_index=True)[1]])
        if clips.are_rows:  # each group of rows of a table is read once, not once for every split
            missing = missing[np.argsort(clips.take(missing).order())]
        if len(missing) < len(clips):
            log.info("the features of %d of %d clips are there already", len(clips) - len(missing), len(clips))
        reasons: dict[bytes, str] = {}
        with progress(len(missing), "clips", "preprocess") as bar:
            for first in range(0, len(missing), PART_CLIPS):
                some = missing[first : first + PART_CLIPS]
                bad = self._build(recordings, clips.take(some), keys[some], run, bar.update)
                reasons |= {keys[some[row]].tobytes(): reason for row, reason in bad.items()}
        return reasons

    def _build(
        self, recordings: Path, clips: Index, keys: Keys, run: Run, done: Callable[[int], object]
    ) -> dict[int, str]:
        """Writes a part, unless no clip of it can be read; returns the rows of those that cannot, with the reasons."""
        config = self.config
        mel_spectrogram(config)  # made before there are threads, of which each would make its own
        folder = self.folder / hashlib.sha256(keys.tobytes()).hexdigest()[:16]
        bad: dict[int, str] = {}

        def build(staging: Path) -> None:
            array = staging / FEATURES
            shape = (len(clips), config.num_mels, config.num_frames)
            np.lib.format.open_memmap(array, mode="w+", dtype=config.dtype, shape=shape)
            starts = range(0, len(clips), CLIPS_PER_TASK)
            tasks = [_Task(array, row, recordings, clips[row : row + CLIPS_PER_TASK], config) for row in starts]
            filled: list[_Filled] = []
            for task, one in zip(tasks, run(_fill, tasks), strict=True):
                bad.update(one.bad)
                filled.append(one)
                done(len(task.clips))
            if len(bad) == len(clips):
                raise _NoneGood  # another time it may be otherwise
            good = np.isin(np.arange(len(clips)), list(bad), invert=True)
            np.save(staging / KEYS, np.where(good, keys, NO_KEY))
            np.save(staging / SOUNDS, np.concatenate([one.sounds for one in filled]))
            np.save(staging / SUMS, np.concatenate([one.sums for one in filled]))
            about = {"layout": LAYOUT, "features": dataclasses.asdict(config), "num_clips": len(clips)}
            files.write_json(staging / files.MANIFEST, about | {"bad": bad})

        try:
            files.build_folder(folder, build)
        except _NoneGood:
            return bad
        return {int(row): reason for row, reason in files.read_json(folder / files.MANIFEST)["bad"].items()}


class _NoneGood(Exception):
    """No clip of a part can be read."""


@dataclass(frozen=True)
class _Task:
    """Rows of an array for a thread to fill."""

    array: Path
    first_row: int
    recordings: Path
    clips: Index
    config: FeatureConfig


@dataclass(frozen=True)
class _Filled:
    bad: Mapping[int, str]
    """Rows that could not be filled, and why."""
    sounds: npt.NDArray[np.uint64]
    sums: npt.NDArray[np.float64]


def _fill(task: _Task) -> _Filled:
    """Writes the features of a task's clips to their rows, a few clips at a time so that they stay in the cache."""
    spectrogram, config = mel_spectrogram(task.config), task.config
    array = np.load(task.array, mmap_mode="r")
    bad: dict[int, str] = {}
    sounds = np.zeros(len(task.clips), np.uint64)
    sums = np.zeros((len(task.clips), 2, config.num_mels))
    # Rows are written, not memory-mapped: a full disk is then an exception, not a signal that kills the process.
    with task.array.open("r+b") as file, torch.inference_mode():
        file.seek(array.offset + task.first_row * array.strides[0])
        for first in range(0, len(task.clips), BATCH):
            clips = task.clips[first : first + BATCH]
            waveforms = np.zeros((len(clips), config.num_samples), np.float32)
            for index, clip in enumerate(clips):
                try:
                    waveforms[index] = read(task.recordings, clip, config)
                    if clip.word != SILENCE:
                        require_varied(waveforms[index])
                        sounds[first + index] = xxhash.xxh3_64_intdigest(waveforms[index].data)
                except (ValueError, OSError) as error:
                    bad[task.first_row + first + index] = str(error)
            values = spectrogram(torch.from_numpy(waveforms))
            file.write(stored(values, config).data)
            sums[first : first + len(clips), 0] = values.sum(2, dtype=torch.float64)
            sums[first : first + len(clips), 1] = values.square().sum(2, dtype=torch.float64)
    return _Filled(bad, sounds, sums)


def stored(values: Tensor, config: FeatureConfig) -> npt.NDArray[Any]:
    """Returns features [clips, num_mels, num_frames] as they are stored, in the type and order of the array."""
    return values.to(getattr(torch, config.dtype)).contiguous().numpy()
