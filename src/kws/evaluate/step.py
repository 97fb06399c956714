"""The evaluate step: evaluates a `.pth` on the test split, in noise and in streams, and writes the report."""

import dataclasses
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kws import files, memory
from kws.cores import computing
from kws.data.index import Index
from kws.evaluate import robustness, streams
from kws.evaluate.accuracy import HEARD, Evaluation, evaluate_tensors
from kws.evaluate.new_clips import apart, find_new
from kws.evaluate.report import write_report
from kws.evaluate.streams import StreamReport
from kws.model import bundle, onnx, versions
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.model.distribution import LEVEL_BOUNDS, Distribution, levels
from kws.preprocess.audio import read
from kws.preprocess.tensors import Tensors
from kws.train.runs import METRICS

log = logging.getLogger(__name__)

ROBUSTNESS_CLIPS = 400
"""Largest number of test clips for each robustness condition: enough for ± 2 percentage points."""

STREAM_CLIPS = 100
"""Smallest number of test clips for an evaluation in streams; with fewer it would mean little."""

CLIPS_PER_HOUR = 2000
"""Number of test clips per hour of stream. A stream is at most one hour long, or if tokens get scores, which is ten
times as fast, at most LONG_HOURS."""

LONG_HOURS = 5.0

STREAM_SNR_DB = 10.0
"""Signal-to-noise ratio of the streams of this step, in dB; `kws evaluate --stream` has others."""


@computing()
def evaluate(model: Path, tensors: Path, report: Path, false_alarms_per_hour: float = 1.0) -> Evaluation:
    """Evaluates a `.pth` on the test split and writes the report, a self-contained HTML page.

    Robustness and thresholds for streams need the recordings, and are left out if these no longer exist.
    `false_alarms_per_hour` is the limit for the choice of detection thresholds.

    Raises:
        ValueError: the model or the tensors are damaged.
    """
    memory.warn_if_scarce("evaluate")
    files.delete_unfinished(report.parent)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recognizer = bundle.load(model, device)
    opened = Tensors(tensors)
    recordings = Path(opened.manifest["recordings"]["path"])
    evaluation = evaluate_tensors(recognizer, opened)
    clips = opened.split("test").clips
    more = {HEARD: evaluation.heard()} | _on_new_clips(evaluation, opened)
    more |= _in_noise(recognizer, recordings, clips)
    in_streams = _in_streams(recognizer, recordings, len(clips), false_alarms_per_hour)
    if in_streams is not None:
        thresholds, reports = in_streams
        left_out = ("truth", "unclear")  # long, and useful only together with the streams themselves
        rows = [{name: value for name, value in report.summary().items() if name not in left_out} for report in reports]
        more |= {"thresholds": thresholds.as_json(), "streams": rows}
    evaluation = dataclasses.replace(evaluation, more=more)
    write_report(
        report,
        recognizer,
        evaluation,
        "test split",
        recordings,
        training=_training(tensors, str(recognizer.about.get("run", ""))),
        streams=in_streams,
    )
    log.info("accuracy %.2f %% on %d test clips", 100 * evaluation.accuracy, evaluation.num_clips)
    return evaluation


def _on_new_clips(evaluation: Evaluation, tensors: Tensors) -> dict[str, Any]:
    """Tells new from old clips, if there is a champion, whose data had the old ones."""
    data_root = tensors.folder.parents[1]
    try:
        champion = versions.champion(data_root)
    except ValueError as error:
        log.warning("accuracy on new clips is not known: %s", error)
        return {}
    is_new = find_new(tensors, data_root, champion) if champion else None
    return {} if is_new is None else {"new_clips": {"champion": champion, **apart(evaluation, is_new)}}


def _in_noise(recognizer: Recognizer, recordings: Path, clips: Index) -> dict[str, Any]:
    """Measures robustness, and how loud the recordings are, on clips spread evenly over the test split."""
    some = clips[:: -(-len(clips) // ROBUSTNESS_CLIPS)]
    try:
        found = robustness.measure(recognizer, recordings, some)
        loud = levels(np.stack([read(recordings, clip, recognizer.features) for clip in some]))
    except (OSError, ValueError) as error:
        log.warning("robustness is not evaluated: %s", error)
        return {}
    level = dataclasses.asdict(Distribution.of(loud, LEVEL_BOUNDS))
    return {"robustness": dict(found), "num_robustness_clips": len(some), "level_dbfs": level}


def _in_streams(
    recognizer: Recognizer, recordings: Path, num_clips: int, false_alarms_per_hour: float
) -> tuple[Thresholds, list[StreamReport]] | None:
    """Chooses thresholds on a stream of the validation split, and evaluates them on one of the test split."""
    if num_clips < STREAM_CLIPS:
        log.info("streams are not evaluated, as the test split has %d clips: %d are needed", num_clips, STREAM_CLIPS)
        return None
    hours = min(1.0, num_clips / CLIPS_PER_HOUR) * (1.0 if recognizer.margin is None else LONG_HOURS)
    log.info(
        "listening to %.0f minutes of stream of the validation split, to choose thresholds, and as many of the "
        "test split",
        60 * hours,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            # A window at a time, onnxruntime is more than twice as fast as torch; probabilities differ by 1e-6.
            onnx.export(recognizer, Path(folder) / versions.ONNX)
            exported = onnx.load(Path(folder) / versions.ONNX, num_threads=1)
            return streams.evaluate_streams(
                exported, recordings, hours=hours, false_alarms_per_hour=false_alarms_per_hour, snrs_db=[STREAM_SNR_DB]
            )
    except (OSError, ValueError) as error:
        log.warning("streams are not evaluated: %s", error)
        return None


def _training(tensors: Path, run: str) -> list[dict[str, Any]]:
    """Reads the metrics of the run that trained a model, if runs/ is beside tensors/ as on the volume."""
    path = tensors.parent.parent / "runs" / run / METRICS
    if not run or not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        log.warning("the report has no training curves: %s: %s", path, error)
        return []
