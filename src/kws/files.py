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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def is_full(error: BaseException) -> bool:
    """Tells whether an error says that a disk, or a quota of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


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
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def delete_unfinished(*folders: Path) -> None:
    """Deletes temporary files that killed processes left in folders; no process may be writing there."""
    for folder in folders:
        for path in folder.glob(".*.*"):
            if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name) and path.is_file():
                path.unlink(missing_ok=True)


def write(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a text, in UTF-8, or bytes, atomically."""
    with atomic_write(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


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
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, name: str) -> Any:
    """Parses the content of a JSON file, in UTF-8; `name` is that of the file, for error messages.

    Raises:
        ValueError: the content is not JSON.
    """
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise ValueError(f"{name} must be a JSON file, got {error}") from error


def read_object(path: Path, /, **fields: type) -> dict[str, Any]:
    """Reads a JSON object that must have some fields; see `parse_object`."""
    return parse_object(path.read_bytes(), str(path), **fields)


def parse_object(text: bytes, name: str, /, **fields: type) -> dict[str, Any]:
    """Parses a JSON object that must have some fields; see `parse_json`.

    Each field has a type. A float must be finite, and may be written as an integer.

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
    processes are deleted first. `build` fills the empty folder that it is given, and must write a manifest.json.

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
            staging.rename(folder)
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
def hold(path: Path, seconds: float, rule: str = "") -> Iterator[None]:
    """Holds a lock file for the block. The kernel releases the lock of a process that died.

    Args:
        path: the lock file, which is never deleted.
        seconds: how long to wait for another process that holds it; a log line says so.
        rule: what one process at a time must do, as the error says it (default: "<path> must be held").

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
        end = time.monotonic() + seconds
        pause, said = 0.01, False
        while not _flock(descriptor):
            if time.monotonic() >= end:
                rule = rule or f"{path} must be held"
                raise Busy(f"{rule} by one process at a time, got a second; wait until the first has ended")
            if pause >= 0.5 and not said:
                log.info("waiting for another process, which holds %s", path)
                said = True
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    # Without Python's buffer: two thirds of the time for a clip.
    with path.open("rb", buffering=0) as file:
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
