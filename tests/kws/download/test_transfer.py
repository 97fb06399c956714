"""Unreliable servers: what was received is kept, and nothing wrong is accepted."""

import io
import random
import socketserver
import tarfile
import threading
import time
from email.message import Message
from pathlib import Path

import pytest
from file_server import FileServer, serve

from kws import files
from kws.download import step, transfer
from kws.download.transfer import Remote, fetch

NAME = "words.tar.gz"
SIZE = 300_000


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def content(file_server: FileServer) -> bytes:
    """Bytes that are served."""
    drawn = random.Random(0).randbytes(SIZE)
    (file_server.root / NAME).write_bytes(drawn)
    return drawn


def pack(path: Path) -> Path:
    """Makes an archive of one recording."""
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("yes/a.wav")
        info.size = 1000
        archive.addfile(info, io.BytesIO(random.Random(0).randbytes(1000)))
    return path


def fetched(server: FileServer, part: Path) -> bytes:
    fetch(server.url(NAME), part)
    return part.read_bytes()


def test_transfer_from_a_server_that_resets_every_few_kilobytes_completes(
    file_server: FileServer, content: bytes, tmp_path: Path
) -> None:
    file_server.reset_after = 25_000
    assert fetched(file_server, tmp_path / "a.part") == content
    assert len(file_server.gets()) >= SIZE // 25_000
    assert len(set(file_server.gets())) == len(file_server.gets())  # each one asks for more than the one before


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "in chunks"])
def test_part_with_more_than_was_asked_for_is_not_trusted(
    file_server: FileServer, content: bytes, tmp_path: Path, counted: bool
) -> None:
    file_server.cut_after = 100_000
    file_server.surplus, file_server.surplus_counted, file_server.shift = b"more" * 50, counted, 200
    assert fetched(file_server, tmp_path / "a.part") == content
    assert file_server.gets() == [None, "bytes=100000-", None]


@pytest.mark.parametrize("header", ["{}, {}", "nonsense", "-5", "{}, 7"])
def test_repeated_or_invalid_length_header_is_tolerated(
    file_server: FileServer, content: bytes, tmp_path: Path, header: str
) -> None:
    file_server.content_length = header
    assert fetched(file_server, tmp_path / "a.part") == content


def test_other_etag_of_the_same_file_loses_nothing(file_server: FileServer, content: bytes, tmp_path: Path) -> None:
    file_server.etags = ['"one"', '"two"', '"three"']
    file_server.cut_after = 100_000
    part = tmp_path / "a.part"
    assert fetched(file_server, part) == content
    assert file_server.gets() == [
        None,
        "bytes=100000-",
    ]  # the second answer was the whole file, for If-Range did not hold


def test_etag_that_changes_in_a_part_makes_the_file_be_compared(
    file_server: FileServer, content: bytes, tmp_path: Path
) -> None:
    file_server.if_range = False
    file_server.etags = ['"one"', '"two"', '"two"']
    file_server.cut_after = 100_000
    assert fetched(file_server, tmp_path / "a.part") == content
    assert file_server.gets() == [None, "bytes=100000-", None]


