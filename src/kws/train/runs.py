"""Run folders: what they hold, and how they are opened, resumed and locked. Needs no torch.

runs/<timestamp>-<run id>/
    config.json      the recipe, and the fingerprint of the tensors
    init.pth         with train.init: a copy of the model to start from
    checkpoints/     step-<n>.pth, the latest few, until the run is complete
    best.pth         the model of the epoch with the best validation accuracy
    metrics.jsonl    one line for every epoch
    events.out.*     TensorBoard
    manifest.json    written last, when the run is complete
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from kws import files
from kws.config import PipelineConfig
from kws.model import versions
from kws.recipe import FeatureConfig, Recipe, make_recipe
from kws.settings import add_flag, from_dict, require
from kws.volume import require_volume

log = logging.getLogger(__name__)

CONFIG = "config.json"
INIT = "init.pth"
BEST = "best.pth"
METRICS = "metrics.jsonl"
STARTER = ".starter"
"""Lock file of the process that started a run, which may be on another machine than the training processes."""

LEAVING_SECONDS = 40
"""How long to wait for the processes of a stopped run to exit; torchrun gives them 30 s."""

FREE_TO_CHANGE = ("checkpoint_steps", "keep_checkpoints")
"""Training settings that may differ when a run is resumed, as they do not affect the result."""

RECORDED = ("tensors.path", "init")
"""Entries of config.json that are no settings: where the tensors are, and which model `train.init` meant."""


RECIPE_FLAGS = ("preset", "set", "epochs", "batch_size", "learning_rate", "init", "seed", "debug")
"""The parameters of the pipeline by which `make_recipe` makes the recipe of a training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the training flags, which `kws train` and `python -m kws.train` share."""
    parser.add_argument("--tensors", type=Path, metavar="DIR", help="a tensors folder, made by kws preprocess")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        help="where to make the run folder <timestamp>-<run id>; an unfinished run with the same settings is resumed",
    )
    place.add_argument(
        "--run-folder", type=Path, metavar="DIR", help="an existing run folder; its config.json holds all settings"
    )
    parser.add_argument("--run-id", default="", metavar="ID", help="name of the run (default: random)")
    for name in RECIPE_FLAGS:
        add_flag(parser, PipelineConfig, name)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Returns the recipe given by the flags of `add_arguments`."""
    given = {name: getattr(options, name) for name in RECIPE_FLAGS}
    return make_recipe(given.pop("preset"), given.pop("set").split(), **given)


def fit_to_tensors(recipe: Recipe, tensors: Path) -> Recipe:
    """Returns a recipe with what a tensors folder settles: its split, and how many unknown words it has.

    Raises:
        ValueError: the tensors have other features than the recipe.
    """
    manifest = files.read_object(
        tensors / files.MANIFEST, features=dict, split=str, unknown_clips=int, unknown_words=list
    )
    if from_dict(FeatureConfig, manifest["features"]) != recipe.features:
        raise ValueError(
            f"tensors must have the features of the preset {recipe.name}, got other features in {tensors}; "
            f"run kws preprocess --preset {recipe.name}"
        )
    others = min(recipe.model.other_words, len(manifest["unknown_words"]))
    model = dataclasses.replace(recipe.model, other_words=others)
    return dataclasses.replace(recipe, split=manifest["split"], unknown_clips=manifest["unknown_clips"], model=model)


def describe(tensors: Path, recipe: Recipe) -> dict[str, Any]:
    """Returns the content of config.json: everything that determines the result of a run."""
    manifest = files.read_object(tensors / files.MANIFEST, fingerprint=str)
    return {
        "tensors": {"path": str(tensors), "fingerprint": manifest["fingerprint"]},
        "recipe": dataclasses.asdict(recipe),
    }


def read_config(folder: Path) -> tuple[Path, Recipe]:
    """Returns the tensors folder and the recipe of a run folder.

    Raises:
        ValueError: the folder has no valid config.json.
    """
    require((folder / CONFIG).is_file(), "run_folder", f"be a run folder, with its {CONFIG}", str(folder))
    config = files.read_object(folder / CONFIG, tensors=dict, recipe=dict)
    require(
        isinstance(config["tensors"].get("path"), str),
        f"tensors in {folder / CONFIG}",
        "have a path",
        config["tensors"],
    )
    return Path(config["tensors"]["path"]), from_dict(Recipe, config["recipe"])


