"""What a run on this machine prints about its steps."""

import io
import subprocess
import sys

import pytest

from pipeline.local import _WithoutExecutorInput
from pipeline.local import show as show_summary

TRACEBACK = """Traceback (most recent call last):
  File "executor.py", line 1, in <module>
    call()
{}
"""


def show(text: str) -> list[str]:
    out = io.StringIO()
    stream = _WithoutExecutorInput(out)
    for line in text.splitlines(keepends=True):
        stream.write(line)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        ("ValueError: words must be folders, got none", ["error: words must be folders, got none"]),
        ("kws.launch.job.LaunchError: training failed: killed", ["error: training failed: killed"]),
        ("KeyboardInterrupt", ["stopped"]),
    ],
)
def test_error_of_a_step_is_shown_without_its_traceback(last: str, shown: list[str]) -> None:
    assert show(f"before\n{TRACEBACK.format(last)}after\n") == ["before", *shown, "after"]


def test_of_a_chain_of_errors_the_last_is_shown() -> None:
    chain = TRACEBACK.format("OSError: [Errno 28]") + "\nThe above exception was the direct cause of the following:\n\n"
    assert show(f"{chain}{TRACEBACK.format('ValueError: no room')}end\n") == ["error: no room", "end"]


def test_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    shown = show(f"{TRACEBACK.format('KeyError: 1')}end\n")
    assert shown[0].startswith("Traceback")
    assert shown[-2:] == ["KeyError: 1", "end"]


def test_processes_of_an_interrupted_step_have_ended_before_the_run_has() -> None:
    code = """
import os, subprocess
from pipeline.local import _wait_for_step
step = subprocess.Popen(["sleep", "0.5"])
_wait_for_step()
print(os.path.exists(f"/proc/{step.pid}"))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_path_of_the_summary_is_whole_on_its_line_however_long_and_odd(capsys: pytest.CaptureFixture[str]) -> None:
    path = '/däta [bold] root\'s "x"/' + "long " * 30 + "/model.pth"
    show_summary(
        {
            "steps": [{"name": "train", "seconds": 1.0}],
            "seconds": 1.0,
            "num_test_clips": 3,
            "words": ["no", "yes"],
            "accuracy": 0.5,
            "is_champion": True,
            "reason": "[x]",
            "model": path,
            "report": path,
            "tensorboard": path,
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"model        {path}" in lines
    assert "champion     yes: [x]" in lines
