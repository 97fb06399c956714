"""Memory: what a container may use, and what says so."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kws import memory

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "own").write_text("")
    return tmp_path / "cgroup"


def write(groups: Path, own: str, **contents: str) -> None:
    (groups.parent / "own").write_text(own)
    for name, text in contents.items():
        path = groups / name.replace("__", "/").replace("_of_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_limit_of_control_groups_v2_is_the_smallest_up_to_the_top(groups: Path) -> None:
    write(
        groups,
        "0::/pods/mine\n",
        memory_of_max="max\n",
        pods__memory_of_max="300000000\n",
        pods__mine__memory_of_max="400000000\n",
    )
    assert memory.limit() == 300_000_000


def test_the_limit_of_control_groups_v1_is_read_where_a_container_sees_it(groups: Path) -> None:
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("200000000\n")
    write(groups, "5:cpu:/docker/1\n4:memory:/docker/1\n0::/\n")
    assert memory.limit() == 200_000_000


def test_without_a_limit_it_is_the_memory_of_the_machine(groups: Path) -> None:
    assert memory.limit() == MACHINE
    write(groups, "0::/\n", memory_of_max="max\n")
    assert memory.limit() == MACHINE


def test_processes_killed_for_lack_of_memory_are_counted(groups: Path) -> None:
    assert memory.num_killed() == 0
    write(groups, "0::/mine\n", mine__memory_of_events="low 0\noom 3\noom_kill 2\n")
    assert memory.num_killed() == 2


def test_too_little_memory_is_reported_and_enough_is_not(groups: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write(groups, "0::/\n", memory_of_max=str(512 << 20))
    memory.warn_if_scarce("training")
    assert caplog.messages == []
    write(groups, "0::/\n", memory_of_max=str(256 << 20))
    memory.warn_if_scarce("training")
    assert caplog.messages == [
        "training needs 512 MB of memory or more, and may use 256 MB here: if it is killed, raise the memory limit"
    ]


WITHOUT_COMPILER = """
import sys
from pathlib import Path
import torch
from kws.recipe import RECIPES, TrainConfig
from kws.model import bundle
from kws.model.network import AudioTransformer
from kws.train.optimizer import make_optimizers
from kws.train.schedule import rates

features = RECIPES["default"].features
model = AudioTransformer(RECIPES["default"].model, features, 2)
path = Path(sys.argv[1]) / "model.pth"
bundle.save(path, bundle.Recognizer(model=model, words=["no", "yes"], features=features))
model = bundle.load(path).model
for kind in ("adam", "adamw", "muon"):
    for optimizer in make_optimizers(model, TrainConfig(optimizer=kind), torch.float32):
        model(torch.zeros(1, features.num_mels, features.num_frames)).sum().backward()
        optimizer.step(rates(TrainConfig(), 1e-3, 0))
        optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_reading_and_training_a_model_import_no_compiler_which_would_take_120_mb(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER, tmp_path], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
