"""Runs the compiled pipeline on this machine, in subprocesses or in containers, without a cluster."""

import builtins
import contextlib
import dataclasses
import io
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from kws import files, outcomes, processes
from kws.command import STOPPED, CommandFailed
from kws.config import PipelineConfig, is_path, split_sources
from kws.kube.log_lines import LineSorter
from kws.model.versions import find_model
from kws.settings import require
from kws.train.runs import find_run
from pipeline.compiling import compile_to, tasks_of_spec
from pipeline.placement import Placement

OUTPUTS = "artifacts"
"""The folder under the data root for the artifacts that a cluster keeps in its object store."""

STEP_ENDS_WITHIN = 45.0
"""Seconds that a step may take to end after Ctrl-C: more than training may take for its checkpoint."""


class PipelineFailed(CommandFailed):
    """A step failed; the message names it."""


class _StepTimes(logging.Filter):
    """Records when each task began and ended, from the log messages of kfp.local.

    It prints a line for each instead of these messages; errors pass unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []
        """Name, seconds, and whether it succeeded, of each that has ended."""
        self.started = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        message = re.sub(r"\x1b\[\d+m", "", record.getMessage())
        if found := re.match(r"Executing task '(.+)'", message):
            self.started = time.monotonic()
            print(f"▶ {found[1]}", flush=True)
        elif found := re.match(r"Task '(.+)' finished with status (\w+)", message):
            seconds, succeeded = round(time.monotonic() - self.started, 1), found[2] == "SUCCESS"
            self.steps.append({"name": found[1], "seconds": seconds, "succeeded": succeeded})
            print(f"{'✔' if succeeded else '✘'} {found[1]} in {seconds:.1f} s", flush=True)
        return record.levelno >= logging.ERROR and "finished with status" not in message


PLAIN_ERRORS = {"LaunchError", "Busy"} | {
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, (ValueError, OSError, FloatingPointError, MemoryError))
}
"""Exceptions shown as their message alone, without the traceback that the KFP executor prints."""


class _WithoutExecutorInput(io.TextIOBase):
    """Standard output without the input and output that the KFP executor dumps, a page for every step.

    The traceback of a plain error is reduced to its last line.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.sorter = LineSorter()
        self.traceback: list[str] = []
        self.error: list[str] = []

    def write(self, text: str) -> int:
        line = text.strip("\n")
        kind = self.sorter.kind(line)
        if kind == "frame":
            self.traceback = [line] if line.startswith("Traceback") else [*self.traceback, line]
            self.error = []  # of an error that led to this one
        elif kind == "exception":
            name, _, message = line.partition(": ")
            name = name.rpartition(".")[2]
            stopped = ["stopped"] if name in ("KeyboardInterrupt", "SystemExit") else []
            plain = [f"error: {message}"] if name in PLAIN_ERRORS else [*self.traceback, line]
            self.error = stopped or plain
        elif kind == "own":
            for shown in (*self.error, line):
                self.stream.write(f"{shown}\n")
            self.error = []
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def run(config: PipelineConfig, runner: str, only_new: bool = False) -> dict[str, Any]:
    """Compiles the pipeline and runs the result.

    When a stopped run is started again, finished steps find their folders complete and training resumes from its last
    checkpoint. `runner` is subprocess or docker. With `only_new`, nothing is trained if data and recipe are those of a
    version that there is.

    Returns:
        The summary: steps and seconds; unless nothing was new, accuracy, num_clips, words, version, and the paths of
        what was made.

    Raises:
        PipelineFailed: a step failed.
        ValueError: a setting is wrong.
    """
    from kfp import components, local

    require(runner in ("subprocess", "docker"), "runner", "be subprocess or docker", runner)
    data_root = Path(config.data_root).resolve()
    outputs = data_root / OUTPUTS
    mine = outputs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"  # other runs may use this data root
    source = "\n".join(
        str(Path(one).expanduser().resolve()) if is_path(one) else one for one in split_sources(config.source)
    )
    config = dataclasses.replace(config, source=source, data_root=str(data_root))
    if config.init:  # the train step checks it too, but only after download and preprocessing
        _, model = find_model(config.init, data_root)
        if runner == "subprocess":
            from kws.train.start import read_start

            read_start(model, config.recipe())
    # Without a cluster the train step trains by itself, so it needs the image that has torch.
    placement = Placement(
        only_new=only_new,
        notify="environment" if os.environ.get(outcomes.ADDRESS) else "",
        outcomes_folder=str(data_root / outcomes.FOLDER),
    )
    mine.mkdir(parents=True)
    if runner == "docker":
        from pipeline.containers import local_runner
        from pipeline.kind.docker_images import image_names

        image = image_names()["runtime"]
        placement = dataclasses.replace(placement, runtime=image, launcher=image)
        chosen: Any = local_runner(config, mine, image)
    else:
        chosen = local.SubprocessRunner(use_venv=False)

    times = _StepTimes()
    logging.getLogger().addFilter(times)
    try:
        # kfp.local leaves a temporary folder for every task; they are deleted with this one.
        with tempfile.TemporaryDirectory(prefix="kws-pipeline-") as scratch, _temporary_files_in(scratch):
            compiled = compile_to(Path(scratch) / "speech-commands.yaml", placement)
            _adapt(compiled)
            os.environ[outcomes.RUN] = mine.name
            local.init(runner=chosen, pipeline_root=str(mine), raise_on_error=True)
            # kfp warns that the placement has no effect here, which is expected.
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(_WithoutExecutorInput(sys.stdout)),
                _signals_reach_the_step(),
            ):
                warnings.simplefilter("ignore")
                components.load_component_from_file(str(compiled))(**config.arguments())
    except RuntimeError as error:
        failed = [step["name"] for step in times.steps if not step["succeeded"]] or ["pipeline"]
        raise PipelineFailed(f"{failed[0]} failed; its log is above") from error
    finally:
        logging.getLogger().removeFilter(times)
    return _summarize(mine, data_root, times.steps)


