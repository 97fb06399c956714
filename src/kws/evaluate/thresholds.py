"""The choice of thresholds, on streams of the validation split, within a limit of false alarms."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kws.evaluate.outcomes import Outcome, Scored, compare, detect
from kws.model.detector import UNMEASURED, Thresholds, log_odds, reported
from kws.settings import require

log = logging.getLogger(__name__)

GATE_SHARE = 0.5
"""Share of the allowed false alarms that the word of the gate may cause."""

NUM_LEVELS = 120
"""Number of thresholds that are tried for every word."""

TAIL_ALARMS = 8
"""The highest false alarms of a word, so many of them, tell how many there are above a threshold. The more there are,
the farther they lie below it, where the number falls more slowly than it does there: too many are expected, and
thresholds become too strict. With fewer, chance counts for more (research/streams.md)."""

TAIL_PRIOR = 30
"""What all words together tell about the tail of each, as if it were so many more false alarms."""

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

    What counts is not how many false alarms a threshold had in these streams, but how many it is expected to have in
    others, see `expected_alarms`: a threshold just above the highest false alarm of its word had none, and will have
    one in every stream of that length.

    A word that is not spoken in the streams gets the lowest threshold, from `UNMEASURED` on, at which it causes no
    false alarm; so does one that would never be reported where the streams are too short for the limit.

    If there is a gate, the threshold of its word is chosen first, for `GATE_SHARE` of the limit. The other words then
    have what it leaves; as they count only while the gate is open, their thresholds can be much lower.

    Args:
        scored: streams of the validation split. If they are shorter than an hour for every false alarm an hour, the
            limit is one in all of them, as less cannot be measured.
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
    limit = max(false_alarms_per_hour, 1 / hours)
    if limit > false_alarms_per_hour:
        log.warning(
            "thresholds are chosen for %.3g false alarms an hour, not %g: %.3g hours of stream tell no less",
            limit,
            false_alarms_per_hour,
            hours,
        )
    budget = limit * hours
    fixed: dict[str, float] = {}
    if gate:
        fixed[gate], cost = _threshold_of_gate(scored, words, thresholds, levels, GATE_SHARE * budget)
        targets = [word for word in targets if word != gate]
        budget -= cost
    tried = [total(scored, words, _with(thresholds, dict.fromkeys(targets, level) | fixed)) for level in levels]
    alarms = {word: [outcome.false_alarms[word] for outcome in tried] for word in targets}
    expected = np.array(list(expected_alarms(levels, alarms).values())).reshape(len(targets), len(levels))
    found = np.array([[outcome.found[word] for outcome in tried] for word in targets]).reshape(expected.shape)
    chosen = _most_found(found, expected, budget)
    values = {
        word: levels[index] if index < len(levels) else NEVER for word, index in zip(targets, chosen, strict=True)
    }
    spoken = {one.word for stream in scored for one in stream.spoken}
    short = limit > false_alarms_per_hour
    # Nothing says what a word misses that was not spoken, nor in a short stream what one costs.
    for word in (word for word in targets if word not in spoken or (short and values[word] == NEVER)):
        silent = [level for level, outcome in zip(levels, tried, strict=True) if not outcome.false_alarms[word]]
        values[word] = max(UNMEASURED, silent[0]) if silent else NEVER
    result = _with(thresholds, {word: (values | fixed)[word] for word in reported(words)})
    for step in itertools.count():
        outcome = total(scored, words, moved(result, 0.02 * step, but=gate))
        if outcome.per_hour <= limit or step == 200:
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
            "limit": limit,
        },
    )


def _most_found(
    found: npt.NDArray[np.int64], expected: npt.NDArray[np.float64], budget: float
) -> npt.NDArray[np.int64]:
    """Chooses a level for each word; see `choose_thresholds`.

    Args:
        found: the detections, [words, levels].
        expected: the false alarms, [words, levels], falling.
        budget: the most false alarms of all words together.

    Returns:
        The indices of the levels, [words]; the number of levels stands for never.
    """
    num_words, num_levels = found.shape
    chosen, has, spent = np.full(num_words, num_levels), np.zeros(num_words, int), np.zeros(num_words)
    while True:
        gain, cost = found - has[:, None], expected - spent[:, None]
        lower = np.arange(num_levels) < chosen[:, None]
        worth = np.where(lower & (cost <= budget - spent.sum()), gain / np.maximum(cost, 1e-6), 0)
        word, level = np.unravel_index(worth.argmax(), worth.shape)
        if worth[word, level] <= 0:
            return chosen
        chosen[word], has[word], spent[word] = level, found[word, level], expected[word, level]


def _threshold_of_gate(
    scored: Sequence[Scored], words: list[str], thresholds: Thresholds, levels: Sequence[float], budget: float
) -> tuple[float, float]:
    """Chooses the threshold of the gate alone; returns it, and the false alarms that it is expected to have."""
    gate = thresholds.after
    alone = dict.fromkeys(reported(words), NEVER)
    tried = [total(scored, words, _with(thresholds, alone | {gate: level})) for level in levels]
    expected = expected_alarms(levels, {gate: [outcome.false_alarms[gate] for outcome in tried]})[gate]
    found = [outcome.found[gate] if alarms <= budget else 0 for outcome, alarms in zip(tried, expected, strict=True)]
    best = max(found)
    if not best:
        return NEVER, 0.0
    highest = max(index for index, number in enumerate(found) if number == best)
    return levels[highest], expected[highest]


def expected_alarms(levels: Sequence[float], alarms: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
    """Estimates how many false alarms each level would have in other streams of the same length.

    The number of false alarms above a threshold falls exponentially with its log-odds: the tail of most distributions,
    if one looks far enough (J. Pickands, "Statistical inference using extreme order statistics", 1975). It is fitted by
    maximum likelihood to the `TAIL_ALARMS` highest false alarms of a word, together with `TAIL_PRIOR` of the rate of
    all words, as some have hardly any. It is never less than what was counted, nor more at lower levels.

    Args:
        levels: thresholds as probabilities, ascending.
        alarms: for every word its number of false alarms at each level.

    Returns:
        For every word the expected number at each level, positive and falling.
    """
    odds = np.array([log_odds(level) for level in levels])
    counts = {word: np.maximum.accumulate(np.array(number, float)[::-1])[::-1] for word, number in alarms.items()}
    starts = {word: max(0, int((count >= TAIL_ALARMS).sum()) - 1) for word, count in counts.items()}
    # The sum of what the scores of the highest false alarms exceed the start by: the area under the counts.
    excess = {word: float(np.trapezoid(count[starts[word] :], odds[starts[word] :])) for word, count in counts.items()}
    highest = {word: float(count[starts[word]]) for word, count in counts.items()}
    mean = sum(excess.values()) / sum(highest.values()) if sum(excess.values()) > 0 else 1.0
    expected = {}
    for word, count in counts.items():
        start = starts[word]
        rate = (highest[word] + TAIL_PRIOR) / (excess[word] + TAIL_PRIOR * mean)
        tail = max(highest[word], 1.0) * np.exp(-rate * (odds[start:] - odds[start]))
        expected[word] = [*count[:start].tolist(), *np.maximum(tail, count[start:]).tolist()]
    return expected


def moved(thresholds: Thresholds, by: float, but: str = "") -> Thresholds:
    """Moves all thresholds but one by an offset in log-odds; words that are never detected stay so."""
    return _with(
        thresholds,
        {
            word: value if value > 1 or word == but else 1 / (1 + math.exp(-log_odds(value) - by))
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
    """Returns the thresholds to try, evenly apart in log-odds up to the highest probability in a window."""
    targets = [words.index(word) for word in reported(words)]
    highest = max(float(one.probabilities[:, targets].max(initial=LOWEST_LEVEL)) for one in scored)
    odds = np.linspace(log_odds(LOWEST_LEVEL), log_odds(highest), NUM_LEVELS)
    return [float(level) for level in np.unique(1 / (1 + np.exp(-odds)))]
