"""How many streams one core processes in real time."""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import latency, measure
from benchmarks.measure import Effort, Row
from kws.model import onnx
from kws.model.detector import Detector, Thresholds

WANTED = 50
"""The goal: streams per core."""


def per_core(effort: Effort) -> Row:
    """Streams that a core hears in windows of a clip's length, ten a second, by its CPU time, against a goal of 50."""
    return _measure("streams_per_core", "default", effort)


def of_small_per_core(effort: Effort) -> Row:
    """The same with the preset `small`."""
    return _measure("small_streams_per_core", "small", effort)


def of_tokens_per_core(effort: Effort) -> Row:
    """The same with tokens, as the preset `streams` scores them."""
    return _measure("token_streams_per_core", "streams", effort)


def _measure(row: str, preset: str, effort: Effort) -> Row:
    """Detectors of one model on one thread, fed a tenth of a second each in turn, against the goal.

    Each stream has its frames once, then the network, then the decision. Everything runs in this
    thread and its CPU time is counted, so that other work on the machine does not matter.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.export(latency.untrained(preset), path)
        recognizer = onnx.load(path, num_threads=1)
    thresholds = Thresholds.unmeasured(recognizer.words, of_tokens=recognizer.margin is not None)
    detectors = [Detector(recognizer, thresholds) for _ in range(WANTED)]
    rate = recognizer.features.sample_rate
    random = np.random.default_rng(0)
    pieces = [0.1 * random.standard_normal(rate // 10).astype(np.float32) for _ in range(10)]
    for piece in pieces:  # up to a second passes before the first window
        for detector in detectors:
            detector.feed(piece)

    def streams() -> float:
        started = time.thread_time()
        for piece in pieces[: 2 * effort.steps]:
            for detector in detectors:
                detector.feed(piece)
        heard = 0.1 * len(pieces[: 2 * effort.steps]) * len(detectors)
        return heard / (time.thread_time() - started)

    with measure.threads(1):
        rates = measure.in_turns(streams, lambda: float(WANTED), effort.repeats)
    return Row(row=row, goal=1, unit="streams", **rates)
