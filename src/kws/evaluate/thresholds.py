"""The choice of thresholds, on streams of the validation split, within a limit of false alarms."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kws.evaluate.outcomes import Outcome, Scored, compare, detect
from kws.model.detector import UNMEASURED, Thresholds, reported
from kws.settings import require

log = logging.getLogger(__name__)

GATE_SHARE = 0.5
"""Share of the allowed false alarms that the word of the gate may cause."""

NUM_LEVELS = 60
"""Number of thresholds that are tried for every word."""

LOWEST_LEVEL = 0.2
"""Lowest threshold that is tried."""

NEVER = 1.5
"""The threshold of a word that cannot be detected without too many false alarms."""


def choose_thresholds(
    scored: Sequence[Scored], words: list[str], thresholds: Thresholds, false_alarms_per_hour: float
) -> Thresholds:
    """Chooses the thresholds that detect the most words within a limit of false alarms.

    Every level is first tried for all words at once. Then, starting with thresholds that are never reached, a greedy
    search lowers the threshold that gains the most detections per false alarm, until the limit is used up. As words
    compete with each other, the result is tried as a whole, and all thresholds are raised together until the limit
    holds.

    A word that is not spoken in the streams gets the lowest threshold, from `UNMEASURED` on, at which it causes no
    false alarm.

    If there is a gate, the threshold of its word is chosen first, for `GATE_SHARE` of the limit. The other words then
    have what it leaves; as they count only while the gate is open, their thresholds can be much lower.

    Args:
        scored: streams of the validation split.
        words: the words of the model.
        thresholds: determine smoothing and refractory time.
        false_alarms_per_hour: the limit, over all words.

    Raises:
        ValueError: the limit is not positive.
    """
    require(false_alarms_per_hour > 0, "false_alarms_per_hour", "be positive", false_alarms_per_hour)
    gate, targets = thresholds.after, reported(words)
    levels = _levels(scored, words)
    hours = sum(one.hours for one in scored)
    budget = false_alarms_per_hour * hours
    fixed: dict[str, float] = {}
    if gate:
        alone, fixed[gate] = dict.fromkeys(targets, NEVER), NEVER
        best_found = 0
        for level in reversed(levels):
            outcome = total(scored, words, _with(thresholds, alone | {gate: level}))
            if outcome.false_alarms.total() > GATE_SHARE * budget:
                break
            if outcome.found[gate] > best_found:
                best_found, fixed[gate] = outcome.found[gate], level
        targets = [word for word in targets if word != gate]
        budget -= total(scored, words, _with(thresholds, alone | fixed)).false_alarms.total()
    tried = [total(scored, words, _with(thresholds, dict.fromkeys(targets, level) | fixed)) for level in levels]
    chosen = dict.fromkeys(targets, len(levels))  # index of a level; past the last level: never
    found = dict.fromkeys(targets, 0)
    spent = dict.fromkeys(targets, 0)
    while True:
        best, best_worth = None, 0.0
        for word in targets:
            for index in range(chosen[word]):
                gain = tried[index].found[word] - found[word]
                cost = tried[index].false_alarms[word] - spent[word]
                if gain <= 0 or sum(spent.values()) + cost > budget:
                    continue
                # Among equally good thresholds the highest is the safest.
                worth = (gain + 1e-3 * index) / max(cost, 0.05)
                if worth > best_worth:
                    best, best_worth = (word, index), worth
        if best is None:
            break
        word, index = best
        chosen[word], found[word], spent[word] = index, tried[index].found[word], tried[index].false_alarms[word]
    values = {word: levels[index] if index < len(levels) else NEVER for word, index in chosen.items()}
    spoken = {one.word for stream in scored for one in stream.spoken}
    for word in (word for word in targets if word not in spoken):  # in a short stream: nothing says what it misses
        silent = [level for level, outcome in zip(levels, tried, strict=True) if not outcome.false_alarms[word]]
        values[word] = max(UNMEASURED, silent[0]) if silent else NEVER
    result = _with(thresholds, {word: (values | fixed)[word] for word in reported(words)})
    for step in itertools.count():
        outcome = total(scored, words, moved(result, 0.02 * step, but=gate))
        if outcome.per_hour <= false_alarms_per_hour or step == 200:
            break
    result = moved(result, 0.02 * step, but=gate)
    never = [word for word, value in result.thresholds.items() if value > 1]
    if never:
        log.warning("words that are never detected, as they cause too many false alarms: %s", ", ".join(never))
    return dataclasses.replace(
        result,
        thresholds={word: round(value, 6) for word, value in result.thresholds.items()},
        false_alarms_per_hour=outcome.per_hour,
        measured_on={
            "streams": [one.name for one in scored],
            "hours": round(outcome.hours, 3),
            "missed": outcome.missed,
            **({"gate_missed": outcome.gate_missed} if gate else {}),
            "limit": false_alarms_per_hour,
        },
    )


def moved(thresholds: Thresholds, by: float, but: str = "") -> Thresholds:
    """Moves all thresholds but one by an offset in log-odds; words that are never detected stay so."""
    return _with(
        thresholds,
        {
            word: value if value > 1 or word == but else _probability(_log_odds(value) + by)
            for word, value in thresholds.thresholds.items()
        },
    )


def total(scored: Sequence[Scored], words: list[str], thresholds: Thresholds) -> Outcome:
    """Returns what a model detects in several streams together."""
    outcomes = [compare(detect(one, words, thresholds), one.spoken, one.hours) for one in scored]
    return sum(outcomes[1:], outcomes[0])


def _with(thresholds: Thresholds, values: Mapping[str, float]) -> Thresholds:
    return dataclasses.replace(thresholds, thresholds=dict(values))


def _levels(scored: Sequence[Scored], words: list[str]) -> list[float]:
    """Returns the thresholds to try: probabilities that occurred in windows, more of them among the highest."""
    targets = [words.index(word) for word in reported(words)]
    scores = np.concatenate([one.probabilities[:, targets].max(axis=1) for one in scored])
    scores = np.sort(scores[scores >= LOWEST_LEVEL])[::-1]
    if not scores.size:
        return [LOWEST_LEVEL]
    ranks = np.unique(np.geomspace(1, scores.size, NUM_LEVELS).astype(int)) - 1
    return [float(level) for level in np.unique(scores[ranks])]


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(clipped / (1 - clipped))
