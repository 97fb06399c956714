"""Scores of a model on the clips of a split: its loss, its confusion matrix, and its temperature."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kws.model.calibration import fit_temperature
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Split
from kws.train.augment import Augment
from kws.train.distributed import World

BATCH = 64

MOST_CLIPS = 20_000
"""Clips that a temperature is fitted to, spread evenly: more would not change it, but their scores fill the memory."""


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
        num_words = model.num_words
        loss, matrix = (torch.zeros(size, dtype=torch.float64, device=self.world.device) for size in ((), num_words**2))
        for scores, labels in self._batches(model, self.world.rank, self.world.size, None):
            loss += nn.functional.cross_entropy(scores, labels, reduction="sum")
            matrix += torch.bincount(labels * num_words + scores.argmax(-1), minlength=num_words**2)
        loss, matrix = self.world.all_reduce(loss, matrix)
        return float(loss) / len(self.split), matrix.reshape(num_words, num_words).cpu()

    @torch.no_grad()
    def scores(self, model: AudioTransformer, size: int = 1, augment: Augment | None = None) -> tuple[Tensor, Tensor]:
        """Returns the scores (logits) of every `size`-th clip, maybe augmented, and the labels.

        Returns:
            Scores, float32 [clips, words], and labels, int64 [clips].
        """
        found, truth = zip(*self._batches(model, 0, size, augment), strict=True)
        return torch.cat(found), torch.cat(truth)

    def _batches(
        self, model: AudioTransformer, rank: int, size: int, augment: Augment | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        model.eval()
        for indices in torch.split(torch.arange(len(self.split))[rank::size], BATCH):
            features, labels = self.split.batch(indices)
            features = features if augment is None else augment(features)
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
                scores = model(features).float()
            yield scores, labels

    def temperature(self, model: AudioTransformer, augment: Augment | None, seed: int) -> float:
        """Fits the temperature of a model: on the clips as they are, and augmented as in training.

        As they are alone, they make the model too sure of itself: the best epoch was chosen by them, and recordings of
        other people are noisier. `augment` changes clips as training does, without masks, as no recording has any.
        """
        size = -(-len(self.split) // MOST_CLIPS)
        found = [self.scores(model, size=size)]
        if augment is not None:
            torch.manual_seed(seed)
            found.append(self.scores(model, size=size, augment=augment))
        scores, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return fit_temperature(scores, labels)
