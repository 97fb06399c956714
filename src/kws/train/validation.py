"""Scores of a model on the clips of a split: its loss, its confusion matrix, and its temperature."""

import dataclasses

import torch
from torch import Tensor, nn

from kws.model.calibration import fit_temperature
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Split
from kws.train.augment import Augment
from kws.train.distributed import World

BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """The clips to validate on, and how."""

    split: Split
    world: World
    bf16: bool

    @torch.no_grad()
    def __call__(self, model: AudioTransformer) -> tuple[float, Tensor]:
        """Evaluates a model; the clips are divided among the processes.

        Returns:
            Mean cross-entropy and the confusion matrix, float64 [true words, predicted words].
        """
        scores, labels = self.scores(model, self.world.rank, self.world.size)
        num_words = scores.size(1)
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum").double()
        matrix = torch.bincount(labels * num_words + scores.argmax(-1), minlength=num_words**2).double()
        loss, matrix = self.world.all_reduce(loss, matrix)
        return float(loss) / len(self.split), matrix.reshape(num_words, num_words).cpu()

    @torch.no_grad()
    def scores(
        self, model: AudioTransformer, rank: int = 0, size: int = 1, augment: Augment | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the scores (logits) of every `size`-th clip from `rank` on, and the labels.

        Args:
            model: the model.
            rank: first clip.
            size: distance of two clips.
            augment: how to change them, if at all.

        Returns:
            Scores, float32 [clips, words], and labels, int64 [clips].
        """
        model.eval()
        device = self.world.device
        found = [torch.empty(0, model.head.out_features, device=device)]
        truth = [torch.empty(0, dtype=torch.int64, device=device)]
        for indices in torch.split(torch.arange(len(self.split))[rank::size], BATCH):
            features, labels = self.split.batch(indices)
            features = features if augment is None else augment(features)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                found.append(model(features).float())
            truth.append(labels)
        return torch.cat(found), torch.cat(truth)

    def temperature(self, model: AudioTransformer, augment: Augment | None, seed: int) -> float:
        """Fits the temperature of a model: on the clips as they are, and augmented as in training.

        As they are alone, they make the model too sure of itself: the best epoch was chosen by them, and recordings of
        other people are noisier.

        Args:
            model: the model.
            augment: how training changes clips, without masks, as no recording has any; None: not at all.
            seed: seed of the augmentation.
        """
        found = [self.scores(model)]
        if augment is not None:
            torch.manual_seed(seed)
            found.append(self.scores(model, augment=augment))
        scores, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return fit_temperature(scores, labels)