def differences(config: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Names the settings in which two results of `describe` differ, as in "train.epochs (30, here 10)"."""
    found = []
    for name in sorted(set(config) | set(other)):
        one, two = config.get(name), other.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{prefix}{name}.")
        elif _plain(one) != _plain(two) and name not in FREE_TO_CHANGE and f"{prefix}{name}" not in RECORDED:
            found.append(f"{prefix}{name} ({one}, here {two})".removeprefix("recipe."))
    return found


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def find_run(runs: Path, run_id: str) -> Path | None:
    """Returns the run folder `<date>-<time>-<run id>`, or None."""
    return next((folder for folder in sorted(runs.glob("*-*-*")) if folder.name.split("-", 2)[2] == run_id), None)


def find_unfinished(runs: Path, config: dict[str, Any]) -> Path | None:
    """Returns the latest unfinished run with the same settings that no process is training, or None."""
    for folder in sorted(runs.glob("*-*"), reverse=True):
        if (folder / CONFIG).is_file() and not files.is_complete(folder):
            try:
                other = files.read_object(folder / CONFIG)
            except ValueError as error:
                log.warning("%s cannot be resumed: %s", folder.name, error)
                continue
            if not differences(other, config):
                with contextlib.suppress(files.Busy), files.hold(folder / STARTER, 0), owned(folder):
                    return folder
    return None


def find_published(data_root: Path, config: dict[str, Any]) -> str:
    """Returns the latest version of a finished run with the same settings, or ""."""
    for version in reversed(versions.versions(data_root)):
        folder = data_root / "runs" / version
        with contextlib.suppress(ValueError, FileNotFoundError):
            if files.is_complete(folder) and not differences(files.read_object(folder / CONFIG), config):
                return version
    return ""


def open_run(runs: Path, run_id: str, config: dict[str, Any], stack: contextlib.ExitStack | None = None) -> Path:
    """Finds or makes a run folder; several processes that open the same run at once get the same folder.

    Args:
        runs: the folder of all run folders.
        run_id: name of the run; empty resumes an unfinished run with the same settings, or chooses a random name.
        config: result of `describe`.
        stack: if given, holds the lock that keeps others from starting the run, until the stack is closed.

    Raises:
        ValueError: the id has characters that a folder's name may not have, the run exists with other settings, or
            another process started it and has not ended.
    """
    require(re.fullmatch(r"[\w.-]*", run_id) is not None, "run_id", "have only letters, digits, _, . and -", run_id)
    require_volume(runs)
    with files.lock(runs / "runs"):
        folder = find_run(runs, run_id) if run_id else find_unfinished(runs, config)
        if folder is None:
            folder = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_id or uuid.uuid4().hex[:8]}"
        claim(folder, config)
        if stack is not None and not files.is_complete(folder):
            stack.enter_context(files.hold(folder / STARTER, LEAVING_SECONDS, f"{folder} must be started"))
    return folder


def claim(folder: Path, config: dict[str, Any]) -> None:
    """Writes the settings of a run into its folder, or compares them with those already there.

    A new run with `train.init` first gets a copy of the model, so that a resumed run starts from the same one even if
    the champion has changed.

    Raises:
        ValueError: the run has other settings, which the message names, or there is no such model.
    """
    if not (folder / CONFIG).exists():  # new, or its process was killed before this line
        init = config["recipe"]["train"]["init"]
        files.write_json(folder / CONFIG, config | ({"init": _copy_init(init, folder)} if init else {}))
    different = differences(files.read_object(folder / CONFIG), config)
    if different:
        raise ValueError(
            f"the settings must equal those of the run {folder.name}, got other values for {', '.join(different)}; "
            "start a new run, or give the settings of the old one"
        )


def _copy_init(init: str, folder: Path) -> dict[str, str]:
    """Copies the model to start from into a run folder, and returns its entry in config.json."""
    data_root = Path(os.path.abspath(folder)).parent.parent
    name, path = versions.find_model(init, data_root)
    with path.open("rb") as source, files.atomic_write(folder / INIT) as copy:
        shutil.copyfileobj(source, copy)
    return {"model": name, "sha256": files.sha256_of(folder / INIT)}


def init_of(folder: Path) -> dict[str, str] | None:
    """Returns the entry of the model that a run starts from, `model` and `sha256`; None if it starts from none."""
    if "init" not in files.read_object(folder / CONFIG):
        return None
    record = files.read_object(folder / CONFIG, init=dict)["init"]
    require(
        all(isinstance(record.get(name), str) for name in ("model", "sha256")),
        f"init in {folder / CONFIG}",
        "have a model and its sha256",
        record,
    )
    return {"model": record["model"], "sha256": record["sha256"]}


def delete_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints of a run that is complete: nothing resumes it."""
    assert files.is_complete(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def owned(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Locks a run as being trained by this process, for a block.

    Waits up to LEAVING_SECONDS for processes of a run that was just stopped, which may still be writing a checkpoint.

    Raises:
        Busy: another process still trains the run after that.
    """
    return files.hold(folder / ".owner", LEAVING_SECONDS, f"{folder} must be trained")
