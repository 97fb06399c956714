"""The train step: opens a run folder and has a launcher train in it. Needs no torch."""

import contextlib
import logging
import shutil
from pathlib import Path

from kws import files, outcomes
from kws.launch.choose import launcher as choose_launcher
from kws.launch.job import Launcher, Training, job_name
from kws.launch.output import LOGS
from kws.recipe import Recipe
from kws.settings import require
from kws.train.runs import delete_checkpoints, describe, find_published, fit_to_tensors, open_run

log = logging.getLogger(__name__)

MIN_SHARE = 16
"""Clips of a batch for which a process is worth while: with fewer it waits for the others more than it computes."""

MIN_CLIPS = 20_000
"""Clips of a run for which several processes are worth while: they save a fifth of its time, which is less than they
take to start for a run of a minute."""


def default_processes(recipe: Recipe, tensors: Path, launcher: Launcher, num_nodes: int = 1) -> int:
    """Returns how many training processes a node should have: one for every GPU, or without GPUs one for every core.

    On CPUs two processes of one thread are 1.1 to 1.2 times as fast as one process of two threads, and beside another
    busy process as well: the threads of a process wait for each other hundreds of times per step, the processes only
    for the gradients. Where there are more cores than processes, each process has several threads.

    There are fewer processes if the batch cannot be divided evenly, and one for a short run, or for a recipe that
    trains otherwise with more processes, as the baseline does.
    """
    config = recipe.train
    cores, gpus = launcher.cores_and_gpus()
    num_clips = files.read_object(tensors / files.MANIFEST, counts=dict)["counts"]["train"]
    epoch = min(1000, num_clips) if config.debug else num_clips
    if config.scale_with_processes or (not gpus and max(config.epochs * epoch, config.min_clips) < MIN_CLIPS):
        return 1
    most = gpus or min(int(cores), config.batch_size // (MIN_SHARE * num_nodes))
    return max((count for count in range(1, most + 1) if config.batch_size % (count * num_nodes) == 0), default=1)


def is_new(tensors: Path, data_root: Path, recipe: Recipe) -> bool:
    """Tells whether no version on the volume was trained on the same tensors by the same recipe; logs which one was.

    What is not compared: the model that a recipe starts from by the name `champion`, as a model that was trained from
    the champion before would be trained again whenever it becomes champion itself.
    """
    config = describe(tensors, fit_to_tensors(recipe, tensors))
    version = find_published(data_root, config)
    if version:
        outcomes.note("changes", "same")
        log.info(
            "nothing new: data and recipe are those of %s, so nothing is trained (schedule --always trains)", version
        )
    return not version


def train(
    tensors: Path,
    runs: Path,
    *,
    recipe: Recipe,
    run_id: str = "",
    num_nodes: int = 1,
    processes_per_node: int | None = None,
    job_manifest: Path | None = None,
    launcher: Launcher | None = None,
) -> Path:
    """Trains a model: with torchrun on this machine, as a PyTorchJob on a cluster.

    Args:
        tensors: a tensors folder of `kws.preprocess.step`.
        runs: where to make the run folder `<timestamp>-<run id>/`.
        recipe: how to train; written into the run folder, where every training process reads them.
        run_id: name of the run, by which a retry of this step resumes it. Empty resumes an unfinished run with the
            same settings, or starts a new one.
        num_nodes: number of machines.
        processes_per_node: training processes on each machine; None: see `default_processes`.
        job_manifest: if given, the file that records what was started: the manifest of the PyTorchJob, or the command
            and its environment.
        launcher: how to start the processes; None: as the environment says.

    Returns:
        The run folder, complete.

    Raises:
        ValueError: a setting is wrong.
        kws.launch.job.LaunchError: training failed; the message is the trainer's own.
    """
    require(files.is_complete(tensors), "tensors", "be a folder that kws preprocess completed", str(tensors))
    with contextlib.ExitStack() as stack:
        folder = open_run(runs, run_id, describe(tensors, fit_to_tensors(recipe, tensors)), stack)
        launcher = launcher or choose_launcher()
        job = Training(
            name=job_name(folder.name),
            folder=folder,
            arguments=("--run-folder", str(folder)),
            num_nodes=num_nodes,
            processes_per_node=processes_per_node or default_processes(recipe, tensors, launcher, num_nodes),
        )
        if files.is_complete(folder):
            log.info("%s is complete: nothing to do", folder)
            launcher.clean_up(job)
            delete_checkpoints(folder)
            return folder
        launcher.run(job, job_manifest)
    if not files.is_complete(folder):
        raise AssertionError(f"training succeeded but left no {files.MANIFEST} in {folder}")
    delete_checkpoints(folder)
    return folder


def gather_logs(folder: Path, log_file: Path) -> None:
    """Writes all that the processes of a run printed, pod after pod, into a file that outlives pods and run folder."""
    paths = sorted((folder / LOGS).glob("*.log"))
    with files.atomic_write(log_file) as file:
        for path in paths:
            file.write(f"== {path.name}\n".encode())
            with path.open("rb") as source:
                shutil.copyfileobj(source, file)
        if not paths:
            file.write(b"nothing was kept: training printed on a terminal\n")
