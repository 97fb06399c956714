"""Where the time of a training step goes, on one thread: `python -m benchmarks.step_parts`.

A batch of a preset that scores clips, part by part: medians of processor time. With --avx2, torch, oneDNN and MKL keep
to AVX2 and float32, which shows what a processor without bfloat16 has to do, though not how fast an old one is.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.nn import functional as F

from kws.command import as_command
from kws.config import SPEECH_COMMANDS_WORDS
from kws.model.network import AudioTransformer
from kws.recipe import RECIPES
from kws.train.augment import Augment
from kws.train.optimizer import make_optimizers
from kws.train.schedule import rates
from kws.train.update import wants_bf16

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
NUM_STEPS = 15

Result = TypeVar("Result")


@as_command()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--avx2", action="store_true", help="keep to AVX2 and float32")
    parser.add_argument("--preset", choices=("default", "small"), default="default", help="(default: %(default)s)")
    options = parser.parse_args()
    if options.avx2 and not AVX2.items() <= os.environ.items():  # read when the libraries are loaded
        command = [sys.executable, "-m", "benchmarks.step_parts", "--avx2", "--preset", options.preset]
        os.execve(sys.executable, command, {**os.environ, **AVX2})
    torch.set_num_threads(1)
    bf16 = not options.avx2 and wants_bf16("auto", torch.device("cpu"))
    parts = Parts(options.preset, bf16)
    for _ in range(NUM_STEPS):
        parts.step()
    medians = {part: 1000 * statistics.median(some) for part, some in parts.times.items()}
    total = sum(medians.values())
    print(f"| {'bfloat16' if bf16 else 'float32'}, {torch.backends.cpu.get_cpu_capability()} | ms | share |")
    print("|---|---|---|")
    for part, milliseconds in medians.items():
        print(f"| {part} | {milliseconds:.1f} | {100 * milliseconds / total:.0f} % |")
    print(f"| {1000 * parts.preset.train.batch_size / total:.0f} clips/s | {total:.1f} | 100 % |")


class Parts:
    """What a step needs, and how long each part of it took, in seconds."""

    def __init__(self, preset: str, bf16: bool) -> None:
        self.preset = RECIPES[preset]
        features, words = self.preset.features, len(SPEECH_COMMANDS_WORDS)
        self.bf16 = bf16
        self.times: dict[str, list[float]] = {}
        self.model, self.average = (AudioTransformer(self.preset.model, features, words) for _ in range(2))
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.optimizers = make_optimizers(self.model, self.preset.train, dtype)
        shape = (features.num_mels, features.num_frames)
        self.clips = torch.randn(self.preset.train.batch_size, *shape)
        self.labels = torch.randint(words, (len(self.clips),))
        self.augment = Augment(self.preset.augment, features, self.model.mean, torch.randn(300, *shape).half())

    def timed(self, part: str, call: Callable[[], Result]) -> Result:
        """Makes a call and notes its time."""
        started = time.process_time()
        result = call()
        self.times.setdefault(part, []).append(time.process_time() - started)
        return result

    def step(self) -> None:
        """Takes a step as `kws.train.update` does."""
        model, config = self.model, self.preset.train
        changed = self.timed("augmentation", lambda: self.augment(self.clips))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            tokens = self.timed("stem, forward", lambda: model.stem(changed))
            inner = tokens.detach().requires_grad_()
            scores = self.timed("blocks, forward", lambda: self._blocks(inner))
        loss = F.cross_entropy(scores.float(), self.labels, label_smoothing=config.label_smoothing)
        model.zero_grad(set_to_none=True)
        self.timed("blocks, backward", loss.backward)
        self.timed("stem, backward", lambda: tokens.backward(inner.grad))
        self.timed("clipping", lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm))
        numbers = rates(config, config.learning_rate, 1000)
        for optimizer in self.optimizers:
            self.timed(type(optimizer).__name__, functools.partial(optimizer.step, numbers))
        self.timed("averaging", self._average)

    def _blocks(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.model.positions is not None
        tokens = tokens + self.model.positions
        for block in self.model.blocks:
            tokens = block(tokens)
        scores: torch.Tensor = self.model.head(self.model.norm(tokens).mean(dim=1))
        return scores

    def _average(self) -> None:
        for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.data.lerp_(weight.data, 1 - self.preset.train.ema_decay)


if __name__ == "__main__":
    main()
