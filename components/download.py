"""First step: copies recordings to the volume."""

from kfp.dsl import Dataset, Output, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def download(source: str, sha256: str, data_root: str, recordings: Output[Dataset]) -> None:
    """Copies or downloads recordings to datasets/<name>-<sha256>/ on the volume; does nothing if they are there.

    Args:
        source: URL or path of an archive laid out like Speech Commands, or a folder of <word>/*.wav.
        sha256: expected SHA-256 of the archive, or empty.
        data_root: path of the mounted volume.
        recordings: manifest of the recordings folder.
    """
    from pathlib import Path

    from kws import files, steps
    from kws.download.step import download

    steps.start()
    folder = download(source, sha256, Path(data_root))
    manifest = files.read_json(folder / files.MANIFEST)
    figures = {"num_clips": manifest["num_clips"], "num_words": len(manifest["words"]), "source": manifest["source"]}
    recordings.metadata.update(steps.hand_over(folder, recordings.path, figures))