@contextlib.contextmanager
def _signals_reach_the_step() -> Iterator[None]:
    """Passes SIGTERM and SIGINT on to the step that runs in the block, and waits until it has ended.

    Ctrl-C in a terminal reaches the step anyway, but `kill`, an editor and `timeout` signal this process alone. Its
    files are in the scratch folder, and training writes a checkpoint. A second signal ends the wait.
    """
    reached: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        reached.extend(processes.pass_on(signum))
        if signum == signal.SIGTERM:
            print(STOPPED, file=sys.stderr)
            raise SystemExit(128 + signum)
        raise KeyboardInterrupt

    # In the background of a script Ctrl-C is ignored.
    signals = [one for one in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(one) != signal.SIG_IGN]
    with processes.handle_signals(stop, *signals):
        try:
            yield
        finally:
            end = time.monotonic() + STEP_ENDS_WITHIN
            while time.monotonic() < end and any(map(processes.is_alive, reached)):
                time.sleep(0.1)


def _adapt(path: Path) -> None:
    """Removes the run id, which would be different every time, from a compiled pipeline.

    Without a run id the train step resumes the unfinished run with the same settings.
    """
    import yaml

    pipeline, *platforms = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    for tasks in tasks_of_spec(pipeline):
        if "train" in tasks:
            tasks["train"]["inputs"]["parameters"]["run_id"] = {"runtimeValue": {"constant": ""}}
    path.write_text(yaml.safe_dump_all([pipeline, *platforms]), encoding="utf-8")


@contextlib.contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Makes this process and its children put temporary files into a folder, within the block."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _artifact(outputs: Path, step: str, name: str) -> Path:
    """Returns the file of an artifact of a step.

    Raises:
        PipelineFailed: it is missing although the step succeeded.
    """
    found = sorted(path for path in outputs.rglob(name) if path.parent.name == step)
    if not found:
        raise PipelineFailed(f"{step} succeeded but left no {name}; its log is above")
    return found[0]


