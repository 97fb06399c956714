"""The trainer: a model in training, and the loop over epochs.

The position of a run is three numbers: the epoch, the number of its clips that are done, and the step. The order of the
clips and every random draw follow from the seed and these numbers, so a checkpoint stores no random generator state,
and a run that was killed resumes with the same result: on the CPU, bit for bit.
"""

import contextlib
import dataclasses
import hashlib
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kws import files, steps
from kws.config import SILENCE, UNKNOWN
from kws.model import bundle
from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Tensors
from kws.recipe import Recipe
from kws.settings import require
from kws.train import checkpoint, runs, schedule
from kws.train.augment import Augment
from kws.train.compose import Composer, what_is_left
from kws.train.distributed import World
from kws.train.journal import open_journal
from kws.train.optimizer import make_optimizers
from kws.train.start import start_from
from kws.train.update import GraphedUpdate, Update, wants_bf16
from kws.train.validation import Validation

log = logging.getLogger(__name__)

READ_STEPS = 50
"""Steps between two reads of their losses. Reading waits for a GPU until all steps so far are done."""

History = list[dict[str, float]]
"""The metrics of every epoch so far."""


class StopTraining(Exception):
    """Raised after SIGTERM or Ctrl-C, once the checkpoint is written."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__()
        self.status = 128 + signum
        """Exit status, as a shell gives it. It is not 0, so that the launcher starts the process again."""


@dataclasses.dataclass(kw_only=True)
class Position:
    """How far a run has come, and the sums of its current epoch."""

    epoch: int = 0
    """Epochs that are done. What people read counts them from 1."""
    clips_done: int = 0
    """Clips of this epoch that were trained on, over all processes."""
    step: int = 0
    best_accuracy: float = -1.0
    loss_sum: float = 0.0
    """Sum of the losses of this epoch's clips so far, in this process."""
    num_correct: float = 0.0
    """Number of this epoch's clips that were recognized so far, in this process."""


