"""What a file is, by its first bytes: a name for messages, and what to do if something else was expected."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

START = 2048
"""How many of the first bytes of a file tell what it is."""

ACQUISITION = b'{"protected":'
"""Begin of a file of Edge Impulse's data acquisition format in JSON."""

REDOWNLOAD = "download the file itself, not the page that shows it"


@dataclass(frozen=True)
class Kind:
    """What a file is."""

    name: str
    """Such as "an MP4 file"."""
    is_audio: bool = False
    is_archive: bool = False
    remedy: str = ""
    """What to do if a recording or an archive was expected."""


def _audio(name: str) -> Kind:
    return Kind(name, is_audio=True)


def _archive(name: str, remedy: str = "unpack it") -> Kind:
    return Kind(name, is_archive=True, remedy=remedy)


_TABLE = "give the folder that holds it together with the recordings"

_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (8, b"WAVE", _audio("a WAV file")),
    (8, b"AIF", _audio("an AIFF file")),
    (0, b".snd", _audio("an AU file")),
    (0, b"caff", _audio("a CAF file")),
    (0, b"riff\x2e\x91\xcf\x11", _audio("a W64 file")),
    (0, b"fLaC", _audio("a FLAC file")),
    (0, b"OggS", _audio("an Ogg file")),
    (0, b"ID3", _audio("an MP3 file")),
    (4, b"ftyp3g", _audio("a 3GP file")),
    (4, b"ftyp", _audio("an MP4 file")),
    (4, b"moov", _audio("an MP4 file")),
    (4, b"mdat", _audio("an MP4 file")),
    (0, b"\x1a\x45\xdf\xa3", _audio("a WebM or Matroska file")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _audio("a WMA file")),
    (0, b"#!AMR", _audio("an AMR file")),
    (0, b"wvpk", _audio("a WavPack file")),
    (0, b"MAC ", _audio("a Monkey's Audio file")),
    (0, b"NIST_1A", _audio("a SPHERE file")),
    (0, ACQUISITION, _audio("a sample of Edge Impulse")),
    (0, b"\x1f\x8b", _archive("a gzip file")),
    (0, b"BZh", _archive("a bzip2 file")),
    (0, b"\xfd7zXZ\0", _archive("an xz file")),
    (0, b"\x28\xb5\x2f\xfd", _archive("a Zstandard file")),
    (0, b"7z\xbc\xaf\x27\x1c", _archive("a 7z archive")),
    (0, b"PK\3\4", _archive("a zip archive")),
    (0, b"PK\5\6", _archive("an empty zip archive")),
    (257, b"ustar", _archive("a tar archive")),
    (0, b"Rar!\x1a\x07", Kind("a RAR archive", remedy="unpack it and give the folder, or pack it as .zip or .tar.gz")),
    (0, b"PAR1", Kind("a Parquet file", remedy="put it in a folder of its own, and give the folder")),
    (0, b"ARROW1", Kind("an Arrow file", remedy="save it as Parquet, and give its folder")),
    (0, b"\xff\xff\xff\xff", Kind("an Arrow stream", remedy="save it as Parquet, and give its folder")),
    (0, b"%PDF", Kind("a PDF document")),
    (0, b"\x89PNG", Kind("a PNG picture")),
    (0, b"\xff\xd8\xff", Kind("a JPEG picture")),
    (0, b"GIF8", Kind("a GIF picture")),
    (0, b"\x89HDF", Kind("an HDF5 file")),
    (0, b"\x93NUMPY", Kind("a NumPy array")),
    (0, b"SQLite format 3", Kind("an SQLite database")),
    (0, b"\x7fELF", Kind("a program")),
    (0, b"MZ", Kind("a program of Windows")),
    (0, b"RIFF", _audio("a RIFF file")),
    (0, b"FORM", _audio("an IFF file")),
)

_LFS = Kind(
    "a pointer of Git LFS, not the file itself",
    remedy="run `git lfs pull` in the clone; of an address of GitHub, the file lies at media.githubusercontent.com",
)

_ONNX = re.compile(rb"\x08[\x01-\x20](\x12[\x01-\x40][\x20-\x7e]+|\x3a|\x42)")

