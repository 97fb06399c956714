"""Optimizers: Muon, and which parameters it shares with AdamW."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kws.recipe import TrainConfig


def _without_compiler() -> None:
    """Keeps optimizers from importing torch.compile, with sympy: 80 MB and two seconds for every training process.

    They import it to exclude these methods from compilation, and nothing is compiled here. `torch._compile` looks the
    excluded function up in this attribute before it imports anything; a torch that does not is none the worse for it.
    """
    for method in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        function = inspect.unwrap(getattr(torch.optim.Optimizer, method))
        setattr(function, "__dynamo_disable", function)


_without_compiler()


class Adam(torch.optim.Adam):
    """Adam whose step does not import torch.compile either."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(torch.optim.AdamW):
    """AdamW, likewise."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(torch.optim.Optimizer):
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

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        """Initializes the optimizer.

        Args:
            params: matrices, [rows, columns], and convolutions, [outputs, inputs, height, width], which count as
                matrices with a row for each output.
            lr: learning rate.
            weight_decay: decoupled weight decay; a step multiplies it by the learning rate.
            dtype: type in which the matrix products are computed.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates the weights once; `closure` is ignored."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [p.grad.flatten(1) for p in parameters if p.grad is not None]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros(gradient.shape, device=gradient.device)
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
            updates = self._orthogonalize_all(torch._foreach_lerp(gradients, momenta, self.MOMENTUM))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters, updates, strict=True):
                scale = 0.2 * math.sqrt(max(update.shape))
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

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

    Args:
        shapes: the shape of every matrix.
        size: number of processes.

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


def make_optimizers(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Returns the optimizers of a model: one, or for `muon` two.

    With `muon`, Muon updates the matrices and convolutions except those of the last layer, whose rows are the words;
    AdamW updates that layer and all other parameters. Weight decay applies to matrices and convolutions, not to biases,
    norms and positions.

    Args:
        model: a `kws.model.network.AudioTransformer`.
        config: optimizer, learning rate and weight decay.
        dtype: type in which Muon computes.
    """
    named = dict(model.named_parameters())
    kept = {name: p for name, p in named.items() if p.ndim < 2 or name == "positions"}
    inner = (
        {}
        if config.optimizer != "muon"
        else {name: p for name, p in named.items() if name not in kept and not name.startswith("head.")}
    )
    decayed = [p for name, p in named.items() if name not in kept and name not in inner]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    kind = Adam if config.optimizer == "adam" else AdamW
    optimizers: list[torch.optim.Optimizer] = [kind(groups, lr=config.learning_rate, foreach=True)]
    if inner:
        optimizers.append(Muon(inner.values(), config.learning_rate, config.weight_decay, dtype))
    return optimizers
