"""One training step, as a function of tensors: it neither waits for the device nor changes a shape.

On a GPU a step of this model is hundreds of kernels of some microseconds each, and launching them from Python takes
longer than running them. So after a few steps the launches are recorded as a CUDA graph, which is then replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kws.model.network import AudioTransformer
from kws.recipe import Recipe
from kws.train.augment import Augment
from kws.train.compose import Composer
from kws.train.losses import clip_loss, token_loss
from kws.train.optimizer import Optimizer
from kws.train.schedule import Rates, on_gpu


@dataclass(kw_only=True)
class Update:
    """Moves the weights of a model by one batch."""

    model: AudioTransformer
    parallel: nn.Module
    """The model, or what wraps it to exchange gradients with other processes."""
    averaged: AudioTransformer
    """Its weights are the moving average of the model's."""
    optimizers: Sequence[Optimizer]
    augment: Augment
    compose: Composer | None
    """What makes streams of the clips, if tokens get scores."""
    recipe: Recipe
    bf16: bool

    def __call__(self, features: Tensor, labels: Tensor, rates: Rates) -> Tensor:
        """Takes one step.

        Args:
            features: float32 [clips, num_mels, num_frames].
            labels: int64 [clips].
            rates: the numbers of this step.

        Returns:
            The mean loss and the number of clips recognized, float32 [2], on the device. For streams, it is the share
            of the tokens in the middle of a word that are right, times the number of clips.
        """
        config = self.recipe.train
        num_clips = len(features)
        if self.compose is not None:
            features, labels = self.compose(features, labels)
        features = self.augment(features)
        # Without the cache of converted weights, which would outlive a captured graph; each is used only once.
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            scores = self.parallel(features)
        if self.compose is None:
            loss, right = clip_loss(scores.float(), labels, config.label_smoothing)
        else:
            num_words = self.model.num_words
            loss, share = token_loss(scores.float(), labels, num_words, config.label_smoothing, self.recipe.compose)
            right = share * num_clips
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step(rates)
        if config.ema_decay:
            self._average(rates.average_weight)
        return torch.stack((loss.detach(), right))

    @torch.no_grad()
    def _average(self, weight: float | Tensor) -> None:
        means: list[Tensor] = list(self.averaged.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        if isinstance(weight, Tensor):  # lerp takes a number only, for which the GPU would have to be waited
            differences = list(torch._foreach_sub(weights, means))
            torch._foreach_mul_(differences, weight)
            torch._foreach_add_(means, differences)
        else:
            torch._foreach_lerp_(means, weights, weight)


class GraphedUpdate:
    """An update on a GPU that is recorded as a CUDA graph after its first steps.

    Random numbers come from the GPU's default generator, which every graph registers by itself: a replay takes them
    from the seed and the offset that the generator has at that time (`CUDAGeneratorState::replay_prologue`). Setting
    the seed before each step therefore gives a replay the same numbers as a step without a graph, and a resumed run
    the same as an uninterrupted one.
    """

    WARM_UP_STEPS = 3
    """Steps before the recording. They run on the stream on which it will be made, as libraries allocate their working
    memory there at first use, which must not be recorded. They are steps of the training like all others."""

    def __init__(self, update: Update) -> None:
        self.update = update
        self.num_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.inputs: list[Tensor] = []
        """Features, labels and rates; a graph reads the same memory in every replay."""
        self.outcome = torch.empty(0)

    def __call__(self, features: Tensor, labels: Tensor, rates: Rates) -> Tensor:
        """Takes one step; see `Update`. The shapes must be the same in every call."""
        given = [features, labels, on_gpu(rates, features.device)]
        if not self.inputs:
            self.inputs = [torch.empty_like(tensor) for tensor in given]
        for place, tensor in zip(self.inputs, given, strict=True):
            place.copy_(tensor)
        if self.num_steps < self.WARM_UP_STEPS:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.outcome = self._step()
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.graph is None:
                self.update.model.zero_grad(set_to_none=True)  # so that gradients are in the graph's own memory
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=self.stream):
                    self.outcome = self._step()
            self.graph.replay()
        self.num_steps += 1
        return self.outcome.clone()  # the next replay overwrites it

    def _step(self) -> Tensor:
        features, labels, rates = self.inputs
        return self.update(features, labels, Rates(*rates.unbind()))


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
