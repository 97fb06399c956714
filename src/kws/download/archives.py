"""Unpacks untrusted archives.

This does not depend on the extraction filters of `tarfile`, which early releases of Python 3.11 lack: regular files are
written by name into folders made here, symbolic links and devices are never created, and no decompression bomb fills
the memory or the disk.
"""

import bz2
import contextlib
import errno
import gzip
import importlib.util
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from kws import files
from kws.data.kinds import kind_of_file
from kws.data.listing import NAMED
from kws.data.names import THEIR_MANIFEST, is_utf8
from kws.data.pack import Packer
from kws.progress import progress
from kws.text import printable

SUFFIXES = (
    ".tar.gz", ".tgz", ".tar", ".zip", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z",
)  # fmt: skip


def _zstd(file: IO[bytes]) -> Any:
    _require_package("backports.zstd", "a Zstandard file", "backports-zstd")
    from backports import zstd

    # As much memory as `zstd --long=27` needs; a hostile file could ask for gigabytes.
    return zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: 27})


COMPRESSIONS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""The reader of a compressed file, by its magic bytes."""

ZIP = (b"PK\3\4", b"PK\5\6")

SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"

EXTRACTED = 2
"""Bytes of disk needed per byte of archive: 16-bit speech compresses to 0.6 to 0.7 of its size."""

RATIO = 50
"""Largest expansion of an archive. Recordings expand to 1.5 times, clips padded with zeros to 10 times their size."""

ALWAYS = 1 << 30
"""Bytes to which an archive of any size may expand."""

HEADER = 1 << 22
"""Largest size in bytes of the headers of one tar member, which include long names and the map of a sparse file."""

CHUNK = 1 << 18

_NO_FILE = "it is no regular file"


class ArchiveError(ValueError):
    """Raised for an archive that is damaged or must not be trusted."""


@dataclass(kw_only=True)
class Skipped:
    """Members of an archive that were not written."""

    num_members: int = 0
    first: dict[str, str] = field(default_factory=dict)
    """The first of them, with the reasons."""

    def add(self, name: str, reason: str) -> None:
        """Counts a member, and keeps its name and reason if it is among the first."""
        self.num_members += 1
        if len(self.first) < NAMED:
            self.first[printable(name)[:200]] = reason


def unpack(
    archive: Path, folder: Path, source: str, name: str, packer: Packer | None = None, below: str = ""
) -> Skipped:
    """Writes the regular files of an archive, tar (compressed or not), zip or 7z, into a folder, and packs many.

    Hidden files are skipped silently, as macOS packs a ._name beside every file.

    Args:
        archive: the file.
        folder: an empty folder.
        source: name of the archive in error messages.
        name: name of the archive on the progress bar.
        packer: receives the recordings once there are many; None: one of the folder's own.
        below: what it puts in front of their names.

    Returns:
        The other members that were skipped.

    Raises:
        ArchiveError: the archive is damaged, has members outside its folder, or expands beyond the limits.
        OSError: the disk is full or broken.
    """
    size = archive.stat().st_size
    writer = _Writer(folder, source, max(ALWAYS, RATIO * size), packer or Packer(folder), below)
    with archive.open("rb") as file, progress(size, "B", f"extract {name}", scale=True) as bar:
        try:
            start = file.read(6)
            if start[:4] in ZIP:
                _unpack_zip(file, writer, bar)
            elif start == SEVEN_ZIP:
                _unpack_7z(file, writer, bar)
            else:
                _unpack_tar(file, writer, bar)
        except ArchiveError:
            raise
        except Exception as error:  # the readers raise nearly every kind for some damage
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # an error of the disk; a damaged archive causes at most EINVAL, by a seek to a negative offset
            raise ArchiveError(_refusal(archive, source, error)) from error
    if packer is None:
        writer.packer.close()
    return writer.skipped


def _refusal(archive: Path, source: str, error: Exception) -> str:
    """Says what a file is that cannot be unpacked."""
    kind = kind_of_file(archive)
    what = f"which is {kind.name} of {files.human_bytes(archive.stat().st_size)}"
    if not kind.is_archive and kind.remedy:
        return f"source must be an archive or a folder, got {source}, {what}: {kind.remedy}"
    if kind.is_audio:
        return f"source must be an archive or a folder, got {source}, {what}: give the folder above its word's folder"
    said = str(error) or type(error).__name__
    rule = f"be a whole archive ({', '.join(SUFFIXES)})"
    return f"source must {rule}, got {source}, {what}: {said}; download or pack it again"


def _require_package(module: str, what: str, package: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ArchiveError(f"the package {package} must be installed to read {what}, got none: pip install {package}")


def decompress(file: IO[bytes]) -> IO[bytes]:
    """Returns a reader of the content under gzip, bzip2, xz or Zstandard, or the file itself if not compressed."""
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    for magic, opener in COMPRESSIONS.items():
        if start.startswith(magic):
            return cast(IO[bytes], opener(fileobj=file) if opener is gzip.GzipFile else opener(file))
    return file


def require_space(num_bytes: int, folder: Path) -> None:
    """Checks that the disk of a folder has enough free space.

    Raises:
        ValueError: it has less than `num_bytes`.
    """
    free = files.free_bytes(folder)
    if num_bytes > free:
        raise ValueError(
            f"data_root must have {files.human_bytes(num_bytes)} of free disk space for the recordings, got "
            f"{files.human_bytes(free)} in {folder}: free some, or choose a data_root on another disk"
        )


class _Writer:
    """Writes members into a folder, up to a limit of bytes."""

    def __init__(self, folder: Path, source: str, most: int, packer: Packer, below: str) -> None:
        self.folder = folder
        self.packer = packer
        self.below = below
        self.source = source
        self.most = most
        """Bytes to which the archive may expand."""
        self.written = 0
        self.skipped = Skipped()
        self.made: set[Path] = set()

    def claim(self, num_bytes: int) -> None:
        """Counts bytes that are about to be written, and refuses an archive that exceeds the limit."""
        self.written += num_bytes
        self.check(self.written)

    def check(self, num_bytes: int) -> None:
        if num_bytes > self.most:
            raise ArchiveError(
                f"source must expand to at most {RATIO} times its size (or {files.human_bytes(ALWAYS)}) when it is "
                f"unpacked, got {self.source}, which expands to {files.human_bytes(num_bytes)} or more: do not use it"
            )

    def place(self, name: str) -> Path | None:
        """Returns the path to which a member is written, or None if it is skipped."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ArchiveError(
                f"source must be an archive whose members stay in its folder, got {self.source} with "
                f"{printable(name)[:200]}: do not use it, or pack its recordings again"
            )
        if not parts or any(part.startswith(".") for part in parts):
            return None
        if not is_utf8(name) or "\0" in name:
            self.skipped.add(name, "its name is not UTF-8")
        elif files.MANIFEST in parts[:-1]:
            self.skipped.add(name, "no folder may have the name of the manifest")
        elif parts[-1] == files.MANIFEST:
            return self.folder.joinpath(*parts[:-1], THEIR_MANIFEST)
        else:
            return self.folder.joinpath(*parts)
        return None

    def write(self, name: str, source: IO[bytes], size: int) -> None:
        """Writes a regular file of `size` bytes, unless its name is skipped."""
        path = self.place(name)
        if path is None:
            return
        self.claim(size)
        packed = self.below + path.relative_to(self.folder).as_posix()
        if self.packer.takes(packed):
            if left := self.packer.add(packed, source, size):
                raise EOFError(f"{printable(name)} ends {left} bytes before its end")
            return
        with self._may_fail(name):
            self._make_room(path)
            with path.open("xb") as file:
                left = size
                while left and (chunk := source.read(min(CHUNK, left))):
                    file.write(chunk)
                    left -= len(chunk)
            if left:
                raise EOFError(f"{printable(name)} ends {left} bytes before its end")

    def create(self, name: str) -> IO[bytes] | None:
        """Opens a regular file for writing, or returns None if its name is skipped; the caller claims its bytes."""
        path = self.place(name)
        if path is not None:
            with self._may_fail(name):
                self._make_room(path)
                return path.open("xb")
        return None

    def link(self, name: str, target_name: str) -> None:
        """Writes a hard link to another file of the archive as a copy of it."""
        path, target = self.place(name), self.place(target_name)
        if path is None:
            return
        if target is None or target == path or not target.is_file():
            self.skipped.add(name, f"a hard link to {printable(target_name)[:100]}, which is not there")
            return
        with self._may_fail(name):
            self._make_room(path)
            self.claim(target.stat().st_size)
            shutil.copyfile(target, path)

    def _make_room(self, path: Path) -> None:
        """Makes the folder of a file, and deletes an earlier member of the same name."""
        if path.parent not in self.made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.made.add(path.parent)
        path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _may_fail(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            self.skipped.add(name, "its name is that of a folder, or its folder that of a file")
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                raise
            self.skipped.add(name, f"its name cannot be written ({error.strerror})")


class _TarStream:
    """The stream from which `tarfile` reads, which limits the size of headers and members, and only moves forward."""

    def __init__(self, stream: IO[bytes], writer: _Writer) -> None:
        self.stream = stream
        self.writer = writer
        self.budget = HEADER
        self.last = b""
        """The result of the last read."""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.budget:
            raise tarfile.ReadError(f"the header of a member has more than {files.human_bytes(HEADER)}")
        self.budget -= size
        self.last = self.stream.read(size)
        return self.last

    def seek(self, position: int) -> int:
        if position < self.stream.tell():
            raise tarfile.ReadError("a member has a negative size")
        self.writer.check(position)
        return self.stream.seek(position)

    def tell(self) -> int:
        return self.stream.tell()


def _unpack_tar(file: IO[bytes], writer: _Writer, bar: Any) -> None:
    data = decompress(file)
    if data is not file and data.read(2) == b"\x1f\x8b":
        data = cast(IO[bytes], gzip.GzipFile(fileobj=data))  # some servers compress a .tar.gz a second time
    data.seek(0)
    stream = _TarStream(data, writer)
    with tarfile.open(
        fileobj=cast(IO[bytes], stream), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as members:
        while (member := members.next()) is not None:
            members.members.clear()  # type: ignore[attr-defined]  # or a million members would fill the memory
            if member.isreg():
                source = members.extractfile(member)
                assert source is not None
                stream.budget = member.size + CHUNK
                writer.write(member.name, source, member.size)
            elif member.islnk():
                writer.link(member.name, member.linkname)
            elif not member.isdir():
                writer.skipped.add(member.name, f"it is {_KINDS.get(member.type, 'of an unknown kind')}")
            stream.budget = HEADER
            bar.update(file.tell() - bar.n)
    # tarfile mistakes a damaged header for the end, which really is a block of zeros.
    if len(stream.last) != tarfile.BLOCKSIZE or any(stream.last):
        raise tarfile.ReadError("it has no end, or a damaged header")
    # Reading on to the end of the file makes gzip and the others verify their checksum.
    while data.read(CHUNK):
        writer.check(data.tell())


_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def _unpack_zip(file: IO[bytes], writer: _Writer, bar: Any) -> None:
    with zipfile.ZipFile(file) as members:
        infos = members.infolist()
        # Members may overlap, and add up to petabytes in a zip bomb. No more than the stated size is read of each.
        writer.check(sum(info.file_size for info in infos))
        for info in infos:
            name = _zip_name(info, writer.source)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or name.endswith("/"):
                continue
            if info.flag_bits & 1:
                raise ArchiveError(f"source must be an archive without a password, got {writer.source}: pack it again")
            if kind not in (0, stat.S_IFREG):
                writer.skipped.add(name, "it is a symbolic link" if kind == stat.S_IFLNK else _NO_FILE)
                continue
            with members.open(info) as source:
                writer.write(name, source, info.file_size)
            bar.update(info.compress_size)


UNICODE_PATH = 0x7075
"""The extra field of a zip member with its name in UTF-8, beside one in the code page of the system that packed it."""


def _zip_name(info: zipfile.ZipInfo, source: str) -> str:
    """Returns the name of a member.

    Windows writes backslashes, and names in the code page of its language; macOS writes UTF-8 without setting the flag.

    Raises:
        ArchiveError: the name of a folder is in an unknown code page: it would be a wrong word.
    """
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        raw = info.orig_filename.encode("cp437")
        known = _unicode_path(info.extra, raw) or _utf8(raw)
        if known is None and not name.replace("\\", "/").rpartition("/")[0].isascii():
            raise ArchiveError(
                f"source must be a zip with names in UTF-8, got {source} with {printable(name)[:80]!r} in the code "
                "page of another language: pack it again (7-Zip: zip with the parameter cu=on, or as .7z), or unpack "
                "it where it was packed and give the folder"
            )
        name = known or name
    return name.replace("\\", "/")


def _utf8(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Returns the name in the Unicode Path field, if there is one that belongs to the raw name.

    Source: APPNOTE.TXT of PKWARE, 4.6.9: version 1, the CRC-32 of the raw name, the name in UTF-8.
    """
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(content) > 5 and content[0] == 1:
            (checksum,) = struct.unpack_from("<I", content, 1)
            if checksum == zlib.crc32(raw):
                return _utf8(content[5:])
    return None


def _unpack_7z(file: IO[bytes], writer: _Writer, bar: Any) -> None:
    _require_package("py7zr", "a 7z archive", "py7zr")
    import py7zr
    from py7zr.io import Py7zIO, WriterFactory

    file.seek(0)

    class Member(Py7zIO):
        """Receives the bytes of a member."""

        def __init__(self, target: IO[bytes] | None) -> None:
            self.target = target
            self.num_bytes = 0

        def write(self, data: bytes | bytearray) -> int:
            writer.claim(len(data))
            self.num_bytes += len(data)
            if self.target is not None:
                self.target.write(data)
            bar.update(file.tell() - bar.n)
            return len(data)

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def flush(self) -> None:
            pass

        def size(self) -> int:
            return self.num_bytes

        def close(self) -> None:
            if self.target is not None:
                self.target.close()

    class Factory(WriterFactory):
        """Opens the members by their names."""

        def create(self, filename: str) -> Member:
            name = Path(filename).relative_to(root).as_posix()
            return Member(None if name in left_out else writer.create(name))

    root, left_out = Path("/archive"), set()
    with py7zr.SevenZipFile(file) as archive:
        if archive.needs_password():
            raise ArchiveError(f"source must be an archive without a password, got {writer.source}: pack it again")
        writer.check(sum(member.uncompressed or 0 for member in archive.files))
        for member in archive.files:
            writer.place(member.filename)  # refuses a name outside of the folder, before anything is written
            if not member.is_directory and (member.is_symlink or member.is_junction or member.is_socket):
                writer.skipped.add(member.filename, "it is a symbolic link" if member.is_symlink else _NO_FILE)
                left_out.add(member.filename)
        archive.extract(root, factory=Factory())
