"""Evaluates detection in long audio streams with known content: misses, false alarms per hour, and thresholds.

A stream imitates what a device hears: clips of the words at random gaps, other words, and running speech, all over
noise that training never used. The speech is that of the recordings, of people who talk in no other split; if there is
none with a text, synthetic voices read sentences. The model listens to it as `kws listen` does. Every detection that is
not the word spoken at that time counts as a false alarm, and so does a word that is detected twice.

Thresholds are chosen on streams of the validation split; metrics are computed on streams of the test split.

With a gate, half of the words are spoken soon after its word, and are to be detected; the others are spoken while it is
shut, and are to be ignored.
"""

import dataclasses
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.config import BACKGROUND_NOISE
from kws.cores import computing
from kws.data import classes, splits
from kws.data.listing import Listing
from kws.data.sources import list_recordings
from kws.download.sentences import speak_sentences
from kws.model.detector import UNMEASURED, Decider, Detector, Floats, Thresholds, Window, reported
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, read, read_waveform
from kws.progress import progress
from kws.settings import require

log = logging.getLogger(__name__)

SNRS_DB = (20, 10, 5)
"""Signal-to-noise ratios in dB: the mean power of an utterance over that of the noise."""

SHARES = {"word": 0.4, "unknown": 0.3, "sentence": 0.3}
"""Shares of the kinds of utterances: words of the model, other words of the corpus, and sentences."""

GATED = 0.5
"""Share of the words that are spoken after the word of the gate, if there is one."""

GATE_GAPS = (0.2, 1.5)
"""Range of the pauses between the word of the gate and the next, in seconds."""

GATE_SHARE = 0.5
"""Share of the allowed false alarms that the word of the gate may cause."""

GAPS = (0.5, 4.0)
"""Range of the pauses between utterances, in seconds."""

SPEECH_LEVEL = 0.05
"""Root mean square of every utterance, 26 dB below full scale; the noise is lower by the signal-to-noise ratio."""

TOLERANCE = 0.25
"""A detection belongs to an utterance if its middle lies within it, or this many seconds before or after it."""

NUM_SENTENCES = 120
"""Number of sentences that are synthesized, each with a random voice."""

TOKENS_AT_A_TIME = 200
"""Tokens that are computed together, as nobody waits for the detections."""

NUM_LEVELS = 60
"""Number of thresholds that are tried for every word."""

LOWEST_LEVEL = 0.2
"""Lowest threshold that is tried."""

LONGEST_SENTENCE = 20.0
"""Seconds of a recording of running speech that are taken at a time."""

MOVES = np.concatenate((np.linspace(-6, -1, 20, endpoint=False), np.linspace(-1, 1, 81), np.linspace(1.25, 4, 12)))
"""Offsets in log-odds by which all thresholds are moved for the points of a curve. They are densest around 0, as
training with label smoothing keeps confident probabilities in a narrow range below 1."""

