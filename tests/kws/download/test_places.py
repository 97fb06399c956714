"""Where recordings may lie: addresses, credentials, certificates, proxies, and several places at once."""

import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from certificates import with_tls
from file_server import FileServer
from noise_recordings import make_recordings, pack

from kws import files
from kws.config import PipelineConfig, split_sources
from kws.data.digest import DIGESTS
from kws.data.sources import list_recordings
from kws.download import credentials, transfer
from kws.download.addresses import is_signed, resolve
from kws.download.step import download
from kws.recipe import FeatureConfig
from kws.serve.page.collection import Collection
from kws.serve.page.heard import Heard


@pytest.fixture(autouse=True)
def _quick_and_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)
    for name in (*credentials.CERTIFICATES, "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that what a test leaves is taken back
        monkeypatch.delenv(name)


# Addresses.


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("https://huggingface.co/datasets/google/speech_commands", "hf://datasets/google/speech_commands"),
        ("https://huggingface.co/datasets/me/words/", "hf://datasets/me/words"),
        ("https://huggingface.co/datasets/me/words/viewer/default/train", "hf://datasets/me/words"),
        ("https://huggingface.co/datasets/me/words/tree/main/data/a%20b", "hf://datasets/me/words@main/data/a b"),
        ("https://huggingface.co/datasets/me/words/blob/v1/w.zip", "hf://datasets/me/words@v1/w.zip"),
        ("https://hf.co/datasets/me/words/resolve/refs%2Fpr%2F1/w.zip", "hf://datasets/me/words@refs%2Fpr%2F1/w.zip"),
        ("https://huggingface.co/me/model", "https://huggingface.co/me/model"),
        ("https://mirror.example/hub/datasets/me/words", "hf://datasets/me/words"),
        ("S3A://bucket/key", "s3://bucket/key"),
        ("gcs://bucket/key", "gs://bucket/key"),
        ("abfs://container/key", "az://container/key"),
        ("file:///data/my%20words", "/data/my words"),
        ("env:MINE", "https://example.com/a.zip?X-Amz-Signature=abc"),
        ("~/words", "~/words"),
        ("words.zip", "words.zip"),
    ],
)
def test_address_is_what_people_paste(source: str, meant: str) -> None:
    environ = {"HF_ENDPOINT": "https://mirror.example/hub", "MINE": "https://example.com/a.zip?X-Amz-Signature=abc"}
    assert resolve(source, environ) == meant


def test_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ValueError, match=r"got env:NONE, which is not set .*an entry of the secret kws-download"):
        resolve("env:NONE", {})


def test_home_and_file_addresses_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_recordings(tmp_path / "my words")
    monkeypatch.setenv("HOME", str(tmp_path))
    first = download("~/my words", "", tmp_path / "data")
    assert download((tmp_path / "my words").as_uri(), "", tmp_path / "data") == first


@pytest.mark.parametrize(
    ("url", "signed"),
    [
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=ab&X-Amz-Credential=c", True),
        ("https://x.blob.core.windows.net/c/k?sv=1&sig=ab", True),
        ("https://user:secret@example.com/a.zip", True),
        ("https://www.dropbox.com/scl/fi/x/a.zip?rlkey=abc&dl=1", True),
        ("https://example.com/a.zip?download=true", False),
        ("s3://bucket/key", False),
        ("/data/a?sig=1", False),
    ],
)
def test_signed_address_is_recognized(url: str, signed: bool) -> None:
    assert is_signed(url) is signed


