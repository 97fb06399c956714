"""Optimizers: what a step makes of the gradient."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kws.config import TrainConfig


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, for the matrices inside a network (Jordan et al., kellerjordan.github.io/posts/muon).

    Every direction of a matrix gets a step of the same size, however rarely the gradient points there. Steps are scaled
    by 0.2 · √(larger side), so that learning rate and weight decay mean what they mean for AdamW (arXiv 2502.16982).

    `torch.optim.Muon` does the same, but in bfloat16 everywhere: where the hardware does not multiply it a step of this
    model takes a second. Here matrices of one shape are multiplied together, in the precision that training has.
    """

    MOMENTUM = 0.95
    NUM_ITERATIONS = 5
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    """Of the odd polynomial of degree five that brings all singular values near one, from the source."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        """Prepares.

        Args:
            params: matrices, [rows, columns], and convolutions, [outputs, inputs, height, width], which count as
                matrices with a row for each output.
            lr: learning rate.
            weight_decay: decoupled, times the learning rate.
            dtype: what the products are computed in.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves the weights once."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
            for (rows, columns), parameters in shapes.items():
                gradients = [p.grad.flatten(1) for p in parameters if p.grad is not None]
                for parameter in parameters:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum"] = torch.zeros(rows, columns, device=parameter.device)
                momenta = [self.state[parameter]["momentum"] for parameter in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
                nesterov = torch._foreach_lerp(gradients, momenta, self.MOMENTUM)
                orthogonal = self._orthogonalize(torch.stack(nesterov)).float()
                updates = [update.view_as(parameter) for update, parameter in zip(orthogonal, parameters, strict=True)]
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(rows, columns))
                torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)

    def _orthogonalize(self, matrices: Tensor) -> Tensor:
        """Brings all singular values of [matrices, rows, columns] near one (Newton-Schulz)."""
        a, b, c = self.COEFFICIENTS
        x = matrices.to(self.dtype)
        is_tall = x.size(1) > x.size(2)
        x = x.mT if is_tall else x
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(self.NUM_ITERATIONS):
            squares = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
        return x.mT if is_tall else x


def make_optimizers(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Makes what moves the weights: for `muon` matrices and convolutions by Muon, all else by AdamW.

    AdamW keeps the last layer, whose rows are the words, and depthwise convolutions, which mix nothing.

    Only matrices and convolutions decay, not biases, norms and positions.

    Args:
        model: a `kws.model.AudioTransformer`.
        config: optimizer, learning rate and weight decay.
        dtype: what Muon computes in.
    """
    named = dict(model.named_parameters())
    kept = {name: p for name, p in named.items() if p.ndim < 2 or name == "positions"}
    inner = {} if config.optimizer != "muon" else {
        name: p for name, p in named.items()
        if name not in kept and not name.startswith("head.") and ".depthwise." not in name
    }  # fmt: skip
    decayed = [p for name, p in named.items() if name not in kept and name not in inner]
    groups = [{"params": decayed, "weight_decay": config.weight_decay},
              {"params": list(kept.values()), "weight_decay": 0.0}]  # fmt: skip
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    optimizers: list[torch.optim.Optimizer] = [kind(groups, lr=config.learning_rate, foreach=True)]
    if inner:
        optimizers.append(Muon(inner.values(), config.learning_rate, config.weight_decay, dtype))
    return optimizers
