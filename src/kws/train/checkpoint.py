"""Checkpoints of a run: checkpoints/step-<n>.pth, the latest few."""

import logging
from pathlib import Path
from typing import Any

import torch

from kws import files
from kws.model import bundle
from kws.train.loop import Trainer

log = logging.getLogger(__name__)

History = list[dict[str, float]]
"""The figures of every epoch so far."""


def checkpoints_of(run: Path) -> list[Path]:
    """Returns the checkpoints of a run, the latest last."""
    return sorted((run / "checkpoints").glob("step-*.pth"))


def save(run: Path, trainer: Trainer, history: History) -> None:
    """Writes where training stands, atomically, and deletes all but the latest few; only the first process does."""
    if not trainer.world.leads:
        return
    path = run / "checkpoints" / f"step-{trainer.position.step:08d}.pth"
    bundle.write(path, trainer.state() | {"history": history})
    for old in checkpoints_of(run)[: -trainer.config.keep_checkpoints]:
        old.unlink()


def _latest_whole(run: Path) -> Path | None:
    """Returns the latest checkpoint that can be read, and says which cannot; a damaged one is deleted."""
    for path in reversed(checkpoints_of(run)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch raises what its unpickler and its zip reader raise
            log.warning("%s is damaged, and the one before it is taken: %s", path, str(error).splitlines()[0])
        else:
            if isinstance(state, dict) and "history" in state:
                return path
            log.warning("%s is no checkpoint, and the one before it is taken", path)
        path.unlink()
    return None


def resume(run: Path, trainer: Trainer) -> History:
    """Goes to the latest checkpoint, that which the first process finds, and returns the history so far."""
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
