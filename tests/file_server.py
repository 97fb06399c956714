"""A real HTTP server of files that can misbehave."""

import contextlib
import gzip
import re
import socket
import struct
import threading
import time
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
        self.failure_headers: dict[str, str] = {}
        """What these answers say besides."""
        self.reset_after: int | None = None
        """Bytes of a body after which every connection is reset."""
        self.etags: list[str] = []
        """ETags of the next answers, whatever the file."""
        self.content_length = ""
        """Content-Length as it is sent, {} for the number; where it is empty, the number."""
        self.surplus = b""
        """What is sent behind a part, and counted in Content-Length where `surplus_counted`."""
        self.surplus_counted = False
        self.shift = 0
        """Bytes by which a part begins earlier than it says."""
        self.encoding = ""
        """Content-Encoding of the answers; the body is compressed where `encoded`."""
        self.encoded = False
        self.trickle = 0.0
        """Seconds between the bytes of a body."""
        self.endless = b""
        """What every answer begins with, followed by zeros without end."""
        self.hung_up = threading.Event()
        """Set when the client of such an answer has closed its connection."""
        self.signed: str | None = None
        """A token: an address without it is forwarded to one with a new one, for `signed_uses` uses in all."""
        self.signed_uses = 0
        self.chunked = False
        """True: the body comes in chunks, without a length."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def gets(self) -> list[str | None]:
        """The ranges that were asked for, in order; None is a whole file."""
        return [seen.range for seen in self.requests if seen.method == "GET"]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"  # for parts in chunks

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        server = self.server
        server.requests.append(Seen(self.command, self.path, self.headers["Range"]))
        path = server.root / self.path.partition("?")[0].lstrip("/")
        if server.failures:
            return self._fail(server.failures.pop(0))
        if server.endless:
            try:
                self.wfile.write(server.endless)
                while not server.released.wait(0.02):
                    self.wfile.write(b"0")
            except OSError:
                server.hung_up.set()
            return None
        if server.signed is not None:
            name, _, token = self.path.lstrip("/").partition("?")
            path = server.root / name
            if not token:
                server.signed = f"{server.signed}x"
                self.send_response(302)
                self.send_header("Location", f"/{name}?{server.signed}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if token != server.signed or server.signed_uses == 0:
                return self.send_error(403)
            server.signed_uses -= 1
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        etag = f'"{path.stat().st_mtime_ns:x}-{len(content):x}"'
        if server.etags:
            etag = server.etags.pop(0)
        if server.encoded:
            content = gzip.compress(content, 1)
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
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        body = content[start:]
        if start:
            body = content[start - server.shift :] + server.surplus
            if not server.surplus_counted and server.surplus:
                server.length, server.chunked = False, True
        length = len(content) - start + server.length_added
        if start and server.surplus_counted:
            length += len(server.surplus)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(some), some) for some in (body, b""))
        elif server.length:
            self.send_header("Content-Length", (server.content_length or "{}").format(length, length))
        self.end_headers()
        if not with_body:
            return None
        if server.trickle:
            with contextlib.suppress(OSError):
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if server.released.wait(server.trickle):
                        break
            return None
        if server.reset_after is not None and server.reset_after < len(body):
            self.wfile.write(body[: server.reset_after])
            time.sleep(0.05)  # else what was sent is thrown away at the other end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return None
        if server.cut_after is not None:
            body, server.cut_after = body[: server.cut_after], None
        elif server.hold_after is not None:
            self.wfile.write(body[: server.hold_after])
            body = body[server.hold_after :]
            server.released.wait(60)
        self.wfile.write(body)
        self.connection.shutdown(socket.SHUT_RDWR)

    def _fail(self, status: int) -> None:
        self.send_response(status)
        for name, value in self.server.failure_headers.items():
            self.send_header(name, value)
        self.end_headers()

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
