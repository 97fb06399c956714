"""What streams hear is kept, reviewed and becomes a source; on a real server, and its page in a real Chromium."""

import datetime
import json
import shutil
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_page import RATE, Page, until

from kws import files
from kws.data.sources import list_recordings
from kws.model import onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.preprocess.audio import read_waveform
from kws.recipe import FeatureConfig
from kws.serve.models import Served
from kws.serve.page.collection import Collection
from kws.serve.page.heard import MISSED, Heard, NearMisses, _wav

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def served(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = tmp_path_factory.mktemp("review") / "model.onnx"
    onnx.export(expert, path)
    return Served(
        recognizer=onnx.load(path, 1),
        version="v1",
        thresholds=Thresholds(thresholds={"no": 0.6, "stop": 0.6, "yes": 0.6}),
        card="",
    )


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Page]:
    running = Page(served, tmp_path / "collected", keep_heard=True)
    yield running
    running.close()


@pytest.fixture(scope="module")
def tone(tone_corpus: Path) -> np.ndarray:
    clip = read_waveform(min((tone_corpus / "yes").iterdir()), RATE)[:8000]
    return (np.concatenate([np.zeros(2 * RATE), clip, np.zeros(2 * RATE)]) * 32767).astype("<i2")


def post(page: Page, name: str, **said: str) -> tuple[int, Any]:
    return page.request("POST", f"/heard/{name}", json.dumps(said).encode(), **{"content-type": "application/json"})


