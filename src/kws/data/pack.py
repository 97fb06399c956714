"""The recordings of a large data set in one tar archive, so that no million small files lie on a volume.

The folder `.recordings` of a data set holds recordings.tar, names.npz (see `kws.data.index.pooled`) and places.npy, the
place of each recording, in the order of keys by which it is found. Any thread of any pod reads what it needs there.
"""

import functools
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from kws import files
from kws.data.index import Ints, Strings, each_of, pooled, strings, unpooled
from kws.data.names import is_recording

FOLDER = ".recordings"
TAR, NAMES, PLACES = "recordings.tar", "names.npz", "places.npy"

PLACE = np.dtype([("key", "V16"), ("offset", "<i8"), ("size", "<i8"), ("digest", "V32")])
"""Of a recording: the key of its name, where it is in the archive, and the SHA-256 of its content."""

MANY = 50_000
"""A data set of more recordings is packed."""

CHUNK = 1 << 20


def is_packed(name: str) -> bool:
    """Tells whether a file of a large data set is packed: a recording, but none of noise or of running speech."""
    return is_recording(name) and not name.startswith("_") and "/_" not in name


class Pack:
    """Recordings that were packed, read by their names."""

    def __init__(self, folder: Path) -> None:
        """Opens the pack of a data set that has one."""
        self.folder = folder
        self.places = np.load(folder / FOLDER / PLACES, mmap_mode="r")
        self._tar = (folder / FOLDER / TAR).open("rb")

    @staticmethod
    def of(folder: Path) -> "Pack | None":
        """Returns the pack of a data set; None if its recordings are files."""
        try:
            status = os.stat(f"{folder}/{FOLDER}/{PLACES}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _opened(folder, status.st_mtime_ns, status.st_ino)

    def names(self) -> Iterator[str]:
        """Yields the names of all recordings."""
        with np.load(self.folder / FOLDER / NAMES) as stored:
            yield from each_of(stored["ends"], stored["pool"])

    def rows(self, names: Strings) -> Ints:
        """Returns the row of each recording in `places`, or -1 for a file that is not packed, [names]."""
        keys, known = _keys(names), self.places["key"]
        rows = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[rows] == keys, rows, -1)

    def read(self, name: str) -> bytes | None:
        """Returns a recording, or None if it is not packed."""
        (row,) = self.rows(strings([name]))
        if row < 0:
            return None
        place = self.places[row]
        return os.pread(self._tar.fileno(), int(place["size"]), int(place["offset"]))

    def strip(self, prefix: str) -> None:
        """Takes what all names begin with off them."""
        names = strings(self.names())
        places = self.places[self.rows(names)]
        names = strings(name.removeprefix(prefix) for name in names)
        _write(self.folder, names, places)


@functools.lru_cache(maxsize=64)
def _opened(folder: Path, changed: int, inode: int) -> Pack:
    return Pack(folder)


