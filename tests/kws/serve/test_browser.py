"""The page in a real Chromium, with a WAV as its microphone."""

import contextlib
import dataclasses
import math
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from phones import encode
from serve.conftest import Start
from test_page import Page

from kws.model import onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.preprocess.audio import read_waveform
from kws.serve.models import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

RATE = 16_000
CARD = """---
license: other
---

# The card

| | |
|---|---|
| accuracy | **91 %** |

- one <b>
- two
  words

```sh
kws serve  # it
```
"""


@pytest.fixture(scope="module")
def sound(tone_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word of 0.5 s every 2.5 s, at the rate of a sound card."""
    clip = read_waveform(min((tone_corpus / "yes").iterdir()), RATE)[:8000]
    once = np.concatenate([np.zeros(RATE), clip, np.zeros(RATE)])
    path = tmp_path_factory.mktemp("sound") / "yes.wav"
    soundfile.write(path, np.tile(np.interp(np.arange(0, once.size, 1 / 3), np.arange(once.size), once), 8), 48_000)
    return path


@pytest.fixture(scope="module")
def served(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = tmp_path_factory.mktemp("browser") / "model.onnx"
    onnx.export(expert, path)
    thresholds = Thresholds(thresholds={"no": 0.6, "stop": 0.6, "yes": 0.6})
    return Served(recognizer=onnx.load(path, 1), version="v1", thresholds=thresholds, card=CARD)


@pytest.fixture(scope="module")
def server(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    running = Page(served, tmp_path_factory.mktemp("collected"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def chromium(sound: Path) -> Iterator["Browser"]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={sound}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module", autouse=True)
def room(chromium: "Browser", served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple["Tab", Path]]:
    """A tab that records the room for twenty seconds, on a server of its own, while the other tests run."""
    folder = tmp_path_factory.mktemp("room")
    running = Page(served, folder)
    opened = chromium.new_page()
    opened.goto(running.url)
    opened.get_by_role("button", name="Record the room").click()
    yield opened, folder
    opened.close()
    running.close()


@pytest.fixture
def tab(chromium: "Browser", server: Page) -> Iterator["Tab"]:
    opened = chromium.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    playwright.expect(opened.locator("#start")).to_be_enabled(timeout=30_000)
    yield opened
    opened.close()
    assert errors == []


def test_microphone_is_heard_and_enter_starts_and_stops_it(tab: "Tab") -> None:
    playwright.expect(tab.locator("#latest")).to_contain_text("Start, and say one of the words: no, stop, yes")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    playwright.expect(tab.locator("#log td", has_text="yes").first).to_be_visible(timeout=30_000)
    playwright.expect(tab.locator("#latest b")).to_have_text("yes")
    playwright.expect(tab.locator("#grid .lit")).to_have_text("yes")
    playwright.expect(tab.locator("#marks")).to_contain_text("yes")
    playwright.expect(tab.locator("#log .part")).to_contain_text("Microphone, from")
    playwright.expect(tab.locator("#status")).to_contain_text("Listening")
    tab.keyboard.press("Enter")
    playwright.expect(tab.locator("#status")).to_have_text("The microphone is off.")


def test_files_are_heard_one_after_the_other_and_a_word_set_to_never_is_not_reported(tab: "Tab", sound: Path) -> None:
    tab.locator("#sensitivity summary").click()
    for word in ("no", "stop", "yes"):
        tab.locator(f"#threshold-{word}").focus()
        tab.keyboard.press("End")
        playwright.expect(tab.locator(f"#threshold-{word}")).to_have_attribute("aria-valuetext", "never")
    tab.set_input_files("#file", sound)
    playwright.expect(tab.locator("#status")).to_contain_text("0 words detected", timeout=30_000)
    tab.get_by_role("button", name="Restore the thresholds").click()
    again = {"name": "again.wav", "mimeType": "audio/wav", "buffer": sound.read_bytes()}
    tab.set_input_files("#file", sound)
    tab.set_input_files("#file", [again, {"name": "text.wav", "mimeType": "audio/wav", "buffer": b"hello"}])
    playwright.expect(tab.locator("#problem")).to_have_text(
        "text.wav was not read: the recording must be an audio file, got a text file that begins with 'hello'.",
        timeout=60_000,
    )
    assert tab.locator("#log .part").all_inner_texts() == ["again.wav", "yes.wav"]
    assert tab.locator("#log td:nth-child(2)").all_inner_texts() == ["yes"] * 16
    with tab.expect_download() as begun:
        tab.get_by_role("button", name="Download").click()
    lines = begun.value.path().read_text().splitlines()
    assert lines[0] == "source,time,word,probability,seconds"
    assert [line.split(",")[0] for line in lines[1:]] == ["yes.wav"] * 8 + ["again.wav"] * 8
    assert 0.5 < float(lines[1].split(",")[1]) < 1.8  # the word lasts from 1 s to 1.5 s


def test_file_that_this_browser_cannot_decode_is_heard_all_the_same(tab: "Tab", sound: Path, tmp_path: Path) -> None:
    memo = encode(tmp_path / "memo.wma", read_waveform(sound, RATE)[: 5 * RATE], "wma")
    with tab.expect_response("**/decode") as asked:
        tab.set_input_files("#file", memo)
    assert asked.value.status == 200
    playwright.expect(tab.locator("#status")).to_contain_text("2 words detected", timeout=60_000)


def test_one_slider_moves_all_thresholds(tab: "Tab") -> None:
    tab.locator("#sensitivity summary").click()
    tab.locator("#all").focus()
    tab.keyboard.press("Home")
    for word in ("no", "stop", "yes"):
        playwright.expect(tab.locator(f"#threshold-{word}")).to_have_attribute("aria-valuetext", "98.8 %")
    tab.get_by_role("button", name="Restore the thresholds").click()
    playwright.expect(tab.locator("#threshold-no")).to_have_attribute("aria-valuetext", "60 %")


def test_file_is_sent_little_ahead_and_told_as_heard_in_part_when_its_server_is_lost(
    chromium: "Browser", start: Start, expert_onnx: Path, tmp_path: Path
) -> None:
    """What waits in the network delays the browser's answer to a ping, for want of which a server ends the stream."""
    server = start("--model", expert_onnx)
    soundfile.write(tmp_path / "long.wav", np.zeros(600 * RATE), RATE)
    with chromium.new_page() as tab:
        tab.add_init_script(
            """const send = WebSocket.prototype.send;
            window.sent = 0;
            WebSocket.prototype.send = function (data) {
                window.sent += data.byteLength || 0;
                send.call(this, data);
            }"""
        )
        tab.goto(server.url)
        playwright.expect(tab.locator("#start")).to_be_enabled(timeout=30_000)
        tab.set_input_files("#file", tmp_path / "long.wav")
        playwright.expect(tab.locator("#progress")).not_to_have_js_property("value", 0, timeout=60_000)
        server.process.send_signal(signal.SIGSTOP)
        tab.wait_for_timeout(1000)
        ahead = tab.evaluate("window.sent / 32000 - 600 * document.querySelector('#progress').value")
        assert 9 < ahead < 11
        newest = """(canvas) => canvas.getContext("2d").getImageData(canvas.width - 1, 0, 1, 1).data[3]"""
        assert tab.locator("#spectrogram").evaluate(newest) == 255  # the pictures end with what was heard
        server.process.kill()
        playwright.expect(tab.locator("#problem")).to_contain_text("long.wav was not heard to its end", timeout=30_000)
        playwright.expect(tab.locator("#status")).to_have_text("long.wav was heard only in part.")


def test_listening_goes_on_when_a_server_that_was_away_is_back(chromium: "Browser", served: Served) -> None:
    with contextlib.closing(Page(served)) as running, chromium.new_page() as tab:
        tab.goto(running.url)
        tab.locator("#start:enabled").click()
        playwright.expect(tab.locator("#status")).to_have_text("Listening.", timeout=30_000)
        running.close()
        playwright.expect(tab.locator("#status")).to_contain_text("Not listening: the server is away", timeout=30_000)
        with contextlib.closing(Page(served, port=running.port)):
            playwright.expect(tab.locator("#status")).to_have_text("Listening.", timeout=30_000)
            playwright.expect(tab.locator("#log td", has_text="yes").first).to_be_visible(timeout=30_000)


def test_page_says_how_late_it_is_while_the_server_does_not_keep_up(
    chromium: "Browser", start: Start, expert_onnx: Path
) -> None:
    server = start("--model", expert_onnx)
    with chromium.new_page() as tab:
        tab.goto(server.url)
        tab.locator("#start:enabled").click()
        status = tab.locator("#status")
        playwright.expect(status).to_have_text("Listening.", timeout=30_000)
        server.process.send_signal(signal.SIGSTOP)
        playwright.expect(status).to_have_text(re.compile("^Listening, but [23] s late: the server"), timeout=30_000)
        # Rather than later and later, sound is dropped.
        playwright.expect(status).to_have_text(re.compile("^Listening, but 5 s late: .* were dropped"), timeout=30_000)
        server.process.send_signal(signal.SIGCONT)
        playwright.expect(status).to_have_text(re.compile(r"^Listening\. "), timeout=30_000)


def test_slow_connection_is_told_while_it_is_slow(chromium: "Browser", server: Page) -> None:
    tab = chromium.new_page()
    tab.add_init_script("Object.defineProperty(WebSocket.prototype, 'bufferedAmount', {get: () => window.jam || 0})")
    tab.goto(server.url)
    tab.locator("#start:enabled").click()
    playwright.expect(tab.locator("#status")).to_have_text("Listening.", timeout=30_000)
    tab.evaluate("window.jam = 1e6")
    playwright.expect(tab.locator("#status")).to_contain_text("The connection is slow", timeout=30_000)
    tab.evaluate("window.jam = 0")
    playwright.expect(tab.locator("#status")).to_contain_text("were dropped before", timeout=30_000)
    tab.close()


def test_browser_that_gives_no_sound_ends_the_start_with_a_sentence(chromium: "Browser", server: Page) -> None:
    tab = chromium.new_page()
    tab.add_init_script(
        """window.AudioContext = class extends AudioContext {
            constructor() { super(); this.suspend(); }
            resume() { return new Promise(() => {}); }
        }"""  # as Firefox does without sound output
    )
    tab.goto(server.url)
    tab.locator("#start:enabled").click()
    playwright.expect(tab.locator("#problem")).to_contain_text("gave no sound for five seconds", timeout=30_000)
    playwright.expect(tab.locator("#start")).to_have_text("Start the microphone")
    tab.close()


def test_level_is_told_as_too_quiet_too_loud_or_silent(tab: "Tab") -> None:
    for word, noise, said in (
        (0.3, 1e-3, ""),
        (0.03, 1e-3, "quiet"),
        (1, 1e-3, "loud"),
        (0, 0, "silent"),
        (8e-3, 8e-3, ""),
    ):
        fault = tab.evaluate(
            """async ([word, noise]) => {
                const { clearLevel, level, levelFault } = await import("/page/pictures.js");
                clearLevel();
                let now = 0;
                performance.now = () => now;
                for (const peak of [noise, word, noise]) {
                    level(new Float32Array(800).fill(peak));
                    if (levelFault() === "silent") return "too early";
                    now += 400;
                }
                return levelFault();
            }""",
            [word, noise],
        )
        assert fault == said, (word, noise)


def test_card_is_rendered(tab: "Tab") -> None:
    tab.locator("#card summary").click()
    playwright.expect(tab.locator("#card-text h3")).to_have_text("The card")
    playwright.expect(tab.locator("#card-text td").nth(1)).to_have_text("91 %")
    playwright.expect(tab.locator("#card-text td strong")).to_have_text("91 %")
    playwright.expect(tab.locator("#card-text li")).to_have_text(["one <b>", "two words"])
    playwright.expect(tab.locator("#card-text pre")).to_have_text("kws serve  # it")
    assert tab.locator("#card-text").inner_text().count("license") == 0


def test_taught_word_is_kept_and_can_be_deleted(tab: "Tab", server: Page) -> None:
    tab.get_by_label("Word", exact=True).fill("hello")
    tab.get_by_label("Times").fill("1")
    tab.get_by_role("button", name="Record", exact=True).click()
    playwright.expect(tab.get_by_role("button", name="Delete recording 1")).to_be_visible(timeout=30_000)
    listed = server.request("GET", "/collection")[1]
    (path,) = (Path(listed["folder"]) / "hello").iterdir()
    samples, rate = soundfile.read(path)
    assert (samples.size, rate) == (RATE, RATE)
    assert np.abs(samples).max() > 0.1
    tab.get_by_role("button", name="Delete recording 1").click()
    playwright.expect(tab.get_by_role("button", name="Delete recording 1")).to_be_hidden()
    assert server.request("GET", "/collection")[1]["words"] == {}


def test_recording_that_is_not_kept_is_not_told_as_kept(tab: "Tab") -> None:
    tab.route("**/collection/hello*", lambda route: route.abort())
    tab.evaluate(
        """window.cues = [];
        new MutationObserver(() => cues.push(document.querySelector("#cue").textContent))
            .observe(document.querySelector("#cue"), {childList: true})"""
    )
    tab.get_by_label("Word", exact=True).fill("hello")
    tab.get_by_role("button", name="Record", exact=True).click()
    playwright.expect(tab.locator("#problem")).to_contain_text("Not kept: ", timeout=30_000)
    playwright.expect(tab.get_by_role("button", name="Record", exact=True)).to_be_visible()
    assert not any("kept" in cue for cue in tab.evaluate("cues") if not cue.startswith("Too"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("NotAllowedError", "was denied"),
        ("NotFoundError", "There is no microphone"),
        ("NotReadableError", "is in use"),
        ("", "only on pages at https:// or localhost"),
    ],
)
def test_each_reason_for_no_microphone_has_a_sentence_of_its_own(
    chromium: "Browser", server: Page, error: str, said: str
) -> None:
    tab = chromium.new_page()
    devices = f"{{getUserMedia: () => Promise.reject(new DOMException('', '{error}'))}}" if error else "undefined"
    tab.add_init_script(f"Object.defineProperty(navigator, 'mediaDevices', {{value: {devices}}})")
    tab.goto(server.url)
    playwright.expect(tab.locator("#start")).to_be_enabled(timeout=30_000)
    tab.locator("#start").click()
    playwright.expect(tab.locator("#problem")).to_contain_text(said)
    playwright.expect(tab.locator("#start")).to_be_enabled()
    tab.close()


def test_page_fits_a_phone_and_every_control_has_a_name(tab: "Tab") -> None:
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.evaluate("document.documentElement.scrollHeight") <= 3 * 740
    for control in tab.locator("button:visible, input:visible, summary").all():
        name = control.evaluate("e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent")
        assert name.strip()


def test_a_screen_reader_is_told_of_words_and_states_and_not_of_the_level(tab: "Tab") -> None:
    live = tab.locator("[aria-live], [role=alert], [role=status], [role=log], output").all()
    assert [each.get_attribute("id") for each in live] == ["latest", "status", "problem", "cue"]
    tab.locator("#sensitivity summary").click()
    slider = tab.get_by_role("slider", name="Threshold of yes", exact=True)
    playwright.expect(slider).to_have_attribute("aria-valuetext", "60 %")


def test_recording_is_cut_around_the_word_wherever_it_was_said(tab: "Tab") -> None:
    for begin in (9_000, 20_000, 28_000):
        middle = tab.evaluate(
            """async (begin) => {
                const { cut } = await import("/page/sound.js");
                const word = (_, i) => (i >= begin && i < begin + 6000 ? Math.sin(i / 5) : 0.001 * Math.sin(i));
                const clip = cut(Float32Array.from({ length: 40000 }, word));
                const loud = [...clip.keys()].filter((i) => Math.abs(clip[i]) > 0.1);
                return [clip.length, (loud[0] + loud[loud.length - 1]) / 2];
            }""",
            begin,
        )
        assert middle == [RATE, pytest.approx(RATE / 2, abs=50)]


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000, 8_000])
def test_resampler_keeps_a_low_tone_and_no_high_one_comes_back(tab: "Tab", rate: int) -> None:
    level = """async ([rate, hertz]) => {
        const { Resampler } = await import("/page/sound.js");
        const resampler = new Resampler(rate, 16000);
        const output = [];
        for (let first = 0; first < rate; first += 128) {
            const tone = (_, i) => Math.sin(2 * Math.PI * hertz * (first + i) / rate);
            output.push(...resampler.process(Float32Array.from({ length: 128 }, tone)));
        }
        const inner = output.slice(2000, -2000);
        return [output.length, Math.sqrt(inner.reduce((sum, value) => sum + value * value, 0) / inner.length)];
    }"""
    length, low = tab.evaluate(level, [rate, 1000])
    assert length == pytest.approx(16_000, abs=200)
    assert low == pytest.approx(math.sqrt(0.5), rel=0.01)
    if rate > 24_000:
        _, high = tab.evaluate(level, [rate, 12_000])  # would sound as 4 kHz
        assert high < 1e-3


