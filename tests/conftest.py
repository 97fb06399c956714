"""Real parts for tests: real recordings where they are at hand, and a real HTTP server that can misbehave."""

import contextlib
import os
import re
import socket
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ["no_proxy"] = "127.0.0.1"  # where a proxy is set, it does not see our servers

REAL_WORDS = ("left", "stop", "yes")
"""The words of the fixture real_corpus."""

REAL_CLIPS = 40
"""Its clips of each word."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data with real recordings, which the project does not carry."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real recordings of ../shared/data")
    return folder


@pytest.fixture(scope="session")
def real_archive(shared_data: Path) -> Path:
    """16 words of Speech Commands, 4,043 clips, 100 MB."""
    return shared_data / "speech_commands_real16.tar.gz"


@pytest.fixture(scope="session")
def real_digits(shared_data: Path) -> Path:
    """<digit>/*.wav at 8 kHz, 0.14 to 2.3 s, 2,000 recordings of 10 words by 4 speakers."""
    return shared_data / "spoken-digits"


@pytest.fixture(scope="session")
def real_corpus(real_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 real clips of each of three words, their lists of splits and two background noises. Read only."""
    folder = tmp_path_factory.mktemp("real_corpus")
    taken: Counter[str] = Counter()
    with tarfile.open(real_archive) as archive:
        for member in archive:
            word, _, name = member.name.removeprefix("./").rpartition("/")
            if (
                (word in REAL_WORDS and name.endswith(".wav") and taken[word] < REAL_CLIPS)
                or name in ("running_tap.wav", "exercise_bike.wav")
                or name.endswith("_list.txt")
            ):
                archive.extract(member, folder, filter="data")
                taken[word] += 1
    for path in folder.glob("*_list.txt"):
        path.write_text("".join(f"{line}\n" for line in path.read_text().split() if (folder / line).is_file()))
    return folder


class Seen(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    range: str | None


class FileServer(ThreadingHTTPServer):
    """Serves the files of a folder with ranges, and misbehaves as a test tells it to."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[Seen] = []
        self.cut_after: int | None = None
        """Bytes of a body after which the connection breaks, once."""
        self.hold_after: int | None = None
        """Bytes of a body after which nothing more comes until `released` is set."""
        self.released = threading.Event()
        self.ranges = True
        """False: every answer is the whole file."""
        self.if_range = True
        """False: a part is sent even if the file has changed."""
        self.validators = True
        """False: neither ETag nor Last-Modified are sent."""
        self.length_added = 0
        """Bytes by which the promised length is wrong."""
        self.length = True
        """False: no length is promised."""
        self.failures: list[int] = []
        """Statuses of the next answers."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def gets(self) -> list[str | None]:
        """The ranges that were asked for, in order; None is a whole file."""
        return [seen.range for seen in self.requests if seen.method == "GET"]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        server = self.server
        server.requests.append(Seen(self.command, self.path, self.headers["Range"]))
        path = server.root / self.path.lstrip("/")
        if server.failures:
            return self.send_error(server.failures.pop(0))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        etag = f'"{path.stat().st_mtime_ns:x}-{len(content):x}"'
        match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = 0
        if match and server.ranges and (not server.if_range or self.headers["If-Range"] in (None, etag)):
            start = int(match[1])
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content) + server.length_added}")
        else:
            self.send_response(200)
        if server.validators:
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        body = content[start:]
        if server.length:
            self.send_header("Content-Length", str(len(body) + server.length_added))
        self.end_headers()
        if not with_body:
            return None
        if server.cut_after is not None:
            body, server.cut_after = body[: server.cut_after], None
        elif server.hold_after is not None:
            self.wfile.write(body[: server.hold_after])
            body = body[server.hold_after :]
            server.released.wait(60)
        self.wfile.write(body)
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[FileServer]:
    """A server on 127.0.0.1 of the folder `file_server.root`, at first an empty one."""
    root = tmp_path / "served"
    root.mkdir()
    with serve(root) as server:
        yield server


@contextlib.contextmanager
def serve(root: Path) -> Iterator[FileServer]:
    """Runs a server of a folder for the block."""
    server = FileServer(root)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
