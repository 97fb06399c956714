"""The static page in a real Chromium: no server but one of files, and then none at all."""

import contextlib
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kws.model import page
from kws.model.bundle import Recognizer
from kws.model.detector import THRESHOLDS, Detector, Thresholds
from kws.model.predict import load
from kws.preprocess.audio import read_clip, read_waveform

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RATE = 16_000


@contextlib.contextmanager
def host(folder: Path) -> Iterator[str]:
    """Serves the files of a folder, and nothing else."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def thresholds() -> Thresholds:
    return Thresholds(thresholds={"no": 0.5, "stop": 0.5, "yes": 0.5}, after="yes", after_seconds=4)


@pytest.fixture(scope="module")
def site(expert: Recognizer, thresholds: Thresholds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / THRESHOLDS).write_text(json.dumps(thresholds.as_json()))
    try:
        page.export(expert, folder / "index.html", beside=folder)
    except ValueError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def sound(tone_corpus: Path, real_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones and real words with pauses, 40 s."""
    real = sorted(real_corpus.glob("[a-z]*/*.wav"))[:24]
    tones = [sorted((tone_corpus / word).iterdir())[number] for number in range(8) for word in ("yes", "no", "stop")]
    pieces = []
    for number, paths in enumerate(zip(tones, real, strict=True)):
        tone, word = (read_waveform(path, RATE) for path in paths)
        pieces += [np.zeros(4000 + 300 * number), tone[: 6000 + 150 * number], np.zeros(5000), word]
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    soundfile.write(path, np.concatenate(pieces), RATE, subtype="PCM_16")
    return path


def test_exported_page_hears_clips_as_the_model_does(expert: Recognizer, real_corpus: Path, site: Path) -> None:
    clip = read_clip(min(real_corpus.glob("[a-z]*/*.wav")), expert.features)[None]
    np.testing.assert_allclose(load(site / "index.html").predict(clip), expert.predict(clip), atol=2e-4)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_finds_every_word_that_the_detector_finds_and_does_so_without_a_network(
    expert: Recognizer, thresholds: Thresholds, site: Path, sound: Path
) -> None:
    samples = read_waveform(sound, RATE)
    detector = Detector(expert, thresholds)
    expected = [one.detection for one in [*detector.feed(samples), *detector.finish()] if one.detection]
    assert len(expected) > 10
    with host(site) as url, playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={sound}",
            ],
        )
        tab = browser.new_page()
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(url)
        playwright.expect(tab.locator("#start")).to_be_enabled(timeout=60_000)
        tab.set_input_files("#file", sound)
        playwright.expect(tab.locator("#status")).to_contain_text("words detected", timeout=120_000)
        rows = [row.split("\t") for row in tab.locator("#log tbody tr").all_inner_texts() if "\t" in row][::-1]
        assert [row[1] for row in rows] == [one.word for one in expected]
        for row, one in zip(rows, expected, strict=True):
            begin, end = row[3].split("–")
            assert float(row[0].removesuffix(" s")) == pytest.approx(one.time, abs=0.06)
            assert int(row[2].removesuffix(" %")) == pytest.approx(100 * one.probability, abs=0.6)
            assert (float(begin), float(end)) == pytest.approx((one.begin, one.end), abs=0.02)
        assert {address.startswith(url) for address in asked} == {True}
        tab.wait_for_function("caches.keys().then((names) => names.length === 1)")
        tab.evaluate("navigator.serviceWorker.ready")
        tab.context.set_offline(True)
        tab.reload()
        playwright.expect(tab.locator("#start")).to_be_enabled(timeout=60_000)
        tab.locator("#start").click()
        playwright.expect(tab.locator("#log td", has_text="yes").first).to_be_visible(timeout=60_000)
        browser.close()
