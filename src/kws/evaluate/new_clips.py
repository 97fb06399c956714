"""What new clips changed: accuracy on the clips that an earlier version's data had, and apart on those it lacked."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.config import SILENCE
from kws.evaluate.accuracy import Evaluation, wilson
from kws.model import versions
from kws.preprocess.tensors import Tensors

log = logging.getLogger(__name__)

NAMES = ("new", "old")

Apart = Mapping[str, Mapping[str, Any]]
"""`num_clips`, `accuracy` (0 to 1) and its 95 % `interval` of the "new" and of the "old" clips, where there are any."""


def find_new(tensors: Tensors, data_root: Path, version: str) -> npt.NDArray[np.bool_] | None:
    """Tells which clips of the test split were in no split of the data of a version, by their content.

    Silence counts as old: it is cut from noise, and more of it where words have more clips.

    Returns:
        Whether each is new, [clips]; None if none is, or the data of the version is no longer on the volume.
    """
    try:
        name = str(versions.read_manifest(versions.version_folder(data_root, version)).get("about", {}).get("tensors"))
        if name == tensors.fingerprint:
            return None
        known = Tensors(data_root / "tensors" / name).keys()
        is_new = ~np.isin(tensors.keys("test"), known)
    except (OSError, ValueError) as error:
        log.info("accuracy on new clips is not known, as the data of %s cannot be read: %s", version, error)
        return None
    is_new &= tensors.split("test").clips.numbered("word", [SILENCE]) < 0
    return is_new if is_new.any() else None


def apart(evaluation: Evaluation, is_new: npt.NDArray[np.bool_]) -> Apart:
    """Returns the accuracy on new and on old clips; `is_new` tells which are new, [clips]."""
    is_right = evaluation.predicted == evaluation.labels
    found = {}
    for name, chosen in zip(NAMES, (is_new, ~is_new), strict=True):
        if number := int(chosen.sum()):
            accuracy = float(is_right[chosen].mean())
            found[name] = {"num_clips": number, "accuracy": accuracy, "interval": list(wilson(accuracy, number))}
    return found


def sentence(one: Apart, other: Apart) -> str:
    """Says how two models do on the same new and old clips."""
    said = [
        f"on {one[name]['num_clips']} {name} clips {one[name]['accuracy']:.2%} against {other[name]['accuracy']:.2%}"
        for name in NAMES
        if name in one
    ]
    return ", ".join(said)
