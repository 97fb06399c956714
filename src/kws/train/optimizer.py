"""Optimizers: Adam, AdamW and Muon, and which parameters each of them moves.

They are written on torch's fused operations instead of `torch.optim.Optimizer`, for two reasons. Every number that
differs from step to step comes from outside (`Rates`), so that a step is a function of tensors, which a CUDA graph can
hold. And `torch.optim` imports torch.compile with the first optimizer: 120 MB and 4 s of processor time in every
training process, for nothing. The steps are those of `torch.optim.AdamW(foreach=True)`, to the last bit on a CPU.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kws.recipe import TrainConfig
from kws.train.schedule import BETAS, Rates

EPSILON = 1e-8
"""Added to the root of Adam's squares, as torch does by default."""


class Optimizer:
    """Parameters, and what an optimizer remembers of their gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        """Initializes the optimizer; a step multiplies the weights by 1 - learning rate · `weight_decay`."""
        self.parameters: list[Tensor] = list(parameters)
        self.weight_decay = weight_decay
        self.memory: dict[str, list[Tensor]] = {}
        """By name, a tensor for each parameter."""

    def step(self, rates: Rates) -> None:
        """Moves the parameters by their gradients."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Returns what a checkpoint must hold."""
        return self.memory

    def load_state_dict(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Restores what `state_dict` returned, in place."""
        for name, tensors in self.memory.items():
            for tensor, known in zip(tensors, state[name], strict=True):
                tensor.copy_(known)

    def _decay(self, rates: Rates) -> None:
        factor = 1 - rates.learning_rate * self.weight_decay
        torch._foreach_mul_(self.parameters, factor)

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class Adam(Optimizer):
    """Adam (arXiv 1412.6980), or with decoupled weight decay AdamW (arXiv 1711.05101)."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float, decoupled: bool = True) -> None:
        """Initializes the optimizer; with `decoupled` it is AdamW, otherwise the decay is added to the gradient."""
        super().__init__(parameters, weight_decay)
        self.decoupled = decoupled
        self.memory = {name: [torch.zeros_like(each) for each in self.parameters] for name in ("means", "squares")}

    @torch.no_grad()
    def step(self, rates: Rates) -> None:
        """Updates the weights once."""
        if not self.parameters:
            return
        weights, gradients = self.parameters, self._gradients()
        means, squares = self.memory["means"], self.memory["squares"]
        if self.weight_decay and self.decoupled:
            self._decay(rates)
        elif self.weight_decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=self.weight_decay))
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, rates.square_correction)
        torch._foreach_add_(roots, EPSILON)
        # The factor is no argument of addcdiv, which on a GPU would have to wait for its value; the bits are the same.
        steps = torch._foreach_mul(means, -(rates.learning_rate / rates.mean_correction))
        torch._foreach_addcdiv_(weights, steps, roots)


