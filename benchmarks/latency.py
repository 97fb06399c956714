"""From one waveform in memory to its word, on one thread."""

import time

import torch

from benchmarks import measure, plain
from benchmarks.measure import Effort, Row
from kws.bundle import Recognizer
from kws.config import PRESETS, SPEECH_COMMANDS_WORDS
from kws.features import MelSpectrogram
from kws.model import AudioTransformer

FEATURES = PRESETS["default"].features


@torch.inference_mode()
def versus_eager(effort: Effort) -> Row:
    """Against torchaudio's features and `nn.TransformerEncoder`, in calls per second."""
    num_words = len(SPEECH_COMMANDS_WORDS)
    recognizer = Recognizer(
        model=AudioTransformer(PRESETS["default"].model, FEATURES, num_words).eval(),
        words=list(SPEECH_COMMANDS_WORDS), features=FEATURES,
    )  # fmt: skip
    spectrogram = MelSpectrogram(FEATURES)
    plain_spectrogram = plain.mel_spectrogram(FEATURES)
    plain_model = plain.Transformer(FEATURES, feedforward=512, num_words=num_words).eval()
    waveform = torch.randn(1, FEATURES.num_samples) * 0.1

    def ours() -> float:
        scores = recognizer.model(spectrogram(waveform))
        return float(recognizer.probabilities(scores).max())

    def eager() -> float:
        scores = plain_model((plain_spectrogram(waveform) + FEATURES.log_offset).log())
        return float(scores.softmax(-1).max())

    def rate(call: object, times: int = 25 * effort.steps) -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()  # type: ignore[operator]
        return times / (time.perf_counter() - started)

    with measure.threads(1):
        rates = measure.in_turns(lambda: rate(ours), lambda: rate(eager), effort.repeats)
    return Row(row="latency_vs_eager", goal=3, unit="clips/s", **rates)
