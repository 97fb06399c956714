"""A step of scheduled runs: tells whether there is anything new to train on."""

from kfp.dsl import Dataset, Input, component

from components import images


@component(base_image=images.LAUNCHER, install_kfp_package=False)
def changes(
    tensors: Input[Dataset],
    preset: str,
    set: str,
    epochs: str,
    batch_size: str,
    learning_rate: str,
    init: str,
    seed: str,
    debug: bool,
    data_root: str,
) -> str:
    """Compares the data and the recipe with those of the runs whose versions are on the volume.

    Args:
        tensors: manifest of the tensors folder.
        preset: as in train.
        set: as in train.
        epochs: as in train.
        batch_size: as in train.
        learning_rate: as in train.
        init: as in train.
        seed: as in train.
        debug: as in train.
        data_root: path of the mounted volume.

    Returns:
        new, or same: then the steps that follow are not run.
    """
    from pathlib import Path

    from kws import steps
    from kws.recipe import make_recipe
    from kws.train.step import is_new

    steps.start("changes")
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "init": init, "seed": seed}
    recipe = make_recipe(preset, set.split(), **given, debug=debug)
    return "new" if is_new(steps.receive(tensors.path), Path(data_root), recipe) else "same"
