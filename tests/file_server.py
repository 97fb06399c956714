"""A real HTTP server of files that can misbehave."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


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
