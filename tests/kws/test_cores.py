"""Cores and GPUs: how many a process may use."""

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


COMPUTING = """
import sys
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
    print(torch.get_num_threads(), inner())
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
    assert done.stdout.splitlines() == ["False", f"{threads} {threads}", f"True {threads}"]
