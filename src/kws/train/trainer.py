"""One training process, from its command line to a complete run; alone, or one of several under torchrun.

    torchrun --nproc-per-node=2 -m kws.train.trainer --tensors DIR --runs DIR

The loop is in `kws.train.loop`; this module adds the run folder, checkpoints, the best model and signal handling.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from kws import files, memory
from kws.command import quiet_threads, settle_user, unfailing
from kws.cores import computing
from kws.model import bundle
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Tensors
from kws.processes import die_with_parent, handle_signals, keep_freed_memory
from kws.recipe import Recipe
from kws.settings import require
from kws.train import checkpoint, runs
from kws.train.distributed import join_world
from kws.train.loop import Trainer
from kws.train.metrics import open_journal
from kws.train.start import load_start

log = logging.getLogger(__name__)


class StopTraining(Exception):
    """Raised after SIGTERM or Ctrl-C, once the checkpoint is written."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__()
        self.status = 128 + signum
        """Exit status, as a shell gives it. It is not 0, so that the launcher starts the process again."""


def train(
    tensors_folder: Path, recipe: Recipe, *, runs_folder: Path | None = None, run_id: str = "", run: Path | None = None
) -> Path:
    """Trains a model in this process, together with the other processes that torchrun started.

    Args:
        tensors_folder: a tensors folder of `kws.preprocess.step`.
        recipe: how to train; its split is that of the tensors.
        runs_folder: where to make the run folder; required unless `run` is given.
        run_id: see `kws.train.runs.open_run`.
        run: an existing run folder.

    Returns:
        The run folder, complete.

    Raises:
        ValueError: the tensors or the model to start from do not fit the recipe, or the run has other settings.
        StopTraining: SIGTERM or Ctrl-C arrived; the checkpoint is written.
        FloatingPointError: the loss is not finite.
    """
    with join_world() as world, contextlib.ExitStack() as stack:
        tensors = Tensors(tensors_folder, world.device)
        recipe = runs.fit_to_tensors(recipe, tensors_folder)
        if world.leads:
            memory.warn_if_scarce("training")
            description = runs.describe(tensors_folder, recipe)
            if run is None:
                assert runs_folder is not None
                run = runs.open_run(runs_folder, run_id, description, stack)
            else:
                runs.claim(run, description)
        folder, is_complete = world.tell((run, run is not None and files.is_complete(run)))
        assert folder is not None
        if is_complete:
            return folder
        start = load_start(folder, recipe)
        with runs.owned(folder) if world.leads else contextlib.nullcontext():
            keep_freed_memory()
            trainer = Trainer(tensors, recipe, world, start)
            with _stop_in_order(trainer), computing():
                _train_to_the_end(folder, trainer)
        if world.size > 1:
            dist.barrier()
        return folder


def _train_to_the_end(folder: Path, trainer: Trainer) -> None:
    """Trains from the latest checkpoint to the last epoch, keeps the best model, and completes the run."""
    history = checkpoint.resume(folder, trainer)
    position = trainer.position
    with open_journal(folder, trainer) as journal:
        while position.epoch < trainer.epochs:
            started, first = time.monotonic(), position.clips_done
            for must_stop in trainer.train_epoch():
                if journal is not None:
                    journal.step()
                if must_stop or position.step % trainer.config.checkpoint_steps == 0:
                    trainer.share_sums()
                    checkpoint.save(folder, trainer, history)
                if must_stop:
                    raise StopTraining
            rate = (position.clips_done - first) / (time.monotonic() - started)
            row, matrix, is_best = trainer.end_epoch()
            history.append(row | {"clips_per_second": rate})
            if journal is not None:
                if is_best:
                    _save_best(folder, trainer, trainer.result, history[-1])
                journal.epoch(history, matrix if is_best else None)
            checkpoint.save(folder, trainer, history)
    if trainer.world.leads:
        _complete(folder, trainer, history)


def _save_best(
    folder: Path, trainer: Trainer, model: AudioTransformer, row: Mapping[str, float], temperature: float = 1.0
) -> None:
    about = {
        "preset": trainer.recipe.name,
        "recipe": dataclasses.asdict(trainer.recipe),
        "tensors": trainer.tensors.fingerprint,
        "run": folder.name,
    }
    if (init := runs.init_of(folder)) is not None:
        about["init"] = init
    recognizer = bundle.Recognizer(
        model=model,
        words=trainer.tensors.words,
        features=trainer.tensors.features,
        temperature=temperature,
        metrics=dict(row),
        about=about,
    )
    bundle.save(folder / runs.BEST, recognizer)


def _complete(folder: Path, trainer: Trainer, history: checkpoint.History) -> None:
    """Fits the temperature of the best model and writes the manifest of the run."""
    best = bundle.load(folder / runs.BEST, trainer.world.device)
    _save_best(folder, trainer, best.model, best.metrics, trainer.temperature(best.model))
    manifest = {
        "run": folder.name,
        "model": runs.BEST,
        "sha256": files.sha256_of(folder / runs.BEST),
        "validation_accuracy": best.metrics["validation_accuracy"],
        "best_epoch": best.metrics["epoch"],
        "epochs": trainer.epochs,
        "num_clips": trainer.num_clips,
        "num_parameters": best.num_parameters,
        "clips_per_second": sorted(row["clips_per_second"] for row in history)[len(history) // 2],
    }
    files.write_json(folder / files.MANIFEST, manifest)


@contextlib.contextmanager
def _stop_in_order(trainer: Trainer) -> Iterator[None]:
    """Makes SIGTERM or Ctrl-C in any process stop training in all of them, within two steps, with a checkpoint.

    A second Ctrl-C ends the process at once. In a process group, a RuntimeError after a signal counts as the same stop:
    another process has already left.
    """
    stopped_by = signal.SIGTERM

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_by
        if trainer.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_asked, stopped_by = True, signal.Signals(number)

    with handle_signals(ask):
        try:
            yield
        except StopTraining:
            raise StopTraining(stopped_by) from None
        except RuntimeError:
            if trainer.stop_asked and trainer.world.size > 1:
                raise StopTraining(stopped_by) from None
            raise


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the command line says; exits with 143 after SIGTERM and 130 after Ctrl-C."""
    settle_user()
    quiet_threads()
    sys.stderr = unfailing(sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # otherwise the processes of a killed torchrun would go on training
    parser = argparse.ArgumentParser(
        prog="kws.train.trainer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs.add_arguments(parser)
    run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> Path:
    """Trains with the settings of parsed flags, and returns the run folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.run_folder is not None:
        tensors, recipe = runs.read_config(options.run_folder)
    else:
        require(options.tensors is not None, "tensors", "be a folder of kws preprocess", options.tensors)
        tensors, recipe = options.tensors, runs.recipe_of(options)
    try:
        return train(tensors, recipe, runs_folder=options.runs, run_id=options.run_id, run=options.run_folder)
    except StopTraining as stop:
        log.info("stopped, with a checkpoint; run the same command again to resume")
        sys.exit(stop.status)


if __name__ == "__main__":
    main()
