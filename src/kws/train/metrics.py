"""Progress of a run: a progress bar, metrics.jsonl and TensorBoard."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kws import files, plots
from kws.progress import progress
from kws.train import runs
from kws.train.loop import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm


class Journal:
    """Writes the progress of a run; exists in rank 0 only."""

    def __init__(self, run: Path, trainer: Trainer, bar: "tqdm[Any]", board: "SummaryWriter") -> None:
        self.run = run
        self.trainer = trainer
        self.bar = bar
        self.board = board

    def step(self) -> None:
        """Advances the progress bar by a training step."""
        self.bar.update(self.trainer.step_clips)

    def epoch(self, history: Sequence[Mapping[str, float]], matrix: Tensor | None) -> None:
        """Writes the metrics of an epoch.

        Args:
            history: the metrics of every epoch, the latest last.
            matrix: the confusion matrix to draw, [true words, predicted words], or None.
        """
        row, trainer = history[-1], self.trainer
        self.bar.update(max(0, trainer.clips_done - self.bar.n))
        where = f"epoch {trainer.position.epoch}/{trainer.epochs}: loss {row['train_loss']:.3f}"
        self.bar.write(f"{where}, validation accuracy {row['validation_accuracy']:.2%}", file=sys.stderr)
        with files.atomic_write(self.run / runs.METRICS, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in history)
        epoch = int(row["epoch"])
        for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
            split, quantity = name.split("_")
            self.board.add_scalar(f"{quantity}/{split}", row[name], epoch)
        for name in ("learning_rate", "clips_per_second"):
            self.board.add_scalar(name, row[name], epoch)
        if matrix is not None:
            self.board.add_figure("confusion", plots.confusion(matrix.numpy(), trainer.tensors.words), epoch)
        self.board.flush()


@contextlib.contextmanager
def open_journal(run: Path, trainer: Trainer) -> Iterator[Journal | None]:
    """Opens the journal of a run at its current position; yields None in every process except rank 0."""
    if not trainer.world.leads:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    total = trainer.epochs * trainer.num_clips
    with (
        progress(total, "clips", "train", done=trainer.clips_done) as bar,
        SummaryWriter(str(run), purge_step=trainer.position.epoch) as board,
    ):
        if trainer.position.step == 0:
            features, labels = trainer.train_split.batch(torch.arange(min(4, trainer.num_clips)))
            titles = [trainer.tensors.words[label] for label in labels.tolist()]
            board.add_figure("spectrograms", plots.spectrograms(trainer.augment(features).cpu(), titles))
        yield Journal(run, trainer, bar, board)
