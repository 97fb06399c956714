"""Whether training on a GPU is right and fast: `python -m benchmarks.gpu [--tensors DIR]`, five minutes.

Trains the same recipe with its steps recorded as a CUDA graph and without, and compares loss curve, clips per second
and peak memory; resumes a recorded training from a checkpoint; and feeds one from the host's memory, as is done with
data sets that the GPU's memory does not hold. Ends with status 1 if a curve differs by more than rounding, and with a
message where there is no GPU. Without --tensors it trains on random features, as what it checks depends on no sound.
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kws import files
from kws.command import CommandFailed, as_command
from kws.config import SILENCE, SPLITS, UNKNOWN
from kws.data.clip import Clip
from kws.data.index import Index
from kws.preprocess.store import FEATURES
from kws.preprocess.tensors import INDEX, NOISE, ROWS, Part, Tensors
from kws.recipe import RECIPES, Recipe
from kws.train.distributed import World
from kws.train.trainer import Trainer

TOLERANCE = 0.02
"""Largest relative difference of two mean losses over a tenth of the curve: in bfloat16 the order of sums matters, and
a difference in the last bit of one step grows in the next ones."""


@as_command()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=Path, metavar="DIR", help="a tensors folder of kws preprocess")
    parser.add_argument("--preset", default="default", choices=RECIPES, help="the recipe (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps to compare (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise CommandFailed(
            "this measures training on a GPU, and torch sees none here: run it where nvidia-smi lists one, with a "
            f"torch built for CUDA (this one is {torch.__version__})"
        )
    with tempfile.TemporaryDirectory() as folder:
        recipe = RECIPES[options.preset]
        tensors = options.tensors or random_tensors(Path(folder), recipe)
        ways = {
            "recorded": measure(tensors, recipe, options.steps),
            "not recorded": measure(tensors, recipe, options.steps, use_graph=False),
            "recorded, resumed half way": measure(tensors, recipe, options.steps, resume=True),
            "recorded, features on the host": measure(tensors, recipe, options.steps, on_host=True),
        }
    table = Table(title=f"{torch.cuda.get_device_name()}, torch {torch.__version__}, recipe {options.preset}")
    for title in ("way", "clips/s", "peak memory, MB", "loss at the end", "largest difference"):
        table.add_column(title, justify="left" if title == "way" else "right")
    expected = ways["not recorded"]["losses"]
    for name, found in ways.items():
        found["difference"] = difference(found["losses"], expected)
        figures = (f"{found['rate']:,.0f}", f"{found['memory']:,.0f}", f"{found['losses'][-100:].mean():.4f}")
        table.add_row(name, *figures, f"{found['difference']:.2%}")
    Console().print(table)
    if options.json is not None:
        plain = {name: found | {"losses": found["losses"].tolist()} for name, found in ways.items()}
        options.json.write_text(json.dumps(plain))
    wrong = [name for name, found in ways.items() if not found["difference"] <= TOLERANCE]
    if wrong:
        raise CommandFailed(f"the loss curve differs from that without a graph by more than {TOLERANCE:.0%}: {wrong}")


def difference(losses: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> float:
    """Returns the largest relative difference of the means of ten parts of two loss curves; NaN counts as infinite."""
    means, other_means = ([part.mean() for part in np.array_split(curve, 10)] for curve in (losses, others))
    largest = np.max(np.abs(np.array(means) / np.array(other_means) - 1))
    return float(largest) if math.isfinite(largest) else math.inf


def measure(
    tensors: Path,
    recipe: Recipe,
    num_steps: int,
    *,
    use_graph: bool = True,
    resume: bool = False,
    on_host: bool = False,
) -> dict[str, Any]:
    """Trains for some steps.

    Args:
        tensors: a tensors folder.
        recipe: how to train.
        num_steps: number of steps.
        use_graph: whether steps are recorded.
        resume: whether to go on half way in a new trainer, from the state of the first.
        on_host: whether the features stay in the host's memory.

    Returns:
        `losses`, float64 [num_steps]; `rate` in clips per second, without the first tenth of the steps; `memory`, the
        peak in MB (2**20 bytes).
    """
    world = World(rank=0, size=1, device=torch.device("cuda", torch.cuda.current_device()))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    opened = Tensors(tensors, world.device)
    trainer = make_trainer(opened, recipe, world, use_graph, on_host)
    losses = trainer.losses
    started = time.perf_counter()
    steps = forever(trainer)
    for number in range(num_steps):
        if resume and number == num_steps // 2:
            state = trainer.state()
            trainer = make_trainer(opened, recipe, world, use_graph, on_host)
            trainer.restore(state)
            trainer.losses = losses
            steps = forever(trainer)
        if number == num_steps // 10:
            torch.cuda.synchronize()
            started = time.perf_counter()
        next(steps)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "losses": torch.stack(losses).double().cpu().numpy(),
        "rate": (num_steps - num_steps // 10) * trainer.step_clips / seconds,
        "memory": torch.cuda.max_memory_allocated() / 2**20,
    }


class Noting(Trainer):
    """A trainer that keeps the loss of every step, on the device."""

    losses: list[Tensor]

    def step(self, indices: Tensor) -> Tensor:
        """Takes one optimizer step."""
        outcome = super().step(indices)
        self.losses.append(outcome[0])
        return outcome


def make_trainer(tensors: Tensors, recipe: Recipe, world: World, use_graph: bool, on_host: bool) -> Noting:
    """Makes a trainer at its beginning."""
    trainer = Noting(tensors, recipe, world, use_graph=use_graph)
    trainer.losses = []
    if on_host:
        split = trainer.train_split
        trainer.train_split = dataclasses.replace(split, parts=[Part(part.features.cpu()) for part in split.parts])
    return trainer


def forever(trainer: Trainer) -> Iterator[bool]:
    """Trains epoch after epoch without validating, step by step."""
    while True:
        yield from trainer.train_epoch()
        trainer.position.epoch += 1
        trainer.position.clips_done = 0


def random_tensors(folder: Path, recipe: Recipe, num_clips: int = 20_000) -> Path:
    """Makes a tensors folder of random features that depend on the word, so that there is something to learn."""
    features = recipe.features
    words = ["go", "no", "stop", "yes", SILENCE, UNKNOWN]
    random = np.random.default_rng(0)
    shape = (features.num_mels, features.num_frames)
    patterns = random.standard_normal((len(words), *shape))
    counts = {"train": num_clips, "validation": 200, "test": 200, "noise": 200}
    labels = random.integers(0, len(words), sum(counts.values()))
    values = np.empty((len(labels), *shape), features.dtype)
    for begin in range(0, len(labels), 1000):
        block = 0.3 * patterns[labels[begin : begin + 1000]]
        block += random.standard_normal(block.shape)
        values[begin : begin + 1000] = block - 6 if features.log else np.exp(block)
    part, folder = folder / "features" / "random", folder / "tensors" / "random"
    for made in (part, folder):
        made.mkdir(parents=True)
    np.save(part / FEATURES, values)
    np.save(folder / NOISE, values[-counts["noise"] :])
    splits = [split for split in SPLITS for _ in range(counts[split])]
    clips = [Clip(file=f"{row}", word=words[labels[row]], split=split) for row, split in enumerate(splits)]
    Index.of(clips).save(folder / INDEX)
    np.save(folder / ROWS, np.arange(len(clips)))
    mean, std = (-6.0, 1.05) if features.log else (0.0, 1.0)
    manifest = {
        "words": words,
        "fingerprint": "random",
        "features": dataclasses.asdict(features),
        "normalization": {"mean": [mean] * features.num_mels, "std": [std] * features.num_mels},
        "counts": counts,
        "recordings": {},
        "parts": {"random": len(values)},
    }
    files.write_json(folder / files.MANIFEST, manifest)
    return folder


if __name__ == "__main__":
    main()
