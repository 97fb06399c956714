"""The compiled pipeline: what it says, and that it runs."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from json_server import JsonServer, running

from kws import files
from kws.config import PipelineConfig
from kws.download import synthesize as synthesis
from kws.download.synthesize import synthesize
from kws.model import bundle
from pipeline.cli import main
from pipeline.compiling import compile_to, steps_of_spec, tasks_of_spec
from pipeline.placement import Placement

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"download", "preprocess", "train", "evaluate", "promote"}


def pipeline(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    main(["compile", "-o", str(path)])
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(yaml.safe_load_all(compiled.read_text())))
    return found


def test_compiling_twice_gives_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    assert pipeline("compile", "-o", tmp_path / "again.yaml").returncode == 0
    assert (tmp_path / "again.yaml").read_bytes() == compiled.read_bytes()


def test_the_steps_are_the_five_of_the_design_and_none_waits_without_data(spec: dict[str, Any]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == STEPS
    for name, task in tasks.items():
        producers = {
            artifact["taskOutputArtifact"]["producerTask"]
            for artifact in task.get("inputs", {}).get("artifacts", {}).values()
        }
        assert set(task.get("dependentTasks", [])) == producers, name


def test_nothing_is_installed_at_run_time(compiled: Path, spec: dict[str, Any]) -> None:
    assert "pip install" not in compiled.read_text()
    for executor in spec["deploymentSpec"]["executors"].values():
        assert "pip" not in " ".join(executor["container"]["command"][:-1])


def test_no_step_is_cached_as_all_use_the_volume(spec: dict[str, Any]) -> None:
    for name, task in spec["root"]["dag"]["tasks"].items():
        assert not task["cachingOptions"].get("enableCache", False), name


def test_parameters_are_few_flat_and_those_of_the_settings_with_their_defaults(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 24
    assert set(parameters) == set(PipelineConfig.__dataclass_fields__)
    for name, value in PipelineConfig().arguments().items():
        assert parameters[name].get("defaultValue") == value, name


def test_the_file_of_the_pipeline_shows_flow_only() -> None:
    lines = (ROOT / "pipeline/speech_commands.py").read_text().splitlines()
    assert len(lines) <= 120
    assert not any(".after(" in line for line in lines)


def test_bodies_of_components_are_at_most_15_statements_and_import_kws_inside() -> None:
    for name in STEPS:
        module = __import__(f"components.{name}", fromlist=[name])
        source = inspect.getsource(getattr(module, name).python_func)
        assert len(ast.parse(textwrap.dedent(source.split('"""')[2])).body) <= 15, name
        above = (ROOT / f"components/{name}.py").read_text().split("@component")[0]
        assert "kws" not in above.split('"""')[2], name


def ended(*arguments: str) -> object:
    """Runs a command that ends the program, and returns its status."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def test_run_without_a_source_teaches_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run") == 2
    assert "--source" in capsys.readouterr().err
    assert ended("run", "--help") == 0
    help_ = capsys.readouterr().out
    for name in PipelineConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in help_
    assert "(default: as the preset says)" in help_


def test_a_wrong_parameter_is_one_line_with_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run", "--source", str(tmp_path), "--data-root", str(tmp_path), "--split", "half") == 2
    assert capsys.readouterr().err.strip() == "error: split must be speaker or random, got 'half'"


class Hook(JsonServer):
    """Keeps what is posted."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        super().__init__()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        self.heard.append(json.loads(body))
        return 200, {}


def test_a_step_that_fails_makes_the_run_fail_by_name_and_a_hook_is_told(tmp_path: Path) -> None:
    with running(Hook()) as hook:
        flags = ("--source", tmp_path / "nothing.tar.gz", "--data-root", tmp_path / "data")
        done = pipeline("run", *flags, KWS_NOTIFY=hook.address)
    assert done.returncode == 1
    assert "download failed" in done.stderr
    assert "nothing.tar.gz" in done.stdout
    (told,) = hook.heard
    assert (told["state"], told["step"]) == ("failed", "download")
    assert "nothing.tar.gz" in told["sentence"]
    assert told["sentence"] in told["text"]