def say(page: Page, sound: np.ndarray, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    with page.listen() as client:
        for first in range(0, sound.size, 4000):
            client.send(sound[first : first + 4000].tobytes())
        for message in messages:
            client.send(json.dumps(message))
        client.send(json.dumps({"finish": True}))
        return until(client, "finished")


def test_what_is_heard_becomes_a_recording_once_it_is_confirmed(page: Page, tone: np.ndarray, tmp_path: Path) -> None:
    said = say(page, tone)
    assert said[0]["keeps"]
    (found,) = (message for message in said if message["type"] == "detection")
    (sound,) = page.request("GET", "/heard")[1]["sounds"]
    assert {**sound, "speaker": ""} == {
        "name": found["kept"],
        "kind": "detected",
        "word": "yes",
        "probability": found["probability"],
        "threshold": 0.6,
        "version": "v1",
        "speaker": "",
        "rate": RATE,
        "shadow": "",
        "shadow_word": "",
        "shadow_probability": 0.0,
    }
    assert list_recordings(tmp_path / "collected").words == []  # nothing is a recording yet
    path = tmp_path / "sound.wav"
    path.write_bytes(page.request("GET", f"/heard/{found['kept']}")[1])
    with wave.open(str(path)) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    first = round((found["time"] - 1) * RATE)
    assert np.array_equal(heard, tone[first : first + 2 * RATE])
    assert post(page, found["kept"], kind="wrong")[0] == 204
    assert page.request("GET", "/heard")[1]["sounds"][0]["kind"] == "wrong"
    status, answer = post(page, found["kept"], word="hello")
    assert (status, answer) == (201, {"clip": f"hello/{sound['speaker']}_nohash_0.wav"})
    assert page.request("GET", "/heard")[1]["sounds"] == []
    listing = list_recordings(tmp_path / "collected")
    (clip,) = listing.clips
    assert clip.speaker == sound["speaker"]
    kept = read_waveform(tmp_path / "collected" / clip.id, RATE)
    assert np.abs(kept[4000:12000]).max() > 0.1 > 0.01 > np.abs(kept[:2000]).max()  # the word is in its middle


def test_missed_word_is_kept_with_the_last_two_seconds(page: Page, tone: np.ndarray) -> None:
    quiet = tone // 200
    said = say(page, quiet[: 3 * RATE], {"missed": "yes"})
    (kept,) = (message["name"] for message in said if message["type"] == "kept")
    sounds = {sound["name"]: sound for sound in page.request("GET", "/heard")[1]["sounds"]}
    assert (sounds[kept]["kind"], sounds[kept]["word"]) == (MISSED, "yes")
    assert np.array_equal(np.frombuffer(page.request("GET", f"/heard/{kept}")[1][44:], "<i2"), quiet[RATE : 3 * RATE])


def test_word_below_its_threshold_is_nearly_detected_once() -> None:
    near = NearMisses(["no", "yes", "_unknown_"])
    thresholds = {"no": 0.8, "yes": 0.8}
    rise = [0.1, 0.4, 0.6, 0.7, 0.6, 0.3, *[0.1] * 20]
    found = [near.step(0.1 * n, np.array([0.1, p, 1.0], np.float32), thresholds, False) for n, p in enumerate(rise)]
    ((when, word, probability),) = [one for one in found if one]
    assert (round(when, 1), word, round(probability, 2)) == (0.3, "yes", 0.7)
    hit = [near.step(0.1 * n, np.array([0.1, p, 1], np.float32), thresholds, n == 5) for n, p in enumerate(rise)]
    assert not any(hit)  # it was detected after all
    fall = [0.9, 0.7, 0.7, *[0.1] * 30]
    assert not any(near.step(5 + 0.1 * n, np.array([0.1, p, 1]), thresholds, n == 0) for n, p in enumerate(fall))
    never = {"no": 2.0, "yes": 2.0}
    assert not any(near.step(0.1 * n, np.ones(3, np.float32), never, False) for n in range(40))


def keep(heard: Heard, **about: Any) -> str:
    values = {"kind": "near", "word": "yes", "probability": 0.5, "threshold": 0.8, "version": "v1", "speaker": "0" * 8}
    return heard.keep(np.zeros(2 * RATE, np.int16), **(values | {"rate": RATE} | about))


def test_sounds_are_bounded_in_number_and_age(tmp_path: Path) -> None:
    heard = Heard(tmp_path, most=3)
    old = heard.folder / "20200101T000000-00000000.json"
    files.write_json(old, {})
    old.with_suffix(".wav").write_bytes(b"")
    names = [keep(heard) for _ in range(5)]
    assert len(heard.sounds()) == 3
    assert not old.exists()
    assert not old.with_suffix(".wav").exists()
    assert {sound.name for sound in heard.sounds()} <= set(names)
    assert len(list(heard.folder.iterdir())) == 6
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    assert heard.delete_before(tomorrow) == 3
    assert list(heard.folder.iterdir()) == []


def test_bad_reviews_are_refused_and_lose_nothing(page: Page, tmp_path: Path) -> None:
    heard = Heard(tmp_path / "collected")
    name = keep(heard)
    for body, sentence in (
        ({"word": "_noise_"}, "a word must not begin with _"),
        ({"kind": "good"}, "kind must be one of detected, near, wrong, missed, differs, got 'good'"),
        ({}, "the request must have word or kind"),
    ):
        status, said = post(page, name, **body)
        assert status == 400
        assert sentence in said["error"]
    assert page.request("POST", f"/heard/{name}", b"{}", **{"content-type": "text/plain"})[0] == 415
    assert page.request("GET", "/heard/20200101T000000-00000000")[0] == 404
    assert page.request("GET", "/heard/..%2F..%2Fetc")[0] in (400, 404)
    assert page.request("DELETE", "/heard?before=yesterday")[0] == 400
    assert [sound.name for sound in heard.sounds()] == [name]
    (heard.folder / "20300101T000000-00000000.json").write_text("{half")  # of a server that was killed
    assert [sound.name for sound in heard.sounds()] == [name]


def test_nothing_is_kept_unless_it_is_said(served: Served, tone: np.ndarray, tmp_path: Path) -> None:
    running = Page(served, tmp_path / "collected")
    try:
        said = say(running, tone)
        assert not said[0]["keeps"]
        assert "kept" not in next(message for message in said if message["type"] == "detection")
        status, answer = running.request("GET", "/heard")
        assert (status, answer["error"]) == (
            404,
            "what is heard is kept only by a server that was started with --collect DIR --keep-heard",
        )
        with running.listen() as client:
            client.send(json.dumps({"missed": "yes"}))
            assert "of a server that was started with --keep-heard" in until(client, "error")[-1]["error"]
    finally:
        running.close()
    assert list((tmp_path / "collected").iterdir()) == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_buttons_that_mark_and_confirm_are_in_view_in_a_small_window(
    page: Page, tone: np.ndarray, tmp_path: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    version = "20261130-140917-e5175288-2ef2-4e25-9dd2-cb66f394306f"  # as on a cluster
    keep(Heard(tmp_path / "collected"), version=version)
    (tmp_path / "tone.wav").write_bytes(_wav(tone, RATE))
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 760})
        tab.goto(page.url)
        sync_api.expect(tab.locator("#start")).to_be_enabled()
        tab.set_input_files("#file", tmp_path / "tone.wav")
        tab.get_by_role("button", name="as wrong").wait_for()
        fits = "table => table.parentElement.scrollWidth <= table.parentElement.clientWidth"
        assert tab.locator("#log").evaluate(fits)
        tab.goto(f"{page.url}/review")
        sync_api.expect(tab.get_by_title(version)).to_have_text("20261130-140917-e5175288")
        assert tab.locator("#sounds").evaluate(fits)
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_review_page(page: Page, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    collection, heard = tmp_path / "collected", Heard(tmp_path / "collected")
    keep(heard, kind="differs", shadow="v2", shadow_word="no", shadow_probability=0.7)
    time.sleep(1.1)
    for kind, word in (("detected", "yes"), ("wrong", "no"), ("missed", "")):
        keep(heard, kind=kind, word=word)
        time.sleep(1.1)  # so that they have an order
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"{page.url}/review")
        rows = tab.locator("#sounds tbody tr")
        sync_api.expect(rows).to_have_count(4)
        assert [cell.inner_text() for cell in tab.locator("#sounds tbody td:nth-child(2)").all()] == [
            "a word marked as missed",
            "no marked as wrong",
            "yes detected",
            "yes for the version that answers, no for the one in the shadow",
        ]
        assert [cell.inner_text() for cell in rows.nth(3).locator("td").all()][2:4] == ["50.0 %; 70.0 %", "v1; v2"]
        assert rows.nth(1).locator("input").input_value() == "other"  # what was wrong is to be ignored
        rows.nth(1).get_by_role("button", name="Confirm").click()
        sync_api.expect(rows).to_have_count(3)
        rows.nth(0).locator("input").fill("stop")
        rows.nth(0).get_by_role("button", name="Confirm").click()
        sync_api.expect(tab.locator("#status")).to_have_text("Confirmed: now a recording of “stop”.")
        rows.nth(0).get_by_role("button", name="Delete").click()
        sync_api.expect(rows).to_have_count(1)
        rows.nth(0).get_by_role("button", name="Delete").click()
        sync_api.expect(tab.locator("#count")).to_have_text("No sound awaits review.")
        browser.close()
    assert errors == []
    assert set(Collection(collection).counts()) == {"other", "stop"}
    assert FeatureConfig().num_samples == read_waveform(next((collection / "stop").iterdir()), RATE).size
