"""Training that starts from a trained model instead of random weights.

Normalization, stem, positions, blocks and the last norm are taken from the model. The normalization is kept whatever
the new clips are like, because the weights were trained with it. The head is new, except that words which the model
already knows keep their rows: a model that learns one more word need not learn the others again.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from kws import files
from kws.model import bundle
from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.recipe import RECIPES, Recipe
from kws.train import runs

MAY_DIFFER = ("dropout", "drop_path", "other_words")
"""Model settings that may differ, because no weights but those of the head depend on them."""


def load_start(folder: Path, recipe: Recipe) -> Recognizer | None:
    """Reads the model that a run starts from; None if it starts from random weights.

    Raises:
        ValueError: the file in the run folder has changed or is damaged, or the model does not fit the recipe.
    """
    record = runs.init_of(folder)
    if record is None:
        return None
    path = folder / runs.INIT
    if not path.is_file() or files.sha256_of(path) != record["sha256"]:
        raise ValueError(
            f"{path} must have the SHA-256 {record['sha256'][:12]}… of {runs.CONFIG}, got another file or "
            "none; start a new run"
        )
    return read_start(path, recipe)


def read_start(path: Path, recipe: Recipe) -> Recognizer:
    """Reads a model and checks that training by a recipe can start from it.

    Raises:
        ValueError: the file is damaged, or the model's features or shape are not those of the recipe.
    """
    recognizer = bundle.load(path)
    different = [
        text
        for has, wants in ((recognizer.features, recipe.features), (recognizer.model.config, recipe.model))
        for text in runs.differences(dataclasses.asdict(has), dataclasses.asdict(wants))
        if not text.startswith(MAY_DIFFER)
    ]
    if different:
        others = [name for name in RECIPES if name == recognizer.about.get("preset") != recipe.name]
        remedy = f"give --preset {others[0]}" if others else f"train it again with the preset {recipe.name}"
        raise ValueError(
            f"init must be a model with the features and shape of the preset {recipe.name}, got {path} with other "
            f"{', '.join(different)}; {remedy}"
        )
    return recognizer


@torch.no_grad()
def start_from(start: Recognizer, model: AudioTransformer, words: Sequence[str]) -> None:
    """Copies the weights of a trained model into a new one, except the rows of the head for words unknown to it."""
    body = {name: value for name, value in start.model.state_dict().items() if not name.startswith("head.")}
    model.load_state_dict(model.state_dict() | body)
    for row, word in enumerate(words):
        if word in start.words:
            known = start.words.index(word)
            model.head.weight[row] = start.model.head.weight[known]
            model.head.bias[row] = start.model.head.bias[known]