class Packer:
    """Packs the recordings of a data set, once there are many."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_recordings = 0
        self._tar: IO[bytes] | None = None
        self._names, self._ends, self._places = bytearray(), bytearray(), bytearray()

    def takes(self, name: str) -> bool:
        """Counts a recording, and tells whether it is to be added rather than written as a file."""
        if not is_packed(name):
            return False
        self._num_recordings += 1
        if self._tar is None and self._num_recordings > MANY:
            shutil.rmtree(self.folder / FOLDER, ignore_errors=True)
            (self.folder / FOLDER).mkdir()
            self._tar = (self.folder / FOLDER / TAR).open("xb")
            self._add_files()
        return self._tar is not None

    def add(self, name: str, source: IO[bytes], size: int) -> int:
        """Adds a recording of `size` bytes, in place of an earlier one of the same name; returns the missing bytes."""
        assert self._tar is not None
        self._tar.write(_header(name, size))
        offset, digest, left = self._tar.tell(), hashlib.sha256(), size
        while left and (chunk := source.read(min(CHUNK, left))):
            self._tar.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
        self._tar.write(bytes(-size % tarfile.BLOCKSIZE))
        self._places += np.array((_key(name), offset, size, digest.digest()), PLACE).tobytes()
        self._names += name.encode()
        self._ends += len(self._names).to_bytes(8, "little")
        return left

    def close(self) -> None:
        """Writes where everything is, if there are so many recordings that they are packed."""
        if self._tar is None:
            return
        self._add_files()
        self._tar.write(bytes(2 * tarfile.BLOCKSIZE))
        self._tar.flush()
        os.fsync(self._tar.fileno())
        self._tar.close()
        names = unpooled(np.frombuffer(self._ends, "<i8"), np.frombuffer(self._names, np.uint8))
        _write(self.folder, names, np.frombuffer(self._places, PLACE))

    def _add_files(self) -> None:
        """Packs the recordings that lie in the folder, and deletes them."""
        for name in list(_recordings_below(self.folder)):
            path = self.folder / name
            with path.open("rb") as file:
                self.add(name, file, path.stat().st_size)
            path.unlink()


def opened(folder: Path, file: str) -> Path | bytes:
    """Returns a recording of a data set by its name: its content if it is packed, otherwise its path.

    Raises:
        OSError: the archive cannot be read.
    """
    part = "/".join(file.split("/")[:2]) if file.startswith("../") else ""
    pack = Pack.of(folder / part if part else folder)
    content = pack.read(file[len(part) + 1 :] if part else file) if pack else None
    return folder / file if content is None else content


def by_part(names: Strings) -> Iterator[tuple[str, Ints, Strings]]:
    """Yields each part whose files are named (empty: the data set itself), the rows, and the names below the part."""
    of_others = np.strings.startswith(names, "../")
    if not of_others.any():
        yield "", np.arange(len(names)), names
        return
    own, rest = np.flatnonzero(~of_others), np.flatnonzero(of_others)
    if len(own):
        yield "", own, names[own]
    while len(rest):
        part = "/".join(names[rest[0]].split("/")[:2])
        of_part = np.strings.startswith(names[rest], f"{part}/")
        yield part, rest[of_part], strings(name[len(part) + 1 :] for name in names[rest[of_part]])
        rest = rest[~of_part]


def not_packed(folder: Path, names: Strings) -> Strings:
    """Returns those of some names below a data set that are files."""
    pack = Pack.of(folder)
    return names if pack is None else names[pack.rows(names) < 0]


def size_of(folder: Path, names: Strings) -> int:
    """Returns the size of recordings, each named once, in bytes."""
    total = 0
    for part, _, there in by_part(names):
        if pack := Pack.of(folder / part):
            rows = pack.rows(there)
            total += int(pack.places["size"][rows[rows >= 0]].sum())
        total += sum(os.stat(f"{folder}/{part}/{name}").st_size for name in not_packed(folder / part, there))
    return total


def _write(folder: Path, names: Strings, places: npt.NDArray[np.void]) -> None:
    """Writes names and places, each [recordings]; of several with one name the last counts."""
    keys = _keys(names)
    order = np.argsort(keys, kind="stable")
    order = order[np.append(keys[order][1:] != keys[order][:-1], np.True_)[: len(order)]]
    places = places[order].copy()
    places["key"] = keys[order]
    ends, pool = pooled(names[np.sort(order)])
    with files.atomic_write(folder / FOLDER / NAMES) as file:
        np.savez(file, ends=ends, pool=pool)
    with files.atomic_write(folder / FOLDER / PLACES) as file:
        np.save(file, places)


def _keys(names: Strings) -> npt.NDArray[np.void]:
    keys = bytearray()
    for name in names:
        keys += _key(name)
    return np.frombuffer(keys, PLACE["key"])


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8")


def _recordings_below(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        yield from (name for one in names if is_packed(name := (below / one).as_posix()))