def test_signature_is_in_no_file_and_no_line(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    archive = pack(make_recordings(tmp_path / "recordings"), file_server.root / "words.tar.gz")
    monkeypatch.setenv("MINE", f"{file_server.url(archive.name)}?X-Amz-Signature=abcdef&X-Amz-Expires=9")
    file_server.cut_after = archive.stat().st_size // 2
    file_server.failures = [503]
    data = tmp_path / "data"
    folder = download("env:MINE", "", data)
    assert download("env:MINE", "", data) == folder
    assert files.read_json(folder / files.MANIFEST)["source"] == file_server.url(archive.name)
    with pytest.raises(ValueError, match=r"sha256 of http.*words.tar.gz must be") as caught:
        download("env:MINE", "0" * 64, tmp_path / "other")
    monkeypatch.setenv("MINE", f"{file_server.url('none.zip')}?X-Amz-Signature=abcdef")
    with pytest.raises(ValueError, match="got 404") as missing:
        download("env:MINE", "", data)
    told = f"{caplog.text}{caught.value}{missing.value}"
    told += "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "resuming" in told
    assert "abcdef" not in told


# Credentials, certificates and proxies.


def test_entries_of_the_secret_become_variables_unless_they_are_set(tmp_path: Path) -> None:
    for name, content in (
        ("AWS_ACCESS_KEY_ID", "key\n"),
        ("HF_TOKEN", "other"),
        ("ca.crt", "certificate"),
        ("google.json", "{}"),
        ("notes.txt", "not used"),
        ("..data", "as Kubernetes links it"),
    ):
        (tmp_path / name).write_text(content)
    environ = {"HF_TOKEN": "mine"}
    credentials.load(tmp_path, environ)
    certificate = str(tmp_path / "ca.crt")
    assert environ == dict.fromkeys(credentials.CERTIFICATES, certificate) | {
        "AWS_ACCESS_KEY_ID": "key",
        "HF_TOKEN": "mine",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "google.json"),
    }
    credentials.load(tmp_path / "absent", other := {"REQUESTS_CA_BUNDLE": certificate})
    assert other["SSL_CERT_FILE"] == certificate
    with pytest.raises(ValueError, match="SSL_CERT_FILE or REQUESTS_CA_BUNDLE must name a file of certificates"):
        credentials.load(tmp_path / "absent", {"SSL_CERT_FILE": "/nowhere.pem"})


@pytest.mark.parametrize("variable", credentials.CERTIFICATES)
def test_certificate_of_a_company_is_refused_at_once_with_the_remedy_which_works(
    file_server: FileServer,
    authority: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
) -> None:
    pack(make_recordings(tmp_path / "recordings"), file_server.root / "words.tar.gz")
    with with_tls(file_server, authority[1]) as address:
        with pytest.raises(ValueError, match=r"valid certificate, got https.*set SSL_CERT_FILE to a f.*ca.crt of"):
            download(f"{address}/words.tar.gz", "", tmp_path / "data")
        assert "resuming" not in caplog.text
        monkeypatch.setenv(variable, str(authority[0]))
        assert files.is_complete(download(f"{address}/words.tar.gz", "", tmp_path / "data"))


