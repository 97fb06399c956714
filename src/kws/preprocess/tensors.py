"""Tensors that `kws.preprocess.step` made, opened for training and evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kws import files
from kws.config import FeatureConfig, from_dict


@dataclass(frozen=True, kw_only=True)
class Split:
    """The clips of one split.

    On the CPU the features are the file itself, mapped into memory: what is read is page cache and no data loader
    process copies it. On a GPU they are on the device, whole.
    """

    features: Tensor
    """float16 [clips, num_mels, num_frames] (float32 for raw power)"""
    labels: Tensor
    """int64 [clips]"""
    clips: list[str]
    """Clip ids."""

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Gathers clips.

        Args:
            indices: int64 [batch] on the CPU.

        Returns:
            float32 [batch, num_mels, num_frames] and int64 [batch], on the device.
        """
        indices = indices.to(self.features.device)
        return self.features.index_select(0, indices).float(), self.labels.index_select(0, indices)


class Tensors:
    """A complete folder of tensors."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Opens a folder.

        Raises:
            ValueError: the folder is not complete.
        """
        if not files.is_complete(folder):
            raise ValueError(f"tensors must be a folder that kws preprocess completed, got {str(folder)!r}")
        self.folder = folder
        self.device = torch.device(device)
        self.manifest: dict[str, Any] = files.read_json(folder / files.MANIFEST)
        self.words: list[str] = self.manifest["words"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.features = from_dict(FeatureConfig, self.manifest["features"])
        self.mean = torch.tensor(self.manifest["normalization"]["mean"])
        self.std = torch.tensor(self.manifest["normalization"]["std"])

    def split(self, name: str, most: int = 0) -> Split:
        """Opens train, validation or test; with `most`, only that many clips, spread evenly over the split."""
        features = self._open(f"{name}.features.npy")
        labels = torch.from_numpy(np.load(self.folder / f"{name}.labels.npy")).to(self.device)
        clips = files.read_json(self.folder / f"{name}.clips.json")
        if most and most < len(clips):
            chosen = torch.linspace(0, len(clips) - 1, most).long()
            features, labels = features[chosen.to(self.device)], labels[chosen.to(self.device)]
            clips = [clips[index] for index in chosen.tolist()]
        return Split(features=features, labels=labels, clips=clips)

    def noise(self) -> Tensor | None:
        """Opens the background noise, [pieces, num_mels, num_frames], or None where the recordings had none."""
        return self._open("noise.features.npy") if self.manifest["counts"]["noise"] else None

    def _open(self, name: str) -> Tensor:
        # Copy-on-write, as torch wants writable memory: nothing writes, so nothing is copied.
        array = torch.from_numpy(np.load(self.folder / name, mmap_mode="c"))
        return array if self.device.type == "cpu" else array.to(self.device)
