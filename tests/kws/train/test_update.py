"""A step waits for no value and always has the same shapes, so that a CUDA graph can hold it."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kws.config import UNKNOWN
from kws.model.network import AudioTransformer
from kws.preprocess.tensors import Speech
from kws.recipe import RECIPES, FeatureConfig, Recipe
from kws.train.augment import Augment
from kws.train.compose import Composer, what_is_left
from kws.train.optimizer import make_optimizers
from kws.train.schedule import Rates, rates
from kws.train.update import Update

WORDS = ["no", "yes", UNKNOWN]
CLIPS = 16

WAITING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "unique_dim",
    "_unique2",
    "repeat_interleave",
    "equal",
    "index by a mask",
}
"""Operators that bring a value to the host, or whose result has a shape that depends on values."""


class Operators(TorchDispatchMode):
    """Notes every operator, with the shapes of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [tensor for tensor in torch.utils._pytree.tree_leaves(result) if isinstance(tensor, Tensor)]
        name = func.overloadpacket.__name__
        if name.startswith("index") and any(
            isinstance(given, Tensor) and given.dtype == torch.bool
            for given in torch.utils._pytree.tree_leaves(args[1])
        ):
            name = "index by a mask"  # which looks for the places that are set, as nonzero does
        self.seen.append((name, [tuple(tensor.shape) for tensor in tensors]))
        return result


def make_update(recipe: Recipe) -> Update:
    torch.manual_seed(0)
    features = recipe.features
    num_words = len(WORDS) + (recipe.model.scores == "tokens")  # and silence
    model, averaged = (AudioTransformer(recipe.model, features, num_words) for _ in range(2))
    averaged.load_state_dict(model.state_dict())
    noise = torch.randn(5, features.num_mels, features.num_frames).half()
    compose, changes = None, recipe.augment
    if recipe.model.scores == "tokens":
        changes = what_is_left(recipe.augment)
        lengths = torch.tensor([500, 900])
        talk = torch.randn(1400, features.num_mels).sub_(6).half()
        speech = Speech(features=talk, usable=torch.rand(1400) < 0.8, lengths=lengths)
        compose = Composer(recipe.compose, recipe.augment, features, num_words, 4, speech, noise)
    return Update(
        model=model,
        parallel=model.train(),
        averaged=averaged,
        optimizers=make_optimizers(model, recipe.train, torch.float32),
        augment=Augment(changes, features, model.mean, noise),
        compose=compose,
        recipe=recipe,
        bf16=False,
    )


def batch(seed: int, features: FeatureConfig) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(CLIPS, features.num_mels, features.num_frames, generator=random)
    return values if features.log else values.exp(), torch.randint(len(WORDS), (CLIPS,), generator=random)


def as_tensors(numbers: Rates) -> Rates:
    """Returns the numbers as they are on a GPU."""
    return Rates(*torch.tensor(numbers).unbind())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_step_waits_for_no_value_and_has_the_same_operators_and_shapes_whatever_the_numbers(name: str) -> None:
    recipe = RECIPES[name]
    update = make_update(recipe)
    found = []
    for step in range(3):
        features, labels = batch(step, recipe.features)
        numbers = as_tensors(rates(recipe.train, 1e-3, step))
        torch.manual_seed(step)
        with Operators() as operators:
            update(features, labels, numbers)
        found.append(operators.seen)
    assert not {operator for operator, _ in found[0]} & WAITING
    assert len(found[0]) > 100
    assert found[0] == found[1] == found[2]


def test_an_operator_that_waits_is_seen() -> None:
    with Operators() as operators:
        float(torch.ones(3).sum())
        torch.ones(3)[torch.ones(3) > 0]
        torch.ones(3).nonzero()
    assert WAITING & {operator for operator, _ in operators.seen} == {
        "_local_scalar_dense",
        "index by a mask",
        "nonzero",
    }


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_numbers_as_tensors_move_the_weights_as_numbers_do(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], train=dataclasses.replace(RECIPES[name].train, ema_decay=0.9))
    moved = []
    for convert in (lambda numbers: numbers, as_tensors):
        update = make_update(recipe)
        for step in range(3):
            torch.manual_seed(step)
            outcome = update(*batch(step, recipe.features), convert(rates(recipe.train, 1e-3, step)))
        moved.append((outcome, [*update.model.parameters(), *update.averaged.parameters()]))
    (outcome, weights), (other_outcome, others) = moved
    torch.testing.assert_close(outcome, other_outcome, rtol=1e-3, atol=1e-3)
    first = [*make_update(recipe).model.parameters()]
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(one, start) for one, start in zip(weights, first, strict=False))


def test_importing_the_trainer_changes_nothing_of_torchs_optimizers() -> None:
    program = """
import torch

def attributes():
    functions = [vars(kind)[name] for kind in (torch.optim.Optimizer, torch.optim.Adam) for name in sorted(vars(kind))]
    return [(one, *vars(getattr(one, "__wrapped__", one))) for one in functions if callable(one)]

before = attributes()
import kws.train.process
assert attributes() == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
