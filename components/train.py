"""Third step: trains a model, with torchrun on a laptop and a PyTorchJob on a cluster."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output, component

from components import images


@component(base_image=images.LAUNCHER, install_kfp_package=False)
def train(
    tensors: Input[Dataset],
    preset: str,
    set: str,
    epochs: str,
    batch_size: str,
    learning_rate: str,
    init: str,
    seed: str,
    debug: bool,
    num_nodes: int,
    processes_per_node: str,
    data_root: str,
    run_id: str,
    model: Output[Model],
    job: Output[Artifact],
    log: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Trains in runs/<timestamp>-<run id>/ on the volume; a retry resumes from the latest checkpoint.

    Args:
        tensors: manifest of the tensors folder.
        preset: name of the recipe.
        set: settings of the recipe to change, separated by spaces, such as train.weight_decay=0.1.
        epochs: passes over the training split; empty: as the recipe says.
        batch_size: clips per training step; empty: as the recipe says.
        learning_rate: peak learning rate; empty: as the recipe says.
        init: model to start from: champion, a version, or a .pth file below data_root; empty: random weights.
        seed: random seed; empty: as the recipe says.
        debug: do a short run on a few clips.
        num_nodes: number of machines.
        processes_per_node: training processes on each machine; empty: one for every GPU or core.
        data_root: path of the mounted volume.
        run_id: name of the run, the same in every retry of the step.
        model: the best model by validation accuracy, a .pth file.
        job: the manifest of the job or the command that was started, as YAML.
        log: all that the training processes printed.
        metrics: validation accuracy and speed, and what the training processes used since they were last started.
    """
    import shutil
    from pathlib import Path

    from kws import files, steps
    from kws.recipe import make_recipe
    from kws.train import runs
    from kws.train.step import gather_logs, train

    steps.start("train")
    recipe = make_recipe(
        preset,
        set.split(),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        init=init,
        seed=seed,
        debug=debug,
    )
    folder = train(
        steps.receive(tensors.path),
        Path(data_root) / "runs",
        recipe=recipe,
        run_id=run_id,
        num_nodes=num_nodes,
        processes_per_node=int(processes_per_node) if processes_per_node else None,
        job_manifest=Path(job.path),
    )
    gather_logs(folder, Path(log.path))
    shutil.copyfile(folder / runs.BEST, model.path)
    about = files.read_json(folder / files.MANIFEST) | {"path": str(folder / runs.BEST)}
    used = about.pop("used", None)  # by the training processes: on a cluster, this step only waits for them
    model.metadata.update(steps.storable(about))
    steps.log_metrics(metrics, {name: value for name, value in about.items() if not isinstance(value, str)}, used)
