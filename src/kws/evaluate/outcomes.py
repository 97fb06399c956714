"""What a model detects in a stream whose content is known: words that are found, and false alarms.

Every detection that is not the word spoken at that time counts as a false alarm, and so does a word that is detected
twice.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kws.evaluate.script import TOLERANCE, Utterance
from kws.model.detector import Decider, Detector, Floats, Thresholds, Window, reported
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform
from kws.progress import progress

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


def score(
    recognizer: AnyRecognizer,
    thresholds: Thresholds,
    stream: Iterable[Waveform],
    spoken: Sequence[Utterance],
    seconds: float,
    name: str,
) -> Scored:
    """Applies a model to a stream, and keeps the probabilities of every window.

    Args:
        recognizer: the model.
        thresholds: determine hop and smoothing.
        stream: float32 pieces at the model's sample rate.
        spoken: the utterances in the stream.
        seconds: length of the stream.
        name: name on the progress bar.
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
    begins = np.array([one.begin for one in spoken])
    found: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    taken: set[int] = set()
    for time, word, _ in detections:
        after = int(np.searchsorted(begins, time))
        near = [
            index
            for index in (after - 1, after)
            if 0 <= index < len(spoken) and spoken[index].begin - TOLERANCE <= time <= spoken[index].end + TOLERANCE
        ]
        right = [index for index in near if spoken[index].word == word and spoken[index].kind != "closed"]
        fresh = [index for index in right if index not in taken]
        if fresh:
            taken.add(fresh[0])
            found[word] += 1
            continue
        if any(first <= time <= last for index in near for first, last in spoken[index].unclear):
            continue
        alarms[word] += 1
        causes[_cause(word, [spoken[index] for index in near])] += 1
    return Outcome(
        hours=hours,
        found=found,
        spoken=Counter(one.word for one in spoken if one.word and one.kind != "closed"),
        false_alarms=alarms,
        causes=causes,
        gate=next((one.word for one in spoken if one.kind == "gate"), ""),
        # A word that was found counts even if the gate was still open from before.
        reached=sum(
            one.kind == "word" and before.kind == "gate" and bool({index - 1, index} & taken)
            for index, (before, one) in enumerate(itertools.pairwise(spoken), 1)
        ),
    )


def _cause(word: str, near: Sequence[Utterance]) -> str:
    """Returns the cause of a false alarm, given the utterances at that time."""
    kinds = [one.kind for one in near if one.word == word]
    if kinds:
        return "closed" if set(kinds) == {"closed"} else "again"
    return "noise" if not near else "word" if near[0].word else near[0].kind