def test_connection_that_breaks_while_the_file_is_compared_loses_nothing(
    file_server: FileServer, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TRIES", 1)
    part = tmp_path / "a.part"
    for cut, kept in ((200_000, 200_000), (50_000, 200_000)):
        file_server.ranges, file_server.cut_after = False, cut
        with pytest.raises(ConnectionError, match="received so far are kept"):
            fetch(file_server.url(NAME), part)
        assert part.read_bytes() == content[:kept]
    assert fetched(file_server, part) == content


@pytest.mark.parametrize("length", [SIZE - 150_000, SIZE - 1, SIZE, SIZE + 5])
@pytest.mark.parametrize("ranges", [True, False])
def test_file_that_changes_between_two_connections_is_the_new_one(
    file_server: FileServer, content: bytes, tmp_path: Path, length: int, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TRIES", 1)
    file_server.cut_after, file_server.ranges = 200_000, ranges
    part = tmp_path / "a.part"
    with pytest.raises(ConnectionError):
        fetch(file_server.url(NAME), part)
    monkeypatch.undo()
    changed = (content[:120_000] + random.Random(1).randbytes(SIZE))[:length]
    (file_server.root / NAME).write_bytes(changed)
    assert fetched(file_server, part) == changed


def test_forwarded_address_that_expires_is_asked_for_anew(
    file_server: FileServer, content: bytes, tmp_path: Path
) -> None:
    file_server.signed, file_server.signed_uses, file_server.cut_after = "token", 1, 100_000
    part = tmp_path / "a.part"
    with pytest.raises(ConnectionError, match="got 403"):
        fetch(file_server.url(NAME), part)  # each one had been used up
    assert part.stat().st_size == 100_000
    file_server.signed_uses = 1
    assert fetched(file_server, part) == content
    assert file_server.gets()[-1] == "bytes=100000-"


def test_overloaded_server_is_left_alone_for_as_long_as_it_asks(
    file_server: FileServer, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file_server.failures, file_server.failure_headers = [503], {"Retry-After": "1"}
    began = time.monotonic()
    assert fetched(file_server, tmp_path / "a.part") == content
    assert time.monotonic() - began >= 1
    assert "resuming at 0 B in 1 s, as the server asks" in caplog.text


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("", 0, 0),
        ("soon", 0, 0),
        ("-3", 0, 0),
        ("99999", 300, 300),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 300, 300),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
    ],
)
def test_time_that_a_server_asks_for_is_read_in_every_form(value: str, low: float, high: float) -> None:
    headers = Message()
    headers["Retry-After"] = value
    assert low <= transfer._retry_after(headers) <= high


