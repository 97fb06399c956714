"""What a model detects in a stream whose content is known: words that are found, and false alarms.

Every detection that is not the word spoken at that time counts as a false alarm, and so does a word that is detected
twice.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kws.evaluate.script import TOLERANCE, Utterance
from kws.model.detector import Decider, Detector, Floats, Thresholds, Window, reported
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform
from kws.progress import progress

FAULT_SECONDS = 3.0
"""Seconds of sound that are shown around a false alarm or a miss."""

TOKENS_AT_A_TIME = 200
"""Tokens that are computed together, as nobody waits for the detections."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A stream with the probabilities that the model assigned to its windows."""

    name: str
    seconds: float
    spoken: Sequence[Utterance]
    times: npt.NDArray[np.float64]
    """float64 [windows], the middle of each window in seconds."""
    probabilities: Floats
    """Smoothed probabilities, float32 [windows, words]."""

    @property
    def hours(self) -> float:
        """Length of the stream in hours."""
        return self.seconds / 3600


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The detections in a stream, compared with what was spoken."""

    hours: float
    found: Counter[str]
    """Number of correct detections by word."""
    spoken: Counter[str]
    """Number of utterances by word."""
    false_alarms: Counter[str]
    """Number of false alarms by detected word."""
    causes: Counter[str]
    """Number of false alarms by cause: word (another word), again (detected twice), unknown, sentence, noise, closed (a
    word without the gate before it)."""
    gate: str = ""
    """The word of the gate; empty: none."""
    reached: int = 0
    """Number of words that were spoken after a word of the gate that was detected."""

    @property
    def missed(self) -> float:
        """Miss rate, the fraction of the spoken words that were not detected.

        The word of the gate does not count, but what was missed because of it does.
        """
        return 1 - self._found_words / max(self.spoken.total() - self.spoken[self.gate], 1)

    @property
    def gate_missed(self) -> float:
        """Miss rate of the word of the gate."""
        return 1 - self.found[self.gate] / max(self.spoken[self.gate], 1)

    @property
    def missed_after_gate(self) -> float:
        """Miss rate of the words that were spoken after a word of the gate that was detected."""
        return 1 - self._found_words / max(self.reached, 1)

    @property
    def _found_words(self) -> int:
        return self.found.total() - self.found[self.gate]

    @property
    def per_hour(self) -> float:
        """False alarms per hour."""
        return self.false_alarms.total() / self.hours

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(
            hours=self.hours + other.hours,
            found=self.found + other.found,
            spoken=self.spoken + other.spoken,
            false_alarms=self.false_alarms + other.false_alarms,
            causes=self.causes + other.causes,
            gate=self.gate or other.gate,
            reached=self.reached + other.reached,
        )


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A false alarm or a miss, with what the model assigned around it."""

    is_alarm: bool
    """Whether it is a false alarm; otherwise a miss."""
    time: float
    """When the word was detected, or the middle of the one that was missed, in seconds from the start of the stream."""
    word: str
    """The word that was detected, or missed."""
    cause: str
    """Of a false alarm: see `Outcome.causes`. Of a miss: word (another one was detected), gate (its word was missed),
    never (the word has no threshold that it could reach), low (it did not reach it), suppressed (it did, too soon after
    another detection)."""
    probability: float
    """That of the detection, or the highest one in the word that was missed."""
    begin: float
    """When the FAULT_SECONDS around it begin, in seconds from the start of the stream."""
    times: npt.NDArray[np.float64]
    """float64 [windows], the middle of each window in seconds from `begin`."""
    scores: Mapping[str, Floats]
    """Smoothed probabilities, each float32 [windows], of the word, and of the one for which it was taken."""


def score(
    recognizer: AnyRecognizer,
    thresholds: Thresholds,
    stream: Iterable[Waveform],
    spoken: Sequence[Utterance],
    seconds: float,
    name: str,
) -> Scored:
    """Applies a model to a stream, and keeps the probabilities of every window.

    Thresholds determine hop and smoothing. `stream` gives float32 pieces at the model's sample rate, `seconds` long in
    all.
    """
    detector = Detector(recognizer, thresholds, tokens_at_a_time=TOKENS_AT_A_TIME)
    found: list[Window] = []
    with progress(round(seconds), "s", f"listen to {name}") as bar:
        for piece in stream:
            found += detector.feed(piece)
            bar.update(min(round(detector.seconds), round(seconds)) - bar.n)
        found += detector.finish()
    return Scored(
        name=name,
        seconds=seconds,
        spoken=spoken,
        times=np.array([heard.time - detector.lag for heard in found]),
        probabilities=np.stack([heard.probabilities for heard in found]),
    )


def detect(scored: Scored, words: list[str], thresholds: Thresholds) -> list[tuple[float, str, float]]:
    """Returns time, word and probability of every detection with the given thresholds.

    Only windows in which a word exceeds its threshold, and the windows after them, can change the state of the
    detector, so all others are skipped.
    """
    decider = Decider(words, thresholds)
    targets = [words.index(word) for word in reported(words)]
    limits = np.array([thresholds.thresholds[words[index]] for index in targets], np.float32)
    above = np.asarray((scored.probabilities[:, targets] >= limits).any(axis=1))
    found = []
    for window in np.flatnonzero(above | np.roll(above, 1)):
        detected = decider.step(float(scored.times[window]), scored.probabilities[window])
        if detected is not None:
            found.append(detected)
    last = decider.finish()
    return [(time, words[index], probability) for probability, index, time in (*found, *([last] if last else []))]