class Trainer:
    """A model in training, with its data, its optimizers and its position."""

    def __init__(
        self, tensors: Tensors, recipe: Recipe, world: World, start: Recognizer | None = None, *, use_graph: bool = True
    ) -> None:
        """Initializes a training at its beginning, from a model or from random weights.

        `use_graph`: whether steps on a GPU are recorded as a CUDA graph.
        """
        self.tensors = tensors
        self.recipe = recipe
        config = self.config = recipe.train
        self.world = world
        self.train_split = tensors.split("train", most=1000 if config.debug else 0)
        if recipe.model.other_words:
            self.train_split = dataclasses.replace(self.train_split, labels=self._own_labels(recipe.model.other_words))
        self.num_clips = len(self.train_split)
        most = self.num_clips
        require(world.size <= most, "processes", f"be at most {most}, the clips to train on", world.size)
        if config.scale_with_processes:
            self.batch_size = min(config.batch_size, self.num_clips // world.size)
        else:
            self.batch_size = max(min(config.batch_size, self.num_clips) // world.size, 1)
        self.epochs = max(config.epochs, math.ceil(config.min_clips / self.num_clips))
        self.position = Position()
        self.stop_asked = False
        self.unread: list[Tensor] = []
        """Loss and hits of the latest steps, on the device."""
        # Only if every process can: they exchange gradients.
        (wanting,) = world.all_reduce(torch.tensor(int(wants_bf16(config.precision, world.device))))
        bf16 = int(wanting) == world.size
        self.validation = Validation(split=tensors.split("validation"), world=world, bf16=bf16)

        torch.manual_seed(config.seed)
        self.model = AudioTransformer(recipe.model, tensors.features, len(tensors.words)).to(world.device)
        if tensors.features.normalize:
            self.model.set_normalization(tensors.mean, tensors.std)
        if start is not None:
            start_from(start, self.model, tensors.words)
        self.averaged = AudioTransformer(recipe.model, tensors.features, len(tensors.words)).to(world.device)
        self.averaged.load_state_dict(self.model.state_dict())
        parallel: nn.Module = self.model
        if world.size > 1:
            # Small buckets, so that the first gradients are sent while the last are computed.
            parallel = nn.parallel.DistributedDataParallel(
                self.model, bucket_cap_mb=1, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        mean = tensors.mean.to(world.device) if start is None else self.model.mean
        compose = self._composer() if recipe.model.scores == "tokens" else None
        changes = recipe.augment if compose is None else what_is_left(recipe.augment)
        augment = Augment(changes, tensors.features, mean, tensors.noise())
        self.update = Update(
            model=self.model,
            parallel=parallel,
            averaged=self.averaged,
            optimizers=make_optimizers(self.model, config, torch.bfloat16 if bf16 else torch.float32),
            augment=augment,
            compose=compose,
            recipe=recipe,
            bf16=bf16,
        )
        # With several processes a step is not recorded: its graph would have to hold the messages of NCCL, for which
        # DistributedDataParallel must be made on the recording's stream, warmed up for 11 steps, and watched without
        # TORCH_NCCL_ASYNC_ERROR_HANDLING, so that a process whose neighbour died would wait for ever.
        can_record = use_graph and world.device.type == "cuda" and world.size == 1
        self.take_step: Update | GraphedUpdate = GraphedUpdate(self.update) if can_record else self.update

    def _own_labels(self, most: int) -> Tensor:
        """Returns labels by which the most frequent unknown words have classes of their own, behind those of words."""
        counts, words = self.train_split.clips.counts(), self.tensors.words
        others = sorted(counts.keys() - set(words), key=lambda word: (-counts[word], word))
        return torch.from_numpy(self.train_split.clips.labels([*words, *others[:most]])).to(self.world.device)

    def _composer(self) -> Composer:
        """Returns what makes streams of this training's clips, speech and noise."""
        words, recipe = self.tensors.words, self.recipe
        fits = words[-2:] == [UNKNOWN, SILENCE]
        remedy = "be clip without clips of unknown words and silence (--unknown-words auto, and _background_noise_)"
        require(fits, "model.scores", remedy, recipe.model.scores)
        size = recipe.compose.clips_per_stream
        require(self.batch_size >= size, "batch_size", f"be at least {size} in each process", self.batch_size)
        return Composer(
            recipe.compose,
            recipe.augment,
            self.tensors.features,
            len(words),
            recipe.model.frames_per_token,
            self.tensors.speech(),
            self.tensors.noise(),
        )

    def train_epoch(self) -> Iterator[bool]:
        """Takes the remaining steps of the epoch; after each, yields whether all processes must stop.

        Raises:
            FloatingPointError: the loss of a step is not finite; the message names the clips. Raised at most READ_STEPS
                steps later, and before anything is saved.
        """
        position, world = self.position, self.world
        order = self._order()
        self.update.parallel.train()
        while position.clips_done + self.step_clips <= self.num_clips:
            torch.manual_seed(self._draw("step", position.clips_done, world.rank))
            must_stop = world.start_any(self.stop_asked)
            self.train_split.will_need(self.share_of(order, position.clips_done + self.step_clips, world.rank))
            self.unread.append(self.step(self.share_of(order, position.clips_done, world.rank)))
            position.clips_done += self.step_clips
            position.step += 1
            if len(self.unread) == READ_STEPS:
                self._read()
            yield must_stop()
        self._read()

    def step(self, indices: Tensor) -> Tensor:
        """Takes one optimizer step with this process's share of the batch.

        Args:
            indices: int64 [batch_size], rows of the training split.

        Returns:
            The mean loss and the number of clips recognized, float32 [2], on the device.
        """
        rates = schedule.rates(self.config, self.learning_rate(), self.position.step)
        return self.take_step(*self.train_split.batch(indices), rates)

    def share_of(self, order: Tensor, clips_done: int, rank: int) -> Tensor:
        """Returns the clips of a step that a process takes, int64 [batch_size]: all together take what is next."""
        return order[clips_done + rank :: self.world.size][: self.batch_size]

    def _order(self) -> Tensor:
        return torch.randperm(self.num_clips, generator=torch.Generator().manual_seed(self._draw("order")))

    @property
    def step_clips(self) -> int:
        """Clips per step over all processes."""
        return self.batch_size * self.world.size

    @property
    def clips_done(self) -> int:
        """Clips of the whole run that are done, over all epochs and processes."""
        return self.position.epoch * self.num_clips + self.position.clips_done

    def learning_rate(self) -> float:
        """Returns the learning rate of the next step."""
        # The share of the run that is done, which is the same whatever the number of processes.
        done = (self.position.epoch + self.position.clips_done / self.num_clips) / self.epochs
        step = self.step_clips / (self.num_clips * self.epochs)
        return schedule.learning_rate(self.config, self.world.size, self.position.epoch, done, step)

    @property
    def result(self) -> AudioTransformer:
        """The model that is validated and saved."""
        return self.averaged if self.config.ema_decay else self.model

    def _read(self) -> None:
        """Adds loss and hits of the unread steps to the sums.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if not self.unread:
            return
        outcomes, self.unread = torch.stack(self.unread).tolist(), []
        # Once a loss is not finite in one process, the next one is not in any. The first decides which clips are named.
        lost = [number for number, (loss, _) in enumerate(outcomes) if not math.isfinite(loss)]
        mine = lost[0] * self.world.size + self.world.rank if lost else math.inf
        first = self.world.minimum(mine)
        if math.isfinite(first):
            number, rank = divmod(int(first), self.world.size)
            ago = len(outcomes) - number
            indices = self.share_of(self._order(), self.position.clips_done - ago * self.step_clips, rank)
            clips = ", ".join(self.train_split.clips[index].id for index in indices.tolist())
            value = outcomes[number][0] if first == mine else math.nan
            raise FloatingPointError(
                f"the loss must be finite, got {value} at step {self.position.step - ago} of epoch "
                f"{self.position.epoch + 1}; a lower --learning-rate often helps; if not, inspect the clips of this "
                f"batch: {clips}"
            )
        for loss, num_correct in outcomes:
            self.position.loss_sum += loss * self.batch_size
            self.position.num_correct += num_correct

    def share_sums(self) -> None:
        """Sums loss and hits over all processes and keeps the sums in rank 0; the others restart from zero."""
        self._read()
        position = self.position
        (sums,) = self.world.all_reduce(torch.tensor([position.loss_sum, position.num_correct], dtype=torch.float64))
        position.loss_sum, position.num_correct = sums.tolist() if self.world.is_main else (0.0, 0.0)

    def end_epoch(self) -> tuple[dict[str, float], Tensor, bool]:
        """Validates, and moves on to the next epoch.

        Returns:
            The metrics of the epoch; the confusion matrix, float64 [true words, predicted words]; whether the model is
            the best so far.
        """
        position = self.position
        self.share_sums()
        learning_rate = self.learning_rate()
        loss, matrix = self.validation(self.result)
        accuracy = float(matrix.trace() / matrix.sum())
        row: dict[str, float] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "train_loss": position.loss_sum / position.clips_done,
            "train_accuracy": position.num_correct / position.clips_done,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": learning_rate,
        }
        # Of epochs that are equally good, which are many where few clips validate, the last has trained most. Accuracy
        # on clips says little about streams: after some point it falls while fewer words are missed.
        is_best = accuracy >= position.best_accuracy or self.update.compose is not None
        position.best_accuracy = max(accuracy, position.best_accuracy)
        position.epoch += 1
        position.clips_done, position.loss_sum, position.num_correct = 0, 0.0, 0.0
        return row, matrix, is_best

    def temperature(self, model: AudioTransformer) -> float:
        """Fits the temperature of a model on the validation clips; see `Validation.temperature`."""
        unmasked = dataclasses.replace(self.recipe.augment, num_time_masks=0, num_frequency_masks=0)
        mean = self.update.augment.mean[:, 0]
        augment = Augment(unmasked, self.tensors.features, mean, self.tensors.noise()) if unmasked.is_on else None
        return self.validation.temperature(model, augment, self._draw("temperature"))

    def state(self) -> dict[str, Any]:
        """Returns everything that training needs to resume from here."""
        return {
            "position": dataclasses.asdict(self.position),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.update.optimizers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned; rank 0 alone takes over the sums of the current epoch.

        Weights are copied in place, as a recorded step goes on using their memory.
        """
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, known in zip(self.update.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.position = Position(**state["position"])
        self.unread = []
        if not self.world.is_main:
            self.position.loss_sum, self.position.num_correct = 0.0, 0.0

    def _draw(self, *what: object) -> int:
        """Derives a random seed from the seed of the run, the epoch and the purpose `what`."""
        text = f"{self.config.seed}/{self.position.epoch}/{what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def train_to_the_end(folder: Path, trainer: Trainer) -> None:
    """Trains from the latest checkpoint to the last epoch, keeps the best model, and completes the run.

    Raises:
        StopTraining: `trainer.stop_asked` was set in a process; the checkpoint is written.
        FloatingPointError: the loss is not finite.
    """
    history = _resume(folder, trainer)
    position, is_main = trainer.position, trainer.world.is_main
    words, num_clips = trainer.tensors.words, trainer.epochs * trainer.num_clips
    with contextlib.ExitStack() as stack:
        journal = None
        if is_main:
            opened = open_journal(folder, words, num_clips, trainer.clips_done, position.epoch + 1)
            journal = stack.enter_context(opened)
            if position.step == 0:
                features, _ = trainer.train_split.batch(torch.arange(min(4, trainer.num_clips)))
                titles = [clip.word for clip in trainer.train_split.clips[: len(features)]]
                journal.spectrograms(trainer.update.augment(features), titles)
        while position.epoch < trainer.epochs:
            started, first = time.monotonic(), position.clips_done
            for must_stop in trainer.train_epoch():
                if journal is not None:
                    journal.done(trainer.clips_done)
                if must_stop or position.step % trainer.config.checkpoint_steps == 0:
                    trainer.share_sums()
                    _save(folder, trainer, history)
                if must_stop:
                    raise StopTraining
            rate = (position.clips_done - first) / (time.monotonic() - started)
            row, matrix, is_best = trainer.end_epoch()
            history.append(row | {"clips_per_second": rate})
            if journal is not None:
                if is_best:
                    _save_model(folder, trainer, trainer.result, history[-1])
                journal.done(trainer.clips_done)
                journal.epoch(history, trainer.epochs, matrix if is_best else None)
            _save(folder, trainer, history)
    used = used_together(trainer.world)
    if is_main:
        _complete(folder, trainer, history, used)


def _resume(folder: Path, trainer: Trainer) -> History:
    """Restores the latest checkpoint that rank 0 can read, and returns the history up to it."""
    world = trainer.world
    path = world.broadcast(checkpoint.latest(folder) if world.is_main else None)
    if path is None:
        return []
    state = checkpoint.read(path)
    trainer.restore(state)
    if world.is_main:
        log.info("resuming at step %d of epoch %d", trainer.position.step, trainer.position.epoch + 1)
    return list(state["history"])


def _save(folder: Path, trainer: Trainer, history: History) -> None:
    if trainer.world.is_main:
        content = trainer.state() | {"history": history}
        checkpoint.save(folder, trainer.position.step, content, trainer.config.keep_checkpoints)


def _save_model(
    folder: Path, trainer: Trainer, model: AudioTransformer, row: Mapping[str, float], temperature: float = 1.0
) -> None:
    """Writes the best model of a run, with the metrics of its epoch."""
    about = {
        "preset": trainer.recipe.name,
        "recipe": dataclasses.asdict(trainer.recipe),
        "tensors": trainer.tensors.fingerprint,
        "run": folder.name,
    }
    if (init := runs.init_of(folder)) is not None:
        about["init"] = init
    recognizer = Recognizer(
        model=model,
        words=trainer.tensors.words,
        features=trainer.tensors.features,
        temperature=temperature,
        metrics=dict(row),
        about=about,
    )
    bundle.save(folder / runs.BEST, recognizer)


def used_together(world: World) -> dict[str, float]:
    """Returns what the training processes have used since they started: the sum, of peak memory that of the largest.

    See `kws.steps.used`; on a cluster, the train step itself only waits for these processes.
    """
    used = steps.used()
    if world.device.type == "cuda":
        used["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(world.device) / 1e6, 1)
    of_all = world.gather(used)
    return {
        name: round((max if name.startswith("peak") else sum)(one.get(name, 0.0) for one in of_all), 1) for name in used
    }


def _complete(folder: Path, trainer: Trainer, history: History, used: Mapping[str, float]) -> None:
    """Fits the temperature of the best model and writes the manifest of the run."""
    best = bundle.load(folder / runs.BEST, trainer.world.device)
    _save_model(folder, trainer, best.model, best.metrics, trainer.temperature(best.model))
    manifest = {
        "run": folder.name,
        "model": runs.BEST,
        "sha256": files.sha256_of(folder / runs.BEST),
        "validation_accuracy": best.metrics["validation_accuracy"],
        "best_epoch": int(best.metrics["epoch"]),
        "epochs": trainer.epochs,
        "num_clips": trainer.num_clips,
        "num_parameters": best.num_parameters,
        "clips_per_second": sorted(row["clips_per_second"] for row in history)[len(history) // 2],
        "used": used,
    }
    files.write_json(folder / files.MANIFEST, manifest)
