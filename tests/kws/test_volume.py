"""What a volume must be able to do, tried at the start of a step."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kws.volume import require_volume

TRY = "import sys; from pathlib import Path; from kws.volume import require_volume; require_volume(Path(sys.argv[1]))"


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_disk_passes_and_only_the_lock_is_left(tmp_path: Path) -> None:
    require_volume(tmp_path / "not" / "yet")
    require_volume(tmp_path / "not" / "yet")
    assert left(tmp_path / "not" / "yet") == [".volume.lock"]


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    (tmp_path / ".volume-0123abcd" / "final").mkdir(parents=True)
    require_volume(tmp_path)
    assert left(tmp_path) == [".volume.lock"]


def test_many_processes_may_try_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", TRY, tmp_path], stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 8
    assert left(tmp_path) == [".volume.lock"]


def refuse(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def succeed(*_: object, **__: object) -> None:
    """Does nothing, and says that it was done."""


def copy(old: Path, new: Path) -> None:
    """Copies a folder that was to be renamed, as a mount of an object store does."""
    new.mkdir()
    for path in old.iterdir():
        (new / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("module", "name", "answer", "said"),
    [
        (os, "replace", refuse(errno.EEXIST), "rename a file over another, got File exists"),
        (os, "replace", succeed, "rename a file over another, got 'two' where 'one' was left"),
        (Path, "rename", refuse(errno.ENOTSUP), "rename a folder, got Operation not supported"),
        (Path, "rename", copy, r"list a folder as it is, got \['"),
        (fcntl, "flock", refuse(errno.ENOLCK), r"lock files \(flock\), got No locks available"),
        (fcntl, "flock", succeed, r"keep two processes from holding one lock \(flock\), got two holders at once"),
        (os, "fsync", refuse(errno.EINVAL), r"through to the disk \(fsync\), got Invalid argument"),
        (mmap, "mmap", refuse(errno.ENODEV), r"map a file into memory \(mmap\), got No such device"),
    ],
)
def test_volume_that_cannot_do_what_is_needed_is_refused_with_the_remedy(
    module: Any, name: str, answer: Callable[..., Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, answer)  # what the kernel answers on a mount without it
        with pytest.raises(ValueError, match=f"^the volume must .*{said}.* in {tmp_path}; use a disk, NFSv4 or a Read"):
            require_volume(tmp_path)
    assert left(tmp_path) == [".volume.lock"]


def test_full_volume_is_no_lack_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        require_volume(tmp_path)
    assert left(tmp_path) == [".volume.lock"]
