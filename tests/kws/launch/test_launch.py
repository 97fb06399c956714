import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kws.launch.choose import launcher
from kws.launch.job import MAX_NAME_LENGTH, LaunchError, Training, job_name
from kws.launch.torchrun import TorchrunLauncher, threads_per_process

TRAINEE = '''
"""What torchrun starts here: two real processes, which leave a note of each attempt in a folder."""
import os, signal, sys, time
from pathlib import Path

from kws.processes import die_with_parent

what, folder = sys.argv[1], Path(sys.argv[2])
rank, attempt = os.environ.get("RANK", "alone"), os.environ.get("TORCHELASTIC_RESTART_COUNT")


def note(name, *values):
    staged = folder / f".{name}-{rank}"
    staged.write_text(" ".join(map(str, values)))
    staged.rename(folder / f"{name}-{rank}")


def stop(signum, frame):
    note("stopped", signal.Signals(signum).name)
    sys.exit(128 + signum)


def main():
    if what == "wait":
        signal.signal(signal.SIGTERM, stop)
        die_with_parent()
        note("started", os.getpid(), os.getppid())
        time.sleep(120)
        return
    if what == "die alone":
        note(f"attempt{len(list(folder.iterdir()))}")
        if len(list(folder.iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return
    if what == "fail":
        raise ValueError("epochs must be positive, got -1")
    if what == "full":
        note(f"attempt{len(list(folder.iterdir()))}")
        raise OSError(28, "No space left on device", "/data/best.pth")
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    total = torch.tensor(int(rank) + 1)
    distributed.all_reduce(total)
    note(f"attempt{attempt}", total.item(), os.environ["OMP_NUM_THREADS"])
    distributed.barrier()
    if attempt == "0":
        if rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(120)
    distributed.destroy_process_group()


if what in ("wait", "die alone"):
    main()
else:
    from torch.distributed.elastic.multiprocessing.errors import record

    record(main)()
'''

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trainee.py").write_text(TRAINEE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what a killed launcher leaves there goes with the test
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def start_waiting(notes: Path, processes: int = 2) -> tuple["subprocess.Popen[str]", list[int], int]:
    """Starts a launcher in a process of its own; returns it, the processes that train, and torchrun's if it runs."""
    program = (
        "import sys; from pathlib import Path\n"
        "from kws.launch.job import Training; from kws.launch.torchrun import TorchrunLauncher\n"
        "job = Training(name='kws-test', folder=Path(sys.argv[1]).parent, arguments=('wait', sys.argv[1]),\n"
        "               num_nodes=1, processes_per_node=int(sys.argv[2]))\n"
        "TorchrunLauncher(module='trainee', max_restarts=0).run(job)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, notes, str(processes)], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(list(notes.glob("started-*"))) == processes)
    trainers, agents = zip(*((map(int, path.read_text().split())) for path in notes.glob("started-*")), strict=True)
    assert len(set(agents)) == 1
    return process, list(trainers), agents[0]


def training(notes: Path, what: str, processes: int) -> Training:
    folder = notes.parent / "run"
    return Training(
        name="kws-test", folder=folder, arguments=(what, str(notes)), num_nodes=1, processes_per_node=processes
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_process_that_fails_gives_its_own_error_to_the_launcher(notes: Path) -> None:
    job = Training(
        name="kws-test", folder=notes.parent / "run", arguments=("fail", str(notes)), num_nodes=1, processes_per_node=1
    )
    with pytest.raises(LaunchError, match=r"^training failed: ValueError: epochs must be positive, got -1$"):
        TorchrunLauncher(module="trainee", max_restarts=0).run(job)


def test_a_full_volume_fails_training_once(notes: Path) -> None:
    with pytest.raises(LaunchError, match=r"^training failed: OSError: .* No space left on device: '/data/best.pth'$"):
        TorchrunLauncher(module="trainee").run(training(notes, "full", 1))
    assert [path.name for path in notes.iterdir()] == ["attempt0-alone"]


def test_a_killed_process_is_started_again_and_training_succeeds(notes: Path, tmp_path: Path) -> None:
    job = Training(
        name="kws-test", folder=notes.parent / "run", arguments=("die", str(notes)), num_nodes=1, processes_per_node=2
    )
    manifest = tmp_path / "manifest.yaml"

    TorchrunLauncher(module="trainee", max_restarts=1).run(job, manifest)

    threads = threads_per_process(job)
    assert threads == (max(1, len(os.sched_getaffinity(0)) // 2) if sys.platform == "linux" else threads)
    reached = f"3 {threads}"  # the sum of 1 and 2, from both processes, and the threads of each
    assert {path.name: path.read_text() for path in notes.iterdir()} == {
        "attempt0-0": reached,
        "attempt0-1": reached,
        "attempt1-0": reached,
        "attempt1-1": reached,
    }
    started = json.loads(manifest.read_text())
    assert started["command"][-4:] == ["-m", "trainee", "die", str(notes)]
    assert started["env"]["OMP_NUM_THREADS"] == str(threads)


def test_a_single_process_that_is_killed_is_started_again_without_torchrun(notes: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    TorchrunLauncher(module="trainee").run(training(notes, "die alone", 1), manifest)
    assert {path.name for path in notes.iterdir()} == {"attempt0-alone", "attempt1-alone"}
    assert json.loads(manifest.read_text())["command"] == [sys.executable, "-m", "trainee", "die alone", str(notes)]


def test_a_single_process_that_is_killed_for_good_is_reported(notes: Path) -> None:
    with pytest.raises(LaunchError, match="the training process was killed by SIGKILL, probably for lack of memory"):
        TorchrunLauncher(module="trainee", max_restarts=0).run(training(notes, "die alone", 1))


@pytest.mark.parametrize(("signum", "processes"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_launcher_told_to_stop_lets_the_processes_stop_in_order(
    notes: Path, signum: signal.Signals, processes: int
) -> None:
    process, trainers, agent = start_waiting(notes, processes)

    process.send_signal(signum)
    _, output = process.communicate(timeout=60)

    assert process.returncode == 128 + signum
    assert f"stopped by {signum.name}; when started again, training resumes from the latest checkpoint" in output
    assert {path.read_text() for path in notes.glob("stopped-*")} == {"SIGTERM"}
    assert len(list(notes.glob("stopped-*"))) == processes
    assert not any(map(is_alive, [*trainers, agent]))


@only_linux
def test_a_killed_launcher_leaves_no_process_behind(notes: Path) -> None:
    process, trainers, agent = start_waiting(notes)

    process.kill()
    process.communicate()

    wait_until(lambda: not any(map(is_alive, [*trainers, agent])))
    assert len(list(notes.glob("stopped-*"))) == 2  # in order: with a checkpoint


@only_linux
def test_a_killed_torchrun_leaves_no_process_behind_and_is_reported(notes: Path) -> None:
    process, trainers, agent = start_waiting(notes)

    os.kill(agent, signal.SIGKILL)
    _, output = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "LaunchError: training failed: torchrun was killed by SIGKILL" in output
    wait_until(lambda: not any(map(is_alive, trainers)))


def test_several_nodes_without_a_cluster_are_refused_with_a_remedy(tmp_path: Path) -> None:
    job = Training(name="kws-test", folder=tmp_path, arguments=(), num_nodes=2, processes_per_node=1)
    with pytest.raises(ValueError, match="num_nodes must be 1 without a cluster, got 2: submit the pipeline"):
        TorchrunLauncher().run(job)


def test_the_name_of_a_job_is_the_same_for_every_attempt_and_fits_kubernetes() -> None:
    assert job_name("1f3c9b5e-0f53-4e0e-9c38-0d2b6b1f7a11") == "kws-1f3c9b5e-0f53-4e0e-9c38-0d2b6b1f7a11"
    for run_id in ("2024-05-01T10:00:00_A", "x" * 300, "Ünïcode", "-", "9"):
        name = job_name(run_id)
        assert name == job_name(run_id)
        assert Training(name=name, folder=Path(), arguments=(), num_nodes=1, processes_per_node=1).name == name
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert max(len(f"{name}-worker-999"), len(f"{name}-node-0-999-abcde")) <= 63


def test_the_name_of_the_job_of_a_run_has_the_beginning_of_its_id() -> None:
    run_id = "9bb8c198-b5bc-4106-b976-dd853a643974"
    assert run_id[:13] in job_name(f"20261125-230356-{run_id}")


def test_runs_that_differ_only_in_what_a_name_cannot_hold_get_names_that_differ() -> None:
    assert len({job_name(run_id) for run_id in ("a_b", "a-b", "A-b", "x" * 99 + "1", "x" * 99 + "2")}) == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Kws"),
        ("name", "kws-"),
        ("name", "a" * (MAX_NAME_LENGTH + 1)),
        ("num_nodes", 0),
        ("processes_per_node", 0),
    ],
)
def test_a_job_that_nothing_can_run_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    fields: dict[str, object] = {
        "name": "kws",
        "folder": Path(),
        "arguments": (),
        "num_nodes": 1,
        "processes_per_node": 1,
    }
    with pytest.raises(ValueError, match=f"{field} must be"):
        Training(**(fields | {field: value}))  # type: ignore[arg-type]


def test_without_a_cluster_torchrun_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KWS_LAUNCHER", raising=False)
    assert isinstance(launcher(), TorchrunLauncher)


def test_inside_a_cluster_the_environment_may_still_ask_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KWS_LAUNCHER", "torchrun")
    assert isinstance(launcher(), TorchrunLauncher)


def test_inside_a_cluster_a_step_without_settings_is_told_which_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.delenv("KWS_LAUNCHER", raising=False)
    monkeypatch.delenv("KWS_PYTORCHJOB", raising=False)
    with pytest.raises(ValueError, match="KWS_PYTORCHJOB must be a JSON object of the fields of ClusterConfig"):
        launcher()


def test_an_unknown_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_LAUNCHER", "slurm")
    with pytest.raises(ValueError, match="KWS_LAUNCHER must be torchrun, pytorchjob or trainjob, got 'slurm'"):
        launcher()


def test_importing_the_launcher_needs_neither_torch_nor_kubernetes() -> None:
    program = (
        "import sys, kws.launch.choose, kws.launch.submit, kws.launch.kinds.pytorchjob, kws.launch.kinds.trainjob;"
        "print(*{'torch', 'kubernetes', 'kubeflow', 'kubeflow_trainer_api'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
