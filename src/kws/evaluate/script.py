"""The scripts of streams: what is spoken when, and the sound of it.

A stream imitates what a device hears: clips of the words at random gaps, other words, and running speech, all over
noise that training never used. The speech is that of the recordings, of people who talk in no other split; if there is
none with a text, synthetic voices read sentences.

With a gate, half of the words are spoken soon after its word, and are to be detected; the others are spoken while it is
shut, and are to be ignored.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kws.config import BACKGROUND_NOISE
from kws.data import classes, splits
from kws.data.clip import Clip
from kws.data.index import Lookup
from kws.data.listing import Listing
from kws.data.sources import list_recordings
from kws.download.sentences import speak_sentences
from kws.model.detector import reported
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, read, read_waveform
from kws.settings import require

log = logging.getLogger(__name__)

SHARES = {"word": 0.4, "unknown": 0.3, "sentence": 0.3}
"""Shares of the kinds of utterances: words of the model, other words of the corpus, and sentences."""

GATED = 0.5
"""Share of the words that are spoken after the word of the gate, if there is one."""

GATE_GAPS = (0.2, 1.5)
"""Range of the pauses between the word of the gate and the next, in seconds."""

GAPS = (0.5, 4.0)
"""Range of the pauses between utterances, in seconds."""

SPEECH_LEVEL = 0.05
"""Root mean square of every utterance, 26 dB below full scale; the noise is lower by the signal-to-noise ratio."""

TOLERANCE = 0.25
"""A detection belongs to an utterance if its middle lies within it, or this many seconds before or after it."""

NUM_SENTENCES = 120
"""Number of sentences that are synthesized, each with a random voice."""

LONGEST_SENTENCE = 20.0
"""Seconds of a recording of running speech that are taken at a time."""


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
class Said:
    """What is said in a stretch of a stream."""

    begin: float
    end: float
    """Of the whole utterance, in seconds from the start of the stream, as `begin`."""
    kind: str
    """That of the utterance."""
    text: str
    """The word; of a sentence what is roughly said in the stretch."""
    before: str
    after: str
    """The rest of the sentence, before and after."""
    source: str
    """The clip id, or the recording or number of the sentence."""


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

        The recordings must have background noise; the model determines the words to detect. The seed is combined with
        the split, validation or test. `after` is the word of the gate, which is open for `after_seconds`; empty: there
        is none.

        Raises:
            ValueError: the split has no clip of a word of the model or of the gate, or there is no noise.
        """
        self.recordings = recordings
        self.features = recognizer.features
        self.split = split
        self.hours = hours
        random = np.random.default_rng([seed, *split.encode()])
        listing = list_recordings(recordings)
        clips = splits.by_speaker(listing.clips, splits.read_lists(listing.lists, listing.clips))[split]
        targets = reported(recognizer.words)
        self._clips, self._row_of = clips, Lookup(clips.ids)
        rate = self.features.sample_rate
        talks = [talk for talk in listing.speech if talk.split == split]
        self._talks = {talk.file: talk for talk in talks if talk.text}
        if len(self._talks) < len(talks):
            log.warning("%d recordings of running speech without a text are left out", len(talks) - len(self._talks))
        self._sentences: dict[str, Waveform] = {}
        self._texts: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        if not self._talks:
            spoken = speak_sentences(NUM_SENTENCES, rate, [seed, *split.encode()], without=targets)
            for number, one in enumerate(spoken):
                self._sentences[str(number)], self._texts[str(number)] = one.sound, one.text
        sources = {
            "word": clips.of_words(targets).ids.tolist(),
            "unknown": clips.of_words(clips.counts().keys() - set(recognizer.words)).ids.tolist(),
            "sentence": [*self._talks, *self._sentences],
        }
        require(
            len(sources["word"]) > 0,
            "recordings",
            f"hold clips of {', '.join(targets)} in the {split} split",
            str(recordings),
        )
        gates = clips.of_words([word for word in targets if word == after]).ids.tolist()
        inside = clips.of_words([word for word in targets if word != after]).ids.tolist()
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
            whole = self._size_of_sentence(source) if kind == "sentence" else self.features.num_samples
            begin = time + round(float(random.uniform(*gaps)), 4)
            time = begin + min(whole / rate, LONGEST_SENTENCE)
            word = self._clip(source).word if kind in ("word", "gate", "closed") else ""
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
                speak("gate" if self._clip(source).word == after else "closed", source, GAPS)
        self.seconds = time

    def render(self, snr_db: float) -> Iterator[Waveform]:
        """Yields the stream in pieces of a pause and an utterance, float32 [any]."""
        return (piece for _, piece in self._render(snr_db, lambda begin, end: True))

    def cut(self, snr_db: float, begins: Sequence[float], seconds: float) -> list[Waveform]:
        """Renders stretches of the stream, as loud and with the same noise as in `render`.

        They may begin in any order, and overlap; all times are in seconds.

        Returns:
            float32 [samples] each; what lies past the end of the stream is silence.
        """
        rate = self.features.sample_rate
        first = np.array([round(begin * rate) for begin in begins], np.int64)
        size = round(seconds * rate)
        found = [np.zeros(size, np.float32) for _ in begins]

        def overlapping(begin: int, end: int) -> npt.NDArray[np.int64]:
            return np.flatnonzero((first < end) & (first + size > begin))

        for begin, piece in self._render(snr_db, lambda begin, end: overlapping(begin, end).size > 0):
            for index in overlapping(begin, begin + piece.size):
                start = int(first[index])
                low, high = max(start, begin), min(start + size, begin + piece.size)
                found[index][low - start : high - start] = piece[low - begin : high - begin]
        return found

    def _render(self, snr_db: float, is_wanted: Callable[[int, int], bool]) -> Iterator[tuple[int, Waveform]]:
        """Yields the wanted pieces, each of a pause and an utterance, with the place of its first sample."""
        rate = self.features.sample_rate
        random = np.random.default_rng(self._random)
        noise = _endless(self._noises, rate, random)
        level = SPEECH_LEVEL / 10 ** (snr_db / 20)
        done = 0
        for one in self.spoken:
            begin, end = round(one.begin * rate), round(one.end * rate)
            piece = noise(end - done) * np.float32(level)
            if is_wanted(done, end):
                speech = self._read_sentence(one.source) if one.kind == "sentence" else self._read(one.source)
                size = min(speech.size, end - begin)
                piece[begin - done : begin - done + size] += _levelled(speech[:size])
                yield done, piece.clip(-1, 1)
            done = end

    def said(self, begin: float, end: float) -> list[Said]:
        """Returns what is said in a stretch of the stream, in seconds."""
        found = []
        for one in self.spoken:
            if one.begin >= end or one.end <= begin:
                continue
            before, text, after = "", one.word, ""
            if one.kind == "unknown":
                text = self._clip(one.source).word
            elif one.kind == "sentence":
                # Where a word is spoken is estimated from its place among the letters, as in `Talk.places_of`.
                talk = self._talks.get(one.source)
                text = self._texts[one.source] if talk is None else talk.text
                whole = self._size_of_sentence(one.source) / self.features.sample_rate
                first, last = (round(len(text) * min(max((at - one.begin) / whole, 0.0), 1.0)) for at in (begin, end))
                before, text, after = text[:first], text[first:last], text[last:]
            found.append(
                Said(
                    begin=one.begin,
                    end=one.end,
                    kind=one.kind,
                    before=before,
                    text=text,
                    after=after,
                    source=one.source,
                )
            )
        return found

    def _read_sentence(self, source: str) -> Waveform:
        if source in self._talks:
            return read_waveform(self.recordings / source, self.features.sample_rate)
        return self._sentences[source]

    def _size_of_sentence(self, source: str) -> int:
        """Returns the samples of a sentence, for which it is decoded once however often it is spoken."""
        if source not in self._sizes:
            self._sizes[source] = self._read_sentence(source).size
        return self._sizes[source]

    def _read(self, source: str) -> Waveform:
        return read(self.recordings, self._clip(source), self.features)

    def _clip(self, source: str) -> Clip:
        return self._clips[self._row_of.rows(source)[0]]


def _shuffled(sources: Sequence[str], random: np.random.Generator) -> Iterator[str]:
    while True:
        for index in random.permutation(len(sources)):
            yield sources[index]


def _levelled(speech: Waveform) -> Waveform:
    """Scales an utterance to SPEECH_LEVEL and fades its ends, so that its own noise does not begin with a click."""
    scaled = speech * np.float32(SPEECH_LEVEL / max(float(np.sqrt(np.mean(np.square(speech, dtype=np.float64)))), 1e-5))
    ramp = np.linspace(0, 1, 320, dtype=np.float32)
    scaled[:320] *= ramp
    scaled[-320:] *= ramp[::-1]
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
