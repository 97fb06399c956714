"""Keeps the sound of what streams heard until a person has reviewed it, with `kws serve --keep-heard`.

<collect>/.heard/<time>-<8 digits>.wav, two seconds, with a JSON file of the same name beside it, which is written last.
A sound is kept because a word was detected, or nearly; a listener may mark it as wrong, or say that a word was missed.
What is confirmed becomes a recording of a word (collection.py), all else is deleted when it is too old or one of too
many. Servers may share the folder.
"""

import dataclasses
import datetime
import io
import logging
import os
import re
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.config import HEARD
from kws.model.detector import Detector, Floats, Window, log_odds, reported
from kws.preprocess.audio import most_said
from kws.recipe import FeatureConfig
from kws.serve.page.collection import Collection
from kws.settings import require

log = logging.getLogger(__name__)

SOUND_SECONDS = 2.0
"""Length of a sound, in the middle of which the word is."""

TAIL_SECONDS = 6.0
"""Seconds of a stream that are remembered, as words are reported a good second after they were spoken."""

MOST = 5_000
"""Largest number of sounds, 320 MB; beyond it the oldest are deleted."""

MOST_DAYS = 30
"""Days after which a sound is deleted."""

NEARLY = float(np.log(4))
"""How far below its threshold a word may stay, in log-odds, to count as nearly detected."""

APART_SECONDS = 1.5
"""Seconds without a higher probability or a detection after which a word was nearly detected."""

DETECTED, NEAR, WRONG, MISSED, DIFFERS = KINDS = ("detected", "near", "wrong", "missed", "differs")
NAME = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")

Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound that awaits review."""

    name: str
    kind: str
    """Why it is kept: detected; near (a word stayed just below its threshold); wrong, missed (a listener says so);
    differs (the version in the shadow heard something else)."""
    word: str
    """The word that was detected, nearly detected, or missed; empty: not said, or none."""
    probability: float
    threshold: float
    version: str
    """The version of the model that listened."""
    speaker: str
    """Number of the stream, eight hexadecimal digits: no one's name, but sounds of one stream stay in one split."""
    rate: int
    """Sample rate in hertz."""
    shadow: str = ""
    """The version in the shadow, if it heard something else."""
    shadow_word: str = ""
    """What it heard; empty: no word."""
    shadow_probability: float = 0.0


class Heard:
    """The folder of the sounds."""

    def __init__(self, collect: Path, most: int = MOST) -> None:
        self.folder = collect / HEARD  # hidden: what it holds is not yet a recording of a word
        self.folder.mkdir(parents=True, exist_ok=True)
        self._most = most

    def keep(self, pcm: Pcm, **about: Any) -> str:
        """Keeps a sound, int16 [samples], and returns its name, or an empty one if it cannot be written.

        `about` has the fields of `Sound` but for the name.
        """
        name = f"{_now():%Y%m%dT%H%M%S}-{os.urandom(4).hex()}"
        sound = Sound(name=name, **about)
        try:
            self._clean()
            files.write(self._path(name, "wav"), _wav(pcm, sound.rate))
            files.write_json(self._path(name, "json"), dataclasses.asdict(sound))
        except OSError as error:
            log.warning("what was heard is not kept: %s", error)
            return ""
        return name

    def sounds(self) -> list[Sound]:
        """Returns the sounds, the newest first."""
        found = []
        for name in self._names():
            try:
                found.append(Sound(**files.read_json(self._path(name, "json"))))
            except (OSError, ValueError, TypeError):  # deleted by another request meanwhile, or half written
                continue
        return found

    def sound(self, name: str) -> Path:
        """Returns the path of a sound, a WAV file.

        Raises:
            ValueError: the name is not valid.
            FileNotFoundError: there is no such sound.
        """
        require(NAME.fullmatch(name) is not None, "name", "be <time>-<8 hexadecimal digits>", name[:80])
        if not self._path(name, "json").is_file():
            raise FileNotFoundError(f"the sound must exist, got {name}, which was reviewed or deleted")
        return self._path(name, "wav")

    def mark(self, name: str, kind: str) -> None:
        """Records what a listener says of a sound; see `sound` for errors."""
        require(kind in KINDS, "kind", f"be one of {', '.join(KINDS)}", kind[:80])
        path = self.sound(name).with_suffix(".json")
        files.write_json(path, {**files.read_json(path), "kind": kind})

    def confirm(self, name: str, word: str, collection: Collection, features: FeatureConfig) -> str:
        """Makes a sound a recording of a word, and returns its clip id; see `sound` and `Collection.add` for errors.

        The clip is the middle of the sound; where a word was missed, the part in which most is said.
        """
        path = self.sound(name)
        about = Sound(**files.read_json(path.with_suffix(".json")))
        with wave.open(str(path)) as file:
            pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        first = (pcm.size - features.num_samples) // 2
        if about.kind == MISSED:
            first = most_said(pcm.astype(np.float32) / np.float32(32768), features)
        clip = collection.add(
            word, about.speaker, _wav(pcm[first : first + features.num_samples], about.rate), features
        )
        self.delete(name)
        return clip

    def delete(self, name: str) -> None:
        """Deletes a sound; see `sound` for errors."""
        self.sound(name)
        self._remove(name)

    def delete_before(self, day: datetime.date) -> int:
        """Deletes all sounds from before a day, in UTC, and returns their number."""
        old = [name for name in self._names() if name < f"{day:%Y%m%d}"]
        for name in old:
            self._remove(name)
        return len(old)

    def _clean(self) -> None:
        """Makes room for one sound more, and deletes those that are too old."""
        oldest = f"{_now() - datetime.timedelta(days=MOST_DAYS):%Y%m%d}"
        for place, name in enumerate(self._names()):
            if place >= self._most - 1 or name < oldest:
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._path(name, "json").unlink(missing_ok=True)  # first, so that nothing is listed without its sound
        self._path(name, "wav").unlink(missing_ok=True)

    def _names(self) -> list[str]:
        """Returns the names of all sounds, whole or not, the newest first."""
        return sorted({path.stem for path in self.folder.iterdir() if NAME.fullmatch(path.stem)}, reverse=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}.{suffix}"


