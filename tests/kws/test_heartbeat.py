"""A file that changes as long as a process lives."""

import time
from pathlib import Path

import pytest

from kws.heartbeat import Heartbeat, Watch


def test_heartbeat_that_never_was_has_not_ended(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "beat", 0)
    assert not watch.has_ended()
    assert list(tmp_path.iterdir()) == []


def test_heartbeat_that_changes_has_not_ended_and_one_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    with Heartbeat(path, every=0.05):
        watch = Watch(path, 100)
        assert not watch.has_ended()
        first, number = path.read_bytes(), path.stat().st_ino
        deadline = time.monotonic() + 60
        while path.read_bytes() == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not watch.has_ended()
        assert path.stat().st_ino == number  # in place: a full volume has no room for another file
    assert list(tmp_path.iterdir()) == []


def test_heartbeat_that_stopped_has_ended_also_for_a_patient_watcher_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    path.write_text("of a process that was killed")
    impatient = Watch(path, 0)
    assert not Watch(path, 100).has_ended()
    assert impatient.has_ended()
    assert Watch(path, 100).has_ended()
    path.write_text("of its successor")
    assert not Watch(path, 100).has_ended()


def test_volume_that_is_away_counts_as_a_heartbeat_that_does_not_change(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "beat").write_text("one")
    watch = Watch(folder / "beat", 0)
    patient = Watch(folder / "beat", 100)
    assert not patient.has_ended()
    folder.rename(tmp_path / "away")
    folder.write_text("a file in its place: every path below it is an error")
    assert not patient.has_ended()
    assert watch.has_ended()


def test_heartbeat_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), Heartbeat(tmp_path / "file" / "beat"):
        pass