_PAGES = (
    (b"accounts.google.com", "a page of Google that asks to sign in", "share the file with everyone who has the link"),
    (
        b"google drive",
        "a page of Google Drive",
        "download the file in a browser, or with `gdown`, and give its path: Drive asks before it sends a large file",
    ),
    (
        b"drive.google.com",
        "a page of Google Drive",
        "download the file in a browser, or with `gdown`, and give its path",
    ),
    (b"dropbox", "a page of Dropbox", "end the address in dl=1 instead of dl=0"),
    (b"github", "a page of GitHub", "use the address behind its button Raw: /raw/ instead of /blob/"),
    (b"huggingface", "a page of the Hugging Face Hub", "use hf://datasets/<organisation>/<name>"),
    (b"onedrive", "a page of OneDrive", "download the file in a browser, and give its path"),
    (b"sharepoint", "a page of SharePoint", "download the file in a browser, and give its path"),
    (b'type="password"', "a page that asks to sign in", "use an address that needs no sign-in, or download it first"),
    (b"sign in", "a page that asks to sign in", "use an address that needs no sign-in, or download it first"),
    (b"log in", "a page that asks to sign in", "use an address that needs no sign-in, or download it first"),
    (b"login", "a page that asks to sign in", "use an address that needs no sign-in, or download it first"),
)
"""What in a web page tells whose it is, and what to do."""


def kind_of(start: bytes, size: int | None = None) -> Kind:
    """Tells what a file is by its first bytes.

    Args:
        start: the first START bytes, or all.
        size: size of the file in bytes, if known; it is part of the name of what is not recognized.
    """
    if not start:
        return Kind("an empty file", remedy="record or download it again")
    if (known := kind_by_magic(start)) is not None:
        return known
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return _LFS
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0:
        return _audio("an AAC file")
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0 and start[1] & 0x06:
        return _audio("an MP3 file")
    if _ONNX.match(start):
        return Kind("an ONNX model", remedy="a model is given to --init or --model, recordings to --source")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    low = text[:START].lower()
    if low.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (low.startswith(b"<") and b"<html" in low):
        return _page(start)
    if low.startswith((b"<?xml", b"<error")):
        code = re.search(rb"<Code>([\w ]{1,60})</Code>", start)
        said = f" with the error {code[1].decode()}" if code else ""
        return Kind(f"an XML document{said}", remedy="check the address and who may read it")
    if not any(start):
        return Kind("nothing but zeros", remedy="copy or download it again")
    if not _is_text(start):
        return Kind("a file of an unknown kind" + ("" if size is None else f" of {size:,} bytes"))
    if text.startswith((b"{", b"[")):
        return Kind("a JSON file", remedy=_TABLE)
    lines = text.splitlines()
    if len(lines) > 1 and any(0 < lines[0].count(mark) == lines[1].count(mark) for mark in (b"\t", b",")):
        return Kind("a table in text (CSV or TSV)", remedy=_TABLE)
    first = lines[0][:60].decode("utf-8", "replace") if lines else ""
    return Kind(f"a text file that begins with {first!r}" if first else "a text file")


def kind_by_magic(start: bytes) -> Kind | None:
    """Tells what a file is if it begins with bytes that only such files have; None otherwise."""
    return next((kind for offset, magic, kind in _MAGIC if start[offset : offset + len(magic)] == magic), None)


def kind_of_file(path: Path) -> Kind:
    """Tells what a file is.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return kind_of(file.read(START * 32), os.fstat(file.fileno()).st_size)


def is_audio_file(path: str | Path) -> bool:
    """Tells by its first bytes whether a file, whatever its name, is a recording."""
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(START)).is_audio
    except OSError:
        return False


def _page(start: bytes) -> Kind:
    low = start.lower()
    title = re.search(rb"<title[^>]*>\s*([^<]{1,80})", start, re.IGNORECASE)
    said = " ".join(title[1].decode("utf-8", "replace").split()) if title else ""
    for mark, name, remedy in _PAGES:
        if mark in low:
            return Kind(f"{name} ({said!r})" if said else name, remedy=remedy)
    return Kind(f"a web page ({said!r})" if said else "a web page", remedy=REDOWNLOAD)


def _is_text(start: bytes) -> bool:
    if any(byte < 9 for byte in start[:START]):
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return len(start) >= START > 4 > len(start) - error.start  # a letter that is cut at the end
    return True
