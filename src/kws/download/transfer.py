"""Downloads one file from a server that may break off, stall or change it; resumes, and never mixes two versions."""

import contextlib
import dataclasses
import email.message
import email.utils
import gzip
import http.client
import io
import json
import logging
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws import files
from kws.download.addresses import unsigned
from kws.download.archives import ALWAYS, CHUNK, COMPRESSIONS, EXTRACTED, RATIO, ZIP, decompress, require_space
from kws.progress import progress
from kws.text import one_line

log = logging.getLogger(__name__)

USER_AGENT = "kws-download/1 (Python urllib)"
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

ANSWER_TIMEOUT = 120.0
"""Seconds within which the response headers must arrive, which a slow server may send byte by byte, and after them more
data. The timeout of a socket limits only the time between two bytes, so that a chunk's length of 65,536 zeros would
take forever."""

SLOWEST = 1000
"""Bytes per second, averaged over SLOW_FOR seconds, below which a connection has stalled."""

SLOW_FOR = 60.0

TRIES = 5
"""Number of consecutive tries without progress, or with too little, before giving up."""

BACKOFF = 1.0
"""Seconds to wait before the second try; the wait doubles with every further try."""

LONGEST_WAIT = 300.0
"""Longest wait in seconds that is granted to a server's Retry-After."""


