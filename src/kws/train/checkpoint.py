"""Checkpoints of a run: checkpoints/step-<n>.pth, of which the latest few are kept."""

import logging
from pathlib import Path
from typing import Any

import torch

from kws import files
from kws.model import bundle
from kws.train.loop import Trainer

log = logging.getLogger(__name__)

History = list[dict[str, float]]
"""The metrics of every epoch so far."""


def checkpoints_of(run: Path) -> list[Path]:
    """Returns the paths of a run's checkpoints, the latest last."""
    return sorted((run / "checkpoints").glob("step-*.pth"))


def save(run: Path, trainer: Trainer, history: History) -> None:
    """Writes a checkpoint atomically and deletes all but the latest few; does nothing except on rank 0."""
    if not trainer.world.leads:
        return
    path = run / "checkpoints" / f"step-{trainer.position.step:08d}.pth"
    bundle.write(path, trainer.state() | {"history": history})
    for old in checkpoints_of(run)[: -trainer.config.keep_checkpoints]:
        old.unlink()


def _latest_whole(run: Path) -> Path | None:
    """Returns the latest readable checkpoint; logs and deletes damaged ones."""
    for path in reversed(checkpoints_of(run)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
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


def resume(run: Path, trainer: Trainer) -> History:
    """Restores the latest checkpoint that rank 0 can read, and returns the history up to it."""
    world = trainer.world
    if world.leads:
        files.delete_unfinished(run, run / "checkpoints")
    checkpoint = world.tell(_latest_whole(run) if world.leads else None)
    if checkpoint is None:
        return []
    state: dict[str, Any] = torch.load(checkpoint, map_location=world.device, weights_only=True)
    trainer.restore(state)
    if world.leads:
        log.info("resuming at step %d of epoch %d", trainer.position.step, trainer.position.epoch)
    return list(state["history"])
