"""The page's own server: files, the WebSocket, recordings; on a real socket, with a third-party client."""

import asyncio
import dataclasses
import io
import json
import socket as sockets
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from phones import encode
from websockets.sync.client import ClientConnection, connect

from kws.data.sources import list_recordings
from kws.model import onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Detector, Thresholds
from kws.preprocess.audio import read_bytes, read_waveform
from kws.recipe import FeatureConfig
from kws.serve.models import Served
from kws.serve.page import socket
from kws.serve.page.collection import Collection
from kws.serve.page.router import router

RATE = 16_000


class Page:
    """A running server of the page, whose model can be changed."""

    def __init__(
        self,
        model: Served | None,
        collect: Path | None = None,
        most_streams: int = 64,
        data_root: Path | None = None,
        port: int = 0,
        keep_heard: bool = False,
    ) -> None:
        self.model = model
        app = FastAPI()
        app.include_router(router(lambda: self.model, collect, most_streams, data_root, keep_heard))
        listening = sockets.create_server(("127.0.0.1", port))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([listening])))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def listen(self, **hello: Any) -> ClientConnection:
        client = connect(f"ws://127.0.0.1:{self.port}/listen")
        client.send(json.dumps(hello or {"rate": RATE}))
        return client

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        asked = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(asked) as answer:
                status, kind, content = answer.status, answer.headers.get_content_type(), answer.read()
        except urllib.error.HTTPError as error:
            status, kind, content = error.code, error.headers.get_content_type(), error.read()
        return status, json.loads(content) if kind == "application/json" else content


