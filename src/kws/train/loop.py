"""The training loop: forward, loss, backward, step; no files, no logs.

The position of a run is three numbers: the epoch, the number of its clips that are done, and the step. The order of the
clips and every random draw follow from the seed and these numbers, so a checkpoint stores no random generator state,
and a run that was killed resumes with the same result: on the CPU, bit for bit.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kws.config import UNKNOWN
from kws.model.bundle import Recognizer
from kws.model.calibration import fit_temperature
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Split, Tensors
from kws.recipe import Recipe
from kws.settings import require
from kws.train.augment import Augment
from kws.train.distributed import World
from kws.train.fragments import Fragments
from kws.train.optimizer import make_optimizers
from kws.train.start import start_from

EVALUATION_BATCH = 64


@dataclasses.dataclass(kw_only=True)
class Position:
    """How far a run has come, and the sums of its current epoch."""

    epoch: int = 0
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

    def __init__(self, tensors: Tensors, recipe: Recipe, world: World, start: Recognizer | None = None) -> None:
        self.tensors = tensors
        self.recipe = recipe
        config = self.config = recipe.train
        self.world = world
        self.train_split = tensors.split("train", most=1000 if config.debug else 0)
        self.validation_split = tensors.split("validation")
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
        # Only if every process can: they exchange gradients.
        (wanting,) = world.sum(torch.tensor(int(wants_bf16(config.precision, world.device)), device=world.device))
        self.bf16 = int(wanting) == world.size

        torch.manual_seed(config.seed)
        self.model = AudioTransformer(recipe.model, tensors.features, len(tensors.words)).to(world.device)
        if tensors.features.normalize:
            self.model.set_normalization(tensors.mean, tensors.std)
        if start is not None:
            start_from(start, self.model, tensors.words)
        self.averaged = AudioTransformer(recipe.model, tensors.features, len(tensors.words)).to(world.device)
        self.averaged.load_state_dict(self.model.state_dict())
        self.parallel: nn.Module = self.model
        if world.size > 1:
            # Small buckets, so that the first gradients are sent while the last are computed.
            self.parallel = nn.parallel.DistributedDataParallel(
                self.model, bucket_cap_mb=1, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.optimizers = make_optimizers(self.model, config, dtype)
        mean = tensors.mean.to(world.device) if start is None else self.model.mean
        self.augment = Augment(recipe.augment, tensors.features, mean, tensors.noise())
        self.fragments = None
        if recipe.augment.fragment_share and UNKNOWN in tensors.words:
            unknown = tensors.words.index(UNKNOWN)
            self.fragments = Fragments(recipe.augment.fragment_share, unknown, self.augment.silence)

    def train_epoch(self) -> Iterator[bool]:
        """Takes the remaining steps of the epoch; after each, yields whether all processes must stop."""
        position, world = self.position, self.world
        order = torch.randperm(self.num_clips, generator=torch.Generator().manual_seed(self._draw("order")))
        self.parallel.train()
        while position.clips_done + self.step_clips <= self.num_clips:
            mine = order[position.clips_done + world.rank :: world.size][: self.batch_size]
            torch.manual_seed(self._draw("step", position.clips_done, world.rank))
            must_stop = world.ask(self.stop_asked)
            loss_sum, num_correct = self.step(mine)
            position.loss_sum += loss_sum
            position.num_correct += num_correct
            position.clips_done += self.step_clips
            position.step += 1
            yield must_stop()

    def step(self, indices: Tensor) -> tuple[float, float]:
        """Takes one optimizer step with this process's share of the batch.

        Args:
            indices: int64 [batch_size], rows of the training split.

        Returns:
            The sum of the losses and the number of clips recognized.

        Raises:
            FloatingPointError: the loss is not a number; the message names the clips.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        features, labels = self.train_split.batch(indices)
        if self.fragments is not None:
            features, labels = self.fragments(features, labels)
        features = self.augment(features)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            scores = self.parallel(features)
        loss = nn.functional.cross_entropy(scores.float(), labels, label_smoothing=self.config.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._lost(value, indices)

        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        return value * len(labels), float((scores.detach().argmax(-1) == labels).sum())

    @property
    def step_clips(self) -> int:
        """Clips per step over all processes."""
        return self.batch_size * self.world.size

    @property
    def clips_done(self) -> int:
        """Clips of the whole run that are done, over all epochs and processes."""
        return self.position.epoch * self.num_clips + self.position.clips_done

    @property
    def share_done(self) -> float:
        """Share of the run that is done, the same whatever the number of processes."""
        return (self.position.epoch + self.position.clips_done / self.num_clips) / self.epochs

    def learning_rate(self) -> float:
        """Returns the learning rate of the next step."""
        config, position = self.config, self.position
        peak = config.learning_rate * (self.world.size if config.scale_with_processes else 1)
        if config.schedule == "step":
            return float(peak * 0.9 ** (position.epoch // 3))
        done = self.share_done
        if done < config.warmup:
            return float(peak * (done + self.step_clips / (self.num_clips * self.epochs)) / config.warmup)
        return float(peak * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup))))

    @torch.no_grad()
    def _average(self) -> None:
        """Updates the moving average of the weights, faster early on, so that the initial weights are forgotten."""
        if self.config.ema_decay == 0:
            return
        decay = min(self.config.ema_decay, (1 + self.position.step) / (10 + self.position.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    @property
    def result(self) -> AudioTransformer:
        """The model that is validated and saved."""
        return self.averaged if self.config.ema_decay else self.model

    def end_epoch(self) -> tuple[dict[str, float], Tensor, bool]:
        """Validates, and moves on to the next epoch.

        Returns:
            The metrics of the epoch; the confusion matrix, float64 [true words, predicted words]; whether the model is
            the best so far.
        """
        position = self.position
        self.share_sums()
        learning_rate = self.learning_rate()
        loss, matrix = self.validate(self.validation_split)
        accuracy = float(matrix.trace() / matrix.sum())
        row: dict[str, float] = {
            "epoch": position.epoch,
            "step": position.step,
            "train_loss": position.loss_sum / position.clips_done,
            "train_accuracy": position.num_correct / position.clips_done,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "learning_rate": learning_rate,
        }
        # Of epochs that are equally good, which are many where few clips validate, the last has trained most.
        is_best = accuracy >= position.best_accuracy
        position.best_accuracy = max(accuracy, position.best_accuracy)
        position.epoch += 1
        position.clips_done, position.loss_sum, position.num_correct = 0, 0.0, 0.0
        return row, matrix, is_best

    def share_sums(self) -> None:
        """Sums loss and hits over all processes and keeps the sums in rank 0; the others restart from zero."""
        position = self.position
        sums = torch.tensor([position.loss_sum, position.num_correct], dtype=torch.float64)
        (sums,) = self.world.sum(sums.to(self.world.device))
        position.loss_sum, position.num_correct = sums.tolist() if self.world.leads else (0.0, 0.0)

    @torch.no_grad()
    def validate(self, split: Split) -> tuple[float, Tensor]:
        """Evaluates the model on a split, which is divided among the processes.

        Returns:
            Mean cross-entropy and the confusion matrix, float64 [true words, predicted words].
        """
        scores, labels = self.scores(self.result, split, self.world.rank, self.world.size)
        num_words = scores.size(1)
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum").double()
        matrix = torch.bincount(labels * num_words + scores.argmax(-1), minlength=num_words**2).double()
        loss, matrix = self.world.sum(loss, matrix)
        return float(loss) / len(split), matrix.reshape(num_words, num_words).cpu()

    @torch.no_grad()
    def scores(
        self, model: AudioTransformer, split: Split, rank: int = 0, size: int = 1, augment: Augment | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the scores (logits) of every `size`-th clip of a split from `rank` on, and the labels.

        Args:
            model: the model.
            split: the clips.
            rank: first clip.
            size: distance of two clips.
            augment: how to change them, if at all.

        Returns:
            Scores, float32 [clips, words], and labels, int64 [clips].
        """
        model.eval()
        found = [torch.empty(0, len(self.tensors.words), device=self.world.device)]
        truth = [torch.empty(0, dtype=torch.int64, device=self.world.device)]
        for indices in torch.split(torch.arange(len(split))[rank::size], EVALUATION_BATCH):
            features, labels = split.batch(indices)
            features = features if augment is None else augment(features)
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
                found.append(model(features).float())
            truth.append(labels)
        return torch.cat(found), torch.cat(truth)

    def temperature(self, model: AudioTransformer) -> float:
        """Fits the temperature of a model on the validation clips: as they are, and augmented as in training.

        As they are alone, they make the model too sure of itself: the best epoch was chosen by them, and recordings of
        other people are noisier. Masks are left out, as no recording has any.
        """
        found = [self.scores(model, self.validation_split)]
        unmasked = dataclasses.replace(self.recipe.augment, num_time_masks=0, num_frequency_masks=0)
        if unmasked.is_on:
            torch.manual_seed(self._draw("temperature"))
            changed = Augment(unmasked, self.tensors.features, self.augment.mean[:, 0], self.tensors.noise())
            found.append(self.scores(model, self.validation_split, augment=changed))
        scores, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return fit_temperature(scores, labels)

    def state(self) -> dict[str, Any]:
        """Returns everything that training needs to resume from here."""
        return {
            "position": dataclasses.asdict(self.position),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned; rank 0 alone takes over the sums of the current epoch."""
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.position = Position(**state["position"])
        if not self.world.leads:
            self.position.loss_sum, self.position.num_correct = 0.0, 0.0

    def _draw(self, *what: object) -> int:
        """Derives a random seed from the seed of the run, the epoch and the purpose `what`."""
        text = f"{self.config.seed}/{self.position.epoch}/{what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    def _lost(self, value: float, indices: Tensor) -> FloatingPointError:
        clips = ", ".join(self.train_split.clips[index].id for index in indices.tolist())
        return FloatingPointError(
            f"the loss must be finite, got {value} at step {self.position.step} of epoch {self.position.epoch}; "
            f"a lower --learning-rate often helps; if not, inspect the clips of this batch: {clips}"
        )


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Tells whether to compute matrix products in bfloat16.

    Args:
        precision: auto, bf16 or float32, as in `TrainConfig`.
        device: the training device; auto is true where it multiplies bfloat16 in hardware.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
