"""Opens a tensors folder of `kws.preprocess.step` for training and evaluation."""

import contextlib
import functools
import logging
import mmap
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kws import files
from kws.config import require_words
from kws.data.digest import Keys
from kws.data.index import Index
from kws.preprocess.speech import ARRAY, TABLE
from kws.preprocess.store import FEATURES, KEYS, Rows
from kws.recipe import FeatureConfig
from kws.settings import from_dict, require

SCHEMA = 3
"""Version of the layout of the folder; those of other versions are made again."""

log = logging.getLogger(__name__)

INDEX = "index.npz"
"""The file with the clips of all splits, in the order of the rows of each; see `kws.data.index`."""


ROWS = "rows.npy"
"""int64 [clips]: the row of each, counted through the parts that the manifest names."""

NOISE = "noise.features.npy"
"""Features of one-second pieces of the background noise, [pieces, num_mels, num_frames]."""


@dataclass(frozen=True)
class Part:
    """Features of some clips."""

    features: Tensor
    """float16 [clips, num_mels, num_frames] (float32 for raw power)."""
    file: mmap.mmap | None = None
    """The file in which they are memory-mapped: reads come from the page cache, and no data loader process copies them.
    None: they are in memory."""
    offset: int = 0
    """Where they begin in the file, in bytes."""

    @staticmethod
    def open(path: Path) -> "Part":
        """Maps a .npy file into memory, to be read at random: reading ahead would read a hundred times as much."""
        # Copy-on-write, as torch wants writable memory; nothing is written, so nothing is copied.
        array = np.load(path, mmap_mode="c")
        file: mmap.mmap = array._mmap
        file.madvise(mmap.MADV_RANDOM)
        return Part(torch.from_numpy(array), file, array.offset)

    def will_need(self, row: int) -> None:
        """Has the features of a clip read, if they are not in the page cache, without waiting for them."""
        if self.file is not None:
            size = self.features[0].nbytes
            first = self.offset + row * size
            aligned = first - first % mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, aligned, first + size - aligned)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The clips of one split."""

    parts: Sequence[Part]
    """The features: memory-mapped files, or for a GPU one part in its memory, if they fit there."""
    rows: Tensor
    """int64 [clips] on the CPU: the rows of the clips, counted through the parts."""
    labels: Tensor
    """int64 [clips], indices into the words."""
    clips: Index
    """The clips, in the order of the rows."""

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers a batch of clips.

        Args:
            indices: int64 [batch] on the CPU.

        Returns:
            Features, float32 [batch, num_mels, num_frames], and labels, int64 [batch], on the device.
        """
        device = self.labels.device
        features = gather(self.parts, self.rows[indices])
        return _sent(features, device).float(), self.labels.index_select(0, _sent(indices, device))

    def will_need(self, indices: Tensor) -> None:
        """Has the features of clips, int64 [batch], read from the disk while something else is computed."""
        if self.parts[0].file is None:  # all are in memory
            return
        for part, row in _places(self.parts, self.rows[indices]):
            part.will_need(row)


def gather(parts: Sequence[Part], rows: Tensor) -> Tensor:
    """Returns rows, int64 [clips] on the CPU, counted through parts, where the parts are."""
    features = parts[0].features
    if features.is_cuda:
        return features.index_select(0, _sent(rows, features.device))
    places = _places(parts, rows)
    for part, row in places:  # all are read at the same time
        part.will_need(row)
    # Twice as fast as selecting from each part at once, and from one as well.
    return torch.stack([part.features[row] for part, row in places])