def test_gate_is_shown_with_the_time_that_is_left_and_the_curve_with_the_point_of_the_slider(
    chromium: "Browser", served: Served
) -> None:
    curves = [{"name": "10 dB", "points": [[-2, 40, 0.05], [0, 1, 0.2], [2, 0, 0.6]]}]
    gated = served.thresholds.behind("yes", 2.0)
    running = Page(dataclasses.replace(served, thresholds=dataclasses.replace(gated, measured_on={"curves": curves})))
    tab = chromium.new_page()
    try:
        tab.goto(running.url)
        playwright.expect(tab.locator("#gate-text")).to_have_text("Say “yes” first: then the words count for 2 s.")
        playwright.expect(tab.locator("#grid.shut .gate")).to_have_text("yes")
        tab.locator("#sensitivity summary").click()
        playwright.expect(tab.locator("#point")).to_have_text("10 dB: 20.0 % missed, 1.0 false alarms per hour")
        tab.locator("#all").fill("2")
        playwright.expect(tab.locator("#point")).to_have_text("10 dB: 5.0 % missed, 40.0 false alarms per hour")
        playwright.expect(tab.locator("#curves polyline")).to_have_count(1)
        tab.locator("#start").click()
        playwright.expect(tab.locator("#gate.open #gate-text")).to_contain_text("Open for", timeout=30_000)
    finally:
        tab.close()
        running.close()


def test_room_is_recorded_for_twenty_seconds_and_the_hint_names_what_is_missing(room: tuple["Tab", Path]) -> None:
    """The last test of the file, so that most of the twenty seconds have passed."""
    tab, folder = room
    playwright.expect(tab.locator("#cue")).to_have_text("✓ kept", timeout=60_000)
    (path,) = (folder / "_background_noise_").iterdir()
    assert re.fullmatch(r"[0-9a-f]{8}_nohash_0\.wav", path.name)
    samples, rate = soundfile.read(path)
    assert (samples.size, rate) == (20 * RATE, RATE)
    assert np.abs(samples).max() > 0.1  # the words of the fake microphone
    playwright.expect(tab.locator("#next")).to_contain_text("Kept so far: room 1.")
    playwright.expect(tab.locator("#next")).to_contain_text("Without other words, the model will take every sound for")
    tab.get_by_role("button", name="Record the room").click()
    playwright.expect(tab.locator("#cue")).to_have_text("Be quiet: 20 s")
    tab.locator("#start").click()  # stopping the microphone stops the recording, and keeps nothing
    playwright.expect(tab.locator("#cue")).to_be_empty()
    assert [each.name for each in (folder / "_background_noise_").iterdir()] == [path.name]
