"""Second step: recordings to tensors."""

from kfp.dsl import Dataset, Input, Output, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def preprocess(
    recordings: Input[Dataset],
    words: str,
    unknown_words: str,
    preset: str,
    split: str,
    max_bad_fraction: float,
    data_root: str,
    tensors: Output[Dataset],
) -> None:
    """Computes mel spectrograms of all clips into tensors/<fingerprint>/ on the volume, once.

    Args:
        recordings: manifest of the recordings.
        words: all, auto or a list of words.
        unknown_words: empty, auto or a list of the words that become one class.
        preset: recipe that decides the features.
        split: speaker or random; empty as the preset says.
        max_bad_fraction: largest share of unreadable recordings.
        data_root: the mounted volume.
        tensors: manifest of the folder.
    """
    from pathlib import Path

    from kws import files, steps
    from kws.preprocess.step import preprocess

    steps.start()
    folder = preprocess(steps.receive(recordings.path), Path(data_root), words=words,
                        unknown_words=unknown_words, preset=preset, split=split,
                        max_bad_fraction=max_bad_fraction)  # fmt: skip
    manifest = files.read_json(folder / files.MANIFEST)
    figures = {"counts": manifest["counts"], "words": manifest["words"], "left_out": len(manifest["left_out"]),
               "not_read": manifest["not_read"]["num_files"]}  # fmt: skip
    tensors.metadata.update(steps.hand_over(folder, tensors.path, figures))
