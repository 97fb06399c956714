"""Object stores and the Hub: a real server that speaks the protocol, its connections cut, its objects changed."""

import contextlib
import hashlib
import json
import logging
import socket
import tarfile
import threading
import urllib.parse
import urllib.request
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gcp_storage_emulator.server import create_server
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from kws import files
from kws.data.sources import list_recordings
from kws.download import stores, transfer
from kws.download.step import download

logging.getLogger("werkzeug").setLevel(logging.ERROR)

ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "HF_TOKEN", "HF_ENDPOINT", "GOOGLE_APPLICATION_CREDENTIALS",
    "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


class Relay:
    """A TCP relay in front of a server, which cuts connections."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.cut_after: int | None = None
        """Bytes of answers after which every connection is cut, until it is None again."""
        self.sent = 0
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if answers:
                    self.sent += len(data)
                    if self.cut_after is not None and self.sent > self.cut_after:
                        self.cuts += 1
                        break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def relay(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Relay:
    made = Relay(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return made


@pytest.fixture
def bucket(s3_port: int, relay: Relay, request: pytest.FixtureRequest) -> Any:
    import boto3

    name = f"b{hashlib.sha1(request.node.name.encode()).hexdigest()[:20]}"
    made = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{s3_port}").Bucket(name)
    made.create()
    return made


def sound(seed: int, seconds: float = 1.0) -> bytes:
    return (np.random.default_rng(seed).standard_normal(int(16_000 * seconds)) * 3000).astype("<i2").tobytes()


def recordings(folder: Path, words: tuple[str, ...] = ("yes", "no"), clips: int = 4, seed: int = 0) -> Path:
    for number, word in enumerate(words):
        (folder / word).mkdir(parents=True)
        for clip in range(clips):
            with wave.open(str(folder / word / f"{clip:08x}_nohash_0.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(sound(100 * seed + 10 * number + clip))
    return folder


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as file:
        file.add(folder, ".")
    return archive


def upload(bucket: Any, folder: Path, prefix: str) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        bucket.upload_file(str(path), f"{prefix}{path.relative_to(folder).as_posix()}")


def left_over(data_root: Path) -> list[str]:
    return [path.name for path in (data_root / "downloads").glob("*") if not path.name.endswith(".lock")]


def test_archive_in_a_bucket_is_resumed_after_its_connection_was_cut(
    bucket: Any, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "STEP", 1 << 15)
    archive = packed(recordings(tmp_path / "words"), tmp_path / "words.tar.gz")
    bucket.upload_file(str(archive), "sets/words.tar.gz")
    address = f"s3://{bucket.name}/sets/words.tar.gz"
    relay.cut_after = archive.stat().st_size // 2
    with pytest.raises(ConnectionError, match=r"must be reachable and send the whole file.*received so far are kept"):
        download(address, "", tmp_path / "data")
    (part,) = (tmp_path / "data" / "downloads").glob("*.part")
    kept = part.stat().st_size
    assert relay.cuts > 0
    assert 0 < kept < archive.stat().st_size
    assert part.read_bytes() == archive.read_bytes()[:kept]
    relay.cut_after, relay.sent = None, 0
    folder = download(address, files.sha256_of(archive), tmp_path / "data")
    assert relay.sent < archive.stat().st_size - kept + 100_000
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["source"] == address
    assert manifest["sha256"] == files.sha256_of(archive)
    assert manifest["words"] == {"no": 4, "yes": 4}
    assert left_over(tmp_path / "data") == []


def test_unchanged_archive_is_not_downloaded_again_and_a_changed_one_is(
    bucket: Any, relay: Relay, tmp_path: Path
) -> None:
    address = f"s3a://{bucket.name}/words.tar.gz"
    bucket.upload_file(str(packed(recordings(tmp_path / "one"), tmp_path / "1.tar.gz")), "words.tar.gz")
    first = download(address, "", tmp_path / "data")
    relay.sent = 0
    assert download(address, "", tmp_path / "data") == first
    assert relay.sent < 10_000
    bucket.upload_file(str(packed(recordings(tmp_path / "two", seed=1), tmp_path / "2.tar.gz")), "words.tar.gz")
    assert download(address, "", tmp_path / "data") != first


def test_object_that_changed_since_the_cut_is_downloaded_from_its_start(
    bucket: Any, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "STEP", 1 << 15)
    monkeypatch.setattr(transfer, "TRIES", 1)
    one = packed(recordings(tmp_path / "one"), tmp_path / "1.tar.gz")
    two = packed(recordings(tmp_path / "two", seed=1), tmp_path / "2.tar.gz")
    bucket.upload_file(str(one), "words.tar.gz")
    relay.cut_after = one.stat().st_size // 2
    with pytest.raises(ConnectionError):
        download(f"s3://{bucket.name}/words.tar.gz", "", tmp_path / "data")
    relay.cut_after = None
    bucket.upload_file(str(two), "words.tar.gz")
    folder = download(f"s3://{bucket.name}/words.tar.gz", "", tmp_path / "data")
    assert files.read_json(folder / files.MANIFEST)["sha256"] == files.sha256_of(two)


def test_prefix_becomes_a_folder_is_resumed_by_object_and_followed(
    bucket: Any, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = recordings(tmp_path / "words", clips=6)
    (words / "yes" / ".hidden.wav").write_bytes(b"x")
    upload(bucket, words, "sets/words/")
    bucket.put_object(Key="sets/words/empty/", Body=b"")
    bucket.put_object(Key="sets/words-other/yes/a.wav", Body=b"not of this prefix")
    address = f"s3://{bucket.name}/sets/words"
    monkeypatch.setattr(stores, "THREADS", 2)
    monkeypatch.setattr(transfer, "TRIES", 1)
    relay.cut_after = 200_000
    with pytest.raises(ConnectionError):
        download(address, "", tmp_path / "data")
    there = [path for path in (tmp_path / "data" / "downloads").rglob("*.wav") if not path.name.startswith(".")]
    assert 0 < len(there) < 12
    relay.cut_after, relay.sent = None, 0
    folder = download(address, "", tmp_path / "data")
    assert relay.sent < (12 - len(there)) * 33_000 + 40_000
    assert folder.name.startswith("words-")
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["words"] == {"no": 6, "yes": 6}
    assert manifest["source"] == address
    assert manifest["objects"]["num_objects"] == 12
    assert left_over(tmp_path / "data") == []
    for clip in list_recordings(folder).clips:
        assert (folder / clip.file).read_bytes() == (words / clip.file).read_bytes()
    relay.sent = 0
    assert download(f"{address}/", "", tmp_path / "data").name == folder.name
    upload(bucket, recordings(tmp_path / "more", words=("stop",)), "sets/words/")
    assert files.read_json(download(address, "", tmp_path / "data") / files.MANIFEST)["words"]["stop"] == 4


def test_archives_under_a_prefix_are_unpacked(bucket: Any, tmp_path: Path) -> None:
    for word in ("yes", "no"):
        upload_from = recordings(tmp_path / word, words=(word,)) / word
        bucket.upload_file(str(packed(upload_from, tmp_path / f"{word}.tar.gz")), f"sets/{word}.tar.gz")
    folder = download(f"s3://{bucket.name}/sets/", "", tmp_path / "data")
    assert files.read_json(folder / files.MANIFEST)["words"] == {"no": 4, "yes": 4}


@pytest.mark.parametrize("key", ["w/../../yes/a.wav", "w/yes//a.wav"])
def test_key_that_is_no_path_is_refused(bucket: Any, tmp_path: Path, key: str) -> None:
    bucket.put_object(Key=key, Body=b"x")
    with pytest.raises(ValueError, match="source must hold objects whose names are paths, got s3://"):
        download(f"s3://{bucket.name}/w/", "", tmp_path / "data")
    assert not list(tmp_path.rglob("a.wav"))


@pytest.mark.parametrize("address", ["s3://nowhere-at-all/words/", "s3://{bucket}/absent", "s3://{bucket}/absent/"])
def test_address_where_nothing_is_is_refused_at_once(bucket: Any, tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match=r"^source must exist, got s3://.*, where nothing is: check the spelling$"):
        download(address.format(bucket=bucket.name), "", tmp_path / "data")


def test_web_page_in_a_bucket_is_named(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="words.tar.gz", Body=b"<html><title>Moved</title></html>")
    with pytest.raises(ValueError, match=r"words.tar.gz, which is a web page \('Moved'\)"):
        download(f"s3://{bucket.name}/words.tar.gz", "", tmp_path / "data")


class _Denying(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_bucket_without_access_is_refused_with_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(_Denying) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for with_keys in (True, False):  # without keys the bucket is asked as a public one
            if with_keys:
                monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id-of-the-test")
                monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
            else:
                monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            with pytest.raises(ValueError, match=r"set AWS_ACCESS_KEY_ID and .*the secret kws-download") as caught:
                download("s3://private/words.tar.gz", "", tmp_path / "data")
            assert "very-secret" not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_public_bucket_needs_no_credentials(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(recordings(tmp_path / "words"), tmp_path / "w.tar.gz")
    bucket.upload_file(str(archive), "words.tar.gz", ExtraArgs={"ACL": "public-read"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert files.is_complete(download(f"s3://{bucket.name}/words.tar.gz", "", tmp_path / "data"))


def test_store_that_cannot_be_reached_is_named_with_the_remedy(
    tmp_path: Path, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(ConnectionError, match=r"must be reachable, got .*127\.0\.0\.1.*check the address, the network"):
        download("s3://bucket/words.tar.gz", "", tmp_path / "data")


# Google's.


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """An emulator of Google's store with the bucket "words", behind a relay."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="words")
    server.start()
    made = Relay(server._api._httpd.server_port)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{made.port}")
    yield made
    server.stop()


