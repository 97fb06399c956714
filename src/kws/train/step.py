"""The step: opens the folder of a run and lets a launcher train in it. Needs no torch."""

import logging
from pathlib import Path
from typing import Any

from kws import files
from kws.config import require, train_config
from kws.launch.job import Training, job_name
from kws.launch.launch import launcher
from kws.train.runs import describe, open_run

log = logging.getLogger(__name__)


def train(
    tensors: Path,
    runs: Path,
    *,
    preset: str,
    run_id: str = "",
    num_nodes: int = 1,
    processes_per_node: int = 1,
    job_manifest: Path | None = None,
    **overrides: Any,
) -> Path:
    """Trains a model: with torchrun on this machine, as a PyTorchJob on a cluster.

    Args:
        tensors: a folder of `kws.preprocess.step`.
        runs: gets the folder `<timestamp>-<run id>/`.
        preset: names the recipe.
        run_id: names the run, so that a step that is tried again goes on with it. Empty goes on with an unfinished run
            of the same settings, or starts a new one.
        num_nodes: machines.
        processes_per_node: processes of each.
        job_manifest: gets what was started: the manifest of the PyTorchJob, or the command and its environment.
        overrides: fields of `kws.config.TrainConfig` that are not as the preset says.

    Returns:
        The folder of the run, complete.

    Raises:
        ValueError: a setting is wrong.
        kws.launch.job.LaunchError: training failed; the message is the trainer's own.
    """
    require(files.is_complete(tensors), "tensors", "be a folder that kws preprocess completed", str(tensors))
    config = train_config(preset=preset, **overrides)
    folder = open_run(runs, run_id, describe(tensors, preset, config))
    if files.is_complete(folder):
        log.info("%s is complete: nothing to do", folder)
        return folder
    arguments = ["--tensors", str(tensors), "--run-folder", str(folder), "--preset", preset]
    for name, value in overrides.items():
        if value:
            flag = f"--{name.replace('_', '-')}"
            arguments += [flag] if value is True else [flag, str(value)]
    job = Training(
        name=job_name(folder.name),
        arguments=tuple(arguments),
        num_nodes=num_nodes,
        processes_per_node=processes_per_node,
    )
    launcher().run(job, job_manifest)
    if not files.is_complete(folder):
        raise AssertionError(f"training ended well but left no {files.MANIFEST} in {folder}")
    return folder
