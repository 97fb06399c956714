"""Evaluates detection in long audio streams with known content: misses, false alarms per hour, and thresholds.

Thresholds are chosen on streams of the validation split; metrics are computed on streams of the test split. The model
listens to both as `kws listen` does.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kws.cores import computing
from kws.evaluate.accuracy import wilson
from kws.evaluate.outcomes import Fault, Outcome, Scored, compare, detect, list_faults, score
from kws.evaluate.script import Script, Utterance
from kws.evaluate.thresholds import choose_thresholds, moved, total
from kws.model.detector import Thresholds
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import read_waveform
from kws.settings import require

SNRS_DB = (20, 10, 5)
"""Signal-to-noise ratios in dB: the mean power of an utterance over that of the noise."""

MOVES = np.concatenate((np.linspace(-6, -1, 20, endpoint=False), np.linspace(-1, 1, 81), np.linspace(1.25, 4, 12)))
"""Offsets in log-odds by which all thresholds are moved for the points of a curve. They are densest around 0, as
training with label smoothing keeps confident probabilities in a narrow range below 1."""


@dataclass(frozen=True, kw_only=True)
class StreamReport:
    """The results at one signal-to-noise ratio."""

    snr_db: float
    outcome: Outcome
    curve: list[tuple[float, float]]
    """False alarms per hour and miss rate, while all thresholds are moved together from low to high."""
    detections: list[tuple[float, str, float]] = field(repr=False)
    """Time in seconds, word and probability."""
    spoken: Sequence[Utterance] = field(repr=False)
    faults: Sequence[Fault] = field(repr=False)
    """All false alarms and misses."""
    script: Script = field(repr=False)
    """With which the sound around them can be rendered."""

    def summary(self) -> dict[str, Any]:
        """Returns the results as JSON."""
        outcome = self.outcome
        missable = outcome.spoken.total() - outcome.spoken[outcome.gate]
        gate: dict[str, Any] = {}
        if outcome.gate:
            gate = {
                "after": outcome.gate,
                "gate_missed": outcome.gate_missed,
                "reached": outcome.reached,
                "missed_after_gate": outcome.missed_after_gate,
            }
        return {
            "snr_db": self.snr_db,
            "hours": round(outcome.hours, 3),
            "asked_hours": self.script.hours,
            "utterances": len(self.spoken),
            "spoken": outcome.spoken.total(),
            "missed": outcome.missed,
            "missed_95": wilson(outcome.missed, missable),
            **gate,
            "false_alarms": outcome.false_alarms.total(),
            "false_alarms_per_hour": outcome.per_hour,
            "false_alarms_per_hour_95": _per_hour_95(outcome.false_alarms.total(), outcome.hours),
            "false_alarms_by_cause": dict(outcome.causes.most_common()),
            "missed_at_one_an_hour": min((missed for alarms, missed in self.curve if alarms <= 1), default=1.0),
            "words": {
                word: {
                    "spoken": number,
                    "missed": 1 - outcome.found[word] / number,
                    "missed_95": wilson(1 - outcome.found[word] / number, number),
                    "false_alarms": outcome.false_alarms[word],
                    "false_alarms_per_hour_95": _per_hour_95(outcome.false_alarms[word], outcome.hours),
                }
                for word, number in sorted(outcome.spoken.items())
            },
            "curve": [[round(alarms, 4), round(missed, 4)] for alarms, missed in self.curve],
            "detections": [[round(time, 3), word, round(score, 5)] for time, word, score in self.detections],
            "truth": [[round(one.begin, 3), round(one.end, 3), one.kind, one.word, one.source] for one in self.spoken],
            "unclear": [[round(first, 3), round(last, 3)] for one in self.spoken for first, last in one.unclear],
        }


def poisson_interval(count: int) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of a Poisson count, by the Wilson-Hilferty approximation; 0: 0 to 3.7."""

    def bound(number: int, z: float) -> float:
        return number * (1 - 1 / (9 * number) + z / (3 * math.sqrt(number))) ** 3 if number else 0.0

    return bound(count, -1.96), bound(count + 1, 1.96)


