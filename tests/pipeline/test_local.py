"""What a run on this machine prints about its steps."""

import io
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from file_server import FileServer

from kws.processes import children, is_alive
from pipeline.local import _WithoutExecutorInput
from pipeline.local import show as show_summary

ROOT = Path(__file__).resolve().parents[2]

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


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a run in /proc")
def test_ctrl_c_sent_to_the_run_alone_ends_its_step_too(file_server: FileServer, tmp_path: Path) -> None:
    (file_server.root / "words.tar.gz").write_bytes(bytes(200_000))
    file_server.hold_after = 100_000
    command = [sys.executable, "-m", "pipeline", "run", "--source", file_server.url("words.tar.gz")]
    process = subprocess.Popen(
        [*command, "--data-root", str(tmp_path / "data")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a worker of xdist ignores it
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("data/downloads/*.part")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (shell,) = children(process.pid)
    (step,) = children(shell)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert shown.splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in shown
    assert not any(map(is_alive, (shell, step)))


def test_sigterm_ends_the_step_too() -> None:
    code = """
        import os, signal, subprocess
        from pipeline.local import _signals_reach_the_step

        with _signals_reach_the_step():
            step = subprocess.Popen(["sleep", "60"])
            print(step.pid, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            step.wait()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "stopped; run the same command again to resume\n")
    assert not is_alive(int(done.stdout))


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
            "is_candidate": False,
            "reason": "[x]",
            "model": path,
            "report": path,
            "tensorboard": path,
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"model        {path}" in lines
    assert "champion     yes: [x]" in lines
