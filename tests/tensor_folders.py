"""Tensors folders, as tests look at them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kws.preprocess.tensors import Tensors


def features_of(folder: Path, split: str) -> npt.NDArray[np.float32]:
    """Returns the features of all clips of a split, [clips, num_mels, num_frames]."""
    opened = Tensors(folder).split(split)
    features: npt.NDArray[Any] = opened.batch(torch.arange(len(opened)))[0].numpy()
    return features


def copy_tensors(folder: Path, data_root: Path) -> Path:
    """Copies tensors with the parts of their features to another data root, and returns the folder there."""
    for name in ("tensors", "features"):
        shutil.copytree(folder.parents[1] / name, data_root / name)
    return data_root / "tensors" / folder.name
