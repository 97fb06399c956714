"""The fuzzers of `benchmarks.torture`: a reader must accept damaged input, or refuse it with a message."""

import contextlib
import io
import json
import logging
import os
import socket
import sys
import tarfile
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kws.data import splits
from kws.data.folder import clip_of
from kws.data.index import Index
from kws.download import transfer
from kws.download.archives import unpack
from kws.download.step import download
from kws.model import bundle, onnx
from kws.model import versions as published
from kws.model.network import AudioTransformer
from kws.preprocess.audio import read_clip
from kws.recipe import RECIPES, FeatureConfig, ModelConfig

MEANT = (ValueError, OSError)
"""Exceptions by which a reader refuses input, with a message."""

Read = Callable[[bytes], object]


@contextlib.contextmanager
def _wav(folder: Path) -> Iterator[tuple[bytes, Read]]:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(400), 16_000, format="WAV")

    def read(content: bytes) -> None:
        (folder / "a.wav").write_bytes(content)
        heard = read_clip(folder / "a.wav", RECIPES["default"].features)
        assert np.isfinite(heard).all()
        assert heard.shape == (16_000,)

    yield buffer.getvalue(), read


@contextlib.contextmanager
def _lists(folder: Path) -> Iterator[tuple[bytes, Read]]:
    files = [f"{word}/{number:08x}_nohash_0.wav" for word in ("yes", "no") for number in range(5)]
    clips = Index.of(map(clip_of, files))

    def read(content: bytes) -> None:
        (folder / "testing_list.txt").write_bytes(content)
        lists = splits.read_lists({"test": folder / "testing_list.txt"}, clips)
        divided = splits.by_speaker(clips, lists)
        assert sorted(clip.id for part in divided.values() for clip in part) == sorted(clip.id for clip in clips)

    yield "\n".join(clip.id for clip in clips[:3]).encode(), read


@contextlib.contextmanager
def _manifests(folder: Path) -> Iterator[tuple[bytes, Read]]:
    def read(content: bytes) -> None:
        wrong = []
        for parse in (published.parse_champion, published.parse_manifest):
            try:
                parse(content, "x.json")
            except MEANT as error:
                wrong.append(error)
        if wrong:
            raise wrong[0]

    manifest = {"version": "1", "words": ["yes", "no"], "files": {"model.pth": "0" * 64}, "history": []}
    yield json.dumps(manifest).encode(), read


@contextlib.contextmanager
def _pth(folder: Path) -> Iterator[tuple[bytes, Read]]:
    path = folder / "model.pth"
    bundle.save(path, _recognizer())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        heard = bundle.load(path).predict(np.zeros((1, 16_000), np.float32))
        assert heard.shape == (1, 2)

    yield path.read_bytes(), read


@contextlib.contextmanager
def _onnx(folder: Path) -> Iterator[tuple[bytes, Read]]:
    path = folder / "model.onnx"
    onnx.export(_recognizer(), path)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        heard = onnx.load(path, num_threads=1).predict(np.zeros((1, 16_000), np.float32))
        assert heard.shape == (1, 2)

    yield path.read_bytes(), read


@contextlib.contextmanager
def _http(folder: Path) -> Iterator[tuple[bytes, Read]]:
    answers = [b""]
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1)
                connection.recv(65_536)
                connection.sendall(answers[0])

    threading.Thread(target=serve, daemon=True).start()
    os.environ["no_proxy"] = "127.0.0.1"
    transfer.BACKOFF, transfer.TIMEOUT, transfer.ANSWER_TIMEOUT = 0.001, 1.0, 2.0  # it tries again and again

    def read(content: bytes) -> None:
        answers[0] = content
        with tempfile.TemporaryDirectory(dir=folder) as root:
            download(f"http://127.0.0.1:{server.getsockname()[1]}/words.tar.gz", "", Path(root))

    body = b"\x1f\x8b" + b"\0" * 100
    yield (
        (
            b'HTTP/1.1 200 OK\r\nContent-Length: 102\r\nETag: "a"\r\nAccept-Ranges: bytes\r\n'
            b"Content-Range: bytes 0-101/102\r\nConnection: close\r\n\r\n" + body
        ),
        read,
    )
    server.close()


