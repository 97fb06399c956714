"""Processes and their memory."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kws import processes
from kws.processes import keep_freed_memory, num_cores


def page_faults(repeats: int) -> int:
    """Allocates, fills and frees 60 MB again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        arrays = [np.ones(20 << 20, np.uint8) for _ in range(3)]
        del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_before_and_after() -> tuple[int, int]:
    page_faults(3)
    before = page_faults(20)
    keep_freed_memory()
    page_faults(3)
    return before, page_faults(20)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_freed_memory_is_used_again() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(count_before_and_after)
    assert after < before / 20


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("text", "most"), [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1), ("", 10**6)]
)
def test_cores_are_no_more_than_the_limit_of_the_container(
    text: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CPU_LIMIT", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(text)
    assert num_cores() == min(most, len(os.sched_getaffinity(0)))


COMMAND = """
    import errno, os, sys, time
    from kws.processes import CommandFailed, as_command
    with as_command():
        print("result")
        print("remark", file=sys.stderr)
        if len(sys.argv) > 1:
            exec(sys.argv[1])
    """


def command(code: str = "", redirect: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs a command under a shell that redirects its output."""
    arguments = ["bash", "-c", f'"$0" "$@" {redirect}', sys.executable, "-c", textwrap.dedent(COMMAND), code]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        ("raise ValueError('epochs must be positive, got 0')", 2, "error: epochs must be positive, got 0"),
        ("open('/absent')", 2, "error: [Errno 2] No such file or directory: '/absent'"),
        ("raise OSError(errno.ENOSPC, 'No space left on device', '/data/x')", 2,
         "error: [Errno 28] No space left on device: '/data/x'; free some and start again, what is done stays"),
        ("raise CommandFailed('train failed')", 1, "error: train failed"),
        ("raise MemoryError", 2, "error: this takes more memory than there is: a smaller --batch-size, fewer "
         "processes or a larger limit help"),
        ("raise KeyboardInterrupt", 130, "stopped; run the same command again to resume"),
        ("sys.exit(3)", 3, "remark"),
        ("", 0, "remark"),
    ],
)  # fmt: skip
def test_command_ends_with_a_status_and_a_line(code: str, status: int, line: str) -> None:
    done = command(code)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == line
    assert done.stdout == "result\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("redirect", "status", "said"),
    [
        ("> /dev/full", 2, "remark\nerror: [Errno 28] No space left on device; free some and start again, what is done "
         "stays\n"),
        (">&-", 0, "remark\n"),
        ("2> /dev/full", 0, ""),
        ("2>&-", 0, ""),
    ],
)  # fmt: skip
def test_output_that_takes_nothing_is_no_traceback(redirect: str, status: int, said: str) -> None:
    done = command("", redirect)
    assert (done.returncode, done.stderr) == (status, said)


def test_thread_that_a_full_disk_ended_says_so_in_a_line() -> None:
    code = """
import threading
def write():
    with open("/dev/full", "w") as file:
        file.write("x")
thread = threading.Thread(target=write)
thread.start()
thread.join()
"""
    done = command(code)
    assert (done.returncode, done.stderr) == (0, "remark\nerror: [Errno 28] No space left on device\n")


def test_output_that_nobody_reads_any_more_ends_the_command_without_a_word() -> None:
    done = command("while True: print('more', flush=True)", "| head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (processes.CLOSED_PIPE, "result\n", "remark\n")


def test_remarks_that_nobody_reads_do_not_end_the_command() -> None:
    code = "for _ in range(5000): print('x' * 100, file=sys.stderr)\nprint('done')"
    done = command(code, "2> >(head -1 > /dev/null)")
    assert (done.returncode, done.stdout) == (0, "result\ndone\n")


def test_ctrl_c_of_a_command_at_work_is_a_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND), "print('ready', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, "stopped; run the same command again to resume")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, to be a user whom no passwd file lists")
def test_user_without_a_name_and_a_home_gets_both(tmp_path: Path) -> None:
    code = """
        import getpass, os
        from pathlib import Path
        from kws.processes import settle_user
        settle_user()
        print(os.getuid(), getpass.getuser(), Path.home())
        """
    as_nobody = ["unshare", "--user", "--map-user=12345", "--map-group=0"]
    if subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody be another user")
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    done = subprocess.run([*as_nobody, sys.executable, "-c", textwrap.dedent(code)], env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["12345", "user12345", "/tmp"]


BESIDE_NEIGHBOURS = """
import os, sys, threading, time
import torch
from kws.processes import yield_to_neighbours

cores = os.sched_getaffinity(0)
torch.set_num_threads(len(cores))
matrix = torch.ones(512, 512)
expected = matrix @ matrix
with yield_to_neighbours():
    deadline = time.monotonic() + 90
    while len(os.sched_getaffinity(0)) > 1:
        assert time.monotonic() < deadline, "never bound"
        assert torch.equal(matrix @ matrix, expected)
    assert {frozenset(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")
            if task != str(threading.get_native_id())} >= {frozenset(os.sched_getaffinity(0))}
    assert torch.equal(matrix @ matrix, expected)
assert os.sched_getaffinity(0) == cores
assert torch.get_num_threads() == len(cores)
print("yielded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who waits for a core")
def test_threads_beside_busy_processes_share_a_core_and_spread_in_the_end() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    bound = ["taskset", "--cpu-list", ",".join(map(str, cores))]
    busy = [subprocess.Popen([*bound, sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        command = [*bound, sys.executable, "-c", BESIDE_NEIGHBOURS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert (done.stdout, done.returncode) == ("yielded\n", 0), done.stderr


def test_one_thread_has_nothing_to_yield() -> None:
    code = (
        "import os, threading, torch; from kws.processes import yield_to_neighbours; torch.set_num_threads(1)\n"
        "with yield_to_neighbours(): print([t.name for t in threading.enumerate()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['MainThread']\n"
