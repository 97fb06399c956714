"""An HTTP server on 127.0.0.1 for stand-ins: a subclass says what it answers."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit


class JsonServer(ThreadingHTTPServer):
    """Answers one call at a time."""

    daemon_threads = True

    def __init__(self) -> None:
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        """Returns status and content: bytes are sent as they are, all else as JSON."""
        raise NotImplementedError

    def handle_error(self, *_: object) -> None:
        """Says nothing of a client that has gone."""


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer

    def handle_call(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            status, said = self.server.answer(self.command, url.path, dict(parse_qsl(url.query)), body, self.headers)
            sent = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(said, bytes) else "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_call

    def log_message(self, *_: object) -> None:
        pass


Server = TypeVar("Server", bound=JsonServer)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Lets a server answer for the block."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
