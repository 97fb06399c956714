"""Fourth step: evaluates the model on the test split."""

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output, component

from components import images


@component(base_image=images.RUNTIME, install_kfp_package=False)
def evaluate(
    model: Input[Model],
    tensors: Input[Dataset],
    false_alarms_per_hour: float,
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
    report: Output[HTML],
    evaluation: Output[Artifact],
) -> None:
    """Evaluates a model on the test split.

    Args:
        model: the .pth file.
        tensors: manifest of the tensors folder.
        false_alarms_per_hour: the limit for the choice of detection thresholds.
        metrics: accuracy, macro F1, calibration error and number of clips; accuracy on new and on old clips apart; what
            the step used.
        confusion: the confusion matrix, if there are more than 60 words of the hardest ones; as a file, of all.
        report: a self-contained page, with pictures and the worst mistakes to listen to.
        evaluation: all metrics as JSON.
    """
    from pathlib import Path

    from kws import files, steps
    from kws.evaluate.step import evaluate

    steps.start("evaluate")
    found = evaluate(Path(model.path), steps.receive(tensors.path), Path(report.path), false_alarms_per_hour)
    steps.log_metrics(metrics, found.figures())
    words, matrix = found.of_hardest()  # Kubeflow's database holds no matrix of a thousand words
    confusion.log_confusion_matrix(steps.storable(words), matrix.astype(int).tolist())
    files.write(Path(confusion.path), found.csv())
    files.write_json(Path(evaluation.path), found.summary())
