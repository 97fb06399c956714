"""What cleaning deletes, and above all what it does not; on tiny volumes with the folders of real ones."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kws import cli, files
from kws.config import CleanConfig
from kws.data.digest import listing_digest
from kws.data.parts import write_parts
from kws.data.sources import list_recordings
from kws.model import versions
from kws.promote.clean import TRASH, Plan, clean, size_of
from kws.train import runs
from kws.volume import use

DAY = 86400.0
LONG_AGO = time.time() - 1000 * DAY
FULL = 1000
"""Bytes of each large file."""


class Volume:
    """A data root that is filled as the steps of a pipeline fill it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, path: str, manifest: dict[str, Any] | None, *names: str) -> Path:
        folder = self.root / path
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bytes(FULL))
        if manifest is not None:
            (folder / files.MANIFEST).write_text(json.dumps(manifest))
        return folder

    def data(self, number: int, source: str = "/recordings") -> Path:
        folder = self.folder(f"datasets/words-{number:08x}", None, "yes/a.wav", "no/b.wav")
        for path in folder.glob("*/*"):  # a listing has the times of files
            os.utime(path, (LONG_AGO, LONG_AGO))
        listing = list_recordings(folder, "word")
        about = {"name": "words", "source": source, "sha256": f"{number:08x}", "words": {}, "layout_asked_for": "word"}
        (folder / files.MANIFEST).write_text(json.dumps(about | {"listing": listing_digest(listing)}))
        return folder

    def tensors(self, number: int, data: Path, *parts: int) -> Path:
        settings = f"{1:016x}"
        for part in parts:
            self.folder(f"features/{settings}/{part:016x}", {}, "features.npy", "keys.npy")
        manifest = {
            "fingerprint": f"{number:016x}",
            "recordings": {"path": str(data)},
            "parts": {f"{settings}/{part:016x}": 1 for part in parts},
        }
        return self.folder(f"tensors/{number:016x}", manifest, "index.npz", "rows.npy")

    def run(self, name: str, tensors: Path, *, finished: bool = True, init: str = "") -> Path:
        names = (runs.BEST, runs.METRICS, "events.out.tfevents.1", "logs/torchrun.log", "checkpoints/step-00000001.pth")
        config = {"tensors": {"path": str(tensors)}, "recipe": {}} | ({"init": {"model": init}} if init else {})
        folder = self.folder(f"runs/{name}", {} if finished else None, *names)
        (folder / runs.CONFIG).write_text(json.dumps(config))
        if finished:
            runs.delete_checkpoints(folder)
        return folder

    def version(self, run: Path, champion: bool = False) -> Path:
        tensors = Path(files.read_json(run / runs.CONFIG)["tensors"]["path"])
        manifest = {
            "version": run.name,
            "files": dict.fromkeys((versions.MODEL, versions.ONNX), hashlib.sha256(bytes(FULL)).hexdigest()),
            "about": {"run": run.name, "tensors": tensors.name},
        }
        folder = self.folder(f"models/{run.name}", manifest, versions.MODEL, versions.ONNX)
        if champion:
            versions.appoint(self.root, run.name, 0.9, by=versions.STEP, reason="better")
        return folder

    def night(self, number: int, champion: bool = False, fails: bool = False) -> None:
        """Makes what the run of a night makes of a corpus that grows by a part."""
        data = self.data(number)
        tensors = self.tensors(number, data, number, number - 1)
        self.folder(f"artifacts/20260101-{number:06d}-0123/x", {}, "report")
        run = self.run(f"20260101-{number:06d}-{number:08x}", tensors, finished=not fails)
        if not fails:
            self.version(run, champion)

    def age(self, moment: float) -> None:
        """Makes all that is not older as old as a moment of the past."""
        for path in [self.root, *self.root.rglob("*")]:
            if path.stat().st_mtime > moment:
                os.utime(path, (moment, moment))

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.root / folder).glob("[!.]*"))

    def clean(self, keep: int = 1, **settings: Any) -> Plan:
        return clean(self.root, CleanConfig(keep=keep, **settings))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "data")


@pytest.fixture
def three_nights(volume: Volume) -> Volume:
    """Three runs of long ago; the first is champion."""
    for number in (1, 2, 3):
        volume.night(number, champion=number == 1)
    volume.age(LONG_AGO)
    return volume


def test_a_year_of_nightly_runs_ends_no_larger_than_its_second_month(volume: Volume) -> None:
    sizes = []
    for night in range(1, 366):
        now = LONG_AGO + night * DAY
        volume.night(night, champion=night % 40 == 1, fails=night % 9 == 4)
        volume.age(now)
        if night % 3:  # as if every third had failed before its end
            continue
        clean(volume.root, CleanConfig(keep=3), now=now)
        sizes.append(size_of(volume.root) - size_of(volume.root / "models/champion.json"))  # which has a history
        record = versions.champion_record(volume.root)
        assert record is not None
        assert files.is_complete(volume.root / "models" / record["version"])
    # Failed runs stay for two weeks, and the champion's data beside that of the last runs.
    assert max(sizes[100:]) <= max(sizes[15:40])
    assert len(volume.names("runs")) <= 3 + 2 + 2 + 2
    assert len(volume.names("datasets")) <= 8
    assert versions.rollback(volume.root)[1] in volume.names("models")


