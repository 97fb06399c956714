"""Last step: publishes the model as a version, and makes it champion if it is the best."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def promote(
    model: Input[Model],
    tensors: Input[Dataset],
    evaluation: Input[Artifact],
    report: Input[HTML],
    min_accuracy: float,
    approval: str,
    keep_runs: int,
    data_root: str,
    formats: str,
    decision: Output[Artifact],
    comparison: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Publishes models/<version>/ on the volume; succeeds whether or not the version becomes champion.

    Args:
        model: the .pth file.
        tensors: manifest of the tensors folder, on whose test split the model is compared with the current champion.
        evaluation: metrics of the model on that split.
        report: the page of the evaluation.
        min_accuracy: accuracy that a champion must reach.
        approval: yes, if a better model must wait for a person to approve it.
        keep_runs: finished runs to keep on the volume; 0: all.
        data_root: path of the mounted volume.
        formats: the forms in which to publish the model.
        decision: the version, whether it is champion or candidate, and why.
        comparison: the version beside the champion: words, and clips on which they differ to listen to.
        metrics: accuracy of the version and of the champion, and what the step used.
    """
    import os
    from dataclasses import asdict
    from pathlib import Path

    from kws import files, steps
    from kws.promote.step import promote
    from kws.settings import MODEL_REGISTRY

    steps.start("promote")
    decided = promote(
        Path(model.path),
        steps.receive(tensors.path),
        Path(evaluation.path),
        Path(report.path),
        Path(data_root),
        min_accuracy,
        os.environ.get(MODEL_REGISTRY, ""),
        keep_runs,
        approval == "yes",
        Path(comparison.path),
        formats,
    )
    files.write_json(Path(decision.path), asdict(decided))
    known = {name: value for name, value in asdict(decided).items() if value not in (None, ())}
    decision.metadata.update(known)
    steps.log_metrics(metrics, {name: value for name, value in known.items() if name.endswith("accuracy")})
