"""Checkpoints of a run: checkpoints/step-<n>.pth, of which the latest few are kept."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kws import files
from kws.model import bundle

log = logging.getLogger(__name__)


def checkpoints_of(run: Path) -> list[Path]:
    """Returns the paths of a run's checkpoints, the latest last."""
    return sorted((run / "checkpoints").glob("step-*.pth"))


def save(run: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Writes a checkpoint atomically and deletes all but the latest few."""
    bundle.write(run / "checkpoints" / f"step-{step:08d}.pth", dict(state))
    for old in checkpoints_of(run)[:-keep]:
        old.unlink()


def latest(run: Path) -> Path | None:
    """Returns the latest readable checkpoint; logs and deletes damaged ones, and what was left half written."""
    files.delete_unfinished(run, run / "checkpoints")
    for path in reversed(checkpoints_of(run)):
        try:
            state = read(path)
        except OSError:
            raise
        except Exception as error:  # torch passes on whatever its unpickler and its zip reader raise
            log.warning("%s is damaged; using the one before it: %s", path, str(error).splitlines()[0])
        else:
            if isinstance(state, dict) and "history" in state:
                return path
            log.warning("%s is not a checkpoint; using the one before it", path)
        path.unlink()
    return None


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
