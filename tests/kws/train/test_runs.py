"""Run folders, and which process may start one."""

import contextlib
import dataclasses
import logging
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kws import files
from kws.recipe import Recipe, make_recipe
from kws.train import runs
from kws.train.step import gather_logs

SETTINGS = {"recipe": {"train": {"init": ""}}}

START = """
    import contextlib, sys, time
    from pathlib import Path
    from kws.train import runs
    runs.LEAVING_SECONDS = 1
    with contextlib.ExitStack() as stack:
        print(runs.open_run(Path(sys.argv[1]), sys.argv[2], {"recipe": {"train": {"init": ""}}}, stack), flush=True)
        sys.stdin.read()
    """


def start(folder: Path, run_id: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(START), str(folder), run_id]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_starts_of_one_id_make_one_folder_and_the_second_is_told_to_wait(tmp_path: Path) -> None:
    both = [start(tmp_path, "a") for _ in range(2)]
    (said_first,), _, _ = select.select([process.stderr for process in both], [], [], 60)
    (loser,) = (process for process in both if process.stderr is said_first)
    said = loser.communicate()[1]
    assert "must be started by one process at a time, got a second; wait until the first has ended" in said
    (winner,) = (process for process in both if process is not loser)
    assert Path(winner.communicate()[0].strip()) in list(tmp_path.glob("*-a"))
    assert len(list(tmp_path.glob("*-a"))) == 1


def test_two_starts_without_an_id_train_apart(tmp_path: Path) -> None:
    both = [start(tmp_path, "") for _ in range(2)]
    first, second = (process.stdout.readline() for process in both if process.stdout)
    assert first != second
    for process in both:
        process.communicate()
    with contextlib.ExitStack() as stack:  # both are unfinished: the latest goes on
        assert runs.open_run(tmp_path, "", SETTINGS, stack) == max(Path(first.strip()), Path(second.strip()))


def test_run_that_was_killed_goes_on_whatever_the_clock_says_now(tmp_path: Path) -> None:
    (tmp_path / "20990101-000000-later").mkdir()
    files.write_json(tmp_path / "20990101-000000-later" / runs.CONFIG, SETTINGS)
    assert runs.open_run(tmp_path, "", SETTINGS).name == "20990101-000000-later"
    assert runs.open_run(tmp_path, "later", SETTINGS).name == "20990101-000000-later"


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_damaged_settings_of_another_run_do_not_stop_a_new_run(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    damaged = tmp_path / "20260101-000000-damaged"
    damaged.mkdir()
    (damaged / runs.CONFIG).write_text(content)
    folder = runs.open_run(tmp_path, "", SETTINGS)
    assert folder != damaged
    assert str(damaged / runs.CONFIG) in caplog.text
    with pytest.raises(ValueError, match=r"config\.json must be a JSON"):
        runs.open_run(tmp_path, "damaged", SETTINGS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"recipe": {}}, r"must have tensors \(dict\), got none"),
        ({"tensors": {}, "recipe": {}}, "must have a path"),
        ({"tensors": {"path": "x"}, "recipe": {"train": {"epochs": "many"}}}, "epochs must be of"),
    ],
)
def test_training_refuses_damaged_settings(tmp_path: Path, content: object, message: str) -> None:
    files.write_json(tmp_path / runs.CONFIG, content)
    with pytest.raises(ValueError, match=message):
        runs.read_config(tmp_path)


def test_nothing_is_new_only_if_a_published_run_had_the_same_data_and_recipe(tmp_path: Path) -> None:
    config = {"tensors": {"path": "/a", "fingerprint": "1"}, "recipe": dataclasses.asdict(Recipe())}
    name = "20260101-000000-a"
    assert runs.find_published(tmp_path, config) == ""
    files.write_json(tmp_path / "runs" / name / runs.CONFIG, config)
    files.write_json(tmp_path / "models" / name / files.MANIFEST, {})
    assert runs.find_published(tmp_path, config) == "", "the run has not finished"
    files.write_json(tmp_path / "runs" / name / files.MANIFEST, {})
    moved = config | {"tensors": {"path": "/b", "fingerprint": "1"}}
    assert runs.find_published(tmp_path, moved) == name
    assert runs.find_published(tmp_path, config | {"tensors": {"path": "/a", "fingerprint": "2"}}) == ""
    assert runs.find_published(tmp_path, config | {"recipe": dataclasses.asdict(make_recipe(epochs=7))}) == ""
    (tmp_path / "models" / name / files.MANIFEST).unlink()
    assert runs.find_published(tmp_path, config) == "", "its promotion failed"


def test_logs_of_all_pods_become_one_file_and_a_run_without_any_says_why(tmp_path: Path) -> None:
    for name, said in (("worker-1.log", b"late\n"), ("worker-0.log", b"epoch 1/2\n\xff\n"), ("job.json", b"{}")):
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / name).write_bytes(said)
    gather_logs(tmp_path, tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"== worker-0.log\nepoch 1/2\n\xff\n== worker-1.log\nlate\n"
    gather_logs(tmp_path / "empty", tmp_path / "log")
    assert (tmp_path / "log").read_text() == "nothing was kept: training printed on a terminal\n"
