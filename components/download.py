"""First step: copies recordings to the volume."""

from kfp.dsl import Dataset, Metrics, Output, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def download(
    source: str, layout: str, sha256: str, data_root: str, recordings: Output[Dataset], metrics: Output[Metrics]
) -> None:
    """Copies or downloads recordings to datasets/<name>-<sha256>/ on the volume; does nothing if they are there.

    Args:
        source: URLs or paths of archives or folders, one to a line; see `kws.config.PipelineConfig`.
        layout: how they are laid out: auto, or what settles it where that is unclear.
        sha256: expected SHA-256 of each archive, or empty.
        data_root: path of the mounted volume.
        recordings: manifest of the recordings folder.
        metrics: number of clips and words, and what the step used.
    """
    from pathlib import Path

    from kws import files, steps
    from kws.download.step import download

    steps.start("download")
    folder = download(source, sha256, Path(data_root), layout)
    manifest = files.read_json(folder / files.MANIFEST)
    counts = {"num_clips": manifest["num_clips"], "num_words": len(manifest["words"])}
    figures = counts | {name: manifest.get(name, []) for name in ("source", "layout", "sources")}
    recordings.metadata.update(steps.hand_over(folder, recordings.path, figures))
    steps.log_metrics(metrics, counts)
