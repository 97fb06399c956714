"""Latency from one waveform in memory to its probabilities, on one thread."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import measure, plain
from benchmarks.measure import Effort, Row
from kws.config import SPEECH_COMMANDS_WORDS
from kws.model import onnx
from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.model.predict import AnyRecognizer
from kws.recipe import RECIPES

FEATURES = RECIPES["default"].features


def as_file(effort: Effort) -> Row:
    """An exported file (`kws export --int8`) against torchaudio and `nn.TransformerEncoder` in torch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.export(untrained(), path, int8=True)
        recognizer = onnx.load(path, num_threads=1)
    return _against_eager("latency_vs_eager", 3, recognizer, effort)


def in_torch(effort: Effort) -> Row:
    """The `.pth` against the same alternative."""
    return _against_eager("latency_in_torch_vs_eager", 1, untrained(), effort)


def untrained(preset: str = "default") -> Recognizer:
    """Returns an untrained model of 35 words."""
    words = list(SPEECH_COMMANDS_WORDS)
    features = RECIPES[preset].features
    model = AudioTransformer(RECIPES[preset].model, features, len(words)).eval()
    return Recognizer(model=model, words=words, features=features)


@torch.inference_mode()
def _against_eager(row: str, goal: float, recognizer: AnyRecognizer, effort: Effort) -> Row:
    spectrogram = plain.mel_spectrogram(FEATURES)
    model = plain.Transformer(FEATURES, feedforward=512, num_words=len(SPEECH_COMMANDS_WORDS)).eval()
    waveform = torch.randn(1, FEATURES.num_samples) * 0.1

    def ours() -> float:
        return float(recognizer.predict(waveform.numpy()).max())

    def eager() -> float:
        scores = model((spectrogram(waveform) + FEATURES.log_offset).log())
        return float(scores.softmax(-1).max())

    def rate(call: Callable[[], object], times: int = 25 * effort.steps) -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()
        return times / (time.perf_counter() - started)

    with measure.threads(1):
        rates = measure.in_turns(lambda: rate(ours), lambda: rate(eager), effort.repeats)
    return Row(row=row, goal=goal, unit="clips/s", **rates)