def _unpack(content: bytes, folder: Path) -> None:
    """Unpacks an archive, and checks that nothing but files and folders was made, and nothing outside the folder."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive, outside, inside = (Path(scratch) / name for name in ("archive", "beside.wav", "out"))
        archive.write_bytes(content)
        outside.write_bytes(b"mine")
        inside.mkdir()
        try:
            unpack(archive, inside, str(archive), "fuzz")
        finally:
            assert {path.name for path in Path(scratch).iterdir()} == {"archive", "beside.wav", "out"}
            assert outside.read_bytes() == b"mine"
            assert all(not path.is_symlink() and (path.is_file() or path.is_dir()) for path in inside.rglob("*"))


@contextlib.contextmanager
def _tar(folder: Path) -> Iterator[tuple[bytes, Read]]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (
            ("yes/a.wav", tarfile.REGTYPE),
            ("yes/é.wav", tarfile.REGTYPE),
            ("no", tarfile.DIRTYPE),
            ("no/b.wav", tarfile.LNKTYPE),
            ("no/c.wav", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "yes/a.wav"
            member.size = 300 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"\1" * 300))
        end = archive.offset + 2 * tarfile.BLOCKSIZE  # only more zeros follow

    def read(content: bytes) -> None:
        _unpack(_with_checksums(content), folder)

    yield buffer.getvalue()[:end], read


def _with_checksums(content: bytes) -> bytes:
    """Corrects the header checksums of most tar archives, because a wrong one is refused before anything else."""
    if len(content) % 5 == 0:
        return content
    blocks = [content[start : start + 512] for start in range(0, len(content), 512)]
    for index, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            bare = block[:148] + b" " * 8 + block[156:]
            blocks[index] = block[:148] + b"%06o\0 " % sum(bare) + block[156:]
    return b"".join(blocks)


@contextlib.contextmanager
def _zip(folder: Path) -> Iterator[tuple[bytes, Read]]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("yes/a.wav", b"\1" * 300, zipfile.ZIP_DEFLATED)
        archive.writestr("yes/é.wav", b"\1" * 300, zipfile.ZIP_STORED)
        archive.writestr("no/b.wav", b"\1" * 300, zipfile.ZIP_LZMA)

    yield buffer.getvalue(), lambda content: _unpack(content, folder)


READERS = {
    "wav": _wav,
    "lists": _lists,
    "manifests": _manifests,
    "pth": _pth,
    "onnx": _onnx,
    "http": _http,
    "tar": _tar,
    "zip": _zip,
}


def _recognizer() -> bundle.Recognizer:
    torch.manual_seed(0)
    config = ModelConfig(num_layers=1, num_heads=1, width=8, feedforward=8, frames_per_token=8)
    model = AudioTransformer(config, FeatureConfig(), 2).eval()
    return bundle.Recognizer(model=model, words=["no", "yes"], features=FeatureConfig(), about={"run": "fuzz"})


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Damages a file: bytes are changed, inserted, removed or cut off, or the whole is random."""
    # The ends have the headers and the directory of a zip; the middle is mostly weights.
    place = st.one_of(
        st.integers(0, min(len(whole), 300)),
        st.integers(0, len(whole)),
        st.integers(max(0, len(whole) - 3000), len(whole)),
    )
    odd = st.sampled_from(
        [
            b"\0",
            b"\xff",
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
            b"\0\0\0\x80",
            b"NaN",
            b"-1",
            b"[",
            b"null",
            b"1e999",
            b"../",
            b"\xfe\xff",
            b"\r\n",
        ]
    )
    edit = st.tuples(place, st.integers(0, 8), st.one_of(odd, st.binary(max_size=8)))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = whole
        for start, length, new in edits:
            content = content[:start] + new + content[start + length :]
        return content

    edited = st.lists(edit, min_size=1, max_size=4).map(apply)
    return st.one_of(edited, edited, place.map(lambda end: whole[:end]), st.binary(max_size=200))


def run(name: str, seconds: float, folder: Path) -> str:
    """Fuzzes a reader for some seconds in a separate process, and returns what was wrong, or an empty text."""
    last, report = folder / f"fuzz-{name}.input", folder / f"fuzz-{name}.txt"
    child = os.fork()
    if child == 0:
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
            logging.disable(logging.CRITICAL)
            report.write_text(_fuzz(name, seconds, last))
        except BaseException as error:
            report.write_text(f"0 inputs\n{type(error).__name__}: {error}; the input is {last}")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        return f"the process died with {os.waitstatus_to_exitcode(status)}; the input is {last}"
    inputs, _, wrong = report.read_text().partition("\n")
    print(f"fuzz {name}: {inputs}", flush=True)
    return wrong


def _fuzz(name: str, seconds: float, last: Path) -> str:
    num, refused, end = 0, 0, time.monotonic() + seconds
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="kws-torture-") as folder, READERS[name](Path(folder)) as (whole, read):
        with contextlib.suppress(*MEANT):
            read(whole)

        @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(damaged(whole))
        def trial(content: bytes) -> None:
            nonlocal num, refused
            last.write_bytes(content)
            num += 1
            try:
                read(content)
            except MEANT as error:
                refused += 1
                if not str(error):
                    raise AssertionError("refused without a message") from error

        while time.monotonic() < end:
            trial()
    return f"{num} inputs, {refused} of them refused\n"