def compare(detections: Iterable[tuple[float, str, float]], spoken: Sequence[Utterance], hours: float) -> Outcome:
    """Compares detections with the utterances in the stream.

    A word of kind closed was spoken without the gate before it: it can be detected only if the gate was opened by
    another sound, and is a false alarm.
    """
    taken, wrong = assign(detections, spoken)
    return Outcome(
        hours=hours,
        found=Counter(spoken[index].word for index in taken),
        spoken=Counter(one.word for one in spoken if _counts(one)),
        false_alarms=Counter(word for (_, word, _), _ in wrong),
        causes=Counter(cause for _, cause in wrong),
        gate=next((one.word for one in spoken if one.kind == "gate"), ""),
        # A word that was found counts even if the gate was still open from before.
        reached=sum(
            one.kind == "word" and before.kind == "gate" and bool({index - 1, index} & taken)
            for index, (before, one) in enumerate(itertools.pairwise(spoken), 1)
        ),
    )


def list_faults(
    scored: Scored, words: list[str], thresholds: Thresholds, detections: Iterable[tuple[float, str, float]]
) -> list[Fault]:
    """Lists all false alarms and misses in a stream, in order of time."""
    detections, spoken = list(detections), scored.spoken
    taken, wrong = assign(detections, spoken)
    found = []
    for (time, word, probability), cause in wrong:
        near = [one.word for one in spoken if one.word not in ("", word) and _lies_near(time, one)]
        found.append(_fault(scored, words, time, word, cause, probability, near, is_alarm=True))
    for index, one in enumerate(spoken):
        if index in taken or not _counts(one):
            continue
        near = [word for time, word, _ in detections if word != one.word and _lies_near(time, one)]
        first, last = np.searchsorted(scored.times, (one.begin - TOLERANCE, one.end + TOLERANCE))
        best = float(scored.probabilities[first:last, words.index(one.word)].max(initial=0.0))
        if thresholds.thresholds[one.word] > 1:
            cause = "never"
        elif one.kind == "word" and index and spoken[index - 1].kind == "gate" and index - 1 not in taken:
            cause = "gate"
        elif near:
            cause = "word"
        else:
            cause = "low" if best < thresholds.thresholds[one.word] else "suppressed"
        found.append(_fault(scored, words, (one.begin + one.end) / 2, one.word, cause, best, near, is_alarm=False))
    return sorted(found, key=lambda fault: fault.time)


def _fault(
    scored: Scored,
    words: list[str],
    time: float,
    word: str,
    cause: str,
    probability: float,
    others: Iterable[str],
    *,
    is_alarm: bool,
) -> Fault:
    begin = max(0.0, time - FAULT_SECONDS / 2)
    first, last = np.searchsorted(scored.times, (begin, begin + FAULT_SECONDS))
    shown = [one for one in dict.fromkeys((word, *others)) if one in words]
    return Fault(
        is_alarm=is_alarm,
        time=time,
        word=word,
        cause=cause,
        probability=probability,
        begin=begin,
        times=scored.times[first:last] - begin,
        scores={one: scored.probabilities[first:last, words.index(one)] for one in shown},
    )


def assign(
    detections: Iterable[tuple[float, str, float]], spoken: Sequence[Utterance]
) -> tuple[set[int], list[tuple[tuple[float, str, float], str]]]:
    """Returns which utterances were detected, by index, and the detections that are false alarms, with their causes.

    A detection has time, word and probability.
    """
    begins = np.array([one.begin for one in spoken])
    taken: set[int] = set()
    wrong = []
    for detection in detections:
        time, word, _ = detection
        after = int(np.searchsorted(begins, time))
        near = [index for index in (after - 1, after) if 0 <= index < len(spoken) and _lies_near(time, spoken[index])]
        right = [index for index in near if spoken[index].word == word and spoken[index].kind != "closed"]
        fresh = [index for index in right if index not in taken]
        if fresh:
            taken.add(fresh[0])
        elif not any(first <= time <= last for index in near for first, last in spoken[index].unclear):
            wrong.append((detection, _cause(word, [spoken[index] for index in near])))
    return taken, wrong


def _counts(one: Utterance) -> bool:
    """Returns whether an utterance is to be detected."""
    return bool(one.word) and one.kind != "closed"


def _lies_near(time: float, one: Utterance) -> bool:
    return one.begin - TOLERANCE <= time <= one.end + TOLERANCE


def _cause(word: str, near: Sequence[Utterance]) -> str:
    """Returns the cause of a false alarm, given the utterances at that time."""
    kinds = [one.kind for one in near if one.word == word]
    if kinds:
        return "closed" if set(kinds) == {"closed"} else "again"
    return "noise" if not near else "word" if near[0].word else near[0].kind
