"""Compiles the pipeline to a YAML file, and reads such files."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.placement import Placement


def compile_to(path: Path, placement: Placement | None = None) -> Path:
    """Compiles the pipeline to YAML, byte for byte the same for the same code and placement.

    Without a placement it has the images of this release, and the claim kws-data.
    """
    from kfp import compiler

    from pipeline.speech_commands import speech_commands

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiler.Compiler().compile(speech_commands(placement or Placement()), str(path))
    return path


def package_spec(path: Path) -> Mapping[str, Any]:
    """Returns the pipeline spec in a compiled package, whose second document is the platform spec."""
    import yaml

    return dict(next(yaml.safe_load_all(path.read_text(encoding="utf-8"))))


def version_name(path: Path) -> str:
    """Returns the version name of a compiled package, which ends with its digest: compiling is deterministic."""
    return f"{package_spec(path)['pipelineInfo']['name']}-{hashlib.sha256(path.read_bytes()).hexdigest()[:10]}"


def steps_of_spec(spec: Mapping[str, Any]) -> list[str]:
    """Returns the steps of a pipeline spec in execution order; steps that can run at the same time by name."""
    return _in_order(spec["root"]["dag"]["tasks"], spec.get("components", {}))


def _in_order(tasks: Mapping[str, Any], components: Mapping[str, Any]) -> list[str]:
    """Returns tasks in execution order; a group of tasks (a condition, an exit handler) as what is in it."""
    done: list[str] = []
    while len(done) < len(tasks):
        done += sorted(n for n in tasks if n not in done and set(tasks[n].get("dependentTasks", ())) <= set(done))
    steps: list[str] = []
    for name in done:
        inner = components.get(tasks[name]["componentRef"]["name"], {}).get("dag", {}).get("tasks")
        steps += _in_order(inner, components) if inner else [name]
    return steps


def tasks_of_spec(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the tasks of the pipeline, and of each group of tasks in it, by name."""
    yield spec["root"]["dag"]["tasks"]
    yield from (one["dag"]["tasks"] for one in spec.get("components", {}).values() if "dag" in one)
