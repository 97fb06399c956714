"""The train step: opens a run folder and has a launcher train in it. Needs no torch."""

import contextlib
import logging
from pathlib import Path

from kws import files
from kws.launch.choose import launcher
from kws.launch.job import Training, job_name
from kws.recipe import Recipe
from kws.settings import require
from kws.train.runs import describe, fit_to_tensors, open_run

log = logging.getLogger(__name__)


def train(
    tensors: Path,
    runs: Path,
    *,
    recipe: Recipe,
    run_id: str = "",
    num_nodes: int = 1,
    processes_per_node: int = 1,
    job_manifest: Path | None = None,
) -> Path:
    """Trains a model: with torchrun on this machine, as a PyTorchJob on a cluster.

    Args:
        tensors: a tensors folder of `kws.preprocess.step`.
        runs: where to make the run folder `<timestamp>-<run id>/`.
        recipe: how to train; written into the run folder, where every training process reads them.
        run_id: name of the run, by which a retry of this step resumes it. Empty resumes an unfinished run with the
            same settings, or starts a new one.
        num_nodes: number of machines.
        processes_per_node: training processes on each machine.
        job_manifest: if given, the file that records what was started: the manifest of the PyTorchJob, or the command
            and its environment.

    Returns:
        The run folder, complete.

    Raises:
        ValueError: a setting is wrong.
        kws.launch.job.LaunchError: training failed; the message is the trainer's own.
    """
    require(files.is_complete(tensors), "tensors", "be a folder that kws preprocess completed", str(tensors))
    with contextlib.ExitStack() as stack:
        folder = open_run(runs, run_id, describe(tensors, fit_to_tensors(recipe, tensors)), stack)
        job = Training(
            name=job_name(folder.name),
            folder=folder,
            arguments=("--run-folder", str(folder)),
            num_nodes=num_nodes,
            processes_per_node=processes_per_node,
        )
        if files.is_complete(folder):
            log.info("%s is complete: nothing to do", folder)
            launcher().clean_up(job)
            return folder
        launcher().run(job, job_manifest)
    if not files.is_complete(folder):
        raise AssertionError(f"training succeeded but left no {files.MANIFEST} in {folder}")
    return folder