@pytest.fixture(scope="module")
def served(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = tmp_path_factory.mktemp("page") / "model.onnx"
    onnx.export(expert, path)
    thresholds = Thresholds(thresholds={"no": 0.6, "stop": 0.6, "yes": 0.6})
    return Served(recognizer=onnx.load(path, 1), version="v1", thresholds=thresholds, card="# The card")


@pytest.fixture(scope="module")
def page(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    running = Page(served, tmp_path_factory.mktemp("collected"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def tone(tone_corpus: Path) -> np.ndarray:
    clip = read_waveform(min((tone_corpus / "yes").iterdir()), RATE)[:8000]
    stream = np.concatenate([np.zeros(RATE), clip, np.zeros(RATE)])
    return (stream * 32767).astype("<i2")


def until(client: ClientConnection, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != kind:
        found.append(json.loads(client.recv(timeout=60)))
    return found


def wav(samples: np.ndarray, rate: int = RATE, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


CLIP = wav(np.arange(RATE))


def test_page_is_whole_and_needs_nothing_from_elsewhere(page: Page) -> None:
    status, index = page.request("GET", "/")
    assert status == 200
    names = [part.split('"')[0] for part in index.decode().split('"page/')[1:]]
    assert names
    modules = [path.name for path in (Path(socket.__file__).parent / "static").glob("*.js")]
    for name in {*names, *modules}:
        status, content = page.request("GET", f"/page/{name}")
        assert status == 200
        assert b"http://" not in content.replace(b"http://www.w3.org/2000/svg", b"").replace(b"http://localhost", b"")
        assert b"https://" not in content.replace(b"pages at https:// or", b"")
    with urllib.request.urlopen(page.url) as answer:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for name in ("..%2Frouter.py", "absent.js"):
        assert page.request("GET", f"/page/{name}")[0] == 404


def test_stream_gives_what_the_detector_gives_whatever_the_messages(
    page: Page, served: Served, tone: np.ndarray
) -> None:
    detector = Detector(served.recognizer, served.thresholds)
    heard = detector.feed(tone / np.float32(32768)) + detector.finish()
    expected = [one.detection for one in heard if one.detection]
    assert [one.word for one in expected].count("yes") == 1
    content = tone.tobytes()
    for size in (3201, 9000):  # odd: a sample may be torn
        with page.listen() as client:
            hello = json.loads(client.recv())
            assert (hello["version"], hello["words"]) == ("v1", ["no", "stop", "yes"])
            for first in range(0, len(content), size):
                client.send(content[first : first + size])
            client.send('{"finish": true}')
            messages = until(client, "finished")
            found = [one for one in messages if one["type"] == "detection"]
            assert [(one["word"], one["time"]) for one in found] == [(one.word, one.time) for one in expected]
            windows = [one for one in messages if one["type"] == "heard"]
            assert len(windows) == len(heard)
            assert len(windows[0]["probabilities"]) == 3


def test_thresholds_of_a_page_are_its_own_and_last_beyond_the_end_of_a_file(page: Page, tone: np.ndarray) -> None:
    with page.listen() as client, page.listen() as other:
        client.send('{"thresholds": {"no": 1.5, "stop": 1.5, "yes": 1.5}}')
        for _ in range(2):
            client.send(tone.tobytes())
            client.send('{"finish": true}')
            assert not [one for one in until(client, "finished") if one["type"] == "detection"]
        other.send(tone.tobytes())
        other.send('{"finish": true}')
        assert [one for one in until(other, "finished") if one["type"] == "detection"]


def test_another_champion_takes_over_in_the_middle_of_a_stream(page: Page, served: Served, tone: np.ndarray) -> None:
    with page.listen() as client:
        before = json.loads(client.recv())
        client.send(tone.tobytes())
        while json.loads(client.recv()).get("time", 0) < 2.3:
            pass
        page.model = dataclasses.replace(served, version="v2")
        try:
            client.send(tone.tobytes())
            again = until(client, "hello")[-1]
            client.send('{"finish": true}')
            times = [one["time"] for one in until(client, "finished") if one["type"] == "heard"]
        finally:
            page.model = served
    assert (before["version"], again["version"]) == ("v1", "v2")
    assert times == sorted(times)
    assert times[0] > tone.size / RATE


def test_page_that_only_is_open_is_told_of_another_champion(page: Page, served: Served) -> None:
    with page.listen() as client:
        assert json.loads(client.recv())["version"] == "v1"
        page.model = dataclasses.replace(served, version="v2")
        try:
            assert json.loads(client.recv(timeout=60))["version"] == "v2"
        finally:
            page.model = served


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (['{"rate": 44100}'], "rate in the first message must be 16000"),
        (["[1]"], "a message must be a JSON object"),
        (["{"], "a message must be JSON or samples"),
        ([b"\0\0"], "rate in the first message must be 16000"),
        (['{"rate": 16000}', '{"thresholds": {"no": 1}}'], "must be given for the words of the model, no, stop"),
        (['{"rate": 16000}', '{"thresholds": {"no": "x", "stop": 1, "yes": 1}}'], "must be numbers"),
        (['{"rate": 16000}', '{"thresholds": {"no": [1], "stop": 1, "yes": 1}}'], "must be numbers"),
        (['{"rate": 16000}', '{"thresholds": [1]}'], "must be numbers"),
        (['{"rate": 16000}', '{"thresholds": {"no": -1, "stop": 1, "yes": 1}}'], "threshold of no must be more than 0"),
        (['{"rate": 16000}', '{"sing": true}'], "a message must have thresholds, armed, missed or finish, got sing"),
        (['{"rate": 16000}', b"\0" * 300_000], "a message must have at most 262144 bytes"),
    ],
)
def test_message_that_is_not_understood_ends_with_a_sentence(page: Page, messages: list[Any], said: str) -> None:
    with connect(f"ws://127.0.0.1:{page.port}/listen") as client:
        for message in messages:
            client.send(message)
        error = until(client, "error")[-1]["error"]
        assert said in error


def test_more_streams_than_allowed_are_told_to_try_later_and_pages_that_do_not_listen_do_not_count(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(served, most_streams=1)
    silence = bytes(3200)
    try:
        with page.listen() as idle, page.listen() as first, page.listen() as second, page.listen() as third:
            first.send(silence * 10)
            until(first, "heard")
            second.send(silence)
            assert "fewer than 1 streams" in until(second, "error")[-1]["error"]
            first.send('{"finish": true}')
            until(first, "finished")
            third.send(silence * 10)
            until(third, "heard")
            monkeypatch.setattr(socket, "PATIENCE_SECONDS", 0.0)  # none have come for a while
            idle.send(silence * 10)
            until(idle, "heard")
        monkeypatch.undo()
        page.model = None
        with connect(f"ws://127.0.0.1:{page.port}/listen") as none:
            assert "must have a model, got none yet" in json.loads(none.recv())["error"]
        assert page.request("GET", "/card")[0] == 503
    finally:
        page.close()


def test_page_that_only_is_open_stays_connected(page: Page, tone: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with page.listen() as client:
        until(client, "hello")
        monkeypatch.setattr(socket, "PATIENCE_SECONDS", 0.01)
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.5)
        client.send(tone.tobytes())
        assert until(client, "heard")


def test_card_is_the_one_of_the_model(page: Page) -> None:
    status, about = page.request("GET", "/card")
    assert status == 200
    assert (about["version"], about["card"]) == ("v1", "# The card")
    assert about["about"]["run"] == "expert"


@pytest.mark.parametrize(
    ("data_root", "preset", "num_speakers", "command"),
    [
        ("d", "default", 1, "--split random --init champion --data-root {root}/d"),
        ("it's d", "default", 10, "--init champion --data-root '{root}/it'\"'\"'s d'"),
        ("d", "streams", 9, "--split random --preset streams --init champion --data-root {root}/d"),
        ("", "streams", 1, "--split random --data-root var/data"),
    ],
)
def test_command_for_training_fits_recordings_and_server(
    tmp_path: Path, data_root: str, preset: str, num_speakers: int, command: str
) -> None:
    collection = Collection(tmp_path / "my words")
    for speaker in range(num_speakers):
        collection.add("hello", f"0123abc{speaker}", CLIP, FeatureConfig())
    said = collection.command(tmp_path / data_root if data_root else None, {"preset": preset})
    assert said == (
        f"python -m pipeline run --source '{tmp_path}/my words' --words auto " + command.format(root=tmp_path)
    )


def test_other_words_and_the_room_are_kept_and_used_for_what_is_to_be_ignored(page: Page) -> None:
    room = wav(np.zeros(10 * RATE, np.int16))
    kind = {"content-type": "audio/wav"}
    for word, sound in (("hello", CLIP), ("bye", CLIP), ("other", CLIP), ("_background_noise_", room)):
        status, said = page.request("POST", f"/collection/{word}?speaker=0123abcd", sound, **kind)
        assert (status, said) == (201, {"clip": f"{word}/0123abcd_nohash_0.wav"})
    listed = page.request("GET", "/collection")[1]
    assert " --words bye,hello --unknown-words other --split random " in listed["command"]
    for word in list(listed["words"]):
        assert page.request("DELETE", f"/collection/{word}/0123abcd_nohash_0.wav")[0] == 204
    assert page.request("GET", "/collection")[1]["words"] == {}
    short = page.request("POST", "/collection/_background_noise_?speaker=0123abcd", CLIP, **kind)
    assert short[0] == 400
    assert "must have 160000 to 480000 samples, got 16000" in short[1]["error"]


def test_recordings_are_kept_listed_played_and_deleted(page: Page) -> None:
    for number in range(2):
        status, said = page.request("POST", "/collection/hello?speaker=0123abcd", CLIP, **{"content-type": "audio/wav"})
        assert (status, said) == (201, {"clip": f"hello/0123abcd_nohash_{number}.wav"})
    status, listed = page.request("GET", "/collection")
    assert listed["words"] == {"hello": ["0123abcd_nohash_0.wav", "0123abcd_nohash_1.wav"]}
    assert listed["command"].endswith("--data-root var/data")
    assert listed["follows"] is False
    assert page.request("GET", "/collection/hello/0123abcd_nohash_1.wav") == (200, CLIP)
    assert page.request("DELETE", "/collection/hello/0123abcd_nohash_0.wav")[0] == 204
    assert page.request("DELETE", "/collection/hello/0123abcd_nohash_0.wav")[0] == 404
    assert page.request("DELETE", "/collection/hello/0123abcd_nohash_1.wav")[0] == 204
    assert page.request("GET", "/collection")[1]["words"] == {}
    assert list(Path(listed["folder"]).iterdir()) == []


@pytest.mark.parametrize("suffix", ["amr", "webm", "m4a"])
def test_file_that_a_browser_cannot_decode_is_decoded_for_it(page: Page, tmp_path: Path, suffix: str) -> None:
    kind = {"content-type": "application/octet-stream"}
    tone = (0.3 * np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE)).astype(np.float32)
    path = encode(tmp_path / f"memo.{suffix}", tone, suffix)
    status, samples = page.request("POST", "/decode", path.read_bytes(), **kind)
    assert status == 200
    np.testing.assert_array_equal(np.frombuffer(samples, "<f4"), read_bytes(path.read_bytes(), RATE, 10))
    status, said = page.request("POST", "/decode", b"%PDF-1.4 no recording", **kind)
    assert (status, said["error"]) == (400, "the recording must be an audio file, got a PDF document")
    # A page of another origin may send a file only as plain text or a form, without asking first.
    assert page.request("POST", "/decode", path.read_bytes(), **{"content-type": "text/plain"})[0] == 415


@pytest.mark.parametrize("word", ["Straße", "ja/nein", "نعم", "..", "con", "a, b", "100%", "../../etc", "はい"])
def test_word_of_any_script_is_taught_and_stays_within_the_folder(page: Page, word: str) -> None:
    path = f"/collection/{urllib.parse.quote(word, safe='')}"
    assert page.request("POST", f"{path}?speaker=0123abcd", CLIP, **{"content-type": "audio/wav"})[0] == 201
    listed = page.request("GET", "/collection")[1]
    assert listed["words"] == {word: ["0123abcd_nohash_0.wav"]}
    (place,) = Path(listed["folder"]).iterdir()
    assert [file.name for file in place.iterdir()] == ["0123abcd_nohash_0.wav"]
    assert list_recordings(Path(listed["folder"])).words == [word]
    assert page.request("GET", f"{path}/0123abcd_nohash_0.wav") == (200, CLIP)
    assert page.request("DELETE", f"{path}/0123abcd_nohash_0.wav")[0] == 204


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "said"),
    [
        ("/collection/_noise_?speaker=0123abcd", CLIP, "audio/wav", 400, "a word must not begin with _, got '_noise_'"),
        (f"/collection/{61 * 'a'}?speaker=0123abcd", CLIP, "audio/wav", 400, "a word must have at most 60 characters"),
        ("/collection/yes?speaker=me", CLIP, "audio/wav", 400, "speaker must be 8 hexadecimal digits"),
        ("/collection/yes", CLIP, "audio/wav", 400, "speaker must be 8 hexadecimal digits"),
        ("/collection/yes?speaker=0123abcd", CLIP, "text/plain", 415, "content-type audio/wav"),
        ("/collection/yes?speaker=0123abcd", b"hello", "audio/wav", 400, "got 'another kind of file"),
        ("/collection/yes?speaker=0123abcd", wav(np.arange(900)), "audio/wav", 400, "have 16000 samples, got 900"),
        ("/collection/yes?speaker=0123abcd", wav(np.arange(RATE), 8000), "audio/wav", 400, "(1, 2, 8000)"),
        ("/collection/yes?speaker=0123abcd", CLIP[:-2000], "audio/wav", 400, "have 16000 samples, got 15000"),
        ("/collection/yes?speaker=0123abcd", b"\0" * (1 << 21), "audio/wav", 413, "at most 1048576 bytes"),
    ],
)
def test_recording_that_is_none_is_refused(
    page: Page, path: str, body: bytes, kind: str, status: int, said: str
) -> None:
    found, answer = page.request("POST", path, body, **{"content-type": kind})
    assert found == status
    assert said in json.dumps(answer, ensure_ascii=False)
    assert page.request("GET", "/collection")[1]["words"] == {}


def test_nothing_is_kept_unless_the_server_was_told_where(served: Served) -> None:
    page = Page(served)
    try:
        for method, path in (
            ("GET", "/collection"),
            ("POST", "/collection/yes?speaker=0123abcd"),
            ("GET", "/collection/yes/0123abcd_nohash_0.wav"),
        ):
            status, said = page.request(method, path, CLIP if method == "POST" else None)
            assert status == 404
            assert "--collect DIR" in said["error"]
    finally:
        page.close()


def test_recordings_made_at_once_get_names_of_their_own(served: Served, tmp_path: Path) -> None:
    collection = Collection(tmp_path / "new" / "words")
    names: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: names.append(collection.add("yes", "0123abcd", CLIP, served.recognizer.features))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == sorted(f"yes/0123abcd_nohash_{number}.wav" for number in range(8))
    assert not list(collection.folder.glob("yes/.*"))


@pytest.fixture(scope="module")
def gated(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    running = Page(served.behind("no", 3.0))
    yield running
    running.close()


@pytest.fixture(scope="module")
def commands(tone_corpus: Path) -> np.ndarray:
    """The words yes, no, yes, and after a long pause yes."""
    yes, no = (read_waveform(min((tone_corpus / word).iterdir()), RATE)[:8000] for word in ("yes", "no"))
    pause = np.zeros(RATE)
    parts = [pause, yes, pause, no, pause, yes, *[pause] * 4, yes, pause]
    return (np.concatenate(parts) * 32767).astype("<i2")


def said(client: ClientConnection, samples: np.ndarray) -> tuple[list[str], list[dict[str, Any]]]:
    """Sends a stream to its end, and returns the detected words, and what was heard."""
    for piece in np.array_split(samples, 5):
        client.send(piece.tobytes())
    client.send('{"finish": true}')
    messages = until(client, "finished")
    words = [one["word"] for one in messages if one["type"] == "detection"]
    return words, [one for one in messages if one["type"] == "heard"]


def test_page_says_how_long_the_gate_is_open_and_gets_no_word_without_it(
    page: Page, gated: Page, commands: np.ndarray
) -> None:
    with page.listen() as client, gated.listen() as behind:
        assert json.loads(client.recv())["after"] == ""
        hello = json.loads(behind.recv())
        assert (hello["after"], hello["after_seconds"], hello["armed"]) == ("no", 3, None)
        words, heard = said(client, commands)
        assert words == ["yes", "no", "yes", "yes"]
        assert not [one for one in heard if "open_seconds" in one]
        words, heard = said(behind, commands)
        assert words == ["no", "yes"]
        left = [one.get("open_seconds", 0) for one in heard]
        first = next(index for index, seconds in enumerate(left) if seconds)
        assert 1.5 < left[first] < 3
        assert left[first:] == sorted(left[first:], reverse=True)
        assert left[-1] == 0


def test_armed_words_are_reported_without_the_gate_until_they_are_no_longer_armed(
    gated: Page, served: Served, commands: np.ndarray
) -> None:
    with gated.listen() as client:
        until(client, "hello")
        client.send('{"armed": ["yes", "stop"]}')
        for _ in range(2):  # also in the next stream
            assert said(client, commands)[0] == ["yes", "yes", "yes"]
        gated.model = dataclasses.replace(served, version="v2")
        client.send(bytes(2))
        assert until(client, "hello")[-1]["armed"] == ["yes", "stop"]
        gated.model = served.behind("no", 3.0)
        client.send('{"armed": []}')
        assert said(client, commands)[0] == []
        client.send('{"armed": null}')
        assert said(client, commands)[0] == ["no", "yes"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ('{"armed": ["left"]}', "an armed word must be one of the words of the model, no, stop, yes, got 'left'"),
        ('{"armed": "stop"}', "armed must be a list of words, or null for all, got 'stop'"),
        ('{"armed": [1]}', "armed must be a list of words, or null for all, got '[1]'"),
    ],
)
def test_words_that_cannot_be_armed_end_with_a_sentence(page: Page, message: str, said: str) -> None:
    with page.listen() as client:
        client.send(message)
        assert said in until(client, "error")[-1]["error"]
