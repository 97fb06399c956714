"""Detects words in an audio stream: smoothed probabilities of overlapping windows, and a threshold for each word.

A model of clips is applied to a window ten times per second. A model whose tokens get scores takes some tokens at a
time with all frames on which they depend, and each token is a window of its own. After a detection there is a
refractory time. The page, `kws listen` and the evaluation of streams use this detector. It works with any model, and
with an ONNX file without torch. Each frame of the mel spectrogram is computed once, with numpy, though it lies in
several windows: the model takes frames through `predict_features`.

The result depends only on the samples, not on how they are cut into chunks, as the work is done one hop at a time.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kws import files
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform
from kws.preprocess.numpy_features import MelSpectrogram
from kws.recipe import FeatureConfig
from kws.settings import require

THRESHOLDS = "thresholds.json"
"""The file beside a model that holds the detection thresholds of its words."""

UNMEASURED = 0.8
"""The threshold of every word if a model has no such file."""

LONGEST_RISE = 0.3
"""Largest number of seconds that a detection is delayed while its probability rises."""

TOKENS_AT_A_TIME = 5
"""Tokens that are computed together. More take less time, and are reported later."""

OTHER_WORD_SECONDS = 0.5
"""Time after the middle of a detection during which no other word is reported, as it would be heard in the same sound.
Two words are seldom closer: of 40 pairs of real words 0.8 s apart, 76 of 80 words are found with 0.5 s, 62 with 0.8."""

REARM_SECONDS = 0.3
"""Time for which a probability must stay below its threshold before the word may be reported again, so that one that
wavers around its threshold is not reported over and over."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The settings by which smoothed probabilities become detections."""

    smoothing_seconds: float = 0.5
    """Duration over which the probabilities of the windows are averaged."""

    hop_seconds: float = 0.1
    """Time from one window to the next."""

    refractory_seconds: float = 0.8
    """Time after the middle of a detection during which the word is not reported again."""

    thresholds: Mapping[str, float]
    """Smoothed probability that each word must reach, by word; above 1: never."""

    after: str = ""
    """The gate: a word of the model upon which all others are reported for a while; empty: they always are."""

    after_seconds: float = 3.0
    """For how long the gate is open, from the middle of its word to the middle of another."""

    false_alarms_per_hour: float = math.nan
    """Largest rate of false alarms for which the thresholds were chosen; NaN if they were not measured."""

    measured_on: Mapping[str, Any] = field(default_factory=dict)
    """Description of the streams on which the thresholds were chosen."""

    def __post_init__(self) -> None:
        for name in ("smoothing_seconds", "hop_seconds"):
            require(0 < getattr(self, name) <= 2, name, "be more than 0 and at most 2 s", getattr(self, name))
        require(
            0 <= self.refractory_seconds <= 60, "refractory_seconds", "be between 0 and 60 s", self.refractory_seconds
        )
        require(0 < self.after_seconds <= 60, "after_seconds", "be more than 0 and at most 60 s", self.after_seconds)
        rule = f"be one of the words of the model, {', '.join(self.thresholds)}"
        require(self.after == "" or self.after in self.thresholds, "after", rule, self.after)
        for word, threshold in self.thresholds.items():
            # A threshold above 1 turns off a word that the model does not recognize well enough.
            require(
                0 < threshold <= 2, f"the threshold of {word}", "be more than 0 (above 1: never reported)", threshold
            )

    @classmethod
    def unmeasured(cls, words: list[str], of_tokens: bool = False) -> "Thresholds":
        """Returns the same threshold for every word; scores of tokens are averaged over less time."""
        thresholds = dict.fromkeys(reported(words), UNMEASURED)
        if of_tokens:
            return cls(thresholds=thresholds, smoothing_seconds=0.15, hop_seconds=0.05)
        return cls(thresholds=thresholds)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], words: list[str]) -> "Thresholds":
        """Builds thresholds from the content of a thresholds.json.

        Raises:
            ValueError: a value is missing or out of range, or the words are not those of the model.
        """
        try:
            found = cls(
                **{one.name: values[one.name] for one in dataclasses.fields(cls) if values.get(one.name) is not None}
            )
        except (TypeError, AttributeError) as error:
            raise ValueError(f"thresholds must be numbers for each word, got {error}") from error
        wanted = reported(words)
        rule = f"be given for the words of the model, {', '.join(wanted)}"
        require(set(found.thresholds) == set(wanted), "thresholds", rule, sorted(found.thresholds))
        return found

    @classmethod
    def read(cls, path: Path, words: list[str]) -> "Thresholds":
        """Reads a thresholds.json.

        Raises:
            ValueError: the file is damaged, or has the thresholds of other words.
            FileNotFoundError: there is no such file.
        """
        try:
            return cls.from_json(files.read_json(path), words)
        except ValueError as error:
            raise ValueError(f"{path} must be what kws evaluate --stream wrote for this model: {error}") from error

    @classmethod
    def beside(cls, model: Path, words: list[str], of_tokens: bool = False) -> "Thresholds":
        """Reads the thresholds.json beside a model; returns `unmeasured` if there is none."""
        path = model.parent / THRESHOLDS
        return cls.read(path, words) if path.is_file() else cls.unmeasured(words, of_tokens)

    def behind(self, word: str, seconds: float | None = None) -> "Thresholds":
        """Returns these thresholds behind a gate.

        Thresholds that were chosen behind one are too low without it, so that there is no way to take it away. What was
        measured holds for the same gate only; the limit of false alarms also for one that is open for less time.

        Args:
            word: the word that opens the gate; empty: the one that they have, if any.
            seconds: for how long it is open; None: as it is.

        Raises:
            ValueError: the word is none of the model, or there are seconds but no gate.
        """
        gate = word or self.after
        require(
            gate != "" or seconds is None, "after_seconds", "be given together with after, the word of a gate", seconds
        )
        found = dataclasses.replace(self, after=gate, after_seconds=self.after_seconds if seconds is None else seconds)
        if (found.after, found.after_seconds) == (self.after, self.after_seconds):
            return self
        looser = self.after and (gate != self.after or found.after_seconds > self.after_seconds)
        rate = math.nan if looser else self.false_alarms_per_hour
        return dataclasses.replace(found, false_alarms_per_hour=rate, measured_on={})

    def as_json(self) -> dict[str, Any]:
        """Returns the content of a thresholds.json, with null for values that were not measured."""
        values = dataclasses.asdict(self)
        return values | {
            "false_alarms_per_hour": None if math.isnan(self.false_alarms_per_hour) else self.false_alarms_per_hour
        }