def put(path: Path, google: Relay, key: str) -> None:
    upload = f"http://127.0.0.1:{google.target}/upload/storage/v1/b/words/o?uploadType=media&name="
    body = urllib.request.Request(upload + urllib.parse.quote(key, ""), path.read_bytes(), method="POST")
    body.add_header("Content-Type", "application/octet-stream")
    urllib.request.urlopen(body, timeout=30).close()


def test_archive_in_a_bucket_of_google_is_resumed_after_its_connection_was_cut(
    google: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "STEP", 1 << 15)
    monkeypatch.setattr(transfer, "TRIES", 1)
    archive = packed(recordings(tmp_path / "words"), tmp_path / "words.tar.gz")
    put(archive, google, "sets/words.tar.gz")
    google.cut_after = archive.stat().st_size // 2
    with pytest.raises(ConnectionError, match="received so far are kept"):
        download("gs://words/sets/words.tar.gz", "", tmp_path / "data")
    (part,) = (tmp_path / "data" / "downloads").glob("*.part")
    kept = part.stat().st_size
    assert 0 < kept < archive.stat().st_size
    google.cut_after, google.sent = None, 0
    manifest = files.read_json(download("gs://words/sets/words.tar.gz", "", tmp_path / "data") / files.MANIFEST)
    assert google.sent < archive.stat().st_size - kept + 100_000
    assert manifest["words"] == {"no": 4, "yes": 4}


