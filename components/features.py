"""Part of the second step, where recordings are many: computes the features of a share of them, in a pod of its own."""

from kfp.dsl import Dataset, Input, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def features(
    recordings: Input[Dataset],
    words: str,
    unknown_words: str,
    preset: str,
    set: str,
    split: str,
    data_root: str,
    shard: int,
    num_shards: int,
    clips_per_shard: int,
) -> int:
    """Computes the mel spectrograms of one shard in features/ on the volume, where preprocess will find them.

    Args:
        recordings: manifest of the recordings folder.
        words: as in preprocess.
        unknown_words: as in preprocess.
        preset: as in preprocess.
        set: as in preprocess.
        split: as in preprocess.
        data_root: path of the mounted volume.
        shard: number of the share, from 0 on.
        num_shards: the most shares.
        clips_per_shard: the least clips of a share; where there is only one, nothing is done.

    Returns:
        The number of clips whose features are there now.
    """
    from pathlib import Path

    from kws import steps
    from kws.preprocess.step import compute_shard
    from kws.recipe import make_recipe

    steps.start("features")
    return compute_shard(
        steps.receive(recordings.path),
        Path(data_root),
        make_recipe(preset, set.split(), split=split),
        shard=int(shard),
        num_shards=num_shards,
        clips_per_shard=clips_per_shard,
        words=words,
        unknown_words=unknown_words,
    )