def reported(words: list[str]) -> list[str]:
    """Returns the words that are reported: all except the classes of unknown words and silence."""
    return [word for word in words if not word.startswith("_")]


def log_odds(probability: float) -> float:
    """Returns the logarithm of p / (1 - p); finite also for 0 and 1."""
    clipped = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(clipped / (1 - clipped))


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detected word."""

    time: float
    """Middle of the windows with the highest probability, in seconds from the start of the stream."""
    word: str
    probability: float
    """Highest smoothed probability."""
    begin: float
    """Start of the word, estimated from its loudness, in seconds."""
    end: float
    """End of the word, likewise."""


class Window(NamedTuple):
    """The result of one window."""

    time: float
    """End of the window, in seconds from the start of the stream."""
    probabilities: Floats
    """Smoothed probabilities, float32 [words]."""
    detection: Detection | None
    open_seconds: float = 0.0
    """How long after the end of the window the gate stays open; 0: it is shut, or there is none."""


class MelFrames:
    """Computes the mel spectrogram of a stream, each frame once.

    Frame k is centred on sample k · hop_length; before the first sample there is silence. The frames are those on which
    the model was trained, except that clips have reflected edges where a stream has sound on both sides.
    """

    def __init__(self, config: FeatureConfig, frames_per_block: int) -> None:
        self.config = config
        self._mel = MelSpectrogram(config)
        self.silent_samples = config.n_fft // 2 - (config.n_fft - config.win_length) // 2
        self._pending = np.zeros(self.silent_samples, np.float32)
        self._step = frames_per_block * config.hop_length
        self._needed = self._step - config.hop_length + config.win_length

    def feed(self, samples: Waveform) -> list[Floats]:
        """Takes samples, float32 [any], and returns the blocks of frames they complete, each [block, num_mels]."""
        self._pending = np.concatenate((self._pending, samples))
        blocks, first = [], 0
        while self._pending.size - first >= self._needed:
            blocks.append(self._mel(self._pending[first : first + self._needed]))
            first += self._step
        self._pending = self._pending[first:]
        return blocks

    def silence(self, num_frames: int) -> Floats:
        """Returns frames of digital silence, [num_frames, num_mels]."""
        value = math.log(self.config.log_offset) if self.config.log else 0.0
        return np.full((num_frames, self.config.num_mels), value, np.float32)


class Decider:
    """Turns smoothed probabilities into detections, window by window.

    It needs no audio, so thresholds can be tried on probabilities that were computed before. If there is a gate, it is
    shut at first; another word has a chance only while the gate is open, and does not shut it.
    """

    def __init__(self, words: list[str], thresholds: Thresholds) -> None:
        self._refractory = thresholds.refractory_seconds
        self._targets = [words.index(word) for word in reported(words)]
        self.set_thresholds([thresholds.thresholds[words[index]] for index in self._targets])
        # A word is reported again only after its probability was below the threshold, however long that takes.
        self._armed = np.ones(len(self._targets), bool)
        self._last_above = np.full(len(self._targets), -math.inf)
        self._quiet_until = np.full(len(self._targets), -math.inf)
        self._best: tuple[float, int, float] | None = None  # probability, which target, and time of a rising word
        self._rising_since = 0.0
        names = [words[index] for index in self._targets]
        self._gate = names.index(thresholds.after) if thresholds.after else None
        self._gate_seconds = thresholds.after_seconds
        self.open_until = -math.inf
        """Time until which the gate is open."""
        self.hold(None)

    def hold(self, held: Sequence[bool] | None) -> None:
        """Restricts the words that are reported, also in mid-stream, and reports them whether the gate is open or not.

        Args:
            held: which of the words of `reported` count, in their order; None: all, while the gate is open.
        """
        self._held = None if held is None else np.array(held, bool)
        if self._best is not None and self._held is not None and not self._held[self._best[1]]:
            self._best = None

    def _admitted(self, time: float) -> npt.NDArray[np.bool_]:
        """Returns which words may be reported at a time, given gate and held words."""
        if self._held is not None:
            return self._held
        admitted = np.full(len(self._targets), self._gate is None or time <= self.open_until + 1e-6)
        if self._gate is not None:
            admitted[self._gate] = True
        return admitted

    def set_thresholds(self, thresholds: list[float]) -> None:
        """Changes the thresholds, also in mid-stream; they are in the order of `reported`."""
        self._thresholds = np.array(thresholds, np.float32)

    def step(self, time: float, probabilities: Floats) -> tuple[float, int, float] | None:
        """Takes the next window.

        Args:
            time: middle of the window, in seconds.
            probabilities: smoothed probabilities, float32 [words].

        Returns:
            Probability, index of the word, and time of a detection, or None.
        """
        scores = probabilities[self._targets]
        above = scores >= self._thresholds
        quiet = time < self._quiet_until
        self._armed |= time - self._last_above > REARM_SECONDS + 1e-6  # also if the windows between were left out
        candidates = np.where(above & self._armed & ~quiet & self._admitted(time), scores, -1)
        self._last_above[above] = time
        self._armed &= ~(above & quiet)
        which = int(candidates.argmax())
        score = float(candidates[which])
        rising = score >= 0 and (self._best is None or score > self._best[0])
        if rising:
            if self._best is None:
                self._rising_since = time
            self._best = score, which, time
        return None if rising and time - self._rising_since < LONGEST_RISE - 1e-6 else self.finish(above)

    def finish(self, above: npt.NDArray[np.bool_] | None = None) -> tuple[float, int, float] | None:
        """Returns the detection that was waiting for a higher probability, if any."""
        if self._best is None:
            return None
        score, which, time = self._best
        self._best = None
        self._quiet_until = np.maximum(self._quiet_until, time + min(OTHER_WORD_SECONDS, self._refractory))
        self._quiet_until[which] = time + self._refractory
        if which == self._gate:
            self.open_until = time + self._gate_seconds
        self._armed[which] = False
        if above is not None:
            self._armed &= ~above  # another word above its threshold at the same time is the same sound
        return score, self._targets[which], time


class Detector:
    """Detects words in one stream.

    An instance must not be used by two threads at the same time; many instances may share a model.
    """

    def __init__(
        self, recognizer: AnyRecognizer, thresholds: Thresholds, *, tokens_at_a_time: int = TOKENS_AT_A_TIME
    ) -> None:
        """Starts a stream.

        Args:
            recognizer: the model.
            thresholds: what counts as a detection.
            tokens_at_a_time: if tokens get scores, how many are computed together. With more a recording is heard
                faster, and a stream later; the detections are the same.
        """
        config = recognizer.features
        self.words = recognizer.words
        self._recognizer = recognizer
        self._config = config
        rate = config.sample_rate
        self._margin = recognizer.margin
        if self._margin is None:
            self.hop_frames = max(1, round(thresholds.hop_seconds * rate / config.hop_length))
            window_frames, middle = config.num_frames, config.num_samples / rate / 2
            self._window_hop = self.hop_frames
        else:
            before, after = self._margin
            self._window_hop = recognizer.frames_per_token
            self.hop_frames = tokens_at_a_time * self._window_hop
            window_frames = (before + tokens_at_a_time + after) * self._window_hop
            # The newest token with all frames on which it depends.
            middle = ((after + 1) * self._window_hop - 1) * config.hop_length / rate
        self.hop_seconds = self._window_hop * config.hop_length / rate
        self._window_frames = window_frames
        self._smoothed: deque[Floats] = deque(maxlen=max(1, round(thresholds.smoothing_seconds / self.hop_seconds)))
        # Seconds from the middle of the windows that are averaged to the end of the last one.
        num_windows = self._smoothed.maxlen or 1
        self.lag = middle + (num_windows - 1) / 2 * self.hop_seconds
        self._mel = MelFrames(config, self.hop_frames)
        # Enough frames that the whole word is still there when a delayed detection is reported.
        delay = math.ceil((num_windows * self.hop_seconds + LONGEST_RISE) * rate / config.hop_length)
        self._frames = self._mel.silence(window_frames + delay + 2 * self.hop_frames)
        self._num_frames = 0
        self.thresholds = dict(thresholds.thresholds)
        self._decider = Decider(self.words, thresholds)
        self.hop_samples = self.hop_frames * config.hop_length
        self.samples = 0
        """Number of samples received so far."""
        self.is_log = config.log

    def shape(self) -> dict[str, Any]:
        """Returns the numbers with which the twin in `kws.model.page` computes the same, as JSON values."""
        return {
            "hop_frames": self.hop_frames,
            "hop_seconds": self.hop_seconds,
            "window_frames": self._window_frames,
            "num_windows": self._smoothed.maxlen,
            "lag": self.lag,
            "kept_frames": len(self._frames),
            "silent_samples": self._mel.silent_samples,
            "margin": self._margin,
        }

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Changes the thresholds in mid-stream."""
        self.thresholds = dict(thresholds)
        self._decider.set_thresholds([thresholds[word] for word in reported(self.words)])

    def hold(self, held: Sequence[str] | None) -> None:
        """Reports only these words from now on, whether the gate is open or not; None: all words, as before.

        Raises:
            ValueError: a word is none of the model.
        """
        words = reported(self.words)
        for word in held or ():
            require(word in words, "an armed word", f"be one of the words of the model, {', '.join(words)}", word)
        self._decider.hold(None if held is None else [word in held for word in words])

    def feed(self, samples: Waveform) -> list[Window]:
        """Takes samples at the model's sample rate, float32 [any] in -1 to 1, and returns the results of new windows.

        What comes before the stream counts as silence. There is no result until all windows of the average have a part
        of the stream, so that the first ones are averages like all others, around a time in the stream.
        """
        self.samples += samples.size
        found = []
        for block in self._mel.feed(samples):
            self._frames = np.concatenate((self._frames[len(block) :], block))
            self._num_frames += len(block)
            windows = self._smoothed.maxlen or 1
            results = self._predict()
            for number, probabilities in enumerate(results, 1):
                time = self.seconds - (len(results) - number) * self.hop_seconds
                if time >= self.lag - (windows - 1) * self.hop_seconds:
                    self._smoothed.append(probabilities)
                    if len(self._smoothed) == windows:
                        found.append(self._decide(time))
        return found

    def finish(self) -> list[Window]:
        """Ends the stream by adding silence, so that the last word reaches the middle of a window."""
        silence = np.zeros(int((self.lag + self.hop_seconds) * self._config.sample_rate), np.float32)
        found = self.feed(silence)
        last = self._decider.finish()
        if last is not None and found:
            found[-1] = found[-1]._replace(detection=self._describe(*last))
        return found

    @property
    def seconds(self) -> float:
        """End of the newest window, which is the middle of the newest frame, from the start of the stream."""
        return (self._num_frames - 1) * self._config.hop_length / self._config.sample_rate

    @property
    def newest_frames(self) -> Floats:
        """The frames of the last hop, float32 [hop_frames, num_mels], for display."""
        return self._frames[-self.hop_frames :]

    def _predict(self) -> Floats:
        """Returns the probabilities of the newest window or windows, float32 [windows, words]."""
        window = np.ascontiguousarray(self._frames[-self._window_frames :].T[None])
        probabilities: Floats = self._recognizer.predict_features(window)
        return probabilities if self._margin is None else probabilities[0, self._margin[0] : -self._margin[1]]

    def _decide(self, time: float) -> Window:
        probabilities = np.asarray(sum(self._smoothed) / len(self._smoothed), np.float32)
        detected = self._decider.step(time - self.lag, probabilities)
        detection = None if detected is None else self._describe(*detected)
        return Window(time, probabilities, detection, max(0.0, self._decider.open_until - time))

    def _describe(self, probability: float, index: int, time: float) -> Detection:
        begin, end = self._extent(time)
        return Detection(time=round(time, 3), word=self.words[index], probability=probability, begin=begin, end=end)

    def _extent(self, time: float) -> tuple[float, float]:
        """Estimates where a word begins and ends: the frames around the loudest one that stand out from the rest."""
        per_second = self._config.sample_rate / self._config.hop_length
        middle = len(self._frames) - 1 - round((self.seconds - time) * per_second)
        reach = self._config.num_frames // 2
        first, last = max(0, middle - reach), min(len(self._frames), middle + reach)
        loudness = self._frames[first:last].mean(axis=1)
        floor, top = np.quantile(loudness, 0.1), int(loudness.argmax())
        loud = loudness > floor + 0.35 * (loudness[top] - floor)
        pause = round(0.12 * per_second)  # the closure within a word, as in "stop" and "eight"
        edges = [top, top]
        for side, step in ((0, -1), (1, 1)):
            place = top
            while 0 <= place < len(loud) and abs(place - edges[side]) <= pause:
                if loud[place]:
                    edges[side] = place
                place += step
        start = self.seconds - (len(self._frames) - 1 - first) / per_second
        return round(max(0.0, start + edges[0] / per_second), 3), round(start + (edges[1] + 1) / per_second, 3)
