"""Atomic writes of files and folders, and locks: a process killed at any moment leaves nothing half written.

A file is written under a temporary name in the same folder, synced, and renamed. A folder is built under a temporary
name, its manifest.json last, and renamed: a folder with a manifest.json is complete.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

BEAT_SECONDS = 10.0
"""Seconds between two heartbeats of a process that holds a lock by name."""


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file that is renamed to `path` at the end of the block, or deleted if the block fails.

    Raises:
        OSError: the disk is full or the folder cannot be written; an earlier file at `path` stays unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        # mkstemp would make the file private; umask and folder decide, as OpenShift gives access by group.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


NO_RENAME = (errno.EEXIST, errno.EMFILE, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What mounts of object stores answer that cannot rename over a file, or cannot rename a folder."""


def _rename(old: Path, new: Path) -> None:
    """Renames a file, over an earlier one, or a folder.

    Raises:
        OSError: the volume cannot; the message says so.
    """
    try:
        os.replace(old, new)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        remedy = "the volume must be able to rename files over others, and folders; use a disk or NFS"
        raise OSError(error.errno, f"{error.strerror}: {remedy}", str(new)) from error


NO_HARD_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a volume without hard links answers, such as a mount of an object store, or to one too many of them."""


def rename_new(path: Path, name: Path) -> None:
    """Renames a file to a name that is free.

    Raises:
        FileExistsError: the name is taken; nothing has changed.
    """
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # takes the name
        os.replace(path, name)
    else:
        path.unlink()


def delete_unfinished(*folders: Path) -> None:
    """Deletes temporary files that killed processes left in folders; no process may be writing there."""
    for folder in folders:
        for path in folder.glob(".*.*"):
            if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name) and path.is_file():
                path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes a value as JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    return parse_json(read_bytes(path), str(path))


def parse_json(text: bytes, name: str) -> Any:
    """Parses the content of a JSON file.

    Args:
        text: the content, in UTF-8.
        name: the name of the file, for error messages.

    Raises:
        ValueError: the content is not JSON.
    """
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise ValueError(f"{name} must be a JSON file, got {error}") from error


def read_object(path: Path, /, **fields: type) -> dict[str, Any]:
    """Reads a JSON object that must have some fields; see `parse_object`."""
    return parse_object(read_bytes(path), str(path), **fields)


def read_bytes(path: Path) -> bytes:
    """Reads a small file; retries if another machine replaced it meanwhile, which NFS reports as a stale handle."""
    for _ in range(2):
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_bytes()


def parse_object(text: bytes, name: str, /, **fields: type) -> dict[str, Any]:
    """Parses a JSON object that must have some fields.

    Args:
        text: the content, in UTF-8.
        name: the name of the file, for error messages.
        fields: the type of every required field. A float must be finite, and may be written as an integer.

    Raises:
        ValueError: the content is not a JSON object, or a field is missing or has another type; the message names it.
    """
    content = parse_json(text, name)
    if not isinstance(content, dict):
        raise ValueError(f"{name} must be a JSON object, got a {type(content).__name__}: it is damaged, or not of kws")
    for field, kind in fields.items():
        value = content.get(field)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = content[field] = float(value)
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            found = repr(content[field])[:80] if field in content else "none"
            raise ValueError(f"{name} must have {field} ({kind.__name__}), got {found}: it is damaged, or not of kws")
    return content


def sync_folder(folder: Path) -> None:
    """Makes renames within a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # mounts of object stores do not support it
            raise
    finally:
        os.close(descriptor)


