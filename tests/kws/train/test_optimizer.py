"""The optimizers: what a step does with the gradient."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from together import run_together
from torch import nn

from kws.model.network import AudioTransformer
from kws.recipe import RECIPES, FeatureConfig, ModelConfig, TrainConfig
from kws.train.optimizer import Adam, Muon, deal, make_optimizers
from kws.train.schedule import Rates, rates

SHAPES = [(48, 16), (16, 48), (16, 16)] * 2


def start(seed: int) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def at(step: int, rate: float) -> Rates:
    return rates(TrainConfig(), rate, step)


def give_gradients(seed: int, *models: list[nn.Parameter]) -> None:
    for parameters in models:
        for parameter, gradient in zip(parameters, start(seed), strict=True):
            parameter.grad = gradient.detach().clone()


@pytest.mark.parametrize(
    ("decoupled", "theirs"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)], ids=["adamw", "adam"]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_takes_the_steps_of_torchs_own_to_the_last_bit(
    decoupled: bool, theirs: type[torch.optim.Optimizer], weight_decay: float
) -> None:
    mine, known = start(1), start(1)
    optimizer = Adam(mine, weight_decay, decoupled)
    other = theirs(known, weight_decay=weight_decay, foreach=True)  # type: ignore[call-arg]
    for step in range(5):
        rate = 0.02 / (step + 1)
        give_gradients(10 + step, mine, known)
        optimizer.step(at(step, rate))
        other.param_groups[0]["lr"] = rate
        other.step()
    for one, their in zip(mine, known, strict=True):
        assert torch.equal(one, their)


def test_optimizers_go_on_from_their_state_exactly() -> None:
    def three(optimizer: type[Adam | Muon], stop_after: int) -> list[nn.Parameter]:
        parameters = start(1)
        make = {Adam: lambda: Adam(parameters, 0.1), Muon: lambda: Muon(parameters, 0.1, torch.float32)}[optimizer]
        moving = make()
        for step in range(3):
            if step == stop_after:
                state = copy.deepcopy(moving.state_dict())
                moving = make()
                moving.load_state_dict(state)
            give_gradients(10 + step, parameters)
            moving.step(at(step, 0.02))
        return parameters

    for kind in (Adam, Muon):
        for straight, cut in zip(three(kind, 9), three(kind, 2), strict=True):
            assert torch.equal(straight, cut)


def test_muon_takes_the_steps_of_torchs_own() -> None:
    mine, theirs = start(1), start(1)
    optimizer = Muon(mine, weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        give_gradients(10 + step, mine, theirs)
        optimizer.step(at(step, 0.02))
        other.step()
    for one, their, first in zip(mine, theirs, start(1), strict=True):
        torch.testing.assert_close(one, their, atol=2e-3, rtol=0)
        assert (one - first).abs().max() > 0.01


def test_muon_moves_as_far_in_every_direction() -> None:
    random = torch.Generator().manual_seed(1)
    gradient = torch.randn(32, 64, generator=random)
    gradient[5] *= 1e-3  # a direction that the gradient hardly has
    parameter = nn.Parameter(torch.zeros(32, 64))
    parameter.grad = gradient
    Muon([parameter], weight_decay=0.0, dtype=torch.float32).step(at(0, 1.0))
    values = torch.linalg.svdvals(parameter.detach()) / (0.2 * 64**0.5)
    assert values.max() < 1.3
    assert values[:-1].min() > 0.6
    assert values[-1] > 0.05  # from a thousandth
    assert torch.linalg.svdvals(gradient)[-1] / torch.linalg.svdvals(gradient)[0] < 0.002


@pytest.mark.parametrize("kind", ["muon", "adamw", "adam"])
def test_every_weight_is_moved_by_one_optimizer_and_only_matrices_decay(kind: str) -> None:
    model = AudioTransformer(RECIPES["default"].model, FeatureConfig(), 3)
    config = dataclasses.replace(TrainConfig(), optimizer=kind, weight_decay=0.3)
    optimizers = make_optimizers(model, config, torch.float32)
    moved = [id(parameter) for optimizer in optimizers for parameter in optimizer.parameters]
    assert sorted(moved) == sorted(map(id, model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(p)] for optimizer in optimizers if optimizer.weight_decay == 0 for p in optimizer.parameters}
    assert "positions" in free
    assert free == {name for name, p in model.named_parameters() if p.ndim < 2 or name == "positions"}
    assert {optimizer.weight_decay for optimizer in optimizers} == {0.3, 0.0}


def test_muon_takes_a_convolution_for_a_matrix_with_a_row_for_each_output() -> None:
    random = torch.Generator().manual_seed(1)
    values, gradient = torch.randn(2, 8, 4, 3, 3, generator=random)
    kernel, matrix = (
        nn.Parameter(values.contiguous(memory_format=torch.channels_last)),
        nn.Parameter(values.flatten(1).clone()),
    )
    kernel.grad, matrix.grad = gradient.contiguous(memory_format=torch.channels_last), gradient.flatten(1)
    Muon([kernel], weight_decay=0.1, dtype=torch.float32).step(at(0, 0.1))
    Muon([matrix], weight_decay=0.1, dtype=torch.float32).step(at(0, 0.1))
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(kernel, values)


def test_muon_has_all_matrices_and_convolutions_but_the_last_layer() -> None:
    model = AudioTransformer(ModelConfig(frames_per_token=4), FeatureConfig(), 3)
    muon = make_optimizers(model, dataclasses.replace(TrainConfig(), optimizer="muon"), torch.float32)[-1]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in muon.parameters}
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert matrices - found == {"positions", "head.weight"}
    assert found <= matrices


SHAPE_LISTS = ([(48, 16), (16, 16), (8, 40)], [(8, 40)])
"""Shapes of which two processes have different amounts, or one has nothing."""


def some_steps(shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    optimizer = Muon(parameters, weight_decay=0.1, dtype=torch.float32)
    for step in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step(at(step, 0.02))
    return [parameter.detach() for parameter in parameters]


def take_steps_together(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save([some_steps(shapes) for shapes in SHAPE_LISTS], folder / f"{rank}.pth")
    dist.destroy_process_group()


def test_muon_shared_by_two_processes_takes_the_same_steps(tmp_path: Path) -> None:
    run_together(take_steps_together, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    for shapes, *both in zip(SHAPE_LISTS, one, other, strict=True):
        for ours, theirs, alone in zip(*both, some_steps(shapes), strict=True):
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)


def test_matrices_are_dealt_so_that_processes_have_about_the_same_to_do() -> None:
    model = AudioTransformer(RECIPES["default"].model, FeatureConfig(), 16)
    *_, muon = make_optimizers(model, RECIPES["default"].train, torch.float32)
    shapes = [parameter.flatten(1).shape for parameter in muon.parameters]
    for size in (1, 2, 3, 40):
        shares = deal(shapes, size)
        assert sorted(number for share in shares for number in share) == list(range(len(shapes)))
        loads = [sum(min(shapes[number]) * shapes[number].numel() for number in share) for share in shares]
        assert max(loads) <= 1.2 * max(sum(loads) / size, max(min(shape) * shape.numel() for shape in shapes))