def _used(outputs: Path, step: str) -> dict[str, float]:
    """Returns what a step used, as its metrics have it, if it has any; see `kws.steps.used`."""
    listed = files.read_json(_artifact(outputs, step, "executor_output.json")).get("artifacts", {})
    found = listed["metrics"]["artifacts"][0]["metadata"] if "metrics" in listed else {}
    return {name: found[name] for name in _USED if name in found}


_USED = ("cpu_seconds", "peak_memory_mb", "read_mb", "written_mb")


def _summarize(outputs: Path, data_root: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    listed = [one | _used(outputs, one["name"]) for one in steps if one["name"] not in ("changes", "notify")]
    spent = {"steps": listed, "seconds": round(sum(step["seconds"] for step in steps), 1)}
    if "promote" not in [step["name"] for step in steps]:
        return spent | {"nothing_new": True, "artifacts": str(outputs)}
    evaluation = files.read_json(_artifact(outputs, "evaluate", "evaluation"))
    decision = files.read_json(_artifact(outputs, "promote", "decision"))
    tensors = files.read_json(_artifact(outputs, "preprocess", "tensors"))
    folder = data_root / "models" / decision["version"]
    run_folder = find_run(data_root / "runs", decision["version"].split("-", 2)[-1])
    return {
        "accuracy": evaluation["accuracy"],
        "macro_f1": evaluation["macro_f1"],
        "num_clips": sum(tensors["counts"][split] for split in ("train", "validation", "test")),
        "num_test_clips": evaluation["num_clips"],
        "words": tensors["words"],
        **spent,
        "version": decision["version"],
        "is_champion": decision["is_champion"],
        "is_candidate": decision["is_candidate"],
        "reason": decision["reason"],
        "model": str(folder / "model.pth"),
        "report": str(folder / "report.html"),
        "tensorboard": str(run_folder),
        "artifacts": str(outputs),
    }


def show(summary: Mapping[str, Any]) -> None:
    """Prints a summary as a table and lines."""
    from rich.console import Console
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    table = Table(title="speech-commands")
    table.add_column("step")
    for name in ("time", "CPU", "memory", "read", "written"):
        table.add_column(name, justify="right")
    for step in summary["steps"]:
        moved = [files.human_bytes(1e6 * step[name]) if name in step else "" for name in _USED[1:]]
        cpu = f"{step['cpu_seconds']:.1f} s" if "cpu_seconds" in step else ""
        table.add_row(step["name"], f"{step['seconds']:.1f} s", cpu, *moved)
    table.add_section()
    table.add_row("all", f"{summary['seconds']:.1f} s")
    console = Console()
    console.print(table)
    if summary.get("nothing_new"):
        console.print("nothing new: data and recipe are those of a version that there is, so nothing was trained")
        return
    count = f"{summary['num_test_clips']} clips of {len(summary['words'])} words"
    facts = {
        "accuracy": Text.assemble((f"{summary['accuracy']:.2%}", "bold"), f" on the test split ({count})"),
        "champion": Text(f"{_STATES[summary['is_champion'], summary['is_candidate']]}: {summary['reason']}"),
    } | {
        name: Text(_short(summary[name]), Style(link=Path(summary[name]).as_uri()))
        for name in ("model", "report", "tensorboard")
    }
    for name, fact in facts.items():  # outside the table, which would wrap or cut a long path
        console.print(Text(f"{name:13}") + fact, soft_wrap=True)


_STATES = {
    (True, False): "yes",
    (False, False): "no",
    (False, True): "a candidate that waits (kws candidates, kws approve)",
}


def _short(path: str) -> str:
    """Returns a path relative to the current folder, if it lies below it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