def test_what_nothing_needs_goes_and_what_is_needed_stays_whole(three_nights: Volume) -> None:
    before = {path: path.read_bytes() for path in three_nights.root.rglob("*-000001-*/*") if path.is_file()}
    plan = three_nights.clean()
    assert three_nights.names("runs") == [name for name in three_nights.names("models") if name[0] == "2"]
    assert [name[9:15] for name in three_nights.names("runs")] == ["000001", "000003"]
    assert [int(name[-8:], 16) for name in three_nights.names("datasets")] == [1, 3]
    assert [int(name, 16) for name in three_nights.names("tensors")] == [1, 3]
    assert [int(name, 16) for name in three_nights.names(f"features/{1:016x}")] == [0, 1, 2, 3]
    assert three_nights.names("artifacts") == ["20260101-000003-0123"]
    assert {path: path.read_bytes() for path in before} == before
    assert {piece.kind for piece in plan.pieces} == {"runs", "models", "tensors", "datasets", "artifacts"}
    assert not list((three_nights.root / TRASH).iterdir())
    assert three_nights.clean().pieces == []


def test_it_says_what_and_how_much_and_a_dry_run_deletes_nothing(
    three_nights: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    before = size_of(three_nights.root)
    command = ["clean", "--data-root", str(three_nights.root), "--keep", "1"]
    for dry in (["--dry-run"], []):
        with pytest.raises(SystemExit, match="0"):
            cli.main([*command, *dry])
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith("runs/20260101-000002-00000002  4.") for line in lines)
        assert lines[-1].endswith("in all: 2 artifacts, 1 models, 1 runs, 1 tensors, 1 datasets")
        assert (size_of(three_nights.root) == before) == bool(dry)


def test_the_champion_before_stays_for_a_rollback(three_nights: Volume) -> None:
    versions.appoint(three_nights.root, "20260101-000002-00000002", 0.9, by=versions.STEP, reason="better")
    three_nights.clean()
    assert versions.champion_record(three_nights.root) is not None
    assert [name[9:15] for name in [name for name in three_nights.names("models") if name[0] == "2"]] == [
        "000001",
        "000002",
        "000003",
    ]


def test_a_candidate_stays_until_it_is_decided_on(three_nights: Volume) -> None:
    versions.propose(three_nights.root, "20260101-000002-00000002", 0.9, "better", [])
    three_nights.clean()
    assert "20260101-000002-00000002" in three_nights.names("models")
    assert "words-00000002" in three_nights.names("datasets")
    versions.decide(three_nights.root, False)
    three_nights.age(LONG_AGO)
    three_nights.clean()
    assert "20260101-000002-00000002" not in three_nights.names("models")


def test_what_schedules_name_stays(three_nights: Volume) -> None:
    three_nights.data(9, source="https://example.org/words.tar.gz")
    three_nights.age(LONG_AGO)
    three_nights.clean(needed="runs/20260101-000002-00000002/best.pth\nhttps://example.org/words.tar.gz")
    assert "20260101-000002-00000002" in three_nights.names("runs")
    assert "words-00000009" in three_nights.names("datasets")


def test_a_run_in_progress_keeps_its_data_and_the_model_that_it_started_from(three_nights: Volume) -> None:
    data = three_nights.data(7)
    run = three_nights.run(
        "20260101-000000-b", three_nights.tensors(7, data, 7), finished=False, init="20260101-000002-00000002"
    )
    three_nights.age(LONG_AGO)
    with files.hold(run / runs.STARTER, 0):
        three_nights.clean()
    assert (run / "checkpoints/step-00000001.pth").is_file()
    assert data.is_dir()
    assert f"{7:016x}" in three_nights.names("tensors")
    assert f"{7:016x}" in three_nights.names(f"features/{1:016x}")
    assert "20260101-000002-00000002" in three_nights.names("models")
    three_nights.age(LONG_AGO)
    three_nights.clean()  # nobody holds it, and it has not changed for two weeks
    assert not run.exists()


def test_what_a_step_has_just_received_stays_though_no_run_names_it_yet(three_nights: Volume) -> None:
    data = three_nights.root / "datasets/words-00000002"
    assert use(three_nights.root, data)
    three_nights.clean()
    assert data.is_dir()
    assert not use(three_nights.root, three_nights.root / f"tensors/{2:016x}"), "the next step is told that it is gone"