class NearMisses:
    """Finds words that were nearly detected: their probability rose to just below the threshold, and fell again."""

    def __init__(self, words: list[str]) -> None:
        self._targets = [(word, words.index(word)) for word in reported(words)]
        self._best: tuple[float, float, str, float] | None = None  # margin, time, word, probability
        self._since = -float("inf")

    def step(
        self, time: float, probabilities: Floats, thresholds: dict[str, float], detected: bool
    ) -> tuple[float, str, float] | None:
        """Takes the next window.

        Args:
            time: middle of the window, in seconds.
            probabilities: smoothed probabilities, float32 [words].
            thresholds: that of each word.
            detected: whether a word was detected.

        Returns:
            Time, word and probability of the highest of those that were nearly detected, once it is past.
        """
        if detected:
            self._best, self._since = None, time + APART_SECONDS  # until then it is the end of the same word
        if time < self._since:
            return None
        for word, index in self._targets:
            margin = log_odds(float(probabilities[index])) - log_odds(thresholds[word])
            if -NEARLY <= margin < 0 and thresholds[word] <= 1 and (self._best is None or margin > self._best[0]):
                self._best = margin, time, word, float(probabilities[index])
        if self._best is None or time - self._best[1] < APART_SECONDS:
            return None
        _, when, word, probability = self._best
        self._best = None
        return when, word, probability


class Tail:
    """Remembers the last TAIL_SECONDS of a stream."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._tail = np.zeros(0, np.int16)
        self._total = 0

    def add(self, pcm: Pcm) -> None:
        """Takes samples, int16 [any]."""
        self._total += pcm.size
        self._tail = np.concatenate((self._tail, pcm))[-round(TAIL_SECONDS * self.rate) :]

    @property
    def seconds(self) -> float:
        """Length of the stream so far."""
        return self._total / self.rate

    def around(self, time: float) -> Pcm:
        """Returns the SOUND_SECONDS around a time in seconds, int16 [samples]; silence where it is not known."""
        first = round((time - SOUND_SECONDS / 2) * self.rate) - (self._total - self._tail.size)
        sound = np.zeros(round(SOUND_SECONDS * self.rate), np.int16)
        low, high = max(first, 0), max(min(first + sound.size, self._tail.size), 0)
        sound[low - first : high - first] = self._tail[low:high]
        return sound


class Keeper:
    """Remembers the end of one stream, and keeps the sound of what is detected in it, or nearly."""

    def __init__(self, heard: Heard, detector: Detector, version: str, rate: int, speaker: str) -> None:
        self._heard, self._detector, self._version = heard, detector, version
        self._speaker = speaker
        self._tail = Tail(rate)
        self._near = NearMisses(detector.words)

    def add(self, pcm: Pcm) -> None:
        """Takes the samples that the detector is given, int16 [any]."""
        self._tail.add(pcm)

    def step(self, window: Window) -> str:
        """Keeps the sound of a detection, and returns its name; also the sound of a word that was nearly detected."""
        found = window.detection
        time = window.time - self._detector.lag
        near = self._near.step(time, window.probabilities, self._detector.thresholds, detected=found is not None)
        if found is not None:
            return self._keep(DETECTED, found.time, found.word, found.probability)
        if near is not None:
            self._keep(NEAR, *near)
        return ""

    def missed(self, word: str) -> str:
        """Keeps the last seconds, in which a listener says that a word was missed, and returns its name."""
        return self._keep(MISSED, self._tail.seconds - SOUND_SECONDS / 2, word, 0.0)

    def _keep(self, kind: str, time: float, word: str, probability: float) -> str:
        return self._heard.keep(
            self._tail.around(time),
            kind=kind,
            word=word,
            probability=round(probability, 4),
            threshold=self._detector.thresholds.get(word, 0.0),
            version=self._version,
            speaker=self._speaker,
            rate=self._tail.rate,
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _wav(pcm: Pcm, rate: int) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
