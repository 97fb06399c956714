"""Anonymous memory of training (without page cache) as the tensors grow."""

import dataclasses
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure, training
from benchmarks.measure import Effort, Row
from kws import files
from kws.command import as_command
from kws.config import SPLITS
from kws.data.index import Index
from kws.preprocess.store import FEATURES
from kws.preprocess.tensors import INDEX, ROWS


def growth(_: Effort) -> Row:
    """Training on tensors twice as large against training on tensors of 20,000 clips."""
    small, large = (_repeated(20_000 * times) for times in (1, 2))
    sizes = measure.in_turns(lambda: _anonymous(large), lambda: _anonymous(small), repeats=5)
    return Row(row="memory_growth", goal=1.02, at_most=True, unit="MB", **sizes)


def _repeated(num_clips: int) -> Path:
    """Returns tensors with the same training clips again and again, in as many more parts, which are links."""
    source = measure.tensors()
    folder = source.with_name(f"{source.name}-{num_clips}")
    manifest = files.read_json(source / files.MANIFEST)
    index, rows = Index.load(source / INDEX), np.load(source / ROWS)
    train = index.rows_of_split("train")
    num_rows = sum(manifest["parts"].values())
    times = math.ceil(num_clips / len(train))
    parts = {}
    for number, (part, count) in itertools.product(range(times), manifest["parts"].items()):
        parts[f"{part}-{number}"] = count
        target = source.parents[1] / "features" / f"{part}-{number}"
        target.mkdir(exist_ok=True)
        if not (target / FEATURES).exists():
            os.link(source.parents[1] / "features" / part / FEATURES, target / FEATURES)

    def build(staging: Path) -> None:
        shutil.copytree(source, staging, dirs_exist_ok=True)
        repeated = (dataclasses.replace(index[train[row % len(train)]], file=f"{row}.wav") for row in range(num_clips))
        others = [row for name in SPLITS if name != "train" for row in index.rows_of_split(name)]
        Index.of([*repeated, *index.take(np.array(others))]).save(staging / INDEX)
        copies = [rows[train] + number * num_rows for number in range(times)]
        np.save(staging / ROWS, np.concatenate([np.concatenate(copies)[:num_clips], rows[others]]))
        files.write_json(staging / files.MANIFEST, manifest | {"parts": parts})

    files.build_folder(folder, build)
    return folder


def _anonymous(tensors: Path) -> float:
    """Trains in a separate process, and returns its anonymous memory at the end, in MB."""
    command = [sys.executable, "-m", "benchmarks.memory", str(tensors)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@as_command()
def _train(tensors: Path) -> None:
    """Takes some steps, reads every clip of an epoch, and prints the process's anonymous memory in MB."""
    trainer = training.make_trainer(tensors=tensors)
    steps = trainer.train_epoch()
    for _ in range(2):
        next(steps)
    for indices in torch.split(torch.randperm(trainer.num_clips), trainer.batch_size):
        trainer.train_split.batch(indices)
    status = Path("/proc/self/status").read_text().split()
    print(int(status[status.index("RssAnon:") + 1]) / 1024)


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