NEVER = 1.5
"""The threshold of a word that cannot be detected without too many false alarms."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """An utterance in a stream."""

    begin: float
    end: float
    """In seconds from the start of the stream, as `begin`."""
    kind: str
    """word, unknown or sentence; gate: the word of the gate, which `word` follows; closed: a word spoken without it."""
    word: str
    """The word of the model; empty for unknown and sentence."""
    source: str
    """The clip id, or the recording or number of the sentence."""
    unclear: Sequence[tuple[float, float]] = ()
    """Where in the stream a word of the model may be spoken in a sentence, in seconds: nothing counts there. So it is
    with a word that happens to be spoken while the gate is open."""


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
class StreamReport:
    """The results at one signal-to-noise ratio."""

    snr_db: float
    outcome: Outcome
    curve: list[tuple[float, float]]
    """False alarms per hour and miss rate, while all thresholds are moved together from low to high."""
    detections: list[tuple[float, str, float]] = field(repr=False)
    """Time in seconds, word and probability."""
    spoken: Sequence[Utterance] = field(repr=False)

    def missed_at(self, per_hour: float) -> float:
        """Returns the lowest miss rate on the curve with at most `per_hour` false alarms per hour."""
        return min((missed for alarms, missed in self.curve if alarms <= per_hour), default=1.0)

    def summary(self) -> dict[str, Any]:
        """Returns the results as JSON."""
        outcome = self.outcome
        low, high = poisson_interval(outcome.false_alarms.total())
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
            "spoken": outcome.spoken.total(),
            "missed": outcome.missed,
            **gate,
            "false_alarms": outcome.false_alarms.total(),
            "false_alarms_per_hour": outcome.per_hour,
            "false_alarms_per_hour_95": [low / outcome.hours, high / outcome.hours],
            "false_alarms_by_cause": dict(outcome.causes.most_common()),
            "missed_at_one_an_hour": self.missed_at(1),
            "words": {
                word: {
                    "spoken": number,
                    "missed": 1 - outcome.found[word] / number,
                    "false_alarms": outcome.false_alarms[word],
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


class Script:
    """The script of a stream, which can be rendered at several signal-to-noise ratios."""

    def __init__(
        self,
        recordings: Path,
        recognizer: AnyRecognizer,
        split: str,
        hours: float,
        seed: int = 0,
        *,
        after: str = "",
        after_seconds: float = 3.0,
    ) -> None:
        """Draws a script at random.

        Args:
            recordings: a recordings folder with background noise.
            recognizer: the model, which determines the words to detect.
            split: validation or test.
            hours: length of the stream.
            seed: random seed, which is combined with the split.
            after: the word of the gate; empty: there is none.
            after_seconds: for how long the gate is open.

        Raises:
            ValueError: the split has no clip of a word of the model or of the gate, or there is no noise.
        """
        self.recordings = recordings
        self.features = recognizer.features
        self.split = split
        random = np.random.default_rng([seed, *split.encode()])
        listing = list_recordings(recordings)
        found = listing.clips_of(listing.words)
        clips = splits.by_speaker(found, splits.read_lists(listing.lists, found))[split]
        targets = reported(recognizer.words)
        self._clips = {clip.id: clip for clip in clips}
        rate = self.features.sample_rate
        talks = [talk for talk in listing.speech if talk.split == split]
        self._talks = {talk.file: talk for talk in talks if talk.text}
        if len(self._talks) < len(talks):
            log.warning("%d recordings of running speech without a text are left out", len(talks) - len(self._talks))
        self._sentences = {}
        if not self._talks:
            spoken = speak_sentences(NUM_SENTENCES, rate, [seed, *split.encode()], without=targets)
            self._sentences = {str(number): one.sound for number, one in enumerate(spoken)}
        sources = {
            "word": [clip.id for clip in clips if clip.word in targets],
            "unknown": [clip.id for clip in clips if clip.word not in recognizer.words],
            "sentence": [*self._talks, *self._sentences],
        }
        require(
            len(sources["word"]) > 0,
            "recordings",
            f"hold clips of {', '.join(targets)} in the {split} split",
            str(recordings),
        )
        gates = [source for source in sources["word"] if self._clips[source].word == after]
        inside = [source for source in sources["word"] if self._clips[source].word != after]
        require(
            after == "" or (len(gates) > 0 and len(inside) > 0),
            "recordings",
            f"hold clips of {after} and of another word of the model in the {split} split",
            str(recordings),
        )
        self._noises = _read_noises(listing, split, rate)
        require(
            len(self._noises) > 0, "recordings", f"hold noise of at least 5 s in {BACKGROUND_NOISE}", str(recordings)
        )
        self._random = [seed, *split.encode(), 1]
        kinds = [kind for kind in SHARES if sources[kind]]
        shares = np.array([SHARES[kind] for kind in kinds])
        # In random order, but every clip of a kind equally often.
        orders = {kind: _shuffled(sources[kind], random) for kind in kinds}
        pairs = _shuffled(gates, random), _shuffled(inside, random)
        # The next word must be over before the gate shuts.
        pause = max(GATE_GAPS[0], min(GATE_GAPS[1], after_seconds - self.features.num_samples / rate - 2 * TOLERANCE))
        self.spoken: list[Utterance] = []
        time, open_until = 0.0, -math.inf

        def speak(kind: str, source: str, gaps: tuple[float, float]) -> None:
            nonlocal time, open_until
            whole = self._read_sentence(source).size if kind == "sentence" else self.features.num_samples
            begin = time + round(float(random.uniform(*gaps)), 4)
            time = begin + min(whole / rate, LONGEST_SENTENCE)
            word = self._clips[source].word if kind in ("word", "gate", "closed") else ""
            talk = self._talks.get(source)
            unclear = [] if talk is None else talk.stretches_of(targets, begin, begin + whole / rate)
            if kind == "closed" and begin - TOLERANCE <= open_until:
                unclear = [(begin - TOLERANCE, time + TOLERANCE)]
            if kind == "gate":
                open_until = time + TOLERANCE + after_seconds
            self.spoken.append(
                Utterance(begin=begin, end=time, kind=kind, source=source, word=word, unclear=tuple(unclear))
            )

        while time < 3600 * hours:
            kind = str(random.choice(kinds, p=shares / shares.sum()))
            if not after or kind != "word":
                speak(kind, next(orders[kind]), GAPS)
            elif random.random() < GATED:
                speak("gate", next(pairs[0]), GAPS)
                speak("word", next(pairs[1]), (GATE_GAPS[0], pause))
            else:
                source = next(orders[kind])
                speak("gate" if self._clips[source].word == after else "closed", source, GAPS)
        self.seconds = time

    def render(self, snr_db: float) -> Iterator[Waveform]:
        """Yields the stream in pieces of a pause and an utterance, float32 [any]."""
        rate = self.features.sample_rate
        random = np.random.default_rng(self._random)
        noise = _endless(self._noises, rate, random)
        level = SPEECH_LEVEL / 10 ** (snr_db / 20)
        done = 0
        for one in self.spoken:
            begin, end = round(one.begin * rate), round(one.end * rate)
            piece = noise(end - done) * np.float32(level)
            speech = self._read_sentence(one.source) if one.kind == "sentence" else self._read(one.source)
            size = min(speech.size, end - begin)
            piece[begin - done : begin - done + size] += _levelled(speech[:size])
            yield piece.clip(-1, 1)
            done = end

    def _read_sentence(self, source: str) -> Waveform:
        if source in self._talks:
            return read_waveform(self.recordings / source, self.features.sample_rate)
        return self._sentences[source]

    def _read(self, source: str) -> Waveform:
        return read(self.recordings, self._clips[source], self.features)


def _shuffled(sources: Sequence[str], random: np.random.Generator) -> Iterator[str]:
    while True:
        for index in random.permutation(len(sources)):
            yield sources[index]


def _levelled(speech: Waveform, fade: int = 320) -> Waveform:
    """Scales an utterance to SPEECH_LEVEL and fades its ends, so that its own noise does not begin with a click."""
    scaled = speech * np.float32(SPEECH_LEVEL / max(float(np.sqrt(np.mean(np.square(speech, dtype=np.float64)))), 1e-5))
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    scaled[:fade] *= ramp
    scaled[-fade:] *= ramp[::-1]
    return scaled


def _read_noises(listing: Listing, split: str, sample_rate: int) -> list[Waveform]:
    """Reads the split's own part of every noise recording, scaled to a mean square of 1."""
    first, last = classes.SILENCE_PARTS[split]
    found = []
    for name in listing.noise:
        try:
            noise = read_waveform(listing.folder / name, sample_rate)
        except (ValueError, OSError) as error:
            log.warning("%s is left out: %s", name, error)
            continue
        part = noise[int(first * noise.size) : int(last * noise.size)]
        power = float(np.mean(np.square(part, dtype=np.float64))) if part.size >= sample_rate // 2 else 0.0
        if power > 0:
            found.append((part / np.float32(np.sqrt(power))).astype(np.float32))
    return found


