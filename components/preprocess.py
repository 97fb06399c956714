"""Second step: converts recordings to tensors."""

from kfp.dsl import Dataset, Input, Metrics, Output, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def preprocess(
    recordings: Input[Dataset],
    words: str,
    unknown_words: str,
    preset: str,
    set: str,
    split: str,
    max_bad_fraction: float,
    data_root: str,
    computed: list[int],
    tensors: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Computes the mel spectrograms of all clips in tensors/<fingerprint>/ on the volume, unless they are there.

    Args:
        recordings: manifest of the recordings folder.
        words: all, auto or a list of words.
        unknown_words: empty, auto or a list of the words that form the class _unknown_.
        preset: name of the recipe, which determines features and split.
        set: settings of the recipe to change, separated by spaces, such as features.num_mels=64.
        split: speaker or random; empty: as the recipe says.
        max_bad_fraction: largest fraction of unreadable recordings that are left out.
        data_root: path of the mounted volume.
        computed: what the shards of this step computed before, if there are any: a number of clips for each.
        tensors: manifest of the tensors folder.
        metrics: number of clips of each split, and what the step used.
    """
    from pathlib import Path

    from kws import files, steps
    from kws.preprocess.step import preprocess
    from kws.recipe import make_recipe

    steps.start("preprocess")
    folder = preprocess(
        steps.receive(recordings.path),
        Path(data_root),
        make_recipe(preset, set.split(), split=split),
        words=words,
        unknown_words=unknown_words,
        max_bad_fraction=max_bad_fraction,
    )
    manifest = files.read_json(folder / files.MANIFEST)
    figures = {
        "counts": manifest["counts"],
        "words": manifest["words"],
        "left_out": len(manifest["left_out"]),
        "not_read": manifest["not_read"]["num_files"],
    }
    tensors.metadata.update(steps.hand_over(folder, tensors.path, figures))
    counts = {f"num_{name}_clips": count for name, count in manifest["counts"].items()}
    steps.log_metrics(metrics, counts | {"num_left_out": figures["left_out"]})
