"""The training loop: one process, or one of many under torchrun.

    torchrun --nproc-per-node=2 -m kws.train.trainer --tensors DIR --runs DIR

Where a run stands is three numbers: the epoch, the clips of it that are done, and the step. The order of the clips
and every random draw follow from the seed and these numbers, so a checkpoint needs no state of a random generator, and
a run that was killed goes on as if nothing had happened: on the CPU bit for bit.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record

from kws import files
from kws.config import PRESETS, TrainConfig, require, train_config
from kws.model import bundle
from kws.model.calibration import fit_temperature
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Split, Tensors
from kws.processes import die_with_parent, handle_signals, keep_freed_memory
from kws.progress import progress
from kws.train import runs
from kws.train.augment import Augment, mix
from kws.train.optimizer import make_optimizers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

T = TypeVar("T")

EVALUATION_BATCH = 256
STOPPED = 143
"""Exit status after SIGTERM or Ctrl-C, once the checkpoint is written: 128 + 15. Not 0, so that whoever started it
starts it again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """The processes that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """The process that writes files."""
        return self.rank == 0

    def tell(self, value: T) -> T:
        """Returns what the first process has, in all."""
        told = [value]
        if self.size > 1:
            dist.broadcast_object_list(told)
        return told[0]

    def sum(self, *values: Tensor) -> list[Tensor]:
        """Adds up values over all processes."""
        if self.size > 1:
            for value in values:
                dist.all_reduce(value)
        return list(values)


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Joins the process group that torchrun's environment describes; without torchrun, one process is the world.

    Raises:
        ValueError: there are GPUs, but fewer than processes.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ValueError(f"processes_per_node must be at most {torch.cuda.device_count()}, the GPUs of this node")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if size > 1:
            dist.destroy_process_group()


@dataclasses.dataclass(kw_only=True)
class Position:
    """Where a run stands."""

    epoch: int = 0
    clips_done: int = 0
    """Clips of the epoch that were trained on, over all processes."""
    step: int = 0
    best_accuracy: float = -1.0
    loss_sum: float = 0.0
    """Of the epoch so far."""
    num_correct: float = 0.0


class StopTraining(Exception):
    """SIGTERM or Ctrl-C arrived, and the checkpoint is written."""


class Trainer:
    """A run: its settings, its model, its place."""

    def __init__(self, folder: Path, tensors: Tensors, preset: str, config: TrainConfig, world: World) -> None:
        keep_freed_memory()
        self.folder = folder
        self.tensors = tensors
        self.preset = preset
        self.config = config
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
        self.history: list[dict[str, float]] = []
        # Only if all want it: the processes exchange what they compute.
        (wanting,) = world.sum(torch.tensor(int(wants_bf16(config.precision, world.device)), device=world.device))
        self.bf16 = int(wanting) == world.size

        torch.manual_seed(config.seed)
        self.model = AudioTransformer(PRESETS[preset].model, tensors.features, len(tensors.words)).to(world.device)
        if tensors.features.normalize:
            self.model.set_normalization(tensors.mean, tensors.std)
        self.averaged = AudioTransformer(PRESETS[preset].model, tensors.features, len(tensors.words)).to(world.device)
        self.averaged.load_state_dict(self.model.state_dict())
        self.parallel: nn.Module = self.model
        if world.size > 1:
            # Small buckets, so that the first gradients travel while the last are computed.
            self.parallel = nn.parallel.DistributedDataParallel(
                self.model, bucket_cap_mb=1, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.optimizers = make_optimizers(self.model, config, dtype)
        self.augment = Augment(config.augment, tensors.features, tensors.mean.to(world.device), tensors.noise())
        self.stop_asked = False

    @property
    def step_clips(self) -> int:
        """Clips of a step over all processes."""
        return self.batch_size * self.world.size

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

    def run(self) -> None:
        """Trains from where the run stands to its end.

        Raises:
            StopTraining: SIGTERM arrived.
            FloatingPointError: the loss is not a number.
        """
        total = self.epochs * self.num_clips
        done = self.position.epoch * self.num_clips + self.position.clips_done
        shown = progress(total, "clips", "train") if self.world.leads else contextlib.nullcontext()
        with shown as bar, self._tensorboard() as board:
            if bar is not None:
                bar.update(done)
                bar.unpause()
            while self.position.epoch < self.epochs:
                started = time.monotonic()
                first = self.position.clips_done
                for num in self._train_epoch():
                    if bar is not None:
                        bar.update(num)
                rate = (self.position.clips_done - first) / (time.monotonic() - started)
                row = self._end_epoch(rate, board)
                if bar is not None:
                    bar.update(max(0, self.position.epoch * self.num_clips - bar.n))
                    epoch = f"epoch {self.position.epoch}/{self.epochs}: loss {row['train_loss']:.3f}, validation"
                    bar.write(f"{epoch} accuracy {row['validation_accuracy']:.2%}", file=sys.stderr)
        if self.world.leads:
            self._finish()

    def _train_epoch(self) -> Iterator[int]:
        """Takes the steps of an epoch that are left, and yields the clips of each."""
        position, world = self.position, self.world
        order = torch.randperm(self.num_clips, generator=torch.Generator().manual_seed(self._draw("order")))
        self.parallel.train()
        while position.clips_done + self.step_clips <= self.num_clips:
            mine = order[position.clips_done + world.rank :: world.size][: self.batch_size]
            torch.manual_seed(self._draw("step", position.clips_done, world.rank))
            must_stop = self._ask_all()
            loss_sum, num_correct = self.step(mine)
            position.loss_sum += loss_sum
            position.num_correct += num_correct
            position.clips_done += self.step_clips
            position.step += 1
            yield self.step_clips
            stop = must_stop()
            if stop or position.step % self.config.checkpoint_steps == 0:
                self._share_sums()
                self.save_checkpoint()
            if stop:
                raise StopTraining

    def _ask_all(self) -> Callable[[], bool]:
        """Asks whether any process was told to stop, and returns what waits for the answer.

        The answer is the same in all processes, so that all stop after the same step. Asked before a step and read
        after it, the question travels while the step is computed: to wait for it took a tenth of the time.
        """
        if self.world.size == 1:
            return lambda: self.stop_asked
        asked = torch.tensor(float(self.stop_asked), device=self.world.device)
        question = dist.all_reduce(asked, async_op=True)
        assert question is not None

        def answer() -> bool:
            question.wait()
            return bool(asked)

        return answer

    def step(self, indices: Tensor) -> tuple[float, float]:
        """Takes one step with this process's clips of the batch.

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
        clean, labels = self.train_split.batch(indices)
        features = self.augment(clean)
        targets = nn.functional.one_hot(labels, len(self.tensors.words)).float()
        if self.config.augment.mixup:
            features, targets = mix(features, targets, self.config.augment.mixup)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            scores = self.parallel(features)
        scores = scores.float()
        loss = nn.functional.cross_entropy(scores, targets, label_smoothing=self.config.label_smoothing)
        if self.config.self_distillation:
            weight = self.config.self_distillation * min(1.0, self.share_done / 0.2)
            loss = loss + weight * nn.functional.cross_entropy(scores, self._teach(clean))
        value = float(loss.detach())
        if not math.isfinite(value):
            clips = ", ".join(self.train_split.clips[index] for index in indices.tolist())
            raise FloatingPointError(
                f"the loss must be finite, got {value} at step {self.position.step} of epoch {self.position.epoch}; "
                f"a lower --learning-rate often helps, else look at the clips of the batch: {clips}"
            )
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        return value * len(labels), float((scores.detach().argmax(-1) == labels).sum())

    @torch.no_grad()
    def _teach(self, clean: Tensor) -> Tensor:
        """Returns what the averaged weights hear in clips that are not augmented: probabilities [batch_size, words].

        The mean teacher of Tarvainen and Valpola (arXiv 1703.01780), with labelled clips: what one word has of others
        tells more than the word alone, and the student has to find it in a worse recording.
        """
        self.averaged.eval()
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            return self.averaged(clean).float().softmax(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the averaged weights towards the weights; early on faster, so that the start is forgotten."""
        if self.config.ema_decay == 0:
            return
        decay = min(self.config.ema_decay, (1 + self.position.step) / (10 + self.position.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    @property
    def result(self) -> AudioTransformer:
        """The model that is validated and saved."""
        return self.averaged if self.config.ema_decay else self.model

    def _end_epoch(self, rate: float, board: "SummaryWriter | None") -> dict[str, float]:
        """Validates, logs, keeps the best model, and writes a checkpoint."""
        position = self.position
        self._share_sums()
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
            "clips_per_second": rate,
        }
        self.history.append(row)
        best = accuracy > position.best_accuracy
        position.best_accuracy = max(accuracy, position.best_accuracy)
        position.epoch += 1
        position.clips_done, position.loss_sum, position.num_correct = 0, 0.0, 0.0
        if self.world.leads:
            if best:
                self._save_best(self.result, row)
            if board is not None:
                self._log(board, row, matrix if best else None)
            self._write_metrics()
            self.save_checkpoint()
        return row

    def _share_sums(self) -> None:
        """Adds up what the processes counted on their own, and leaves it with the first."""
        position = self.position
        sums = torch.tensor([position.loss_sum, position.num_correct], dtype=torch.float64)
        (sums,) = self.world.sum(sums.to(self.world.device))
        position.loss_sum, position.num_correct = sums.tolist() if self.world.leads else (0.0, 0.0)

    @torch.no_grad()
    def validate(self, split: Split) -> tuple[float, Tensor]:
        """Evaluates the model on a split, divided among the processes.

        Returns:
            Mean cross-entropy, and the confusion matrix, float64 [true words, predicted words].
        """
        scores, labels = self.scores(self.result, split, self.world.rank, self.world.size)
        num_words = scores.size(1)
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum").double()
        matrix = torch.bincount(labels * num_words + scores.argmax(-1), minlength=num_words**2).double()
        loss, matrix = self.world.sum(loss, matrix)
        return float(loss) / len(split), matrix.reshape(num_words, num_words).cpu()

    @torch.no_grad()
    def scores(self, model: AudioTransformer, split: Split, rank: int = 0, size: int = 1) -> tuple[Tensor, Tensor]:
        """Scores every `size`-th clip of a split: float32 [clips, words], and their labels, int64 [clips]."""
        model.eval()
        found = [torch.empty(0, len(self.tensors.words), device=self.world.device)]
        truth = [torch.empty(0, dtype=torch.int64, device=self.world.device)]
        for indices in torch.split(torch.arange(len(split))[rank::size], EVALUATION_BATCH):
            features, labels = split.batch(indices)
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
                found.append(model(features).float())
            truth.append(labels)
        return torch.cat(found), torch.cat(truth)

    def _save_best(self, model: AudioTransformer, row: Mapping[str, float], temperature: float = 1.0) -> None:
        about = {"preset": self.preset, "train": dataclasses.asdict(self.config), "tensors": self.tensors.fingerprint,
                 "run": self.folder.name}  # fmt: skip
        recognizer = bundle.Recognizer(
            model=model, words=self.tensors.words, features=self.tensors.features, temperature=temperature,
            metrics=dict(row), about=about,
        )  # fmt: skip
        bundle.save(self.folder / runs.BEST, recognizer)

    def _finish(self) -> None:
        """Fits the temperature of the best model and completes the run."""
        best = bundle.load(self.folder / runs.BEST, self.world.device)
        temperature = fit_temperature(*(part.cpu() for part in self.scores(best.model, self.validation_split)))
        self._save_best(best.model, best.metrics, temperature)
        manifest = {
            "run": self.folder.name,
            "model": runs.BEST,
            "sha256": files.sha256_of(self.folder / runs.BEST),
            "validation_accuracy": best.metrics["validation_accuracy"],
            "best_epoch": best.metrics["epoch"],
            "epochs": self.epochs,
            "num_clips": self.num_clips,
            "num_parameters": best.num_parameters,
            "clips_per_second": sorted(row["clips_per_second"] for row in self.history)[len(self.history) // 2],
        }
        files.write_json(self.folder / files.MANIFEST, manifest)

    def _draw(self, *what: object) -> int:
        """Returns a seed that follows from the seed of the run, the epoch and what it is for."""
        text = f"{self.config.seed}/{self.position.epoch}/{what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")

    # What is written on the way.

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints of the run, the latest last."""
        return sorted((self.folder / "checkpoints").glob("step-*.pth"))

    def save_checkpoint(self) -> None:
        """Writes where the run stands, atomically, and deletes all but the latest few."""
        if not self.world.leads:
            return
        with files.atomic_write(self.folder / "checkpoints" / f"step-{self.position.step:08d}.pth") as file:
            torch.save(
                {
                    "position": dataclasses.asdict(self.position),
                    "history": self.history,
                    "model": self.model.state_dict(),
                    "averaged": self.averaged.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                },
                file,
            )
        for old in self.checkpoints[: -self.config.keep_checkpoints]:
            old.unlink()

    def resume(self) -> None:
        """Goes to the latest checkpoint, if there is one: that which the first process finds."""
        if self.world.leads:
            files.delete_unfinished(self.folder, self.folder / "checkpoints")
        checkpoint = self.world.tell(self.checkpoints[-1] if self.checkpoints else None)
        if checkpoint is None:
            return
        state = torch.load(checkpoint, map_location=self.world.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, known in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.history = state["history"]
        self.position = Position(**state["position"])
        if not self.world.leads:
            self.position.loss_sum, self.position.num_correct = 0.0, 0.0
        if self.world.leads:
            log.info("going on at step %d of epoch %d", self.position.step, self.position.epoch)

    def _write_metrics(self) -> None:
        import json

        with files.atomic_write(self.folder / runs.METRICS, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.history)

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator["SummaryWriter | None"]:
        if not self.world.leads:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        from kws import plots

        with SummaryWriter(str(self.folder), purge_step=self.position.epoch) as board:
            if self.position.step == 0:
                features, labels = self.train_split.batch(torch.arange(min(4, self.num_clips)))
                titles = [self.tensors.words[label] for label in labels.tolist()]
                board.add_figure("spectrograms", plots.spectrograms(self.augment(features).cpu(), titles))
            yield board

    def _log(self, board: "SummaryWriter", row: Mapping[str, float], matrix: Tensor | None) -> None:
        epoch = int(row["epoch"])
        for name in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"):
            split, quantity = name.split("_")
            board.add_scalar(f"{quantity}/{split}", row[name], epoch)
        board.add_scalar("learning_rate", row["learning_rate"], epoch)
        board.add_scalar("clips_per_second", row["clips_per_second"], epoch)
        if matrix is not None:
            from kws import plots

            board.add_figure("confusion", plots.confusion(matrix.numpy(), self.tensors.words), epoch)
        board.flush()


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Tells whether matrix products are to be made in bfloat16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def train(tensors_folder: Path, preset: str, config: TrainConfig, *, runs_folder: Path | None = None,
          run_id: str = "", run: Path | None = None) -> Path:  # fmt: skip
    """Trains a model in this process, together with the others of its torchrun.

    Args:
        tensors_folder: a folder of `kws.preprocess.step`.
        preset: names features and model.
        config: how to train.
        runs_folder: gets the folder of the run; needed without `run`.
        run_id: see `kws.train.runs.open_run`.
        run: the folder of the run itself.

    Returns:
        The folder of the run, complete.

    Raises:
        ValueError: the tensors are of another preset, or the run has other settings.
        StopTraining: SIGTERM arrived; the checkpoint is written.
        FloatingPointError: the loss is not a number.
    """
    with join_world() as world:
        tensors = Tensors(tensors_folder, world.device)
        if tensors.features != PRESETS[preset].features:
            raise ValueError(
                f"tensors must have the features of the preset {preset}, got others in {tensors_folder}; "
                f"run kws preprocess --preset {preset}"
            )
        if world.leads:
            description = runs.describe(tensors_folder, preset, config)
            if run is None:
                assert runs_folder is not None
                run = runs.open_run(runs_folder, run_id, description)
            else:
                runs.claim(run, description)
        folder, is_complete = world.tell((run, run is not None and files.is_complete(run)))
        assert folder is not None
        if is_complete:
            return folder
        with runs.owned(folder) if world.leads else contextlib.nullcontext():
            trainer = Trainer(folder, tensors, preset, config, world)
            trainer.resume()
            with _stop_in_order(trainer):
                trainer.run()
        if world.size > 1:
            dist.barrier()
        return folder


@contextlib.contextmanager
def _stop_in_order(trainer: Trainer) -> Iterator[None]:
    """Makes SIGTERM or Ctrl-C to any process end training in all after this step or the next, with a checkpoint.

    A second Ctrl-C ends the process at once. A process that finds another one gone before that leaves the same way.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if trainer.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_asked = True

    with handle_signals(ask):
        try:
            yield
        except RuntimeError:
            if trainer.stop_asked:
                raise StopTraining from None
            raise


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Runs training from the command line, and exits with 143 where a signal stopped it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # or a killed torchrun would leave its processes training
    parser = argparse.ArgumentParser(prog="kws.train.trainer", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    runs.add_arguments(parser)
    run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> Path:
    """Trains as parsed flags say, and returns the folder of the run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = train_config(
        preset=options.preset, epochs=options.epochs, batch_size=options.batch_size,
        learning_rate=options.learning_rate, seed=options.seed, debug=options.debug,
    )  # fmt: skip
    try:
        return train(
            options.tensors,
            options.preset,
            config,
            runs_folder=options.runs,
            run_id=options.run_id,
            run=options.run_folder,
        )
    except StopTraining:
        log.info("stopped, with a checkpoint; start again to go on")
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