def _endless(noises: Sequence[Waveform], rate: int, random: np.random.Generator) -> Callable[[int], Waveform]:
    """Returns a function that yields the next samples of endless noise; the recording changes about twice a minute."""
    fade = rate // 50
    ramp = np.linspace(0, 1, fade, dtype=np.float32)

    def pieces() -> Iterator[Waveform]:
        before = np.zeros(fade, np.float32)
        while True:
            noise = noises[int(random.integers(len(noises)))]
            for _ in range(max(1, 30 * rate // noise.size)):
                turned = np.roll(noise, random.integers(noise.size))
                start = turned[:fade] * ramp + before * ramp[::-1]
                before = turned[-fade:]
                yield np.concatenate((start, turned[fade:-fade]))

    source, rest = pieces(), np.empty(0, np.float32)

    def take(number: int) -> Waveform:
        nonlocal rest
        parts = [rest]
        while sum(part.size for part in parts) < number:
            parts.append(next(source))
        joined = np.concatenate(parts)
        rest = joined[number:]
        return joined[:number].copy()

    return take


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


def judge(detections: Iterable[tuple[float, str, float]], spoken: Sequence[Utterance], hours: float) -> Outcome:
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


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(clipped / (1 - clipped))


def _with(thresholds: Thresholds, values: Mapping[str, float]) -> Thresholds:
    return dataclasses.replace(thresholds, thresholds=dict(values))


def _moved(thresholds: Thresholds, by: float, but: str = "") -> Thresholds:
    """Moves all thresholds but one by an offset in log-odds; words that are never detected stay so."""
    return _with(
        thresholds,
        {
            word: value if value > 1 or word == but else _probability(_log_odds(value) + by)
            for word, value in thresholds.thresholds.items()
        },
    )


def _total(scored: Sequence[Scored], words: list[str], thresholds: Thresholds) -> Outcome:
    outcomes = [judge(detect(one, words, thresholds), one.spoken, one.hours) for one in scored]
    return sum(outcomes[1:], outcomes[0])


def _levels(scored: Sequence[Scored], words: list[str]) -> list[float]:
    """Returns the thresholds to try: probabilities that occurred in windows, more of them among the highest."""
    targets = [words.index(word) for word in reported(words)]
    scores = np.concatenate([one.probabilities[:, targets].max(axis=1) for one in scored])
    scores = np.sort(scores[scores >= LOWEST_LEVEL])[::-1]
    if not scores.size:
        return [LOWEST_LEVEL]
    ranks = np.unique(np.geomspace(1, scores.size, NUM_LEVELS).astype(int)) - 1
    return [float(level) for level in np.unique(scores[ranks])]


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
            outcome = _total(scored, words, _with(thresholds, alone | {gate: level}))
            if outcome.false_alarms.total() > GATE_SHARE * budget:
                break
            if outcome.found[gate] > best_found:
                best_found, fixed[gate] = outcome.found[gate], level
        targets = [word for word in targets if word != gate]
        budget -= _total(scored, words, _with(thresholds, alone | fixed)).false_alarms.total()
    tried = [_total(scored, words, _with(thresholds, dict.fromkeys(targets, level) | fixed)) for level in levels]
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
        outcome = _total(scored, words, _moved(result, 0.02 * step, but=gate))
        if outcome.per_hour <= false_alarms_per_hour or step == 200:
            break
    result = _moved(result, 0.02 * step, but=gate)
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
        curve = [_total([one], words, _moved(base, by)) for by in MOVES.tolist()]
        points = [
            [round(by, 3), round(outcome.per_hour, 3), round(outcome.missed, 4)]
            for by, outcome in zip(MOVES.tolist(), curve, strict=True)
        ]
        curves.append({"name": f"{snr:g} dB", "points": points})
        reports.append(
            StreamReport(
                snr_db=snr,
                outcome=judge(found, one.spoken, one.hours),
                spoken=one.spoken,
                curve=[(outcome.per_hour, outcome.missed) for outcome in curve],
                detections=found,
            )
        )
    return dataclasses.replace(base, measured_on=dict(base.measured_on) | {"curves": curves}), reports


def _score(recognizer: AnyRecognizer, thresholds: Thresholds, script: Script, snr_db: float) -> Scored:
    name = f"{script.split} at {snr_db:g} dB"
    return score(recognizer, thresholds, script.render(snr_db), script.spoken, script.seconds, name)
