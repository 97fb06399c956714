"""Throughput of training: the loop, the step, and two processes."""

import dataclasses
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, plain
from benchmarks.measure import Effort, Row
from kws.cores import num_cores
from kws.preprocess.tensors import Tensors
from kws.processes import keep_freed_memory
from kws.recipe import Recipe
from kws.train.distributed import World, join_world
from kws.train.trainer import Trainer

RECIPE = Recipe()
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def loop_versus_resident_batch(effort: Effort) -> Row:
    """An epoch of the loop against its own step (augmentation included) with one batch that stays in memory."""
    with measure.threads(num_cores()):
        loop = _steps(make_trainer())
        fed = make_trainer()
        indices = torch.arange(fed.batch_size)
        fed.train_split = _Resident(*fed.train_split.batch(indices))  # type: ignore[assignment]
        fed.update.parallel.train()

        def resident() -> float:
            started = time.perf_counter()
            for _ in range(2 * effort.steps):
                fed.step(indices)
            return 2 * effort.steps * fed.batch_size / (time.perf_counter() - started)

        rates = measure.in_turns(lambda: _rate(loop, 2 * effort.steps), resident, effort.repeats)
    return Row(row="train_loop_vs_resident_batch", goal=0.97, unit="clips/s", **rates)


def versus_plain(effort: Effort) -> Row:
    """The loop against a Dataset that computes features clip by clip and `nn.TransformerEncoder` in float32."""
    with measure.threads(num_cores()):
        trainer = make_trainer()
        loop = _steps(trainer)
        dataset = plain.Clips(sorted(measure.recordings().glob("[a-z]*/*.wav")), RECIPE.features)
        loader = DataLoader(dataset, trainer.batch_size, shuffle=True)
        model = plain.Transformer(RECIPE.features, feedforward=2048, num_words=len(dataset.words))
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        batches = iter(loader)

        def plainly() -> float:
            nonlocal batches
            clips, started = 0, time.perf_counter()
            while clips < effort.steps * trainer.batch_size:
                batch = next(batches, None)
                if batch is None:
                    batches = iter(loader)
                    continue
                features, labels = batch
                loss = nn.functional.cross_entropy(model(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                clips += len(labels)
            return clips / (time.perf_counter() - started)

        rates = measure.in_turns(lambda: _rate(loop, 2 * effort.steps), plainly, effort.repeats)
    return Row(row="train_vs_plain", goal=10, unit="clips/s", **rates)


def flops_versus_peak(effort: Effort) -> Row:
    """Forward and backward pass of a batch against a product of square bfloat16 matrices."""
    with measure.threads(num_cores()):
        trainer = make_trainer()
        features, labels = trainer.train_split.batch(torch.arange(trainer.batch_size))
        trainer.update.parallel.train()

        def passes() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.update.bf16):
                scores = trainer.update.parallel(features)
            trainer.model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(scores.float(), labels).backward()

        with FlopCounterMode(display=False) as counter:
            passes()
        flops = counter.get_total_flops()
        side = 2048
        matrix = torch.randn(side, side).bfloat16()

        def ours() -> float:
            started = time.perf_counter()
            for _ in range(effort.steps):
                passes()
            return effort.steps * flops / (time.perf_counter() - started) / 1e9

        def peak() -> float:
            rates = []
            for _ in range(5):
                started = time.perf_counter()
                matrix @ matrix
                rates.append(2 * side**3 / (time.perf_counter() - started) / 1e9)
            return max(rates)

        rates = measure.in_turns(ours, peak, effort.repeats)
    return Row(row="train_flops_vs_peak", goal=0.4, unit="GFLOP/s", **rates)


def two_processes_versus_one(effort: Effort) -> Row:
    """Two processes of one thread, half a batch each, against one process of two threads."""
    cores = num_cores()
    with _Group(2, max(cores // 2, 1)) as two, _Group(1, cores) as one:
        rates = measure.in_turns(lambda: two.rate(2 * effort.steps), lambda: one.rate(2 * effort.steps), effort.repeats)
    return Row(row="ddp_two_vs_one", goal=1.05, unit="clips/s", **rates)


def beside_a_busy_process(effort: Effort) -> Row:
    """A process for every core against a single thread, each beside a process that keeps a core busy."""
    busy = [sys.executable, "-c", "while True: pass"]
    with _Group(num_cores(), 1) as default, _Group(1, 1) as single, subprocess.Popen(busy) as neighbour:
        steps = 8 * effort.steps
        rates = measure.in_turns(lambda: default.rate(steps), lambda: single.rate(steps), effort.repeats)
        neighbour.kill()
    return Row(row="train_beside_busy_vs_one_thread", goal=0.85, unit="clips/s", **rates)


def make_trainer(world: World = ALONE, tensors: Path | None = None) -> Trainer:
    """Makes a trainer of the default model, in a process that keeps freed memory as training does."""
    keep_freed_memory()
    return Trainer(Tensors(tensors or measure.tensors()), RECIPE, world)


@dataclasses.dataclass(frozen=True)
class _Resident:
    """Stands for a split all of whose batches are the same."""

    features: Tensor
    labels: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.features, self.labels


def _steps(trainer: Trainer) -> Iterator[int]:
    """Trains epoch after epoch, and yields the number of clips of each step."""
    while True:
        for _ in trainer.train_epoch():
            yield trainer.step_clips
        trainer.position.clips_done = 0
        trainer.position.epoch += 1


def _rate(loop: Iterator[int], steps: int) -> float:
    started = time.perf_counter()
    clips = sum(next(loop) for _ in range(steps))
    return clips / (time.perf_counter() - started)


class _Group:
    """Processes that train together when they are told to, and wait without computing otherwise."""

    def __init__(self, size: int, num_threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        measure.tensors()
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        for rank in range(size):
            here, there = context.Pipe()
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": num_threads,
            }
            process = context.Process(target=_train_when_told, args=(there, environment), daemon=True)
            process.start()
            self.pipes.append(here)

    def rate(self, steps: int) -> float:
        """Takes some steps and returns clips per second over all processes."""
        for pipe in self.pipes:
            pipe.send(steps)
        clips, seconds = zip(*(pipe.recv() for pipe in self.pipes), strict=True)
        return float(clips[0] / max(seconds))

    def __enter__(self) -> "_Group":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.send(0)


def _train_when_told(pipe: Connection, environment: dict[str, Any]) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(environment["OMP_NUM_THREADS"])
    with join_world() as world:
        loop = _steps(make_trainer(world))
        while steps := pipe.recv():
            started = time.perf_counter()
            clips = sum(next(loop) for _ in range(steps))
            pipe.send((clips, time.perf_counter() - started))