def _places(parts: Sequence[Part], rows: Tensor) -> list[tuple[Part, int]]:
    """Returns the part of each row, and the row in it."""
    ends = torch.tensor([len(part.features) for part in parts]).cumsum(0)
    of_part = torch.bucketize(rows, ends, right=True)
    within = rows - torch.cat([torch.zeros(1, dtype=torch.int64), ends])[of_part]
    return [(parts[part], row) for part, row in zip(of_part.tolist(), within.tolist(), strict=True)]


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to a device; to a GPU by way of pinned memory, so that the host need not wait for the copy."""
    if tensor.device == device:
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Running speech."""

    features: Tensor
    """float16 [frames, num_mels], the logarithm of mel power, of all recordings one after the other. In each recording
    the sum over the mel bins has the mean 1."""
    usable: Tensor
    """bool [frames], whether no word of the model is spoken there."""
    lengths: Tensor
    """int64 [recordings], the number of frames of each."""

    @property
    def ends(self) -> Tensor:
        """The frame behind each recording, int64 [recordings]."""
        return self.lengths.cumsum(0)


class Tensors:
    """A complete tensors folder."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Opens a tensors folder.

        Args:
            folder: the folder.
            device: where batches are needed.

        Raises:
            ValueError: the folder is not complete, or damaged.
        """
        if not files.is_complete(folder):
            raise ValueError(f"tensors must be a folder that kws preprocess completed, got {str(folder)!r}")
        self.folder = folder
        self.device = torch.device(device)
        self.manifest: dict[str, Any] = files.read_object(
            folder / files.MANIFEST,
            words=list,
            fingerprint=str,
            features=dict,
            normalization=dict,
            counts=dict,
            recordings=dict,
            parts=dict,
        )
        with self._whole(files.MANIFEST):
            require_words(self.manifest["words"])
            self.words: list[str] = self.manifest["words"]
            self.fingerprint: str = self.manifest["fingerprint"]
            self.features = from_dict(FeatureConfig, self.manifest["features"])
            self.mean = torch.tensor(self.manifest["normalization"]["mean"], dtype=torch.float32)
            self.std = torch.tensor(self.manifest["normalization"]["std"], dtype=torch.float32)
            for name, value in (("mean", self.mean), ("std", self.std)):
                fits = value.shape == (self.features.num_mels,) and bool(value.isfinite().all())
                require(fits, name, f"have {self.features.num_mels} numbers", list(value.shape))
            require(bool((self.std > 0).all()), "std", "be positive", float(self.std.min()))

    @contextlib.contextmanager
    def _whole(self, name: str | Path) -> Iterator[None]:
        """Turns errors of the block, which reads a file, into one that names the file and the remedy.

        Args:
            name: the file, in the tensors folder or as a path.
        """
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, EOFError, FileNotFoundError, zipfile.BadZipFile) as error:
            said = f"no {error}" if isinstance(error, KeyError) else error
            path = self.folder / name
            raise ValueError(
                f"{path} must be as kws preprocess wrote it, got {said}: delete {path.parent} and run kws preprocess "
                "again"
            ) from error

    def split(self, name: str, most: int = 0) -> Split:
        """Opens a split.

        Args:
            name: train, validation or test.
            most: if not 0, the number of clips to take, spread evenly over the split.

        Raises:
            ValueError: a file of the split is damaged.
        """
        with self._whole(INDEX):
            of_split = self._index.rows_of_split(name)
            clips = self._index.take(of_split)
            require(len(clips) > 0, f"{name} split", "have clips", 0)
            labels = torch.from_numpy(clips.labels(self.words)).to(self.device)
        with self._whole(ROWS):
            rows = torch.from_numpy(np.load(self.folder / ROWS)[of_split])
            num_rows = sum(len(part.features) for part in self._parts)
            require(bool(((rows >= 0) & (rows < num_rows)).all()), "rows", f"be of {num_rows}", rows.tolist()[:3])
        if most and most < len(clips):
            chosen = torch.linspace(0, len(clips) - 1, most).long()
            rows, labels, clips = rows[chosen], labels[chosen.to(self.device)], clips.take(chosen.numpy())
        parts, features = self._parts, self._parts[0].features
        num_bytes = len(rows) * features[:1].nbytes
        # Half of the memory that is free, as training needs some, too.
        if self.device.type == "cuda" and num_bytes <= torch.cuda.mem_get_info(self.device)[0] // 2:
            resident = torch.empty(len(rows), *features.shape[1:], dtype=features.dtype, device=self.device)
            for first in range(0, len(rows), 4096):
                resident[first : first + 4096] = gather(parts, rows[first : first + 4096])
            parts, rows = [Part(resident)], torch.arange(len(rows))
        return Split(parts=parts, rows=rows, labels=labels, clips=clips)

    def keys(self, split: str = "") -> Keys:
        """Returns what tells apart the sounds of the clips of a split, or of all, [clips]; see `kws.data.digest`.

        Raises:
            ValueError: the tensors or their parts are damaged.
        """
        with self._whole(ROWS):
            rows = np.load(self.folder / ROWS)
            rows = rows[self._index.rows_of_split(split)] if split else rows
            sizes = self.manifest["parts"].values()
            parts = dict(zip(parts_of(self.folder, self.manifest), sizes, strict=True))
            return Rows(parts=parts, rows=rows).take(KEYS)

    @functools.cached_property
    def _parts(self) -> list[Part]:
        """The features, memory-mapped."""
        parts = [self._open(part / FEATURES) for part in parts_of(self.folder, self.manifest)]
        require(len(parts) > 0, f"{self.folder / files.MANIFEST}", "name parts", 0)
        return parts

    @functools.cached_property
    def _index(self) -> Index:
        with self._whole(INDEX):
            return Index.load(self.folder / INDEX)

    def noise(self) -> Tensor | None:
        """Opens the background noise, [pieces, num_mels, num_frames], or returns None if the recordings had none."""
        return self._open(self.folder / NOISE).features.to(self.device) if self.manifest["counts"]["noise"] else None

    def speech(self) -> Speech | None:
        """Opens the running speech, or returns None if the recordings had none, or the recipe did not ask for it.

        On the CPU the features are the memory-mapped file. A GPU has in its memory what fits into a quarter of what is
        free: a step that is captured cannot ask the host.
        """
        if not self.manifest["counts"].get("speech_seconds"):
            return None
        with self._whole(TABLE), np.load(self.folder / TABLE, allow_pickle=False) as stored:
            lengths, usable = torch.from_numpy(stored["lengths"]), torch.from_numpy(stored["usable"])
        shape = (len(usable), self.features.num_mels)
        with self._whole(ARRAY):
            features = torch.from_numpy(np.memmap(self.folder / ARRAY, np.float16, mode="c", shape=shape))
            num_frames = int(lengths.sum())
            require(num_frames == len(usable), "the recordings", f"have {len(usable)} frames", num_frames)
        if self.device.type == "cuda":
            most = torch.cuda.mem_get_info(self.device)[0] // 4 // (2 * self.features.num_mels)  # frames of float16
            kept = max(1, int((lengths.cumsum(0) <= most).sum()))
            if kept < len(lengths):
                log.warning("%d of %d recordings of running speech fit into the GPU's memory", kept, len(lengths))
            lengths = lengths[:kept]
            num_frames = int(lengths.sum())
        return Speech(
            features=features[:num_frames].to(self.device),
            usable=usable[:num_frames].to(self.device),
            lengths=lengths.to(self.device),
        )

    def _open(self, path: Path) -> Part:
        with self._whole(path):
            part, shape = Part.open(path), [self.features.num_mels, self.features.num_frames]
            found = list(part.features.shape[1:])
            require(found == shape, "features", f"have the shape {shape} for each clip", found)
        return part


def parts_of(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """Returns the folders of the parts that the manifest of a tensors folder names."""
    return [folder.parents[1] / "features" / part for part in manifest["parts"]]


def missing_parts(folder: Path) -> list[Path]:
    """Returns the parts of a complete tensors folder that are not there."""
    manifest = files.read_object(folder / files.MANIFEST, parts=dict)
    return [part for part in parts_of(folder, manifest) if not files.is_complete(part)]
