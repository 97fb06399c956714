"""The step: evaluates a `.pth` on the test split and writes the report."""

import logging
from pathlib import Path

import torch

from kws.evaluate.accuracy import Evaluation, evaluate_tensors
from kws.evaluate.report import write_report
from kws.model import bundle
from kws.preprocess.tensors import Tensors

log = logging.getLogger(__name__)


def evaluate(model: Path, tensors: Path, report: Path) -> Evaluation:
    """Evaluates a `.pth` on the test split and writes the report, an HTML page that stands alone.

    Args:
        model: a file of `kws.model.bundle`.
        tensors: a folder of `kws.preprocess.step`.
        report: the page to write.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recognizer = bundle.load(model, device)
    opened = Tensors(tensors)
    evaluation = evaluate_tensors(recognizer, opened)
    write_report(report, recognizer, evaluation, "test split", Path(opened.manifest["recordings"]["path"]))
    log.info("accuracy %.2f %% on %d test clips", 100 * evaluation.accuracy, evaluation.num_clips)
    return evaluation
