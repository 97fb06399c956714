"""Compares a model with the champion in streams: which of the same words each misses, and how often each is wrong."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws.evaluate.outcomes import assign, detect, score
from kws.evaluate.script import Script
from kws.evaluate.thresholds import NEVER
from kws.model import onnx, versions
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds

log = logging.getLogger(__name__)

CHANCE = 0.05
"""A difference that is less probable by chance than this is clear."""


@dataclass(frozen=True, kw_only=True)
class Listened:
    """How a model compares with the champion in streams."""

    difference: int
    """Positive: clearly better than the champion; negative: clearly worse; 0: neither, or not compared."""
    sentence: str
    """The figures of both, or why they were not compared; empty if the new model has not listened to streams."""


def compare_in_streams(
    recognizer: Recognizer, evaluation: Mapping[str, Any], champion: Path, recordings: Path
) -> Listened:
    """Lets the champion listen to the streams of the test split to which the evaluate step let a new model listen.

    Each listens with the thresholds that are published with it. A difference is clear if it is beyond chance: of
    misses, by McNemar's exact test on the words that one of the two missed; of false alarms in the same hours, by the
    exact binomial test. A model is clearly better if it is so in one of them and not clearly worse in the other, and
    the other way round. `evaluation` is the content of evaluation.json of the new model, `champion` the folder of the
    champion. The streams are made of the test split of the recordings.
    """
    rows = evaluation.get("streams", [])
    if not rows:
        return Listened(difference=0, sentence="")
    try:
        return _compare(recognizer, evaluation, rows[0], champion, recordings)
    except (OSError, ValueError) as error:
        log.warning("%s is not compared in streams: %s", champion.name, error)
        return Listened(difference=0, sentence=f"not compared in streams: {error}")


def _compare(
    recognizer: Recognizer, evaluation: Mapping[str, Any], row: Mapping[str, Any], champion: Path, recordings: Path
) -> Listened:
    """Compares them in the streams of one row of evaluation.json.

    Raises:
        ValueError: the champion has no measured thresholds, or cannot listen to these streams.
        OSError: a file cannot be read.
    """
    if "asked_hours" not in row:
        raise ValueError("evaluation.json is of an earlier release")
    thresholds = Thresholds.from_json(evaluation["thresholds"], recognizer.words)
    rival = onnx.load(champion / versions.ONNX, num_threads=1)
    others = Thresholds.beside(champion / versions.ONNX, rival.words)
    if math.isnan(others.false_alarms_per_hour):
        raise ValueError(f"{champion.name} has no measured thresholds")
    if (others.after, others.after_seconds) != (thresholds.after, thresholds.after_seconds):
        raise ValueError(f"{champion.name} has another gate")
    if rival.features.sample_rate != recognizer.features.sample_rate:
        raise ValueError(f"{champion.name} listens at another sample rate")
    script = Script(
        recordings,
        recognizer,
        "test",
        row["asked_hours"],
        after=thresholds.after,
        after_seconds=thresholds.after_seconds,
    )
    if len(script.spoken) != row["utterances"]:
        raise ValueError("the recordings are no longer those of the evaluate step")
    log.info("listening to %.0f minutes of stream with %s, to compare it", script.seconds / 60, champion.name)
    # What the new model does not know is no mistake of the champion's in streams that are made for the new model.
    known = {word: value if word in recognizer.words else NEVER for word, value in others.thresholds.items()}
    others = dataclasses.replace(others, thresholds=known)
    heard = score(rival, others, script.render(row["snr_db"]), script.spoken, script.seconds, champion.name)
    words = {index for index, one in enumerate(script.spoken) if one.kind == "word"}
    found, wrong = assign(row["detections"], script.spoken)
    other_found, other_wrong = assign(detect(heard, rival.words, others), script.spoken)
    misses, other_misses = words - found, words - other_found
    missed = _clear(len(other_misses - misses), len(misses - other_misses))
    alarms = _clear(len(other_wrong), len(wrong))
    hours = script.seconds / 3600

    def figures(missed: set[int], alarms: int) -> str:
        return f"{len(missed) / len(words):.1%} at {alarms / hours:.1f} false alarms per hour"

    sentence = (
        f"in {hours:.2f} h of streams with {len(words)} words at {row['snr_db']:g} dB it misses "
        f"{figures(misses, len(wrong))}, {champion.name} {figures(other_misses, len(other_wrong))}"
    )
    return Listened(difference=missed + alarms, sentence=sentence)


def _clear(number: int, other: int) -> int:
    """Compares two counts that chance makes equal: 1 if the first is clearly larger, -1 if clearly smaller, else 0."""
    total, less = number + other, min(number, other)
    probability = 2 * sum(math.comb(total, k) for k in range(less + 1)) / 2**total
    return 0 if probability >= CHANCE else 1 if number > other else -1
