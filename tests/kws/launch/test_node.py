"""The process of a pod: torchrun with its log, its lease, and errors that a retry cannot fix."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kws import memory
from kws.heartbeat import LEASE, Heartbeat
from kws.launch import output
from kws.launch.job import HOPELESS_STATUS, ORPHANED_STATUS
from kws.launch.node import log_file, main, warn_of_clock
from kws.launch.output import Output

TRAINEE = '''
"""What torchrun starts here."""
import os, signal, sys, time
from pathlib import Path

from kws.processes import die_with_parent

what, folder = sys.argv[1], Path(sys.argv[2])
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]


def main():
    die_with_parent()
    print("attempt", attempt, flush=True)
    (folder / f"attempt{attempt}").touch()
    if what == "hopeless":
        raise ValueError("epochs must be positive, got -1")
    if what == "unlucky" and attempt == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "unlucky" and attempt == "1":
        raise OSError(5, "Input/output error")
    if what == "memory":
        Path(os.environ["EVENTS"]).write_text("oom_kill 1\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        time.sleep(120)
    print("trained", flush=True)


if what == "hopeless" or attempt == "1":  # raises an error; otherwise the seconds to import torch are saved
    from torch.distributed.elastic.multiprocessing.errors import record

    main = record(main)
main()
'''


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "trainee.py").write_text(TRAINEE)
    folder = tmp_path / "20240501-100000-a"
    folder.mkdir()
    return folder


def start(run: Path, what: str, *flags: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "kws.launch.node",
        f"--run={run}",
        *flags,
        "--",
        "--standalone",
        "--nproc-per-node=1",
        "--max-restarts=2",
        "-m",
        "trainee",
        what,
        str(run),
    ]
    environment = os.environ | {"PYTHONPATH": str(run.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, shown = process.communicate(timeout=120)
    return process.returncode, shown


def log_of(run: Path) -> str:
    (path,) = (run / output.LOGS).iterdir()
    return path.read_text()


def test_a_kill_and_an_error_of_the_volume_are_one_line_each_and_training_goes_on(run: Path) -> None:
    status, shown = ended(start(run, "unlucky"))
    assert status == 0
    lines = shown.splitlines()
    assert lines[::2] == ["attempt 0", "attempt 1", "attempt 2"]
    assert lines[1].startswith("process 0 was killed by SIGKILL; if restarts remain, training resumes from")
    assert lines[3].startswith(
        "process 0 ended with status 1 (OSError: [Errno 5] Input/output error); if restarts remain"
    )
    assert lines[5:] == ["trained"]
    assert "failed (exitcode: -9)" in log_of(run)
    assert "Traceback" in log_of(run)
    assert "OSError: [Errno 5] Input/output error" in log_of(run)


def test_an_error_that_a_retry_cannot_fix_ends_the_pod_at_once_with_its_own_status(run: Path) -> None:
    status, shown = ended(start(run, "hopeless"))
    assert status == HOPELESS_STATUS
    assert shown.splitlines()[-1] == "error: ValueError: epochs must be positive, got -1"
    assert "Traceback" not in shown
    assert not (run / "attempt2").exists()


def test_a_process_that_is_killed_for_want_of_memory_is_not_started_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    group = tmp_path / "cgroup"
    group.mkdir()
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", group)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setenv("PYTHONPATH", str(run.parent))
    monkeypatch.setenv("EVENTS", str(group / "memory.events"))
    arguments = ["--standalone", "--nproc-per-node=1", "--max-restarts=2", "-m", "trainee", "memory", str(run)]
    assert main([f"--run={run}", "--", *arguments]) == HOPELESS_STATUS
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "error: a training process was killed by SIGKILL, for lack of memory: raise the memory limit"
    )
    assert last.endswith("(on a cluster: MEMORY= of make pipeline)")
    assert not (run / "attempt2").exists()


def test_a_pod_whose_lease_ends_stops_and_does_not_start_again_until_it_is_renewed(run: Path) -> None:
    (run / LEASE).write_text("of a step that was killed")
    status, shown = ended(start(run, "wait", "--lease=1"))
    assert status == ORPHANED_STATUS
    assert "no step has waited for this job for 1 s" in shown

    begun = time.monotonic()
    status, _ = ended(start(run, "train", "--lease=100"))
    assert status == ORPHANED_STATUS
    assert time.monotonic() - begun < 60  # at once, though this lease is longer

    with Heartbeat(run / LEASE):
        status, shown = ended(start(run, "train", "--lease=100"))
    assert (status, shown.splitlines()[-1]) == (0, "trained")
    assert list(run.glob(f"{LEASE}*")) == []


def test_told_to_stop_the_pod_ends_in_order(run: Path) -> None:
    process = start(run, "wait")
    deadline = time.monotonic() + 60
    while not (run / "attempt0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, shown = ended(process)
    assert status == 143
    assert "stopped by SIGTERM" in shown


@pytest.mark.parametrize(("difference", "said"), [(3, ""), (300, "300 s ahead of"), (-300, "300 s behind")])
def test_a_clock_that_differs_from_the_volumes_is_reported(
    difference: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + difference)
    warn_of_clock(tmp_path)
    shown = capsys.readouterr().err
    assert said in shown
    assert bool(shown) == bool(said)
    assert list(tmp_path.iterdir()) == []


def test_a_pods_log_is_named_after_its_place_in_the_job() -> None:
    run = Path("/data/runs/20240501-100000-a")
    assert log_file(run, "kws-20240501-100000-a-worker-0") == run / "logs" / "worker-0.log"
    assert log_file(run, "kws-20240501-100000-a-node-0-1") == run / "logs" / "node-0-1.log"


def test_messages_of_libraries_go_to_the_log_file_alone(tmp_path: Path) -> None:
    lines = [
        "going on at step 12 of epoch 1",
        "W1125 19:38:25.964000 1049 torch/distributed/elastic/multiprocessing/api.py:1012] closing signal SIGTERM",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/debug_logger.cc:9] ERROR failed to connect, willRetry=1",
        "[E1125 19:38:47.503025956 ProcessGroupGloo.cpp:67] Gloo connectFullMesh failed",
        "Exception raised from recvBytes at /pytorch/torch/csrc/distributed/c10d/Utils.hpp:682 (latest call first):",
        "[rank1]: Traceback (most recent call last):",
        "Traceback (most recent call last):",
        '  File "trainer.py", line 613, in <module>',
        "    main()",
        "RuntimeError: Connection closed by peer [127.0.0.1]:11662",
        "epoch 1/8: loss 2.1, validation accuracy 43%",
        "Traceback (most recent call last):",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "============================================================",
        "kws.train FAILED",
    ]
    shown: list[str] = []
    sorted_out = Output(tmp_path / "logs" / "worker-0.log", shown.append)
    for line in lines:
        sorted_out.write(line)
    sorted_out.close()
    assert shown == [lines[0], lines[10]]
    assert (tmp_path / "logs" / "worker-0.log").read_text().splitlines() == lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_log_that_cannot_be_written_is_told_once_and_its_lines_are_shown_all_the_same(tmp_path: Path) -> None:
    shown: list[str] = []
    (tmp_path / "worker-0.log").symlink_to("/dev/full")
    full = Output(tmp_path / "worker-0.log", shown.append)
    for number in range(3):
        full.write(f"epoch {number}")
    full.close()
    assert [line for line in shown if line.startswith("epoch")] == ["epoch 0", "epoch 1", "epoch 2"]
    (complaint,) = (line for line in shown if not line.startswith("epoch"))
    assert complaint.endswith("worker-0.log cannot be written: [Errno 28] No space left on device")