@dataclass(frozen=True)
class Remote:
    """The response headers by which a change of a file on the server is noticed."""

    etag: str | None = None
    modified: str | None = None
    length: int | None = None
    encoding: str = ""
    """gzip if the server compressed the file, or labels a file that is itself compressed so; else empty."""

    @classmethod
    def of(cls, response: http.client.HTTPResponse, length: int | None) -> "Remote":
        """Reads the headers of a response.

        Args:
            response: the response.
            length: length of the whole file in bytes, None if unknown.

        Raises:
            ValueError: the file has a content encoding other than gzip.
        """
        headers = response.headers
        encoding = (headers.get("Content-Encoding") or "identity").strip().lower().removeprefix("x-")
        if encoding not in ("identity", "gzip"):
            raise ValueError(f"Content-Encoding of the server must be identity or gzip, got {encoding!r}")
        encoding = encoding.replace("identity", "")
        return cls(headers.get("ETag"), headers.get("Last-Modified"), length, encoding)

    @classmethod
    def of_json(cls, value: object) -> "Remote | None":
        """Restores a value from its JSON, or returns None if it is not valid."""
        kinds = {"etag": str | None, "modified": str | None, "length": int | None, "encoding": str}
        if not isinstance(value, Mapping) or value.keys() != kinds.keys():
            return None
        return cls(**value) if all(isinstance(value[name], kind) for name, kind in kinds.items()) else None

    @property
    def validator(self) -> str | None:
        """The value for the If-Range header: a strong ETag, else the modification date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def differs(self, other: "Remote") -> bool:
        """Tells whether another response describes a different file, comparing the headers that both have."""
        pairs = ((self.etag, other.etag), (self.modified, other.modified), (self.length, other.length))
        return any(before is not None and after is not None and before != after for before, after in pairs)

    def same(self, other: "Remote") -> bool:
        """Tells whether another response certainly describes the same file."""
        return (self.etag, self.modified) != (None, None) and not self.differs(other)


class Stalled(ConnectionError):
    """Raised if a connection is open but too slow."""


class Refused(ConnectionError):
    """Raised if the server answers with an error."""

    def __init__(self, error: urllib.error.HTTPError, url: str) -> None:
        super().__init__(f"{error.code} {error.reason}")
        self.status = error.code
        self.wait = _retry_after(error.headers)
        """Seconds to wait before the next try, as the server asks."""
        # The target of a redirect may have expired: the next try gets a new one.
        expired = error.filename != url and error.code in (400, 401, 403, 404, 410)
        self.is_final = error.code < 500 and error.code not in (408, 425, 429) and not expired


def fetch(url: str, part: Path) -> Remote:
    """Downloads a file, resuming what an earlier try or process left, until it is complete.

    Args:
        url: an http or https URL.
        part: where to write the file; a .json beside it records what the server said about it.

    Raises:
        ValueError: the URL is not valid or not that of a file, or the disk is full.
        ConnectionError: the server cannot be reached or keeps breaking off; what was received is kept.
    """
    return Transfer(url, part).run()


def look(url: str) -> Remote:
    """Requests the headers of a file without downloading it.

    Raises:
        ConnectionError: the server cannot be reached or answers with an error.
        ValueError: the address is not valid, or the file has a content encoding other than gzip.
    """
    try:
        with _open(url, method="HEAD") as response:
            return Remote.of(response, _length(response))
    except Refused as error:
        if error.status not in (400, 403, 405, 501):
            raise
    with _open(url) as response:  # for example an address signed for GET only
        return Remote.of(response, _length(response))


def discard(part: Path) -> None:
    """Deletes a partial download and the notes about it."""
    part.unlink(missing_ok=True)
    part.with_suffix(".json").unlink(missing_ok=True)


def decoded(part: Path, remote: Remote, sha256: str) -> tuple[Path, str]:
    """Removes the gzip encoding that a server added to a file, and returns the resulting file and its SHA-256.

    Some servers label a .tar.gz as gzip-encoded though they send it unchanged; such a file is returned as it is.

    Args:
        part: the downloaded file.
        remote: what the server said about it.
        sha256: the expected digest, or empty.
    """
    digest = files.sha256_of(part)
    if remote.encoding != "gzip" or digest == sha256:
        return part, digest
    plain = part.with_suffix(".plain")
    most = max(ALWAYS, RATIO * part.stat().st_size)
    with contextlib.ExitStack() as stack, contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile):
        stack.callback(plain.unlink, missing_ok=True)
        with part.open("rb") as file, decompress(file) as data, plain.open("wb") as target:
            chunk = data.read(6)
            if not sha256 and not chunk.startswith((*COMPRESSIONS, *ZIP)):
                return part, digest  # what is inside is not compressed: it is the archive itself that is
            while chunk and target.tell() < most:
                target.write(chunk)
                chunk = data.read(CHUNK)
        found = files.sha256_of(plain)
        if sha256 in ("", found):
            stack.pop_all()
            return plain, found
    return part, digest


class Transfer:
    """A file that is transferred in several tries, each of which goes on where the one before ended."""

    def __init__(self, url: str, part: Path) -> None:
        self.url = url
        self.shown = unsigned(url)
        """The address in messages."""
        self.part = part
        self.notes = part.with_suffix(".json")
        """The file that records the `Remote` of the partial download."""
        self.whole = False
        """Whether the next request is for the whole file, which is then compared with the partial download."""
        self.most = self.size()
        """Largest size of the partial download so far; a larger one is progress."""

    def size(self) -> int:
        """Returns how many bytes are there."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> Remote:
        """Transfers the file until it is complete.

        Raises:
            ValueError: another try is of no use.
            ConnectionError: too many tries in succession have brought nothing.
        """
        tries = 0
        while True:
            try:
                return self.try_once()
            except ConnectionError as error:
                failure = error
            asked_for = failure.wait if isinstance(failure, Refused) else 0.0
            if isinstance(failure, Refused) and failure.is_final:
                raise ValueError(
                    f"source must be the address of an archive, got {_said(failure)} from {self.shown}: "
                    f"{_REMEDIES.get(failure.status, 'check whether a browser opens it')}"
                ) from failure
            size = self.size()
            useful = size > self.most and not isinstance(failure, Stalled)
            self.most = max(size, self.most)
            tries = 1 if useful else tries + 1
            if tries >= TRIES:
                raise ConnectionError(
                    f"{self.shown} must be reachable and send the whole file, got {_said(failure)} in "
                    f"{TRIES} tries: check the network and start again; the {files.human_bytes(size)} received so far "
                    "are kept"
                ) from failure
            wait = max(BACKOFF * 2 ** (tries - 1), asked_for)
            log.warning(
                "%s: %s; resuming at %s in %g s%s",
                self.shown,
                _said(failure),
                files.human_bytes(size),
                wait,
                ", as the server asks" if asked_for else "",
            )
            time.sleep(wait)

    def try_once(self) -> Remote:
        """Transfers the missing bytes over one connection."""
        have = self.size()
        known = self._read_notes() if have else None
        if known is not None and have == known.length and not self.whole:
            return known
        headers = {}
        if known is not None and not self.whole:
            headers = {"Range": f"bytes={have}-"} | ({"If-Range": known.validator} if known.validator else {})
        self.whole = False
        try:
            with _open(self.url, headers=headers) as response:
                if response.status == 206 and known is not None and headers:
                    return self._receive(response, *self._rest(response, known, have))
                if response.status != 200:
                    raise ConnectionError(
                        f"the server answered {response.status} {response.reason} instead of the file"
                    )
                if headers:
                    log.info(
                        "%s has changed or its server cannot resume: comparing it with what was received", self.shown
                    )
                remote = Remote.of(response, _length(response))
                return self._receive(response, remote, 0, remote.length)
        except Refused as error:
            if known is None or error.status != 416:
                raise
            raise self._ask_whole(f"the server promised {known.length} bytes but has no more than {have}") from error

    def _rest(self, response: "_Response", known: Remote, start: int) -> tuple[Remote, int, int]:
        """Checks that a response has a part of the same file that begins at `start`; returns the file and the part."""
        match = re.fullmatch(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start or int(match[2]) < start:
            raise self._ask_whole("the server sent another part of the file than asked for")
        now = Remote.of(response, None if match[3] == "*" else int(match[3]))
        if known.differs(now):
            raise self._ask_whole("the file has changed")
        missing = int(match[2]) + 1 - start
        if (_length(response) or missing) != missing:
            raise self._ask_whole(f"the server sent {_length(response)} bytes where {missing} are missing")
        length = known.length if now.length is None else now.length
        return dataclasses.replace(known, length=length), start, start + missing

    def _receive(self, response: "_Response", remote: Remote, start: int, end: int | None) -> Remote:
        """Reads the file from `start` on: keeps the partial download as far as it is equal, and writes the rest.

        The partial download and its notes stay unchanged until all of it has been compared, or a difference is found.
        """
        have = self.size()
        self._require_space(remote, min(have, remote.length or 0))
        chunks = self._chunks(response, None if end is None else end - start, start)
        position, there, rest = start, b"", b""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with self.part.open("r+b" if have else "w+b") as file:
            file.seek(start)
            for rest in chunks:
                there = file.read(len(rest))
                if there != rest:
                    break
                position += len(rest)
                rest = b""
            if not rest and position < have and remote.length not in (None, position):
                raise ConnectionError(f"the connection ended after {position} of {remote.length} bytes")
            if rest.startswith(there):  # the whole partial download is equal
                position += len(there)
                rest = rest[len(there) :]
            file.truncate(position)
            self._write_notes(remote)
            file.seek(position)
            file.write(rest)
            for chunk in chunks:
                file.write(chunk)
            if file.tell() == end and response.has_more():
                file.truncate(start)  # there is no telling which bytes are the missing ones
                raise self._ask_whole("the server sent more than it said")
        size = self.size()
        if remote.length is not None and size < remote.length:
            raise ConnectionError(f"the connection ended after {size} of {remote.length} bytes")
        if remote.length is not None and size > remote.length:
            raise self._ask_whole(f"{size} bytes are there of {remote.length}")
        return remote

    def _chunks(self, response: "_Response", num_bytes: int | None, start: int) -> Iterator[bytes]:
        """Yields bytes as they arrive, so that none are lost when the connection breaks, up to `num_bytes`."""
        name = Path(urllib.parse.urlsplit(self.url).path).name
        title = f"resume {name} at {files.human_bytes(start)}" if start else f"download {name}"
        left = num_bytes
        with progress(num_bytes or 0, "B", title, scale=True) as bar:
            since, came = time.monotonic(), 0
            while left is None or left > 0:
                chunk = response.receive(CHUNK if left is None else min(CHUNK, left))
                if not chunk:
                    return
                yield chunk
                bar.update(len(chunk))
                came += len(chunk)
                left = None if left is None else left - len(chunk)
                if time.monotonic() - since > SLOW_FOR:
                    if came < SLOWEST * SLOW_FOR:
                        raise Stalled(f"only {came} bytes in {SLOW_FOR:g} s")
                    since, came = time.monotonic(), 0

    def _ask_whole(self, reason: str) -> ConnectionError:
        """Returns the error for a range that is not available or cannot be trusted; the next try asks for all."""
        self.whole = True
        return ConnectionError(reason)

    def _require_space(self, remote: Remote, start: int) -> None:
        length = remote.length or 0
        require_space(length - start + length * EXTRACTED, self.part.parent.parent)

    def _read_notes(self) -> Remote | None:
        try:
            return Remote.of_json(json.loads(self.notes.read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def _write_notes(self, remote: Remote) -> None:
        files.write_json(self.notes, dataclasses.asdict(remote))


_REMEDIES = {
    401: "the server asks who you are: use a signed address (as env:NAME), or download it first",
    403: "you have no right to it, or the signature has expired: check whether a browser opens it",
    407: "set HTTPS_PROXY and HTTP_PROXY to http://USER:PASSWORD@HOST:PORT, on a cluster in the secret kws-download",
}


class _Reader(io.RawIOBase):
    """Reads from a socket until a time that `touch` puts off."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self.raw, self.sock = raw, sock
        self.touch()

    def touch(self) -> None:
        self.end = time.monotonic() + ANSWER_TIMEOUT

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.end - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.sock.settimeout(min(TIMEOUT, left))
            return self.raw.readinto(buffer)
        except TimeoutError as error:
            if left > TIMEOUT:
                raise ConnectionError(f"no data for {TIMEOUT:g} s") from error
            raise Stalled(f"no data for {ANSWER_TIMEOUT:g} s") from error

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response whose headers, and every piece of whose body, must not take too long."""

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        self.reader = _Reader(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self.reader)

    def receive(self, most: int) -> bytes:
        """Returns up to `most` bytes as soon as some arrive, or none at the end."""
        self.reader.touch()
        try:
            return self.read1(most)
        except ConnectionError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    def has_more(self) -> bool:
        """Tells whether the server sends more than it should."""
        if self.length is not None:
            return self.length > 0
        with contextlib.suppress(ConnectionError):
            return bool(self.receive(1))
        return False


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https addresses with such responses."""

    def do_open(self, http_class: Any, req: urllib.request.Request, **arguments: Any) -> http.client.HTTPResponse:
        def connection(host: str, **more: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = http_class(host, **more)
            made.response_class = _Response
            return made

        return super().do_open(connection, req, **arguments)


_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.UnknownHandler,
    _Handler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)
"""Those of `urllib.request.build_opener`, except for files and FTP, to which a server may redirect."""


@contextlib.contextmanager
def _open(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Iterator[_Response]:
    """Sends a request, reads the response headers, and closes the connection at the end of the block.

    Raises:
        ConnectionError: the server cannot be reached, does not answer in time, or with an error (`Refused`).
        ValueError: the address is not valid, or the certificate of the server.
    """
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    more = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
    try:
        response = opener.open(urllib.request.Request(_quote(url), headers=more, method=method), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error, _quote(url)) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise ValueError(f"source must be an http(s) address, got {unsigned(url)!r}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if sentence := _never_works(reason, unsigned(url)):
            raise ValueError(sentence) from error
        raise ConnectionError(str(reason) or type(reason).__name__) from error
    with response:
        yield response


OWN_AUTHORITY = (
    "; if it is your company's own authority that signs, as its proxies do, set SSL_CERT_FILE to a file with its "
    "certificate (on a cluster: the entry ca.crt of the secret kws-download)"
)

_UNTRUSTED = (18, 19, 20, 21)
"""What OpenSSL says of a certificate that no known authority has signed: self-signed, or without its issuer."""


def _never_works(reason: object, url: str) -> str | None:
    """Returns the sentence for an error of the connection that another try cannot mend, or None."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        remedy = OWN_AUTHORITY if reason.verify_code in _UNTRUSTED else ""
        return f"source must be on a server with a valid certificate, got {url}: {reason.verify_message}{remedy}"
    if isinstance(reason, ssl.SSLError) and reason.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return f"source must be on a server that speaks TLS, got {url}, whose does not: try http://"
    said = str(reason)
    if said.startswith("Tunnel connection failed: 4"):
        status = int(said.split(": ")[1][:3])
        remedy = _REMEDIES[407] if status == 407 else "ask who runs the proxy, or name the host in NO_PROXY"
        return f"the proxy must connect to {urllib.parse.urlsplit(url).hostname}, got {_said(said)} from it: {remedy}"
    return None


def _quote(url: str) -> str:
    """Percent-encodes an address, which people may paste with spaces and letters outside ASCII."""
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _length(response: http.client.HTTPResponse) -> int | None:
    """Returns the length of a response body, or None if the server gives none or several different ones."""
    values = {one.strip() for line in response.headers.get_all("Content-Length") or [] for one in line.split(",")}
    (value,) = values if len(values) == 1 else ("",)
    return int(value) if re.fullmatch("[0-9]{1,18}", value) else None


def _said(error: object) -> str:
    """Returns the message of an error, which may repeat what a server sent, as one short line."""
    return one_line(" ".join(str(error).split()))[:300] or type(error).__name__


def _retry_after(headers: email.message.Message) -> float:
    """Returns the seconds to wait according to Retry-After, which is a number of seconds or a date."""
    value = (headers.get("Retry-After") or "").strip()
    seconds = 0.0
    if re.fullmatch("[0-9]{1,9}", value):
        seconds = float(value)
    elif value:
        with contextlib.suppress(ValueError, TypeError):
            # By the clock of the server, which may differ from this machine's.
            now = headers.get("Date") or email.utils.formatdate(usegmt=True)
            until, since = map(email.utils.parsedate_to_datetime, (value, now))
            seconds = (until - since).total_seconds()
    return min(max(seconds, 0.0), LONGEST_WAIT)
