"""Accuracy against size and multiplications, for finished runs of `kws train`: `python -m research.frontier`.

A row is all runs whose id is NAME-SEED (`kws train --run-id small-41 --seed 41`), on the validation and the test split,
as they are and under the conditions of `kws.evaluate.robustness`. A run is evaluated once. The picture, frontier.png,
also has KWT and BC-ResNet as published, with other words and all of Speech Commands: it shows where they are in size,
not which network is better.

  python -m research.frontier --recordings DIR --runs var/data/runs --names default small distilled
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from kws import files
from kws.command import as_command
from kws.config import SPLITS
from kws.evaluate import robustness
from kws.model import bundle
from kws.preprocess.tensors import Tensors
from kws.recipe import FeatureConfig
from kws.train import runs
from research import peers, study

SHOWN = ("clean", "noise at 10 dB", "8 kHz")


def multiplications(network: torch.nn.Module, features: FeatureConfig) -> int:
    """Counts the multiplications of matrix products and convolutions for one clip, spectrogram not included.

    The network scores log-mel features [clips, num_mels, num_frames].
    """
    clip = torch.zeros(1, features.num_mels, features.num_frames, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # which counts the additions as well
        network.eval()(clip)
    return int(counter.get_total_flops()) // 2


class Published(NamedTuple):
    """A network of a paper, and what the paper says of it, in per cent."""

    name: str
    accuracy: float
    words: int
    scale: int
    """Channels of KWT's tokens, or τ of BC-ResNet."""

    def size(self) -> tuple[int, int]:
        """Counts parameters and multiplications of the network as it is written in `research.peers`."""
        if self.name.startswith("KWT"):
            features: FeatureConfig = peers.PEERS["KWT-1"].preset.features
            network: torch.nn.Module = peers.KeywordTransformer(features, self.words, width=self.scale)
        else:
            features = peers.PEERS["BC-ResNet-3"].preset.features
            network = peers.BCResNet(features, self.words, scale=self.scale)
        return sum(weight.numel() for weight in network.parameters()), multiplications(network, features)


PUBLISHED = (
    Published("KWT-1", 96.95, 35, 64),
    Published("KWT-2", 97.74, 35, 128),
    Published("BC-ResNet-8", 98.7, 12, 8),
)
"""Berg et al., arXiv 2104.00769, and Kim et al., arXiv 2106.04140 (ten words, unknown words and silence)."""


def evaluate(run: Path, recordings: Path) -> dict[str, Any]:
    """Returns what is shown of a run: its size, and its accuracy by split and condition."""
    path = run / "frontier.json"
    if not path.is_file():
        recognizer, tensors = bundle.load(run / runs.BEST), Tensors(runs.read_config(run)[0])
        files.write_json(
            path,
            {
                "parameters": recognizer.num_parameters,
                "multiplications": multiplications(recognizer.model, recognizer.features),
                **{
                    split: dict(robustness.measure(recognizer, recordings, tensors.split(split).clips))
                    for split in SPLITS[1:]
                },
            },
        )
    found: dict[str, Any] = files.read_object(path)
    return found


def draw(path: Path, found: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Draws test accuracy over multiplications."""
    from matplotlib.figure import Figure

    from kws import plots

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, some in found.items():
        heard = [100 * one["test"]["clean"] for one in some]
        place = some[0]["multiplications"] / 1e6, statistics.mean(heard)
        deviation = statistics.stdev(heard) if len(heard) > 1 else 0
        axes.errorbar(*place, deviation, marker="o", capsize=3, label=f"{name}, {some[0]['parameters'] / 1e6:.2f} M")
    for one in PUBLISHED:
        parameters, count = one.size()
        label = f"{one.name}, {parameters / 1e6:.2f} M (paper, {one.words} classes)"
        axes.plot(count / 1e6, one.accuracy, "D", fillstyle="none", label=label)
    axes.set(xscale="log", xlabel="million multiplications for a clip", ylabel="test accuracy in %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with files.atomic_write(path) as file:
        file.write(plots.png(figure))


def rows(found: dict[str, list[dict[str, Any]]]) -> Sequence[str]:
    """Returns the lines of the table."""
    titles = [f"{split}, {condition}" for split in SPLITS[1:] for condition in SHOWN]
    lines = [f"| | parameters | multiplications | seeds | {' | '.join(titles)} |", "|---" * (4 + len(titles)) + "|"]
    for name, some in found.items():
        cells = [study.spread([one[split][condition] for one in some]) for split in SPLITS[1:] for condition in SHOWN]
        size = f"{some[0]['parameters']:,} | {some[0]['multiplications'] / 1e6:.1f} M | {len(some)}"
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return lines


@as_command()
def main() -> None:
    """Parses flags, evaluates, prints the table, and draws frontier.png."""
    parser = argparse.ArgumentParser(
        prog="python -m research.frontier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=Path, required=True, help="the folder of recordings")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of runs")
    parser.add_argument("--names", nargs="+", required=True, help="the runs' ids without -SEED")
    parser.add_argument("--title", default="", help="title of the picture: words and epochs")
    parser.add_argument("--picture", type=Path, default=Path("var/study/frontier.png"), help="(default: %(default)s)")
    options = parser.parse_args()
    found = {
        name: [
            evaluate(run, options.recordings)
            for run in sorted(options.runs.glob(f"*-*-{name}-[0-9]*"))
            if files.is_complete(run)
        ]
        for name in options.names
    }
    for name, some in found.items():
        if not some:
            raise ValueError(f"names must be those of complete runs in {options.runs}, got {name!r}")
    print("\n".join(rows(found)))
    draw(options.picture, found, options.title)


if __name__ == "__main__":
    main()