def test_prefix_of_a_bucket_of_google_becomes_a_folder_and_an_absent_one_is_refused(
    google: Relay, tmp_path: Path
) -> None:
    words = recordings(tmp_path / "words")
    for path in words.rglob("*.wav"):
        put(path, google, f"my sets/{path.relative_to(words).as_posix()}")
    folder = download("gs://words/my sets", "", tmp_path / "data")
    for clip in list_recordings(folder).clips:
        assert (folder / clip.file).read_bytes() == (words / clip.file).read_bytes()
    google.sent = 0
    assert download("gs://words/my sets", "", tmp_path / "data") == folder
    assert google.sent < 30_000
    with pytest.raises(ValueError, match=r"^source must exist, got gs://words/other, where nothing is"):
        download("gs://words/other", "", tmp_path / "data")


def test_bucket_of_google_without_access_is_refused_with_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(_Denying) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ValueError, match=r"set GOOGLE_APPLICATION_CREDENTIALS .*the secret kws-download"):
            download("gs://private/words.tar.gz", "", tmp_path / "data")


def test_address_of_azure_without_an_account_is_refused_with_the_variables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got az://words/sets: .* set AZURE_STORAGE_ACCOUNT_NAME and "):
        download("az://words/sets", "", tmp_path / "data")


# The Hub.


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Hub(ThreadingHTTPServer):
    """A data set as the Hub's API shows it: its commit, its tree, its files with ranges."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.root = root
        self.token = ""
        self.commit = "0123456789abcdef0123456789abcdef01234567"
        self.gets: list[str] = []
        self.failing = 0
        """How many answers with content are cut in their middle."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        name = "me/words"
        for prefix in (f"/api/datasets/{name}/revision/", f"/api/datasets/{name}"):
            if path.startswith(prefix) and "/tree/" not in path:
                return self._json({"id": name, "sha": self.server.commit, "private": False, "siblings": [], "tags": []})
        if path.startswith(f"/api/datasets/{name}/tree/"):
            inside = path.removeprefix(f"/api/datasets/{name}/tree/").partition("/")[2]
            return self._tree(inside, "recursive=True" in self.path or "recursive=true" in self.path)
        if path.startswith(f"/datasets/{name}/resolve/"):
            return self._file(path.removeprefix(f"/datasets/{name}/resolve/").partition("/")[2])
        return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        paths = [self.server.root / name for name in asked["paths"]]
        self._json([self._entry(path) for path in paths if path.exists()], 200)

    def _entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.server.root).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        content = path.read_bytes()
        entry = {"type": "file", "size": len(content), "path": name}
        entry["oid"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        if len(content) > 10_000:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _tree(self, inside: str, recursive: bool) -> None:
        folder = self.server.root / inside
        if not folder.is_dir():
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        paths = sorted(folder.rglob("*") if recursive else folder.iterdir())
        return self._json([self._entry(path) for path in paths], 200)

    def _file(self, name: str) -> None:
        path = self.server.root / name
        if not path.is_file():
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        content, start, status = path.read_bytes(), 0, 200
        if (ranged := self.headers["Range"]) and self.command == "GET":
            first, _, last = ranged.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            content = content[start : int(last) + 1 if last else None]
            self.server.gets.append(f"{name}@{start}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        if status == 206:
            size = path.stat().st_size
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
        self.end_headers()
        if self.command == "GET":
            if self.server.failing and len(content) > 10_000:
                self.server.failing -= 1
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return None
            self.wfile.write(content)
        return None

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    root = recordings(tmp_path / "hub-words")
    (root / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (root / ".gitattributes").write_text("*.wav filter=lfs\n")
    packed(recordings(tmp_path / "packed", seed=3), root / "words.tar.gz")
    server = Hub(root)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_requests_to_a_store_are_not_logged_one_by_one(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in stores.LOUD:
        logging.getLogger(name).setLevel(logging.NOTSET)
    caplog.set_level(logging.INFO)
    download("hf://datasets/me/words", "", tmp_path)
    assert {record.name.split(".")[0] for record in caplog.records} == {"kws"}
    assert not logging.getLogger("azure.core.pipeline.policies").isEnabledFor(logging.INFO)


def test_data_set_of_the_hub_is_brought_as_a_folder_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    hub.failing = 3
    folder = download("hf://datasets/me/words", "", tmp_path / "data")
    manifest = files.read_json(folder / files.MANIFEST)
    assert folder.name.startswith("words-")
    assert manifest["words"] == {"no": 4, "yes": 4}
    assert manifest["source"] == "hf://datasets/me/words"
    assert manifest["objects"]["address"] == f"hf://datasets/me/words@{hub.commit}"
    assert manifest["objects"]["num_objects"] == 10
    hub.gets.clear()
    assert download("hf://datasets/me/words", "", tmp_path / "data") == folder
    assert hub.gets == []


def test_archive_on_the_hub_is_unpacked_by_any_of_its_addresses(hub: Hub, tmp_path: Path) -> None:
    hub.failing = 1
    page = f"http://127.0.0.1:{hub.server_port}/datasets/me/words"
    folder = download("hf://datasets/me/words/words.tar.gz", files.sha256_of(hub.root / "words.tar.gz"), tmp_path)
    assert files.read_json(folder / files.MANIFEST)["words"] == {"no": 4, "yes": 4}
    assert download(f"{page}/resolve/main/words.tar.gz?download=true", "", tmp_path) == folder
    assert download(f"{page}/blob/main/words.tar.gz", "", tmp_path) == folder


def test_folder_on_a_page_of_the_hub_is_brought_alone_and_a_new_commit_with_what_is_new(
    hub: Hub, tmp_path: Path
) -> None:
    recordings(hub.root / "more")
    page = f"http://127.0.0.1:{hub.server_port}/datasets/me/words/tree/main/more"
    first = download(page, "", tmp_path / "data")
    assert files.read_json(first / files.MANIFEST)["words"] == {"no": 4, "yes": 4}
    recordings(hub.root / "more", words=("stop",))
    hub.commit = "f" * 40
    second = download(page, "", tmp_path / "data")
    assert files.read_json(second / files.MANIFEST)["words"] == {"no": 4, "stop": 4, "yes": 4}


def test_private_data_set_is_read_with_a_token_and_refused_without(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ValueError, match=r"got hf://datasets/me/words.*set HF_TOKEN"):
        download("hf://datasets/me/words", "", tmp_path / "data")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert files.is_complete(download("hf://datasets/me/words", "", tmp_path / "data"))


def test_file_of_the_hub_that_is_not_what_its_digest_says_is_not_taken(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TRIES", 2)
    monkeypatch.setattr(_HubHandler, "_entry", lambda self, path: _entry(self, path) | {"oid": "0" * 40, "lfs": None})
    with pytest.raises(ConnectionError, match="it is not what the store says it is"):
        download("hf://datasets/me/words", "", tmp_path / "data")


_entry = _HubHandler._entry
