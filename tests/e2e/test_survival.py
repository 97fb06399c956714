"""Training that is killed, stopped, shrunk and grown: two agents of torchrun stand for two nodes.

Each test takes half a minute to two.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kws import files
from kws.download.synthesize import synthesize
from kws.launch.job import FRESH_STORE
from kws.preprocess.step import preprocess
from kws.train import runs

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of an agent in /proc"),
]

EPOCHS = 5
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ENVIRONMENT = os.environ | FRESH_STORE | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of 240 synthetic clips of three words: 12 steps an epoch."""
    folder = tmp_path_factory.mktemp("tensors")
    synthesize(folder / "corpus", words=["yes", "no", "stop"], clips_per_word=80)
    return preprocess(folder / "corpus", folder, words="auto", num_threads=1)


@pytest.fixture(scope="module")
def uninterrupted(tensors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node=2", *trainer(tensors, folder)],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    return run_of(folder)


def trainer(tensors: Path, folder: Path, epochs: int = EPOCHS) -> list[str]:
    return [
        "-m",
        "kws.train",
        "--tensors",
        str(tensors),
        "--runs",
        str(folder),
        "--run-id",
        "a",
        "--epochs",
        str(epochs),
        "--batch-size",
        "16",
    ]


class Node:
    """An agent of torchrun with one worker, started again when it failed, as a pod is."""

    def __init__(self, tensors: Path, folder: Path, epochs: int, port: int) -> None:
        self.command = [
            *TORCHRUN,
            "--nnodes=1:2",
            "--nproc-per-node=1",
            "--max-restarts=20",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}",
            "--rdzv-id=test",
            "--rdzv-conf=last_call_timeout=10",
            *trainer(tensors, folder, epochs),
        ]
        self.log = (folder.parent / f"node-{id(self):x}.log").open("w+")
        self.start()

    def start(self) -> None:
        self.agent = subprocess.Popen(self.command, env=ENVIRONMENT, stdout=self.log, stderr=self.log)

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers that there are now: one or none."""
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split()
        return [int(child) for child in children if b"kws.train" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def kill(self) -> None:
        self.agent.kill()
        self.agent.wait()

    @property
    def done(self) -> bool:
        """Whether the agent ended well; one that failed is started again."""
        if self.agent.poll():
            self.start()
        return self.agent.poll() == 0


@contextlib.contextmanager
def nodes(tensors: Path, folder: Path, epochs: int = EPOCHS) -> Iterator[tuple[Node, Node]]:
    """Starts two nodes, the first of which keeps the meeting point."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    first = Node(tensors, folder, epochs, port)
    wait_until(lambda: accepts(port))
    second = Node(tensors, folder, epochs, port)
    try:
        yield first, second
    finally:
        for node in (first, second):
            with contextlib.suppress(ProcessLookupError):
                node.agent.terminate()
            node.agent.wait(60)
            node.log.seek(0)
            print(node.log.read())  # pytest shows it where the test fails


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def run_of(folder: Path) -> Path:
    (run,) = folder.glob("*-a")
    return run


def epochs_done(folder: Path) -> int:
    return max((len(path.read_text().splitlines()) for path in folder.glob(f"*-a/{runs.METRICS}")), default=0)


def wait_until_inside_epoch(folder: Path) -> None:
    """Waits until some steps of the second epoch were taken."""
    wait_until(lambda: epochs_done(folder) > 0)
    time.sleep(0.7)
    assert epochs_done(folder) < EPOCHS, "too fast to be interrupted"


def wait_for_both(both: tuple[Node, Node]) -> None:
    wait_until(lambda: [node.done for node in both] == [True, True])


def assert_same_run(one: Path, other: Path) -> None:
    assert files.is_complete(one)
    assert files.is_complete(other)
    weights = [torch.load(run / runs.BEST, weights_only=True)["weights"] for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    losses = [[json.loads(line)["train_loss"] for line in (run / runs.METRICS).open()] for run in (one, other)]
    assert losses[0] == losses[1]
    last = [torch.load(max((run / "checkpoints").iterdir()), weights_only=True) for run in (one, other)]
    assert last[0]["position"] == last[1]["position"]
    for name, value in last[0]["model"].items():
        assert torch.equal(value, last[1]["model"][name]), name


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_killed_worker_both_go_on_and_end_with_the_same_model(
    tensors: Path, uninterrupted: Path, tmp_path: Path, victim: int
) -> None:
    with nodes(tensors, tmp_path / "runs") as both:
        wait_until_inside_epoch(tmp_path / "runs")
        (worker,) = both[victim].workers
        os.kill(worker, signal.SIGKILL)
        wait_for_both(both)
    assert_same_run(run_of(tmp_path / "runs"), uninterrupted)


@pytest.mark.parametrize("evicted", [0, 1])
def test_sigterm_to_one_node_stops_both_within_10_s_with_a_checkpoint(
    tensors: Path, uninterrupted: Path, tmp_path: Path, evicted: int
) -> None:
    with nodes(tensors, tmp_path / "runs") as both:
        wait_until_inside_epoch(tmp_path / "runs")
        workers = [*both[0].workers, *both[1].workers]
        started = time.monotonic()
        both[evicted].agent.terminate()
        wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        assert both[evicted].agent.wait(60) != 0
        assert time.monotonic() - started < 10
        checkpoint = torch.load(max((run_of(tmp_path / "runs") / "checkpoints").iterdir()), weights_only=True)
        assert checkpoint["position"]["clips_done"] > 0, "written on the way through an epoch"
        wait_for_both(both)
    assert_same_run(run_of(tmp_path / "runs"), uninterrupted)


@pytest.mark.parametrize("victim", [0, 1], ids=["that-keeps-the-meeting-point", "that-does-not"])
def test_after_a_killed_agent_that_is_started_again_the_job_ends_with_the_same_model(
    tensors: Path, uninterrupted: Path, tmp_path: Path, victim: int
) -> None:
    with nodes(tensors, tmp_path / "runs") as both:
        wait_until_inside_epoch(tmp_path / "runs")
        (worker,) = both[victim].workers
        both[victim].kill()
        wait_until(lambda: not Path(f"/proc/{worker}").exists(), seconds=15)
        wait_for_both(both)
    assert_same_run(run_of(tmp_path / "runs"), uninterrupted)


def test_a_job_that_shrinks_to_one_node_and_grows_back_completes(tensors: Path, tmp_path: Path) -> None:
    folder, epochs = tmp_path / "runs", 20
    with nodes(tensors, folder, epochs) as (first, second):
        wait_until_inside_epoch(folder)
        second.kill()
        alone = epochs_done(folder) + 2
        wait_until(lambda: epochs_done(folder) >= alone)
        second.start()
        wait_until(lambda: second.workers)
        assert epochs_done(folder) < epochs, "too fast to be grown back"
        wait_for_both((first, second))
    assert epochs_done(folder) == epochs
    assert files.is_complete(run_of(folder))


def test_sigterm_stops_torchrun_within_10_s_and_the_next_start_goes_on_to_the_same_model(
    tensors: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", *trainer(tensors, tmp_path)]
    torchrun = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_until_inside_epoch(tmp_path)
    started = time.monotonic()
    torchrun.terminate()
    status = torchrun.wait(60)
    assert time.monotonic() - started < 10
    assert status != 0
    checkpoint = torch.load(max((run_of(tmp_path) / "checkpoints").iterdir()), weights_only=True)
    assert checkpoint["position"]["clips_done"] > 0, "written on the way through an epoch"
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    assert_same_run(run_of(tmp_path), uninterrupted)
