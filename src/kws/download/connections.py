"""Connections to servers that may stall at any byte: what takes too long is cut off, and nothing is left of it."""

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import TracebackType
from typing import Any
from urllib.error import URLError


class Watch:
    """Shuts down the sockets of a request when nothing useful has come for some seconds.

    The timeout of a socket limits only the time between two bytes, so that a header which comes byte by byte, or a
    chunk's length of 65,536 zeros, would take forever.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.has_cut = False
        """Whether the connection was cut off. Then what was read last must not be trusted: it looks like an end."""
        self._since = time.monotonic()
        self._twins: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="watch of a connection", daemon=True)

    def touch(self) -> None:
        """Starts the time anew."""
        self._since = time.monotonic()

    def connect(self, *arguments: Any, **more: Any) -> socket.socket:
        """Does as `socket.create_connection`, and keeps a twin of the socket to shut it down."""
        sock = socket.create_connection(*arguments, **more)
        with self._lock:
            if self.has_cut:
                sock.close()
                raise TimeoutError
            self._twins.append(sock.dup())  # TLS takes over the first one
        return sock

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        for twin in self._twins:
            twin.close()

    def _wait(self) -> None:
        while not self._done.wait(max(0.0, self._since + self.seconds - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._since < self.seconds:
                    continue
                self.has_cut = True
                for twin in self._twins:
                    with contextlib.suppress(OSError):
                        twin.shutdown(socket.SHUT_RDWR)
                return


class _Watched(urllib.request.AbstractHTTPHandler):
    """A handler of urllib whose connections are watched from before the TLS handshake on."""

    watch: Watch

    def do_open(self, http_class: Any, req: urllib.request.Request, **arguments: Any) -> HTTPResponse:
        def make(host: str, **more: Any) -> HTTPConnection:
            connection: HTTPConnection = http_class(host, **more)
            connection._create_connection = self.watch.connect  # type: ignore[attr-defined]
            return connection

        return super().do_open(make, req, **arguments)


class _HTTP(_Watched, urllib.request.HTTPHandler):
    pass


class _HTTPS(_Watched, urllib.request.HTTPSHandler):
    pass


@contextlib.contextmanager
def opened(request: urllib.request.Request, timeout: float, seconds: float) -> Iterator[tuple[HTTPResponse, Watch]]:
    """Sends a request, reads the response headers, and closes the connection at the end of the block.

    Args:
        request: the request; redirects are followed to http and https only.
        timeout: seconds without a byte after which the connection counts as broken.
        seconds: seconds within which the response headers must arrive, and after them every `Watch.touch`.

    Yields:
        The response and the watch over its connection.

    Raises:
        URLError, HTTPException, ConnectionError: the server cannot be reached, or does not answer in time.
    """
    # The handlers of urllib.request.build_opener, except for files and FTP.
    opener = urllib.request.OpenerDirector()
    with Watch(seconds) as watch:
        for kind in (
            urllib.request.ProxyHandler,
            urllib.request.UnknownHandler,
            _HTTP,
            _HTTPS,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            handler = kind()
            if isinstance(handler, _Watched):
                handler.watch = watch
            opener.add_handler(handler)
        try:
            response: HTTPResponse = opener.open(request, timeout=timeout)
        except Exception as error:
            if watch.has_cut:
                raise ConnectionError(f"no answer within {seconds:g} s") from error
            if isinstance(error, URLError | HTTPException | ConnectionError):
                raise
            raise ConnectionError(str(error) or type(error).__name__) from error
        with response:
            if watch.has_cut:  # http.client takes the headers so far for all of them
                raise ConnectionError(f"no answer within {seconds:g} s")
            watch.touch()
            yield response, watch