def test_what_a_server_sends_instead_of_http_is_shown_on_one_line_and_commands_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)

    class Rude(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.request.sendall(b"SSH-2.0\x1b[2J\x07\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Rude) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with pytest.raises(ConnectionError) as caught:
            transfer.fetch(f"http://127.0.0.1:{server.server_address[1]}/a.tar.gz", tmp_path / "a.part")
        server.shutdown()
    assert "got SSH-2.0\\x1b[2J\\x07 in 5 tries" in str(caught.value)


def test_address_with_a_password_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source must be an address without user name and password") as caught:
        step.download("https://me:secret@example.org/a.tar.gz", "", tmp_path)
    assert "secret" not in str(caught.value)


def test_date_that_a_server_asks_to_wait_for_is_read_by_its_own_clock() -> None:
    headers = Message()
    headers["Date"], headers["Retry-After"] = "Thu, 01 Jan 1970 00:00:03 GMT", "Thu, 01 Jan 1970 00:00:10 GMT"
    assert transfer._retry_after(headers) == 7


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
@pytest.mark.parametrize("encoded", [True, False], ids=["compressed once more", "said only"])
@pytest.mark.parametrize("known", [True, False], ids=["digest", "no digest"])
def test_gzip_around_the_archive_is_taken_off(
    file_server: FileServer, tmp_path: Path, encoding: str, encoded: bool, known: bool
) -> None:
    path = pack(file_server.root / NAME)
    file_server.encoding, file_server.encoded = encoding, encoded
    digest = files.sha256_of(path)
    folder = step.download(file_server.url(NAME), digest if known else "", tmp_path)
    assert files.read_json(folder / files.MANIFEST)["sha256"] == digest
    assert [path.name for path in (tmp_path / "downloads").iterdir() if path.suffix != ".lock"] == []


def test_encoding_that_was_not_asked_for_is_refused(file_server: FileServer, content: bytes, tmp_path: Path) -> None:
    file_server.encoding = "br"
    with pytest.raises(ValueError, match="Content-Encoding of the server must be identity or gzip, got 'br'"):
        fetch(file_server.url(NAME), tmp_path / "a.part")


def test_trickle_ends_with_what_came_kept(
    file_server: FileServer, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SLOW_FOR", 0.2)
    monkeypatch.setattr(transfer, "TRIES", 2)
    file_server.trickle = 0.01
    part = tmp_path / "a.part"
    with pytest.raises(ConnectionError, match=r"only [0-9]+ bytes in 0.2 s"):
        fetch(file_server.url(NAME), part)
    assert part.stat().st_size > 0
    file_server.released.set()
    file_server.trickle = 0
    assert fetched(file_server, part) == content


def test_silence_ends(file_server: FileServer, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
    file_server.hold_after = 10_000
    with pytest.raises(ConnectionError, match=r"no data for 0.3 s"):
        fetch(file_server.url(NAME), tmp_path / "a.part")
    assert (tmp_path / "a.part").stat().st_size == 10_000


@pytest.mark.parametrize(
    ("endless", "said"),
    [
        (b"HTTP/1.1 2", "no data for 0.6 s"),
        (b"HTTP/1.1 200 OK\r\nETag: ", "no data for 0.6 s"),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere", "no data for 0.6 s"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", "no data for 0.6 s"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nTrailer: ", "no data for 0.6 s"),
    ],
    ids=["status", "header", "redirect", "length of a chunk", "trailer"],
)
def test_what_comes_byte_by_byte_without_end_ends_and_leaves_no_socket(
    endless: bytes, said: str, file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(transfer, "ANSWER_TIMEOUT", 0.6)
    file_server.endless = endless
    with pytest.raises(ConnectionError, match=said):
        fetch(file_server.url(NAME), tmp_path / "a.part")
    assert file_server.hung_up.wait(20)


def test_server_that_forwards_to_a_file_of_this_machine_gets_nothing(tmp_path: Path, file_server: FileServer) -> None:
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/a.tar.gz"):
        file_server.failures, file_server.failure_headers = [302] * transfer.TRIES, {"Location": address}
        with pytest.raises((ValueError, ConnectionError)):
            fetch(file_server.url(NAME), tmp_path / "a.part")
    assert not (tmp_path / "a.part").exists()


def test_address_with_spaces_and_letters_of_any_language_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "wörter und mehr.tar").write_bytes(b"x")
    with serve(tmp_path) as server:
        with pytest.raises(ValueError, match="got 404"):  # the server does not decode
            fetch(server.url("wörter und mehr.tar"), tmp_path / "a.part")
        assert server.requests[0].path == "/w%C3%B6rter%20und%20mehr.tar"


@pytest.mark.parametrize("notes", ["", "{", "[]", '{"etag": 5, "modified": null, "length": 1}', '{"other": 1}'])
def test_damaged_notes_about_a_part_make_it_be_compared(
    file_server: FileServer, content: bytes, tmp_path: Path, notes: str
) -> None:
    part = tmp_path / "a.part"
    part.write_bytes(content[:1000] + b"wrong")
    part.with_suffix(".json").write_text(notes)
    assert fetched(file_server, part) == content
    assert file_server.gets() == [None]


def test_disk_that_is_too_small_keeps_what_came(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(file_server.root / NAME)
    url = file_server.url(NAME)
    with monkeypatch.context() as patch:  # between the transfer and the unpacking the disk fills up
        patch.setattr(step, "EXTRACTED", 10**15)
        with pytest.raises(ValueError, match="of free disk"):
            step.download(url, "", tmp_path)
    file_server.requests.clear()
    assert files.is_complete(step.download(url, "", tmp_path))
    assert file_server.gets() == []


def test_remote_says_of_another_answer_whether_it_is_of_the_same_file() -> None:
    known = Remote('"a"', "Monday", 5)
    assert known.same(known)
    assert not known.same(Remote('"b"', "Monday", 5))
    assert not Remote(None, None, 5).same(Remote(None, None, 5))  # a length says too little
    assert not known.differs(Remote(None, None, None))