def test_parts_of_a_data_set_stay_with_it(three_nights: Volume) -> None:
    several = three_nights.root / "datasets/2-sources-0000000b"
    several.mkdir()
    write_parts(several, [three_nights.root / f"datasets/words-{number:08x}" for number in (1, 2)])
    files.write_json(several / files.MANIFEST, {"name": "2-sources", "sha256": "0000000b", "source": "", "words": {}})
    three_nights.age(LONG_AGO)
    three_nights.run("20260101-000004-d", three_nights.tensors(4, several, 4))
    three_nights.age(LONG_AGO)
    three_nights.clean()
    assert three_nights.names("datasets") == ["2-sources-0000000b", "words-00000001", "words-00000002"]


def test_nothing_that_others_made_or_changed_is_deleted(three_nights: Volume) -> None:
    root = three_nights.root
    mine = [root / "runs" / "my experiments", root / "models" / "mine", root / "datasets" / "my recordings"]
    for folder in mine:
        (folder / "yes").mkdir(parents=True)
        (folder / "yes" / "a.wav").write_text("mine")
        files.write_json(folder / files.MANIFEST, {"by": "me"})
    (root / "runs/20260101-000002-00000002/notes.txt").write_text("the best of them")
    (root / "datasets/words-00000002/yes/new.wav").write_text("recorded by me")
    (root / "tensors" / "link").symlink_to(root / "tensors" / f"{1:016x}")
    three_nights.age(LONG_AGO)
    plan = three_nights.clean()
    assert all((folder / "yes/a.wav").read_text() == "mine" for folder in mine)
    assert (root / "runs/20260101-000002-00000002/notes.txt").is_file()
    assert (root / "datasets/words-00000002/yes/new.wav").is_file()
    assert (root / "tensors/link").is_symlink()
    assert plan.kept[root / "runs/20260101-000002-00000002"] == "notes.txt in it is not of kws"
    assert plan.kept[root / "datasets/words-00000002"] == "it is not as kws made it"


def test_what_killed_processes_left_goes_unless_one_is_still_at_it(three_nights: Volume) -> None:
    root = three_nights.root
    left = root / "tensors" / f".{5:016x}.partial-0123abcd"
    busy = root / "tensors" / f".{6:016x}.partial-0123abcd"
    part = root / "downloads" / "words.tar.gz-0123abcd.part"
    for path in (left / "rows.npy", busy / "rows.npy", part):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(FULL))
    (root / "runs/20260101-000003-00000003/checkpoints").mkdir()
    (root / "runs/20260101-000003-00000003/checkpoints/step-00000001.pth").write_bytes(bytes(FULL))
    three_nights.age(LONG_AGO)
    with files.lock(root / "tensors" / f"{6:016x}"):
        three_nights.clean()
    assert [left.exists(), busy.exists(), part.exists()] == [False, True, False]
    assert three_nights.names("runs/20260101-000003-00000003/checkpoints") == []
    assert (root / "runs/20260101-000003-00000003/best.pth").is_file()


def test_a_damaged_champion_record_stops_it_before_anything_is_deleted(three_nights: Volume) -> None:
    (three_nights.root / "models/champion.json").write_text("{")
    before = size_of(three_nights.root)
    with pytest.raises(ValueError, match="kws rollback --version"):
        three_nights.clean()
    assert size_of(three_nights.root) == before


@contextmanager
def cleaning(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; from kws.cli import main; print('ready', flush=True); sys.stdin.readline(); main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "clean", "--keep", "1", "--data-root", str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killed_at_any_moment_it_leaves_whole_folders_and_the_next_call_finishes(volume: Volume) -> None:
    for number in range(1, 9):
        volume.night(number, champion=number == 1)
    for run in (volume.root / "runs").iterdir():  # enough files that deleting takes a while
        for number in range(300):
            (run / f"events.out.{number}").touch()
    volume.age(LONG_AGO)
    counts = {folder: len(list(folder.rglob("*"))) for folder in volume.root.glob("[!.]*/[!.]*") if folder.is_dir()}
    killed = 0
    for attempt in range(40):
        with cleaning(volume.root) as process:
            time.sleep(0.15 * (attempt + 1) ** 0.5 / 6)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        there = {folder: len(list(folder.rglob("*"))) for folder in counts if folder.exists()}
        assert there == {folder: counts[folder] for folder in there}, "no folder is there in part"
        if len(list(volume.root.glob(f"{TRASH}/*"))) == 0 and len(volume.names("runs")) == 2:
            break
    assert killed
    volume.clean()
    assert len(volume.names("runs")) == 2
    assert not list((volume.root / TRASH).iterdir())


def test_a_folder_that_cannot_be_renamed_stays_and_is_named(
    three_nights: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may rename anything")
    caplog.set_level(logging.WARNING)
    (three_nights.root / "runs").chmod(0o555)
    try:
        three_nights.clean()
    finally:
        (three_nights.root / "runs").chmod(0o755)
    assert "cannot be renamed" in caplog.text
    assert "20260101-000002-00000002" in three_nights.names("runs")
    shutil.rmtree(three_nights.root)