class Proxy(BaseHTTPRequestHandler):
    """A proxy that wants a password, and fetches for whoever knows it."""

    def do_CONNECT(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.headers["Proxy-Authorization"] != "Basic dXNlcjpwYXNz":  # user:pass
            self.send_response(407, "Proxy Authentication Required")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        host, _, path = self.path.removeprefix("http://").partition("/")
        with socket.create_connection((host.split(":")[0], int(host.split(":")[1]))) as upstream:
            headers = f"{self.command} /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            upstream.sendall(headers.encode())
            while data := upstream.recv(1 << 16):
                self.wfile.write(data)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_wants_a_password_is_refused_at_once_with_the_remedy(
    proxy: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"http://{proxy}")
    with pytest.raises(
        ValueError, match=r"407 Proxy Authentication Required.* set HTTPS_PROXY and HTTP_PROXY to http://US"
    ):
        download(f"{scheme}://words.example:8443/words.tar.gz", "", tmp_path / "data")
    assert "resuming" not in caplog.text


def test_proxy_with_its_password_in_the_variable_is_used(
    proxy: str, file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(make_recordings(tmp_path / "recordings"), file_server.root / "words.tar.gz")
    monkeypatch.setenv("http_proxy", f"http://user:pass@{proxy}")
    folder = download(file_server.url("words.tar.gz"), "", tmp_path / "data")
    assert "pass" not in (folder / files.MANIFEST).read_text()


def test_server_without_tls_is_named_at_once(file_server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source must be on a server that speaks TLS.*try http://"):
        download(f"https://127.0.0.1:{file_server.server_port}/words.tar.gz", "", tmp_path / "data")


# Several sources.


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("/data/a", ["/data/a"]),
        ("/data/my words, old/a.zip", ["/data/my words, old/a.zip"]),
        ("https://x.example/a,b.zip", ["https://x.example/a,b.zip"]),
        ("/data/a,s3://bucket/b  hf://datasets/me/c", ["/data/a", "s3://bucket/b", "hf://datasets/me/c"]),
        ("/data/a, ./b ../c ~/d env:E", ["/data/a", "./b", "../c", "~/d", "env:E"]),
        ("a\nb c\n", ["a", "b c"]),
        (" , ", []),
    ],
)
def test_sources_are_told_apart_and_paths_keep_their_spaces(text: str, sources: list[str]) -> None:
    assert split_sources(text) == sources
    if sources:
        assert PipelineConfig(source=text, sha256="0" * 64).source == text


def test_several_sources_become_one_data_set_without_a_copy(
    file_server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    archive = pack(make_recordings(tmp_path / "one", clips=30), file_server.root / "words.tar.gz")
    mine = make_recordings(tmp_path / "mine", seed=1, clips=10)
    (mine / "yes").rename(mine / "stop")
    (mine / "testing_list.txt").write_text("no/00000001_nohash_0.wav\n")
    (mine / "validation_list.txt").write_text("stop/00000002_nohash_0.wav\n")
    source = f"{file_server.url(archive.name)}\n{mine}"
    folder = download(source, "", tmp_path / "data")
    assert folder.name.startswith("2-sources-")
    assert sorted(path.name for path in folder.iterdir()) == [DIGESTS, "manifest.json", "parts.json"]
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["words"] == {"no": 40, "stop": 10, "yes": 30}
    assert manifest["num_clips"] == 80
    shares = [(one["source"], one["num_clips"], one["share"]) for one in manifest["sources"]]
    assert shares == [(file_server.url(archive.name), 60, 0.75), (str(mine), 20, 0.25)]
    assert f"{mine}: 20 clips, 25.0 % of all" in caplog.text
    assert download(source.replace("\n", ", "), "", tmp_path / "data") == folder

    listing = list_recordings(folder)
    by_id = {clip.id: clip for clip in listing.clips}
    assert len(by_id) == 80
    for clip in by_id.values():
        assert (folder / clip.file).is_file()
    stated = {clip.id.partition("/mine-")[2][9:]: clip.split for clip in by_id.values()}
    assert stated["no/00000001_nohash_0.wav"] == "test"
    assert stated["stop/00000002_nohash_0.wav"] == "validation"
    # A speaker whom a part states to be in a split is not in another one by the other part.
    others = {clip.split for clip in by_id.values() if clip.speaker == "00000001" and "/mine-" not in clip.id}
    assert others == {"test"}


def test_folder_of_a_server_counts_from_the_first_recording_that_is_confirmed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    archive = pack(make_recordings(tmp_path / "one"), tmp_path / "one.tar.gz")
    collected = Collection(tmp_path / "collected")
    heard = Heard(tmp_path / "collected")
    sound = {"version": "v1", "speaker": "0" * 8, "rate": 16_000, "probability": 0.0, "threshold": 0.8}
    name = heard.keep(np.zeros(32_000, np.int16), kind="missed", word="", **sound)
    source = f"{archive}\n{tmp_path / 'collected'}"
    assert download(source, "", tmp_path / "data") == download(str(archive), "", tmp_path / "data")
    assert "collected is left out: of what a server heard there nothing was confirmed yet" in caplog.text
    with pytest.raises(ValueError, match="source must hold a folder of recordings for each word"):
        download(str(tmp_path / "collected"), "", tmp_path / "data")
    heard.confirm(name, "yes", collected, FeatureConfig())
    assert download(source, "", tmp_path / "data").name.startswith("2-sources-")


def test_digest_is_given_for_each_source_or_for_none(tmp_path: Path) -> None:
    one, two = (pack(make_recordings(tmp_path / name), tmp_path / f"{name}.tar.gz") for name in ("one", "two"))
    digests = [files.sha256_of(path) for path in (one, two)]
    assert files.is_complete(download(f"{one}\n{two}", ",".join(digests), tmp_path / "data"))
    with pytest.raises(ValueError, match="sha256 must be empty or one for each source, got 1 for 2 sources"):
        download(f"{one}\n{two}", digests[0], tmp_path / "data")
    with pytest.raises(ValueError, match=r"sha256 of .*two.tar.gz must be"):
        download(f"{one}\n{two}", f"{digests[0]} {'0' * 64}", tmp_path / "data")


def test_part_that_is_gone_is_named(tmp_path: Path) -> None:
    one, two = make_recordings(tmp_path / "one"), make_recordings(tmp_path / "two", seed=1)
    folder = download(f"{one}\n{two}", "", tmp_path / "data")
    (part,) = (tmp_path / "data" / "datasets").glob("two-*[0-9a-f]")
    (part / files.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"two-.* must be as it was downloaded, .*download its source again"):
        list_recordings(folder)