def is_complete(folder: Path) -> bool:
    """Tells whether a folder holds its manifest.json, which is written last.

    The folder is listed, as an NFS client may cache for a minute that a file it looked up by name did not exist.
    """
    try:
        with os.scandir(folder) as entries:
            return any(entry.name == MANIFEST and entry.is_file() for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def build_folder(folder: Path, build: Callable[[Path], None]) -> bool:
    """Builds a folder under a temporary name, then renames it; does nothing if the folder is complete.

    If two processes build the same folder, the second waits for the first and finds it complete. Remains of killed
    processes are deleted first.

    Args:
        folder: the folder to build.
        build: function that fills the empty folder it is given, and must write a manifest.json.

    Returns:
        Whether the folder was built by this call.
    """
    with lock(folder):
        if is_complete(folder):
            return False
        for left in folder.parent.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(left)
        if folder.exists():
            shutil.rmtree(folder)
        staging = folder.parent / f".{folder.name}.partial-{secrets.token_hex(4)}"
        staging.mkdir()
        try:
            build(staging)
            assert is_complete(staging), f"{staging} has no {MANIFEST}"
            os.sync()  # all files at once: an fsync for each of 4,000 recordings took 4 s, this 0.1 s
            _rename(staging, folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return True


class Busy(ValueError):
    """Raised if another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Waits for the lock `.<name>.lock` beside a path, and holds it for the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.parent / f".{path.name}.lock", math.inf):
        yield


@contextlib.contextmanager
def hold(path: Path, seconds: float) -> Iterator[None]:
    """Holds a lock file for the block. The kernel releases the lock of a process that died.

    On a volume without file locks (some mounts of NFS and of object stores) a second file beside it is the lock.

    Args:
        path: the lock file, which is never deleted.
        seconds: how long to wait for another process that holds it; a log line says so.

    Raises:
        Busy: the other process still held it after that.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:  # made by another user of the group; reading is enough for a lock
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # it may not be made here
            raise error from None
    try:
        try:
            _wait(lambda: _flock(descriptor), path, seconds)
            by_name: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            by_name = _hold_by_name(path.with_name(f"{path.name}-held"), seconds)
        with by_name:
            yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(take: Callable[[], bool], path: Path, seconds: float) -> None:
    """Calls `take`, with back-off, until it returns true.

    Raises:
        Busy: it did not within `seconds`.
    """
    end = time.monotonic() + seconds
    pause, said = 0.01, False
    while not take():
        if time.monotonic() >= end:
            raise Busy(f"{path} must be held by one process at a time, got a second; wait until the first has ended")
        if pause >= 0.5 and not said:
            log.info("waiting for another process, which holds %s", path)
            said = True
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


@contextlib.contextmanager
def _hold_by_name(path: Path, seconds: float) -> Iterator[None]:
    """Holds a lock by creating a file, which only one process can do, and writing heartbeats to it.

    Others recognize a dead holder by content that no longer changes, not by clocks, which differ between machines.
    """
    me = f"{os.uname().nodename} {os.getpid()} {secrets.token_hex(4)}"
    seen, since = b"", time.monotonic()

    def take() -> bool:
        nonlocal seen, since
        with contextlib.suppress(FileExistsError):
            with open(path, "xb") as file:
                file.write(me.encode())
            return True
        with contextlib.suppress(FileNotFoundError):
            content = read_bytes(path)
            if content != seen:
                seen, since = content, time.monotonic()
            elif time.monotonic() - since > 3 * BEAT_SECONDS:
                gone = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
                os.rename(path, gone)  # succeeds in only one of the waiting processes
                if read_bytes(gone) != seen:  # another process was faster, and this is already its lock
                    with contextlib.suppress(FileExistsError):
                        rename_new(gone, path)
                gone.unlink(missing_ok=True)
        return False

    def is_mine() -> bool:
        """Tells whether the lock was not taken over, as from a process that was suspended."""
        try:
            return read_bytes(path).startswith(me.encode())
        except FileNotFoundError:
            return False

    _wait(take, path, seconds)
    done = threading.Event()

    def beat() -> None:
        beats = 0
        while True:
            with contextlib.suppress(OSError):
                if is_mine():
                    with path.open("r+b") as file:  # in place, so that a full disk does not matter
                        file.write(f"{me} {beats:09}".encode())
            beats += 1
            if done.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if is_mine():
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Returns the free bytes of the disk that holds a folder, or will hold it once it exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def human_bytes(num_bytes: float) -> str:
    """Formats a number of bytes, as in 2.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
