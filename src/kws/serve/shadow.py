"""Lets a version in the shadow hear what the served one hears, and counts where they agree; it answers nobody.

Its work is done after the answer, in one thread of the lowest priority, while a core is free; where time of cores is
short, it rests. What waits is bounded; beyond that it is dropped and counted, so that answers stay as fast as without.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import prometheus_client

from kws.model.detector import Decider, Detector, Floats, Window
from kws.preprocess.audio import Waveform, fit_length
from kws.serve.drift import REQUEST, STREAM, Drift
from kws.serve.models import Models, Served
from kws.serve.page.heard import DIFFERS, Heard, Pcm, Tail

log = logging.getLogger(__name__)

MOST_SECONDS = 120.0
"""Seconds of sound that may wait: up to 8 MB."""

LOOK_SECONDS = 0.01
"""How often the thread looks for a free core while something waits."""

REST = 9.0
"""How long the thread rests, in times of what its last work took, if that waited for a core. It so takes a tenth at
most, as other threads pay for its time where a container has a limit, or shares its machine."""

LONGEST_REST = 2.0

LEFT_OUT_SECONDS = 10.0
"""What the shadow leaves out of a stream of which it had to drop a part, so that of others it hears whole stretches."""

SAME_SECONDS = 1.0
"""How far apart two versions may detect the same word."""

LATE_SECONDS = 0.5
"""How much later than the middle of the newest windows a detection is known at most, as it waits for a higher one."""

SETTLE_SECONDS = 2 * SAME_SECONDS + LATE_SECONDS
"""How far both versions must be beyond a detection until nothing can change what it is compared with."""

WARM_SECONDS = 2.0
"""Seconds after a gap in what the shadow hears for which no difference counts, as it may have heard half a word."""

KEPT_EVERY_SECONDS = 10.0
"""Seconds between two sounds that are kept of the same two words, so that clients leave room for what people mark."""

BUSY, FAILED, RATE = "busy", "failed", "rate"
"""Why sound is dropped: too much waits; the model failed; it has another sample rate."""


class Shadow:
    """Has what the served version heard also heard by another one. Must be used from one event loop."""

    def __init__(
        self,
        models: Models,
        *,
        model_name: str,
        registry: prometheus_client.CollectorRegistry,
        drift: Drift,
        is_free: Callable[[], bool],
        heard: Heard | None = None,
    ) -> None:
        """Takes the follower of the version in the shadow.

        `models` holds the version, or none for now; `is_free` tells whether a core is free; `heard` keeps the sound of
        differences.
        """
        self.models = models
        self.heard = heard
        self._name = model_name
        self.drift = drift
        self._is_free = is_free
        self._queue: deque[tuple[float, Callable[[], bool]]] = deque()
        self._waiting = 0.0
        self._work: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_yield_to_others)
        self._kept: dict[tuple[str, str], float] = {}
        self._failure = ""
        self._speaker = os.urandom(4).hex()  # of requests, whose speakers are not known: all in one split
        pair = ["model", "version", "shadow", "source"]
        self._agreements = prometheus_client.Counter(
            "kws_shadow_agreements",
            "Words that the served version and the one in the shadow both heard",
            [*pair, "word"],
            registry=registry,
        )
        self._differences = prometheus_client.Counter(
            "kws_shadow_differences",
            "Words that they heard differently; empty: no word, in streams",
            [*pair, "word", "shadow_word"],
            registry=registry,
        )
        self._heard_seconds = prometheus_client.Counter(
            "kws_shadow_heard_seconds", "Sound that the version in the shadow heard", ["model"], registry=registry
        )
        self._dropped_seconds = prometheus_client.Counter(
            "kws_shadow_dropped_seconds", "Sound that it was not given", ["model", "reason"], registry=registry
        )
        for reason in (BUSY, FAILED, RATE):
            self._dropped_seconds.labels(model_name, reason)
        refused = prometheus_client.Gauge(
            "kws_shadows_refused", "Versions for the shadow that could not be loaded", registry=registry
        )
        refused.set_function(lambda: self.models.num_refused)

    def clips(self, served: Served, waveforms: Waveform, probabilities: Floats) -> None:
        """Takes what a request asked, float32 [clips, samples], and what it was answered, float32 [clips, words]."""
        if self.models.current is not None:
            seconds = waveforms.size / served.recognizer.features.sample_rate
            self.submit(seconds, partial(self._clips, seconds, served, waveforms, probabilities))

    def stream(self, served: Served, detector: Detector, speaker: str) -> "Stream":
        """Begins a stream that a version hears with a detector."""
        return Stream(self, served, detector.lag, speaker)

    def submit(self, seconds: float, work: Callable[[], bool]) -> bool:
        """Has work done in the thread, in order, unless too much waits; returns whether it will be.

        The work, on so many seconds of sound, returns whether the version in the shadow heard it.
        """
        if self._waiting and self._waiting + seconds > MOST_SECONDS:
            self.drop(seconds, BUSY)
            return False
        self._queue.append((seconds, work))
        self._waiting += seconds
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._run())
        return True

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            await asyncio.sleep(0)  # the answer goes first
            if not self._is_free():
                await asyncio.sleep(LOOK_SECONDS)
                continue
            seconds, work = self._queue.popleft()
            rest = 0.0
            try:
                heard, rest = await loop.run_in_executor(self._pool, _timed, work)
                if heard:
                    self._heard_seconds.labels(self._name).inc(seconds)
            except Exception as error:  # whatever a version under trial does, answers go on
                self.drop(seconds, FAILED)
                if str(error) != self._failure:
                    log.warning("in the shadow: what was heard is dropped: %s", error, exc_info=error)
                self._failure = str(error)
            self._waiting -= seconds
            await asyncio.sleep(rest)
        self._waiting = 0.0  # without what rounding left

    def version_for(self, served: Served, seconds: float) -> Served | None:
        """Returns the version in the shadow, unless it cannot hear what the served one hears."""
        now = self.models.current
        if now is not None and now.recognizer.features.sample_rate != served.recognizer.features.sample_rate:
            self.drop(seconds, RATE)
            return None
        return now

    def drop(self, seconds: float, reason: str) -> None:
        """Counts sound that is dropped."""
        self._dropped_seconds.labels(self._name, reason).inc(seconds)

    def _clips(self, seconds: float, served: Served, waveforms: Waveform, probabilities: Floats) -> bool:
        now = self.version_for(served, seconds)
        if now is None:
            return False
        features = now.recognizer.features
        fitted = waveforms
        if waveforms.shape[1] != features.num_samples:
            fitted = np.stack([fit_length(one, features) for one in waveforms])
        others = now.recognizer.predict(fitted)
        self.drift.clips(now.version, fitted, others)
        for waveform, mine, its in zip(waveforms, probabilities, others, strict=True):
            best, other = int(mine.argmax()), int(its.argmax())
            said = Said(0.0, served.recognizer.words[best], float(mine[best]))
            its_said = Said(0.0, now.recognizer.words[other], float(its[other]))
            self.count(REQUEST, served, now, said, its_said, partial(_middle, waveform, served), self._speaker)
        return True

    def count(
        self,
        source: str,
        served: Served,
        now: Served,
        said: "Said",
        its: "Said",
        sound: Callable[[], Pcm],
        speaker: str,
    ) -> None:
        """Counts what the served version and the one in the shadow said, and keeps the sound where they differ."""
        labels = {"model": self._name, "version": served.version, "shadow": now.version, "source": source}
        if said.word == its.word:
            self._agreements.labels(**labels, word=said.word).inc()
            return
        words, moment = (said.word, its.word), time.monotonic()
        if self.heard is not None and moment - self._kept.get(words, -KEPT_EVERY_SECONDS) >= KEPT_EVERY_SECONDS:
            self._kept[words] = moment
            self.heard.keep(
                sound(),
                kind=DIFFERS,
                word=said.word,
                probability=round(said.probability, 4),
                threshold=served.thresholds.thresholds.get(said.word, 0.0) if source == STREAM else 0.0,
                version=served.version,
                speaker=speaker,
                rate=served.recognizer.features.sample_rate,
                shadow=now.version,
                shadow_word=its.word,
                shadow_probability=round(its.probability, 4),
            )
        self._differences.labels(**labels, word=said.word, shadow_word=its.word).inc()

    def close(self) -> None:
        """Drops what waits, and waits for the work in progress."""
        self.models.close()
        self._queue.clear()
        self._pool.shutdown()  # a call in progress has at most the clips of one request


class Said(NamedTuple):
    """A word that a version heard."""

    time: float
    """Its middle in seconds from the start of the stream."""
    word: str
    """The word; empty: none."""
    probability: float


class Stream:
    """What two versions detect in one stream, each with its own thresholds, whatever the page has set.

    `hear` and `finish` are called in the event loop, all else in the thread of the shadow.
    """

    def __init__(self, shadow: Shadow, served: Served, lag: float, speaker: str) -> None:
        self._shadow, self._served, self._lag, self._speaker = shadow, served, lag, speaker
        self._rate = served.recognizer.features.sample_rate
        self._submitted = 0
        self._taken = -1
        """Samples that the shadow has heard or missed; -1: it has not begun."""
        self._left_out_until = 0
        """Sample up to which the stream is left out."""
        self._now: Served | None = None

    def hear(self, pcm: Pcm, windows: Sequence[Window]) -> None:
        """Takes the samples that the served version was given, int16 [any], and its windows."""
        begin = self._submitted
        self._submitted += pcm.size
        seconds = pcm.size / self._rate
        if self._shadow.models.current is None:
            return
        if begin < self._left_out_until:
            self._shadow.drop(seconds, BUSY)
        elif not self._shadow.submit(seconds, partial(self._hear, begin, pcm, windows)):
            self._left_out_until = begin + round(LEFT_OUT_SECONDS * self._rate)

    def finish(self, windows: Sequence[Window]) -> None:
        """Takes the last windows of the served version."""
        if self._shadow.models.current is not None:
            self._shadow.submit(SETTLE_SECONDS, partial(self._finish, self._submitted, windows))

    def _begin(self, now: Served, begin: int) -> None:
        self._now = now
        self._offset = begin / self._rate
        self._detector = Detector(now.recognizer, now.thresholds)
        self._decider = Decider(self._served.recognizer.words, self._served.thresholds)
        self._drift = self._shadow.drift.stream(now)
        self._tail = Tail(self._rate)
        self._sides: tuple[list[Said], list[Said]] = ([], [])  # of the served version, and of the one in the shadow
        self._reached = [self._offset, self._offset]

    def _hear(self, begin: int, pcm: Pcm, windows: Sequence[Window]) -> bool:
        now = self._shadow.version_for(self._served, pcm.size / self._rate)
        if now is None:
            self._taken = -1
            return False
        if now is not self._now or begin != self._taken:
            self._begin(now, begin)
        self._taken = -1  # if this fails, the rest is heard after a gap
        self._of_served(windows)
        for first in range(0, pcm.size, self._rate):
            piece = pcm[first : first + self._rate]
            self._tail.add(piece)
            found = self._detector.feed(piece.astype(np.float32) / np.float32(32768))
            self._drift.hear(piece, found)
            self._of_shadow(found)
            self._settle(min(self._reached) - SETTLE_SECONDS)
        self._taken = begin + pcm.size
        return True

    def _finish(self, begin: int, windows: Sequence[Window]) -> bool:
        if begin != self._taken or self._shadow.models.current is not self._now:
            return False
        self._of_served(windows)
        if (last := self._decider.finish()) is not None:
            self._note(0, *self._named(*last))
        last_of_shadow = self._detector.finish()
        self._drift.finish(last_of_shadow)
        self._of_shadow(last_of_shadow)
        self._settle(float("inf"))
        return False  # it was silence

    def _named(self, probability: float, index: int, moment: float) -> tuple[float, str, float]:
        return moment, self._served.recognizer.words[index], probability

    def _of_served(self, windows: Sequence[Window]) -> None:
        for window in windows:
            self._reached[0] = window.time - self._lag
            found = self._decider.step(self._reached[0], window.probabilities)
            if found is not None:
                self._note(0, *self._named(*found))

    def _of_shadow(self, windows: Sequence[Window]) -> None:
        for window in windows:
            self._reached[1] = self._offset + window.time - self._detector.lag
            if (found := window.detection) is not None:
                self._note(1, self._offset + found.time, found.word, found.probability)

    def _note(self, side: int, moment: float, word: str, probability: float) -> None:
        """Takes a detection, and counts it if the other version has detected the same."""
        said = Said(moment, word, probability)
        for other in self._sides[1 - side]:
            if other.word == word and abs(other.time - moment) <= SAME_SECONDS:
                self._sides[1 - side].remove(other)
                self._count(*((said, other) if side == 0 else (other, said)))
                return
        self._sides[side].append(said)

    def _settle(self, until: float) -> None:
        """Counts detections from before a time as differences, with what the other version heard there instead."""
        for side in (0, 1):
            while self._sides[side] and self._sides[side][0].time <= until:
                said = self._sides[side].pop(0)
                near = [one for one in self._sides[1 - side] if abs(one.time - said.time) <= SAME_SECONDS]
                other = near[0] if near else Said(said.time, "", 0.0)
                if near:
                    self._sides[1 - side].remove(other)
                if self._offset and said.time < self._offset + WARM_SECONDS:
                    continue
                self._count(*((said, other) if side == 0 else (other, said)))

    def _count(self, said: Said, its: Said) -> None:
        assert self._now is not None
        when = (said if said.word else its).time - self._offset
        self._shadow.count(STREAM, self._served, self._now, said, its, partial(self._tail.around, when), self._speaker)


def _middle(waveform: Waveform, served: Served) -> Pcm:
    """Returns a clip, float32 [samples], as a sound that has it in its middle."""
    tail = Tail(served.recognizer.features.sample_rate)
    tail.add((waveform.clip(-1, 1) * 32767).astype(np.int16))
    return tail.around(tail.seconds / 2)


def _timed(work: Callable[[], bool]) -> tuple[bool, float]:
    """Does work, and returns its result and for how many seconds the thread is to rest."""
    wall, cpu = time.perf_counter(), time.thread_time()
    heard = work()
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    waited = wall > 2 * cpu + 0.005
    return heard, min(REST * wall, LONGEST_REST) if waited else 0.0


def _yield_to_others() -> None:
    """Gives the thread the lowest priority, which Linux has for each."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
