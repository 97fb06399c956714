"""Preprocessing that is spread over pods: what is compiled, and that it gives what one pod gives."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from kws import files
from kws.preprocess.step import compute_shard, preprocess
from pipeline.compiling import compile_to
from pipeline.placement import Placement, read_placement

SPREAD = Placement(preprocess_shards=2, clips_per_shard=15)


def first_steps(path: Path) -> dict[str, Any]:
    """Compiles the pipeline as far as the preprocess step, and returns it."""
    pipeline: dict[str, Any] = next(iter(yaml.safe_load_all(compile_to(path, SPREAD).read_text())))
    tasks = pipeline["root"]["dag"]["tasks"]
    for name in ("train", "evaluate", "promote"):
        del tasks[name]
    pipeline["root"]["dag"].pop("outputs", None)
    path.write_text(yaml.safe_dump(pipeline))
    return pipeline


def test_shards_are_a_bounded_loop_whose_numbers_are_handed_on_as_parameters(tmp_path: Path) -> None:
    pipeline = first_steps(tmp_path / "pipeline.yaml")
    tasks = pipeline["root"]["dag"]["tasks"]
    (loop,) = set(tasks) - {"download", "preprocess"}
    assert tasks[loop]["iteratorPolicy"] == {"parallelismLimit": 2}
    assert tasks[loop]["parameterIterator"]["items"] == {"raw": "[0, 1]"}
    collected = tasks["preprocess"]["inputs"]["parameters"]["computed"]["taskOutputParameter"]
    assert collected["producerTask"] == loop
    inner = pipeline["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]["features"]
    assert not inner["cachingOptions"].get("enableCache", False)
    assert "artifacts" not in pipeline["components"][inner["componentRef"]["name"]].get("outputDefinitions", {})


def test_shards_of_the_compiled_pipeline_compute_all_and_the_step_only_lists_them(
    real_corpus: Path, tmp_path: Path
) -> None:
    first_steps(tmp_path / "pipeline.yaml")
    script = f"""
        from kfp import components, local

        local.init(local.SubprocessRunner(use_venv=False), pipeline_root="{tmp_path}/outputs", raise_on_error=True)
        run = components.load_component_from_file("{tmp_path}/pipeline.yaml")
        run(source="{real_corpus}", data_root="{tmp_path}/data", words="auto")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the features of 42 of 42 clips are there already" in done.stdout + done.stderr
    (manifest,) = (tmp_path / "data" / "tensors").glob("*/manifest.json")
    assert len(files.read_json(manifest)["parts"]) == 2
    alone = preprocess(real_corpus, tmp_path / "alone", words="auto", num_threads=1)
    for name in ("counts", "normalization"):
        assert files.read_json(manifest)[name] == files.read_json(alone / files.MANIFEST)[name]


def test_few_clips_are_left_to_the_step_and_no_shard_has_fewer_than_it_pays_for(
    real_corpus: Path, tmp_path: Path
) -> None:
    of = {"num_shards": 16, "words": "auto"}
    assert [compute_shard(real_corpus, tmp_path, shard=shard, **of) for shard in (0, 15)] == [0, 0]  # type: ignore[arg-type]
    assert not (tmp_path / "features").exists()
    of = {"num_shards": 3, "words": "auto", "clips_per_shard": 15}  # a third of 42 clips is less
    assert [compute_shard(real_corpus, tmp_path, shard=shard, **of) for shard in range(3)] == [21, 21, 0]  # type: ignore[arg-type]


def test_shards_come_from_the_environment_of_who_compiles() -> None:
    names = {"runtime": "r:1", "launcher": "l:1"}
    assert read_placement({"KWS_SHARDS": "16"}, names).preprocess_shards == 16
    assert read_placement({}, names).preprocess_shards == 1
    with pytest.raises(ValueError, match="KWS_SHARDS must be between 1 and 1000, got 0"):
        read_placement({"KWS_SHARDS": "0"}, names)