def _per_hour_95(count: int, hours: float) -> list[float]:
    return [bound / hours for bound in poisson_interval(count)]


@computing()
def evaluate_streams(
    recognizer: AnyRecognizer,
    recordings: Path,
    *,
    hours: float = 1.0,
    false_alarms_per_hour: float = 1.0,
    thresholds: Thresholds | None = None,
    room: Path | None = None,
    snrs_db: Sequence[float] = SNRS_DB,
    after: str = "",
    after_seconds: float | None = None,
) -> tuple[Thresholds, list[StreamReport]]:
    """Chooses thresholds on streams of the validation split, and evaluates them on streams of the test split.

    Args:
        recognizer: the model.
        recordings: a folder of `<word>/*.wav` with background noise, whose lists or speakers determine the splits.
        hours: length of each stream; there are two for each signal-to-noise ratio.
        false_alarms_per_hour: the limit for the choice of thresholds.
        thresholds: if given, these are evaluated, and none are chosen.
        room: a long recording without any of the words, in which the limit must hold as well.
        snrs_db: the signal-to-noise ratios in dB.
        after: the word of a gate, see `Thresholds.behind`; empty: that of `thresholds`, if any.
        after_seconds: for how long the gate is open.

    Returns:
        The thresholds, whose `measured_on` has the curves for `kws/curve.js`, and a report for each signal-to-noise
        ratio.

    Raises:
        ValueError: there are no clips of the words or no noise, or a setting is out of range.
    """
    require(0 < hours <= 1000, "hours", "be more than 0 and at most 1000", hours)
    words = recognizer.words
    base = thresholds or Thresholds.unmeasured(words, of_tokens=recognizer.margin is not None)
    base = base.behind(after, after_seconds)
    gate, seconds_open = base.after, base.after_seconds
    if thresholds is None:
        script = Script(recordings, recognizer, "validation", hours, after=gate, after_seconds=seconds_open)
        scored = [_score(recognizer, base, script, snr) for snr in snrs_db]
        if room is not None:
            sound = read_waveform(room, recognizer.features.sample_rate)
            seconds = sound.size / recognizer.features.sample_rate
            quiet = score(recognizer, base, np.array_split(sound, max(1, sound.size // 16_000)), [], seconds, room.name)
            base = choose_thresholds([quiet, *scored], words, base, false_alarms_per_hour)
        else:
            base = choose_thresholds(scored, words, base, false_alarms_per_hour)
    script = Script(recordings, recognizer, "test", hours, after=gate, after_seconds=seconds_open)
    reports, curves = [], []
    for snr in snrs_db:
        one = _score(recognizer, base, script, snr)
        found = detect(one, words, base)
        curve = [total([one], words, moved(base, by)) for by in MOVES.tolist()]
        points = [
            [round(by, 3), round(outcome.per_hour, 3), round(outcome.missed, 4)]
            for by, outcome in zip(MOVES.tolist(), curve, strict=True)
        ]
        curves.append({"name": f"{snr:g} dB", "points": points})
        reports.append(
            StreamReport(
                snr_db=snr,
                outcome=compare(found, one.spoken, one.hours),
                spoken=one.spoken,
                curve=[(outcome.per_hour, outcome.missed) for outcome in curve],
                detections=found,
                faults=list_faults(one, words, base, found),
                script=script,
            )
        )
    return dataclasses.replace(base, measured_on=dict(base.measured_on) | {"curves": curves}), reports


def _score(recognizer: AnyRecognizer, thresholds: Thresholds, script: Script, snr_db: float) -> Scored:
    name = f"{script.split} at {snr_db:g} dB"
    return score(recognizer, thresholds, script.render(snr_db), script.spoken, script.seconds, name)
