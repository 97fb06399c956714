"""The journal of a run: a progress bar, metrics.jsonl, TensorBoard and the status of a TrainJob."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kws import files
from kws.progress import progress
from kws.train import runs
from kws.train.status import Reporter, reporting

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm


class Journal:
    """Writes the progress of a run."""

    def __init__(
        self, run: Path, words: Sequence[str], bar: "tqdm[Any]", board: "SummaryWriter", reporter: Reporter | None
    ) -> None:
        self.run = run
        self.words = words
        self.bar = bar
        self.board = board
        self.reporter = reporter

    def done(self, num_clips: int) -> None:
        """Advances the progress bar to a number of clips of the whole run."""
        self.bar.update(max(0, num_clips - self.bar.n))
        if self.reporter is not None:
            self.reporter.update(num_clips / max(1, self.bar.total or 0))

    def spectrograms(self, features: Tensor, titles: Sequence[str]) -> None:
        """Draws some clips as training sees them, [clips, num_mels, num_frames]."""
        from kws import plots  # imports matplotlib, for which other processes of the run have no use

        self.board.add_figure("spectrograms", plots.spectrograms(features.cpu(), titles))

    def epoch(self, history: Sequence[Mapping[str, float]], epochs: int, matrix: Tensor | None) -> None:
        """Writes the metrics of an epoch.

        The history has the metrics of every epoch, the latest last. The matrix is the confusion matrix to draw, if any,
        [true words, predicted words].
        """
        row = history[-1]
        epoch = int(row["epoch"])
        where = f"epoch {epoch}/{epochs}: loss {row['train_loss']:.3f}"
        self.bar.write(f"{where}, validation accuracy {row['validation_accuracy']:.2%}", file=sys.stderr)
        with files.atomic_write(self.run / runs.METRICS, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in history)
        for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
            split, quantity = name.split("_")
            self.board.add_scalar(f"{quantity}/{split}", row[name], epoch)
        for name in ("learning_rate", "clips_per_second"):
            self.board.add_scalar(name, row[name], epoch)
        if matrix is not None:
            from kws import plots

            self.board.add_figure("confusion", plots.confusion(matrix.numpy(), self.words), epoch)
        self.board.flush()
        if self.reporter is not None:
            self.reporter.update(epoch / epochs, dict(row) | {"epochs": epochs})


@contextlib.contextmanager
def open_journal(run: Path, words: Sequence[str], num_clips: int, done: int, epoch: int) -> Iterator[Journal]:
    """Opens the journal of a run.

    Of `num_clips` of the whole run, over all epochs, some are done. What an earlier attempt wrote of the epoch, counted
    from 1, and of later ones is discarded.
    """
    from torch.utils.tensorboard import SummaryWriter

    with (
        progress(num_clips, "clips", "train", done=done) as bar,
        SummaryWriter(str(run), purge_step=epoch) as board,
        reporting(os.environ) as reporter,
    ):
        yield Journal(run, words, bar, board, reporter)
