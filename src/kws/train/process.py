"""One training process of a run: alone, or one of several under torchrun.

It joins the others, owns the run folder, and stops in order after a signal; `kws.train.trainer` trains.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from kws import files, memory
from kws.cores import computing
from kws.preprocess.tensors import Tensors
from kws.processes import handle_signals, keep_freed_memory
from kws.recipe import Recipe
from kws.train import runs
from kws.train.distributed import join_world
from kws.train.start import load_start
from kws.train.trainer import StopTraining, Trainer, train_to_the_end


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
        if world.is_main:
            memory.warn_if_scarce("training")
            description = runs.describe(tensors_folder, recipe)
            if run is None:
                assert runs_folder is not None
                run = runs.open_run(runs_folder, run_id, description, stack)
            else:
                runs.claim(run, description)
        folder, is_complete = world.broadcast((run, run is not None and files.is_complete(run)))
        assert folder is not None
        if is_complete:
            return folder
        start = load_start(folder, recipe)
        with runs.owned(folder) if world.is_main else contextlib.nullcontext():
            keep_freed_memory()
            trainer = Trainer(tensors, recipe, world, start)
            with _stop_in_order(trainer), computing():
                train_to_the_end(folder, trainer)
        world.minimum(0)  # until all have come here: the run is complete
        return folder


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
