"""Archives, ordinary and hostile: what is written, what is left out, and what is refused."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import py7zr
import pytest
from backports import zstd

from kws import files
from kws.download import archives
from kws.download.archives import ArchiveError, Skipped, unpack
from kws.download.step import download

SOUND = b"RIFF" + bytes(range(256)) * 4


def tar(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    """Packs members as they are given; a regular one with SOUND."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if member.isreg():
                member.size = len(SOUND)
            archive.addfile(member, io.BytesIO(SOUND))
    return path


def member(name: str, type_: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type_, link
    return info


def opened(archive: Path, folder: Path) -> tuple[dict[str, bytes], Skipped]:
    """Unpacks an archive, and returns the files and what was left out."""
    folder.mkdir()
    skipped = unpack(archive, folder, str(archive), archive.name)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert all(not path.is_symlink() and (path.is_dir() or path.is_file()) for path in folder.rglob("*"))
    return found, skipped


def refused(archive: Path, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    with pytest.raises(ArchiveError) as caught:
        unpack(archive, folder, str(archive), archive.name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def code_page_zip(path: Path, names: dict[str, str], unicode_path: bool) -> Path:
    """A zip as Windows packs it: names in a code page, and in UTF-8 only in the Unicode Path field, or nowhere."""
    replaced = {}
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, encoding) in enumerate(names.items()):
            raw = name.encode(encoding)
            info = zipfile.ZipInfo(f"{number}" * len(raw))
            replaced[info.filename.encode()] = raw
            if unicode_path:
                content = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name.encode()
                info.extra = struct.pack("<HH", 0x9999, 2) + b"xx" + struct.pack("<HH", 0x7075, len(content)) + content
            archive.writestr(info, SOUND)
    content = path.read_bytes()
    for stand_in, raw in replaced.items():
        content = content.replace(stand_in, raw)
    path.write_bytes(content)
    return path


LANGUAGES = {"да/голос.wav": "cp866", "你好/一一.wav": "gbk", "はい/一.wav": "cp932", "été/a.wav": "cp850"}


def test_zip_of_windows_in_another_language_has_its_names_by_the_unicode_path_field(tmp_path: Path) -> None:
    found, _ = opened(code_page_zip(tmp_path / "a.zip", LANGUAGES, unicode_path=True), tmp_path / "out")
    assert found == dict.fromkeys(LANGUAGES, SOUND)


@pytest.mark.parametrize("name", LANGUAGES)
def test_zip_without_that_field_is_refused_before_it_makes_wrong_words(tmp_path: Path, name: str) -> None:
    archive = code_page_zip(tmp_path / "a.zip", {name: LANGUAGES[name]}, unicode_path=False)
    assert "in the code page of another language: pack it again (7-Zip:" in refused(archive, tmp_path / "out")


def test_seven_zip_is_read_with_its_folders_and_without_hidden_files(tmp_path: Path) -> None:
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.writestr(SOUND, "words/yes/a.wav")
        archive.writestr(SOUND * 1000, "words/да/b.wav")
        archive.writestr(SOUND, "words/yes/._a.wav")
        archive.writestr(b"{}", "words/manifest.json")
    found, skipped = opened(tmp_path / "a.7z", tmp_path / "out")
    expected = {"words/yes/a.wav": SOUND, "words/да/b.wav": SOUND * 1000, "words/source-manifest.json": b"{}"}
    assert found == expected
    assert not skipped.first


def test_seven_zip_that_is_hostile_damaged_or_locked_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr(SOUND * 100, "xx/secret")
    whole = path.read_bytes()
    with py7zr.SevenZipFile(path, "w", password="secret") as archive:
        archive.writestr(SOUND, "yes/a.wav")
    assert "without a password" in refused(path, tmp_path / "out")
    path.write_bytes(whole[: len(whole) // 2])
    assert "must be a whole archive" in refused(path, tmp_path / "out")
    with py7zr.SevenZipFile(path, "w", header_encryption=False) as archive:
        archive.header._initialized = False
        archive.writestr(SOUND, "yes/a.wav")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.write(tmp_path / "link", "yes/link.wav")
        archive.writestr(SOUND, "yes/a.wav")
    found, skipped = opened(path, tmp_path / "linked")
    assert found == {"yes/a.wav": SOUND}
    assert skipped.first == {"yes/link.wav": "it is a symbolic link"}


def test_seven_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS", 1 << 20)
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.writestr(bytes(1 << 24), "yes/a.wav")
    assert "must expand to at most" in refused(tmp_path / "a.7z", tmp_path / "out")


@pytest.mark.parametrize("wrapped", ["zip in tar", "tar in zip", "two in tar"])
def test_archive_in_an_archive_is_unpacked_once(tmp_path: Path, wrapped: str) -> None:
    inner = tar(tmp_path / "inner.tar.gz", member("yes/a.wav"), member("no/b.wav"), mode="w:gz")
    outer = tmp_path / "outer"
    if wrapped == "tar in zip":
        with zipfile.ZipFile(outer, "w") as archive:
            archive.write(inner, "data/inner.tar.gz")
            archive.writestr("data/README.txt", "hello")
    else:
        with tarfile.open(outer, "w") as opened_:
            if wrapped == "two in tar":
                for word in ("yes", "no"):
                    opened_.add(tar(tmp_path / f"{word}.tar", member("a.wav")), f"sets/{word}.tar")
            else:
                opened_.add(inner, "inner.tar.gz")
    folder = download(str(outer), "", tmp_path / "data")
    assert files.read_json(folder / files.MANIFEST)["words"] == {"no": 1, "yes": 1}
    assert not list(folder.rglob("*.tar*"))


def test_archive_in_an_archive_in_an_archive_is_refused_with_its_name(tmp_path: Path) -> None:
    first = tar(tmp_path / "first.tar", member("yes/a.wav"))
    for name, content in (("second.tar", first), ("third.tar", tmp_path / "second.tar")):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(content, content.name)
    with pytest.raises(ValueError, match=r"first\.tar"):
        download(str(tmp_path / "third.tar"), "", tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            b"<!DOCTYPE html><html><title>Sign in - Google Accounts</title>accounts.google.com",
            "page of Google that asks",
        ),
        (b"<html><title>Google Drive - Virus scan warning</title>", "a page of Google Drive .*gdown"),
        (b"<html><title>words.zip</title><script src='https://www.dropbox.com/x'>", "Dropbox.*dl=1"),
        (
            b"\n\n<!DOCTYPE html><html><title>me/words at main - GitHub</title>github",
            "GitHub .*/raw/ instead of /blob/",
        ),
        (b'<html><form><input type="password"></form></html>', "asks to sign in"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "the error AccessDenied.*check the address"),
        (b"PAR1" + bytes(100), "a Parquet file of 104 B: put it in a folder"),
        (b'{"audio_filepath": "a.wav", "text": "yes"}\n', "a JSON file .*give the folder"),
        (b"path\tsentence\na.mp3\tyes\nb.mp3\tno\n", r"a table in text \(CSV or TSV\) .*give the folder"),
        (b"\x08\x08\x12\x07pytorch\x1a\x062.11.0", "an ONNX model .*--init"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(50), "a RAR archive.*unpack it"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV file.*give the folder above"),
        (b"hello there\n", "a text file that begins with 'hello there'"),
        (bytes([3, 1, 4, 1, 5, 9, 2, 6, 0xFF, 0xFE]), "a file of an unknown kind of 10 bytes"),
        (b"", "an empty file"),
    ],
)
def test_what_is_no_archive_is_named_with_the_remedy(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "words.zip").write_bytes(content)
    with pytest.raises(ValueError, match=f"^source must be .*got .*words.zip, which is .*{found}"):
        download(str(tmp_path / "words.zip"), "", tmp_path / "data")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zst"])
def test_tar_is_read_whatever_it_is_called_and_however_compressed(tmp_path: Path, mode: str) -> None:
    members = [member("yes/a.wav"), member("./no/b.wav"), member("/no/c.wav")]
    archive = tar(tmp_path / "words.bin", *members, mode=mode.replace("zst", "w"))
    if mode == "zst":
        archive.write_bytes(zstd.compress(archive.read_bytes()))
    found, skipped = opened(archive, tmp_path / "out")
    assert found == {"yes/a.wav": SOUND, "no/b.wav": SOUND, "no/c.wav": SOUND}
    assert skipped == Skipped()


def test_links_devices_and_pipes_are_left_out_with_their_names(tmp_path: Path) -> None:
    archive = tar(
        tmp_path / "a.tar",
        member("yes/a.wav"),
        member("yes/dangling.wav", tarfile.SYMTYPE, "/nowhere"),
        member("yes/inside.wav", tarfile.SYMTYPE, "a.wav"),
        member("yes/lost.wav", tarfile.LNKTYPE, "yes/none.wav"),
        member("yes/self.wav", tarfile.LNKTYPE, "yes/self.wav"),
        member("yes/tty.wav", tarfile.CHRTYPE),
        member("yes/disk.wav", tarfile.BLKTYPE),
        member("yes/pipe.wav", tarfile.FIFOTYPE),
        member("yes/odd.wav", b"Z"),
    )
    found, skipped = opened(archive, tmp_path / "out")
    assert found == {"yes/a.wav": SOUND}
    assert skipped.num_members == 8
    assert skipped.first == {
        "yes/dangling.wav": "it is a symbolic link",
        "yes/inside.wav": "it is a symbolic link",
        "yes/lost.wav": "a hard link to yes/none.wav, which is not there",
        "yes/self.wav": "a hard link to yes/self.wav, which is not there",
        "yes/tty.wav": "it is a device",
        "yes/disk.wav": "it is a device",
        "yes/pipe.wav": "it is a pipe",
        "yes/odd.wav": "it is of an unknown kind",
    }


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    long = "/".join(["d" * 200] * 30)  # longer than PATH_MAX
    archive = tar(
        tmp_path / "a.tar",
        member("yes", tarfile.SYMTYPE, str(outside)),
        member("yes/a.wav"),
        member("no/up", tarfile.SYMTYPE, long + "/../" * 40 + "outside"),
        member("no/up/b.wav"),
        member("no/hard.wav", tarfile.LNKTYPE, str(outside / "c.wav")),
    )
    found, _ = opened(archive, tmp_path / "out")
    assert set(found) == {"yes/a.wav", "no/up/b.wav"}
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil.wav", "yes/../../evil.wav", "yes/.."])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_member_outside_its_folder_refuses_the_archive(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar(path, member("yes/a.wav"), member(name))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name.replace("/", "\\"), SOUND)
    assert "members stay in its folder" in refused(path, tmp_path)
    assert list(tmp_path.rglob("evil.wav")) == []


def test_hard_link_to_an_earlier_member_is_that_file(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", member("yes/a.wav"), member("yes/b.wav", tarfile.LNKTYPE, "./yes/a.wav"))
    found, skipped = opened(archive, tmp_path / "out")
    assert found == {"yes/a.wav": SOUND, "yes/b.wav": SOUND}
    assert skipped == Skipped()


def test_hard_links_count_as_the_copies_that_they_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar(tmp_path / "a.tar", member("yes/a.wav"), member("yes/b.wav", tarfile.LNKTYPE, "yes/a.wav"))
    monkeypatch.setattr(archives, "ALWAYS", 1500)
    monkeypatch.setattr(archives, "RATIO", 0)
    assert "expands to" in refused(archive, tmp_path / "again")


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["yes/a.wav", "yes/j\udce4.wav"], "yes/j\\udce4.wav"),
        (["yes/a.wav", "yes/" + "x" * 300 + ".wav"], "yes/" + "x" * 196),
        (["yes/a.wav", "yes/a.wav/b.wav"], "yes/a.wav/b.wav"),
        (["yes/a.wav", "yes"], "yes"),
        (["yes/a.wav", "manifest.json/b.wav"], "manifest.json/b.wav"),
        (["yes/a.wav", "/".join(["d" * 200] * 30)], ("d" * 200)),
    ],
    ids=["no UTF-8", "long", "file for a folder", "folder for a file", "manifest", "path longer than PATH_MAX"],
)
def test_name_that_cannot_be_written_is_left_out(tmp_path: Path, names: list[str], left: str) -> None:
    found, skipped = opened(tar(tmp_path / "a.tar", *map(member, names)), tmp_path / "out")
    assert found == {"yes/a.wav": SOUND}
    assert list(skipped.first) == [left]


def test_last_member_of_a_name_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"first", b"second"):
            info = tarfile.TarInfo("yes/a.wav")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert opened(tmp_path / "a.tar", tmp_path / "out")[0] == {"yes/a.wav": b"second"}


@pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar")
def test_sparse_members_are_read_with_their_holes(tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    for number in range(3):
        with (tmp_path / "yes" / f"{number}.wav").open("wb") as file:
            file.write(SOUND)
            file.seek(500_000 * (number + 1))
            file.write(SOUND)
    expected = {f"yes/{number}.wav": (tmp_path / "yes" / f"{number}.wav").read_bytes() for number in range(3)}
    for form in ("gnu", "pax"):
        command = ["tar", "-S", "-c", "-f", tmp_path / f"{form}.tar", "--format", form, "yes"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert (tmp_path / f"{form}.tar").stat().st_size < 200_000
        assert opened(tmp_path / f"{form}.tar", tmp_path / form)[0] == expected


# Bombs.


def bounded(archive: Path, tmp_path: Path, megabytes: int) -> str:
    """Downloads an archive in a process with so much memory beside what Python itself takes; returns its one error."""
    code = (
        "import resource, sys; from pathlib import Path; from kws.download import archives, step\n"
        f"archives.ALWAYS = {1 << 26}  # a gigabyte takes seconds to decompress\n"
        f"pages = int(open('/proc/self/statm').read().split()[0]) * {resource.getpagesize()}\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (pages + {megabytes << 20},) * 2)\n"
        "try:\n  step.download(sys.argv[1], '', Path(sys.argv[2]))\n"
        "except ValueError as error:\n  print(error)"
    )
    command = [sys.executable, "-c", code, str(archive), str(tmp_path / "data")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert "Traceback" not in shown.stderr
    assert [path for path in (tmp_path / "data" / "datasets").glob("*") if not path.name.endswith(".lock")] == []
    return shown.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
@pytest.mark.parametrize("kind", ["tar.gz", "zip", "zeros behind", "header", "sparse"])
def test_ten_gigabytes_in_a_small_file_are_refused_with_little_memory_and_disk(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bomb.{kind}"
    size = 10 << 30
    zeros = gzip.compress(bytes(1 << 24), 1)
    info = tarfile.TarInfo("yes/a.wav")
    info.size = size
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("yes/a.wav", b"")
        content = path.read_bytes()
        place = content.index(b"PK\1\2") + 24  # what the directory says of the size
        path.write_bytes(content[:place] + struct.pack("<I", (4 << 30) - 2) + content[place + 4 :])
    elif kind == "tar.gz":
        path.write_bytes(gzip.compress(info.tobuf()) + zeros)
    elif kind == "zeros behind":
        path.write_bytes(gzip.compress(tar(tmp_path / "good.tar", member("yes/a.wav")).read_bytes()) + zeros * 6)
    elif kind == "header":
        info.type = tarfile.XHDTYPE
        path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + zeros * 2)
    else:
        info.size = 512
        info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": "0,512", "GNU.sparse.numblocks": "1"}
        path.write_bytes(info.tobuf(format=tarfile.PAX_FORMAT) + bytes(2048))
    error = bounded(path, tmp_path, 300)
    assert error.startswith(("source must be", "source must expand"))
    assert error.count("\n") == 1
    assert ("header of a member has more than" if kind == "header" else "expands to") in error


def test_many_tiny_members_do_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(3000):
            archive.addfile(member(f"yes/.{number}"))
        archive.addfile(member("yes/a.wav"))
    next_ = tarfile.TarFile.next

    def count(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        seen.append(len(self.members))  # type: ignore[attr-defined]
        return next_(self)

    monkeypatch.setattr(tarfile.TarFile, "next", count)
    assert list(opened(tmp_path / "a.tar.gz", tmp_path / "out")[0]) == ["yes/a.wav"]
    assert len(seen) > 3000
    assert max(seen) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
@pytest.mark.parametrize(("kind", "most"), [("zip", 1000), ("tar.gz", 20)])
def test_memory_for_each_of_many_tiny_members_is_bounded(tmp_path: Path, kind: str, most: int) -> None:
    num_members = 20_000
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for number in range(num_members):
                packed.writestr(f"yes/.{number}", b"")
            packed.writestr("yes/a.wav", SOUND)
    else:
        headers = b"".join(member(f"yes/.{number}").tobuf() for number in range(num_members))
        path.write_bytes(gzip.compress(headers + tar(tmp_path / "a.tar", member("yes/a.wav")).read_bytes(), 1))
    code = """
        import re, sys
        from pathlib import Path
        from kws.download.archives import unpack
        def peak():
            return int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
        before = peak()
        unpack(Path(sys.argv[1]), Path(sys.argv[2]), "a", "a")
        print(peak() - before)
        """
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(tmp_path / "out")]
    kilobytes = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert [entry.name for entry in (tmp_path / "out").rglob("*.wav")] == ["a.wav"]
    assert 1024 * kilobytes < 4_000_000 + most * num_members


# Damage.


def test_tar_without_compression_that_is_cut_at_a_member_is_no_whole_archive(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", *(member(f"yes/{number}.wav") for number in range(9)))
    whole = path.read_bytes()
    block = 512 + 512 * 3  # a header, and SOUND in whole blocks
    for length in (3 * block, 3 * block + 100, 3 * block + 512, 3 * block + 700):
        path.write_bytes(whole[:length])
        assert "must be a whole archive" in refused(path, tmp_path / str(length))
    damaged = bytearray(whole)
    damaged[3 * block + 10] ^= 255  # the checksum of a header
    path.write_bytes(damaged)
    assert "it has no end, or a damaged header" in refused(path, tmp_path / "damaged")


@pytest.mark.parametrize("size", [-512, -1, -(2**40)])
def test_member_of_negative_size_ends(tmp_path: Path, size: int) -> None:
    for type_ in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = member("yes/b.wav", type_)
        content = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        content[124:136] = b"\xff" + (size & (2**88 - 1)).to_bytes(11, "big")
        content[148:156] = b" " * 8
        content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
        path = tmp_path / "a.tar"
        path.write_bytes(tar(tmp_path / "good.tar", member("yes/a.wav")).read_bytes()[:2048] + content + bytes(4096))
        assert "must be a whole archive" in refused(path, tmp_path / f"{type_!r}")


@pytest.mark.parametrize("pack", ["tar", "gz", "bz2", "xz", "zip"])
def test_damaged_archive_is_read_or_refused_in_a_sentence_and_nothing_else(tmp_path: Path, pack: str) -> None:
    path = tmp_path / "a"
    if pack == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(4):
                archive.writestr(f"yes/{number}.wav", SOUND)
        whole = path.read_bytes()
    else:
        members = [member(f"yes/{number}.wav") for number in range(3)] + [member("yes/" + "x" * 120 + ".wav")]
        raw = tar(path, *members).read_bytes()
        packers: dict[str, Callable[[bytes], bytes]] = {
            "tar": bytes,
            "gz": gzip.compress,
            "bz2": bz2.compress,
            "xz": lzma.compress,
        }
        whole = packers[pack](raw)
    drawn = random.Random(pack)
    outcomes = set()
    for number in range(60):
        content = bytearray(whole)
        for _ in range(drawn.randint(1, 3)):
            content[drawn.randrange(len(content))] = drawn.randrange(256)
        path.write_bytes(content[: drawn.choice([len(content), len(content), drawn.randrange(len(content))])])
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unpack(path, folder, "it", "it")
            outcomes.add("read")
        except ArchiveError as error:
            outcomes.add(str(error)[:14])
    assert "source must be" in outcomes
    assert outcomes <= {"source must be", "read"}


# Zip archives.


def test_zip_of_windows_and_macos_is_read_as_a_tar_is(tmp_path: Path) -> None:
    names = [
        b"words\\yes\\a.wav",
        b"words\\no\\b.WAV",
        b"words/j\xc3\xa4/c.wav",
        b"words/yes/._a.wav",
        b"__MACOSX/words/._yes",
        b"words/.DS_Store",
    ]
    path = tmp_path / "my words.ZIP"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("words/yes/"), b"")
        for number, name in enumerate(names):
            archive.writestr(str(number) * len(name), SOUND)
    raw = path.read_bytes()
    for number, name in enumerate(names):  # as these systems write them: without a flag for the encoding
        raw = raw.replace(str(number).encode() * len(name), name)
    path.write_bytes(raw)
    folder = download(str(path), "", tmp_path / "data")
    assert folder.name.startswith("my-words-")
    assert files.read_json(folder / files.MANIFEST)["words"] == {"jä": 1, "no": 1, "yes": 1}
    assert (folder / "no" / "b.WAV").read_bytes() == SOUND


def test_links_in_a_zip_are_left_out_and_never_made(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("yes/a.wav", SOUND)
        info = zipfile.ZipInfo("yes/b.wav")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    found, skipped = opened(tmp_path / "a.zip", tmp_path / "out")
    assert found == {"yes/a.wav": SOUND}
    assert skipped.first == {"yes/b.wav": "it is a symbolic link"}


def test_zip_with_a_password_or_an_unknown_method_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("yes/a.wav", SOUND)
    whole = path.read_bytes()
    for place, value, message in ((8, 1, "without a password"), (10, 9, "must be a whole archive")):
        content = bytearray(whole)
        for start in (content.index(b"PK\1\2") + place, place - 2):
            content[start] = value
        path.write_bytes(content)
        assert message in refused(path, tmp_path / "out")


def test_zip_with_an_offset_before_its_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("yes/a.wav", SOUND)
    content = bytearray(path.read_bytes())
    content[-6:-2] = struct.pack("<I", struct.unpack("<I", content[-6:-2])[0] + 40)  # where the directory begins
    path.write_bytes(content)
    assert "must be a whole archive" in refused(path, tmp_path / "out")


def test_zip_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("yes/a.wav", SOUND)
    path.write_bytes(path.read_bytes().replace(b"\x07\x08\x09", b"\x07\x08\x0a", 1))
    assert "must be a whole archive" in refused(path, tmp_path / "out")


def test_disk_that_is_full_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    (tmp_path / "words" / "yes").mkdir(parents=True)
    (tmp_path / "words" / "yes" / "a.wav").write_bytes(SOUND)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ValueError, match=r"data_root must have free disk space .*, got .*, which is full"):
        download(str(tmp_path / "words"), "", tmp_path / "data")
