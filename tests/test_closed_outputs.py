"""Every command when nobody reads its output, when the disk behind it is full, and at Ctrl-C."""

import argparse
import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kws.cli
import pipeline.cli
from pipeline.cluster.results import out

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""Unbuffered, argparse itself hides that its help could not be written."""

FULL = "error: [Errno 28] No space left on device; free some space and start again: what is done is kept\n"
RIGHT = [(141, ""), (2, FULL)]
"""Status and standard error at a closed pipe, and at a full disk."""

BENCHMARKS = (
    "benchmarks.gpu",
    "benchmarks.__main__",
    "benchmarks.step_parts",
    "benchmarks.torture",
    "research.curve",
    "research.cut_archive",
    "research.few_clips",
    "research.frontier",
    "research.growth",
    "research.make_stream",
    "research.peers",
    "research.score_events",
    "research.study",
)

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def endings(call: Callable[[], object]) -> list[tuple[object, str]]:
    """Calls a command with standard output to a closed pipe, and to a full disk; returns the statuses and errors."""
    found = []
    reader, writer = os.pipe()
    os.close(reader)
    for output in (os.fdopen(writer, "w"), open("/dev/full", "w")):  # noqa: SIM115
        said = io.StringIO()
        with output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(said):
            try:
                call()
                status: object = 0
            except SystemExit as end:
                status = end.code
        found.append((status, said.getvalue()))
    return found


def commands_of(main: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the names of the commands of a program, from its parser."""
    found: list[str] = []
    add_parser = argparse._SubParsersAction.add_parser

    def record(self: object, name: str, **settings: object) -> argparse.ArgumentParser:
        found.append(name)
        return add_parser(self, name, **settings)  # type: ignore[arg-type, no-any-return]

    with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(argparse._SubParsersAction, "add_parser", record)
        with pytest.raises(SystemExit):
            main(["--help"])
    return found


@pytest.mark.parametrize(("main", "least"), [(kws.cli.main, 10), (pipeline.cli.main, 24)], ids=["kws", "pipeline"])
def test_the_help_of_every_command_ends_with_141_at_a_closed_pipe_and_with_one_line_at_a_full_disk(
    main: Callable[[list[str]], None], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = commands_of(main, monkeypatch)
    assert len(commands) >= least
    assert {name: endings(lambda name=name: main([name, "--help"])) for name in commands} == dict.fromkeys(
        commands, RIGHT
    )


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_help_of_every_benchmark_ends_so_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    assert endings(importlib.import_module(name).main) == RIGHT


def test_every_benchmark_with_a_command_line_is_tried() -> None:
    found = {
        f"{folder}.{path.stem}"
        for folder in ("benchmarks", "research")
        for path in (ROOT / folder).glob("*.py")
        if "ArgumentParser(" in path.read_text()
    }
    assert found == set(BENCHMARKS)


def test_a_table_drawn_by_rich_ends_so_too(tmp_path: Path) -> None:
    def call() -> None:
        out.quiet = False  # rich stops printing in a process whose reader has gone
        pipeline.cli.main(["models", "--data-root", str(tmp_path)])

    assert endings(call) == RIGHT
    out.quiet = False


@pytest.mark.parametrize("module", ["kws", "pipeline"])
def test_a_program_ends_so_too(module: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    found = []
    with open("/dev/full", "wb") as full, os.fdopen(writer, "wb") as closed:
        for output in (closed, full):
            done = subprocess.run(
                [sys.executable, "-m", module, "--help"],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
            )
            found.append((done.returncode, done.stderr))
    assert found == RIGHT


@pytest.mark.parametrize(("module", "status"), [("kws", 130), ("pipeline", 130), ("research.study", -signal.SIGINT)])
def test_ctrl_c_while_modules_are_imported_ends_with_one_line(module: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == "stopped; run the same command again to resume\n"