def test_steps_that_a_placement_adds_skip_what_is_not_new_and_tell_how_the_run_ended(tmp_path: Path) -> None:
    path = compile_to(tmp_path / "all.yaml", Placement(only_new=True, notify="hook", preprocess_shards=2))
    found, platform = yaml.safe_load_all(path.read_text())
    assert steps_of_spec(found) == [
        "download", "features", "preprocess", "changes", "train", "evaluate", "promote", "notify"
    ]  # fmt: skip
    assert found["root"]["dag"]["tasks"]["notify"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    conditions = [
        task["triggerPolicy"]
        for tasks in tasks_of_spec(found)
        for task in tasks.values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    assert conditions == [{"condition": "inputs.parameter_values['pipelinechannel--changes-Output'] == 'new'"}]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    (secret,) = executors["exec-notify"]["secretAsEnv"]
    assert (secret["secretName"], secret["optional"]) == ("hook", True)
    assert all(executor["pvcMount"] for executor in executors.values())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "NUM_TALKERS", 1)  # sentences, which are not needed, take longest
        synthesize(folder, words=["yes", "no", "stop"], clips_per_word=30)
    return folder


def test_the_compiled_pipeline_goes_from_recordings_to_a_champion_with_two_processes(
    corpus: Path, tmp_path: Path
) -> None:
    data_root, summary_file = tmp_path / "data", tmp_path / "summary.json"
    flags = (
        "--source",
        corpus,
        "--data-root",
        data_root,
        "--words",
        "auto",
        "--min-accuracy",
        "0",
        "--processes-per-node",
        "2",
        "--batch-size",
        "32",
        "--set",
        "model.num_layers=1 model.num_heads=2 model.width=32 model.feedforward=64",
        "--json",
        summary_file,
    )
    with running(Hook()) as hook:
        done = pipeline("run", *flags, "--epochs", "2", KWS_NOTIFY=hook.address, MPLCONFIGDIR=str(tmp_path / "fonts"))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(summary_file.read_text())
    assert [step["name"] for step in summary["steps"]] == ["download", "preprocess", "train", "evaluate", "promote"]
    assert all(step["succeeded"] for step in summary["steps"])
    assert summary["words"] == ["no", "stop", "yes"]
    assert summary["num_clips"] == 90
    assert summary["is_champion"]
    assert [(told["state"], told["figures"]["version"]) for told in hook.heard] == [("champion", summary["version"])]
    assert all(step["cpu_seconds"] > 0 and step["peak_memory_mb"] > 10 for step in summary["steps"])
    assert not (Path(summary["tensorboard"]) / "checkpoints").exists()
    assert files.read_json(Path(summary["tensorboard"]) / "config.json")["recipe"]["model"]["width"] == 32

    (log,) = (path for path in Path(summary["artifacts"]).rglob("log") if path.parent.name == "train")
    assert re.search(r"== torchrun\.log\n(.*\n)*epoch 2/2: loss .*, validation accuracy ", log.read_text())
    assert "fontManager" not in log.read_text()

    # What Kubeflow's UI shows of each step, and compares between runs.
    (outputs,) = {path.parent.parent for path in Path(summary["artifacts"]).rglob("executor_output.json")}
    shown = {step: files.read_json(outputs / step / "executor_output.json")["artifacts"] for step in STEPS}
    figures = {step: found["metrics"]["artifacts"][0]["metadata"] for step, found in shown.items()}
    used = {"cpu_seconds", "peak_memory_mb"} | ({"read_mb", "written_mb"} if Path("/proc/self/io").exists() else set())
    assert all(used <= found.keys() for found in figures.values())
    assert all(files.read_json(outputs / step / "metrics") == found for step, found in figures.items())
    assert (outputs / "evaluate" / "confusion").read_text().splitlines()[0].endswith("no,stop,yes")
    assert '"reason": "accuracy ' in (outputs / "promote" / "decision").read_text()[:255]
    assert all(isinstance(value, int | float) for found in figures.values() for value in found.values())
    assert figures["train"]["cpu_seconds"] > 2  # of the training processes, not of the step that waits for them
    assert figures["download"]["num_clips"] == 90
    assert figures["preprocess"]["num_test_clips"] == summary["num_test_clips"] == figures["evaluate"]["num_clips"]
    assert figures["promote"]["accuracy"] == figures["evaluate"]["accuracy"]

    recognizer = bundle.load(Path(summary["model"]))
    assert recognizer.words == summary["words"]
    assert torch.load(summary["model"], weights_only=True)["format"] == bundle.FORMAT
    assert Path(summary["report"]).read_text().startswith("<!doctype html>")
    assert list(Path(summary["tensorboard"]).glob("events.out.tfevents.*"))
    version = Path(summary["model"]).parent
    assert files.read_json(data_root / "models/champion.json")["version"] == version.name
    bundle_files = files.read_json(version / files.MANIFEST)["files"]
    assert bundle_files["model.pth"] == files.sha256_of(version / "model.pth")

    # As a schedule would start it: neither the recordings nor the recipe have changed.
    done = pipeline("run", *flags, "--epochs", "2", "--only-new")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nothing new: data and recipe are those of {version.name}" in done.stdout
    again = json.loads(summary_file.read_text())
    assert [step["name"] for step in again["steps"]] == ["download", "preprocess"]
    assert again["nothing_new"]
    assert len(list((data_root / "runs").glob("*-*"))) == 1

    # Another recipe is new, but nothing of the same data is computed twice; and the old model is still the champion, as
    # a person must approve the change.
    more = ("--epochs", "1", "--seed", "7", "--processes-per-node", "1", "--only-new", "--approval", "yes")
    done = pipeline("run", *flags, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is complete" in done.stdout
    last = json.loads(summary_file.read_text())
    assert last["version"] != summary["version"]
    assert not last["is_champion"]
    assert files.read_json(data_root / "models/champion.json")["version"] == version.name
    assert len(list((data_root / "tensors").glob("*/manifest.json"))) == 1
    assert len(list((data_root / "runs").glob("*-*"))) == 2