class Muon(Optimizer):
    """Orthogonalized momentum for the matrices inside a network (Jordan et al., kellerjordan.github.io/posts/muon).

    Every direction of a matrix gets a step of the same size, however rarely the gradient points there. Updates are
    scaled by 0.2 · √(larger side), so that the learning rate and weight decay of AdamW carry over (arXiv 2502.16982).

    `torch.optim.Muon` does the same, but always in bfloat16: without hardware support for it, a step of this model
    takes a second. Here matrices of the same shape are batched, the products have the precision of the training, and
    the work is shared among the processes: each orthogonalizes some of the matrices and sends them to the others.
    """

    MOMENTUM = 0.95
    NUM_ITERATIONS = 5
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    """Coefficients, from the source above, of the odd quintic polynomial that brings all singular values near one."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float, dtype: torch.dtype) -> None:
        """Initializes the optimizer.

        Args:
            parameters: matrices, [rows, columns], and convolutions, [outputs, inputs, height, width], which count as
                matrices with a row for each output.
            weight_decay: decoupled weight decay.
            dtype: type in which the matrix products are computed.
        """
        super().__init__(parameters, weight_decay)
        self.dtype = dtype
        self.memory = {"momenta": [torch.zeros_like(each.flatten(1)) for each in self.parameters]}

    @torch.no_grad()
    def step(self, rates: Rates) -> None:
        """Updates the weights once."""
        gradients = [gradient.flatten(1) for gradient in self._gradients()]
        momenta = self.memory["momenta"]
        torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
        updates = self._orthogonalize_all(torch._foreach_lerp(gradients, momenta, self.MOMENTUM))
        self._decay(rates)
        for parameter, update in zip(self.parameters, updates, strict=True):
            by = -rates.learning_rate * (0.2 * math.sqrt(max(update.shape)))
            if isinstance(by, Tensor):  # `alpha` must be a number, for which the GPU would have to be waited
                parameter.add_(update.view_as(parameter).float() * by)
            else:
                parameter.add_(update.view_as(parameter), alpha=by)

    def _orthogonalize_all(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """Orthogonalizes matrices, each in one of the processes."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        shares = deal([matrix.shape for matrix in matrices], size)
        by_shape: dict[torch.Size, list[int]] = {}
        for number in shares[rank]:
            by_shape.setdefault(matrices[number].shape, []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in by_shape.values():
            orthogonal = self._orthogonalize(torch.stack([matrices[number] for number in numbers]))
            found.update(zip(numbers, orthogonal, strict=True))
        if size > 1:
            found = self._exchange(found, matrices, shares)
        return [found[number] for number in range(len(matrices))]

    def _exchange(
        self, mine: Mapping[int, Tensor], like: Sequence[Tensor], shares: Sequence[Sequence[int]]
    ) -> dict[int, Tensor]:
        """Gathers the matrices of all processes in every process, in one message.

        Args:
            mine: the matrices of this process, by number.
            like: tensors with the shapes of all matrices.
            shares: for every process, the numbers of its matrices.
        """
        sizes = [[like[number].numel() for number in share] for share in shares]
        nothing = like[0].new_empty(0, dtype=self.dtype)
        flat = torch.cat([nothing, *(mine[number].flatten() for number in shares[dist.get_rank()])])
        sent = nn.functional.pad(flat, (0, max(map(sum, sizes)) - len(flat)))  # all_gather needs equal lengths
        received = list(sent.new_empty(len(shares), len(sent)))
        dist.all_gather(received, sent)
        return {
            number: part.view(like[number].shape)
            for share, size, row in zip(shares, sizes, received, strict=True)
            for number, part in zip(share, row[: sum(size)].split(size), strict=True)
        }

    def _orthogonalize(self, matrices: Tensor) -> Tensor:
        """Brings all singular values of [matrices, rows, columns] near one, by a Newton-Schulz iteration."""
        a, b, c = self.COEFFICIENTS
        x = matrices.to(self.dtype)
        is_tall = x.size(1) > x.size(2)
        x = x.mT if is_tall else x
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(self.NUM_ITERATIONS):
            squares = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
        return x.mT if is_tall else x


def deal(shapes: Sequence[torch.Size], size: int) -> list[list[int]]:
    """Assigns matrices to processes: the costliest first, each to the process with the least work so far.

    Returns:
        For every process, the numbers of its matrices.
    """
    costs = [rows * columns * min(rows, columns) for rows, columns in shapes]
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for number in sorted(range(len(shapes)), key=lambda number: -costs[number]):
        least = loads.index(min(loads))
        shares[least].append(number)
        loads[least] += costs[number]
    return shares


def make_optimizers(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> list[Optimizer]:
    """Returns the optimizers of a model.

    With `muon`, Muon updates the matrices and convolutions except those of the last layer, whose rows are the words;
    AdamW updates that layer and all other parameters. Weight decay applies to matrices and convolutions, not to biases,
    norms and positions. Muon computes in `dtype`.
    """
    named = dict(model.named_parameters())
    kept = {name: p for name, p in named.items() if p.ndim < 2 or name == "positions"}
    matrices = {name: p for name, p in named.items() if name not in kept}
    inner = {name: p for name, p in matrices.items() if config.optimizer == "muon" and not name.startswith("head.")}
    decayed = [p for name, p in matrices.items() if name not in inner]
    decoupled = config.optimizer != "adam"
    optimizers: list[Optimizer] = [Adam(decayed, config.weight_decay, decoupled), Adam(kept.values(), 0.0, decoupled)]
    return optimizers + ([Muon(inner.values(), config.weight_decay, dtype)] if inner else [])
