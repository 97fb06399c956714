"""Cores: how many, and shared with others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kws import cores
from kws.cores import num_cores


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("text", "most"), [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1), ("", 10**6)]
)
def test_cores_are_no_more_than_the_limit_of_the_container(
    text: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "CPU_LIMIT", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(text)
    assert num_cores() == min(most, len(os.sched_getaffinity(0)))


BESIDE_NEIGHBOURS = """
import os, sys, threading, time
import torch
from kws.cores import yield_to_neighbours

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
        "import os, threading, torch; from kws.cores import yield_to_neighbours; torch.set_num_threads(1)\n"
        "with yield_to_neighbours(): print([t.name for t in threading.enumerate()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['MainThread']\n"


COMPUTING = """
import sys, threading
from kws import cores
with cores.computing():
    print("torch" in sys.modules)
import torch
cores.num_cores = lambda: 1
most = torch.get_num_threads()
@cores.computing()
def inner():
    return torch.get_num_threads()
with cores.computing():
    print(torch.get_num_threads(), inner(), [thread.name for thread in threading.enumerate()])
print(torch.get_num_threads() == most, inner())
"""


@pytest.mark.parametrize(("given", "threads"), [("", "1"), ("2", "2")])
def test_torch_computes_on_the_cores_of_the_container_unless_the_environment_says_otherwise(
    given: str, threads: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": given} if given else {}
    done = subprocess.run([sys.executable, "-c", COMPUTING], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    without, within, after = done.stdout.splitlines()
    assert without == "False"
    assert within.startswith(f"{threads} {threads} ['MainThread'")
    assert within.count("neighbours") <= 1  # one look at the cores, not one for each block
    assert after == f"True {threads}"
