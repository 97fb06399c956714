"""What the project needs of the volume that all steps share, tried before a step does anything on it.

A disk, NFSv4 and what Kubernetes gives as ReadWriteMany have all of it. Mounts of object stores lack some of it, and
would fail hours later, at a checkpoint, or lose the exclusion of two trainings of one run without a word.
"""

import contextlib
import errno
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from kws import files


def require_volume(folder: Path) -> None:
    """Checks that the volume of a folder can do what the project needs; takes some milliseconds.

    What writes to the volume calls it first: download, preprocess, train, promote and rollback. Evaluation and the
    server only read, and so work with a volume that is mounted read-only.

    Many processes may do so at once: one after the other has the lock `.volume.lock`, which stays, as all locks do.
    Everything else is deleted, also what a killed process left.

    Args:
        folder: the data root; it is created if necessary.

    Raises:
        ValueError: the volume cannot do something; the message says what, and names the remedy.
        OSError: it is full, or may not be written.
    """
    with contextlib.ExitStack() as stack:
        with _need(folder, "lock files (flock)"):
            stack.enter_context(files.lock(folder / "volume"))
        for left in folder.glob(".volume-*"):
            shutil.rmtree(left, ignore_errors=True)
        place = folder / f".volume-{secrets.token_hex(4)}"
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        _try(folder, place)


LOCK = "clean"
"""Name of the lock of a data root that `kws.promote.clean` holds while it decides what nobody uses."""


def use(data_root: Path, *folders: Path) -> bool:
    """Notes that folders are in use from now on, by their time of modification, so that cleaning leaves them there.

    Returns:
        Whether they are all there, complete.
    """
    try:
        with files.lock(data_root / LOCK):
            for folder in folders:
                os.utime(folder)
    except OSError as error:  # what is mounted to be read is cleaned by others, or not at all
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
            raise
    return all(map(files.is_complete, folders))


def last_used(path: Path) -> float:
    """Returns when a folder was last used, or a file or the folder or something directly in it changed; 0: it is gone.

    In seconds since 1970.
    """
    with contextlib.suppress(FileNotFoundError):
        return max(path.stat().st_mtime, *(entry.lstat().st_mtime for entry in path.glob("*")), 0.0)
    return 0.0


def _try(folder: Path, place: Path) -> None:
    one, two, built, final = (place / name for name in ("one", "two", "built", "final"))
    with _need(folder, "take files"):
        place.mkdir()
        one.write_text("one")
        two.write_text("two")
    with (
        _need(folder, "keep two processes from holding one lock (flock)"),
        files.hold(one, 0),
        contextlib.suppress(files.Busy),
        files.hold(one, 0),
    ):
        raise OSError("two holders at once")
    with _need(folder, "rename a file over another"):
        os.replace(one, two)
        _expect(two.read_text(), "one")
    with _need(folder, "map a file into memory (mmap)"):
        with two.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:] = b"map"
        _expect(two.read_text(), "map")
    with _need(folder, "write a file and a folder through to the disk (fsync)"):
        with two.open("rb+") as file:
            os.fsync(file.fileno())
        files.sync_folder(place)
    with _need(folder, "rename a folder"):
        built.mkdir()
        os.replace(two, built / "file")
        time = (built / "file").stat().st_mtime_ns
        built.rename(final)
        _expect((final / "file").read_text(), "map")
    with _need(folder, "list a folder as it is"):
        _expect(os.listdir(place), ["final"])
    with _need(folder, "keep the time of a file"):  # by which a data set is known to be unchanged
        _expect((final / "file").stat().st_mtime_ns, time)


@contextlib.contextmanager
def _need(folder: Path, what: str) -> Iterator[None]:
    """Turns an OSError of the block into the sentence that the volume must be able to do this."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise ValueError(
            f"the volume must {what}, got {error.strerror or error} in {folder}; use a disk, NFSv4 or a "
            "ReadWriteMany claim"
        ) from error


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise OSError(f"{found!r} where {expected!r} was left")
