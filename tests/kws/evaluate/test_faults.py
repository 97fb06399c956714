"""False alarms and misses in the report: what is listed, what can be heard, and that one can in a browser."""

import base64
import dataclasses
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kws.evaluate.faults import LEAST_BYTES, describe_faults
from kws.evaluate.outcomes import FAULT_SECONDS, Scored, compare, detect, list_faults
from kws.evaluate.report import write_stream_report
from kws.evaluate.script import Script, Utterance
from kws.evaluate.streams import StreamReport
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds

WORDS = ["go", "stop"]
THRESHOLDS = Thresholds(thresholds={"go": 0.5, "stop": 0.5})
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def scored(spoken: list[Utterance], words: list[str], *heard: tuple[float, str, float]) -> Scored:
    """A stream in which some words are heard for three windows each, at a time and with a probability."""
    seconds = spoken[-1].end
    probabilities = np.zeros((int(10 * seconds), len(words)), np.float32)
    for time, word, probability in heard:
        window = round(time * 10)
        probabilities[window : window + 3, words.index(word)] = probability
    return Scored(
        name="made",
        seconds=seconds,
        spoken=spoken,
        times=np.arange(len(probabilities)) / 10,
        probabilities=probabilities,
    )


def said(begin: float, word: str, kind: str = "word") -> Utterance:
    return Utterance(begin=begin, end=begin + 1, kind=kind, word=word, source="a.wav")


def test_causes_of_misses_and_false_alarms_with_the_probabilities_around_them() -> None:
    stream = scored(
        [said(10, "go"), said(20, "go"), said(30, "go"), said(40, ""), said(50, "go"), said(51.2, "go")],
        WORDS,
        (10.4, "go", 0.3),
        (20.4, "stop", 0.8),
        (30.4, "go", 0.9),
        (40.4, "stop", 0.7),
        (50.9, "go", 0.6),
        (51.6, "go", 0.7),
    )
    detections = detect(stream, WORDS, THRESHOLDS)
    found = list_faults(stream, WORDS, THRESHOLDS, detections)
    assert [(one.is_alarm, one.word, one.cause, round(one.probability, 3)) for one in found] == [
        (False, "go", "low", 0.3),
        (True, "stop", "word", 0.8),
        (False, "go", "word", 0.0),
        (True, "stop", "word", 0.7),
        (False, "go", "suppressed", 0.7),
    ]
    outcome = compare(detections, stream.spoken, stream.hours)
    assert sum(one.is_alarm for one in found) == outcome.false_alarms.total()
    assert sum(not one.is_alarm for one in found) == outcome.spoken.total() - outcome.found.total()
    (miss,) = [one for one in found if one.cause == "low"]
    assert miss.begin == miss.time - FAULT_SECONDS / 2
    assert list(miss.scores) == ["go"]
    np.testing.assert_allclose(miss.times[miss.scores["go"] > 0.2] + miss.begin, [10.4, 10.5, 10.6])
    assert set(found[1].scores) == {"go", "stop"}


def test_miss_of_a_word_that_is_never_reported_and_of_one_whose_gate_was_missed() -> None:
    spoken = [said(10, "stop", "gate"), said(11.5, "go"), said(20, "stop", "gate"), said(21.5, "go")]
    stream = scored(spoken, WORDS, (20.4, "stop", 0.9), (11.9, "go", 0.9))
    gated = dataclasses.replace(THRESHOLDS, after="stop")
    found = list_faults(stream, WORDS, gated, detect(stream, WORDS, gated))
    assert [(one.word, one.cause) for one in found] == [("stop", "low"), ("go", "gate"), ("go", "low")]
    never = Thresholds(thresholds={"go": 1.5, "stop": 0.5}, after="stop")
    found = list_faults(stream, WORDS, never, detect(stream, WORDS, never))
    assert [(one.word, one.cause) for one in found] == [("stop", "low"), ("go", "never"), ("go", "never")]


@pytest.fixture(scope="module")
def reports(tone_corpus: Path, expert: Recognizer) -> list[StreamReport]:
    """Two levels of a stream in which every third word is detected, and "no" in every second sentence."""
    script = Script(tone_corpus, expert, "test", hours=0.04)
    words = [one for one in script.spoken if one.word]
    heard = [((one.begin + one.end) / 2, one.word, 0.9) for one in words[::3]]
    sentences = [one for one in script.spoken if one.kind == "sentence"]
    heard += [((one.begin + one.end) / 2, "no", 0.8) for one in sentences[::2]]
    stream = scored(script.spoken, expert.words, *heard)
    thresholds = Thresholds.unmeasured(expert.words)
    detections = detect(stream, expert.words, thresholds)
    return [
        StreamReport(
            snr_db=level,
            outcome=compare(detections, script.spoken, stream.hours),
            curve=[(0, 1)],
            detections=detections,
            spoken=script.spoken,
            faults=list_faults(stream, expert.words, thresholds, detections),
            script=script,
        )
        for level in (20, 10)
    ]


def test_stretches_are_cut_from_the_stream_as_it_is_rendered(reports: list[StreamReport]) -> None:
    script = reports[0].script
    whole = np.concatenate(list(script.render(10)))
    begins = [31.2, 0.0, 32.0, script.seconds - 1]
    for begin, found in zip(begins, script.cut(10, begins, 3.0), strict=True):
        first = round(begin * 16_000)
        expected = np.zeros(48_000, np.float32)
        expected[: whole.size - first] = whole[first : first + 48_000]
        np.testing.assert_array_equal(found, expected)


def test_each_can_be_heard_with_what_was_said(reports: list[StreamReport], expert: Recognizer) -> None:
    described = describe_faults(reports, Thresholds.unmeasured(expert.words))
    rows = described["rows"]
    assert len(rows) == described["num_heard"] == sum(len(report.faults) for report in reports)
    assert {row["level"] for row in rows} == {"20 dB", "10 dB"}
    row = next(row for row in rows if row["alarm"] and row["cause"] == "sentence")
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(row["sound"].partition(",")[2])))
    assert (sound.size / rate, rate) == (pytest.approx(FAULT_SECONDS, abs=0.1), 16_000)
    assert 0.5 < np.abs(sound).max() <= 1
    assert row["picture"].startswith("data:image/webp")
    (sentence,) = [one for one in row["said"] if one["kind"] == "sentence"]
    middle = (sentence["begin"] + sentence["end"]) / 2
    assert middle == pytest.approx(row["time"] - row["begin"], abs=0.1)
    assert len("".join(sentence["text"])) > 20
    assert sentence["text"][1]
    miss = next(row for row in rows if not row["alarm"])
    assert miss["word"] in [one["text"][1] for one in miss["said"]]
    assert miss["scores"][0]["threshold"] == 0.8


def test_what_exceeds_the_bound_is_listed_without_sound_and_the_page_says_so(
    reports: list[StreamReport], expert: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 36 * LEAST_BYTES
    thresholds = dataclasses.replace(Thresholds.unmeasured(expert.words), measured_on={"curves": []})
    described = describe_faults(reports, thresholds, bound)
    rows = described["rows"]
    heard = [row for row in rows if row["sound"]]
    assert sum(len(row["sound"]) + len(row["picture"]) for row in rows) <= bound
    assert 20 < described["num_heard"] == len(heard) < len(rows)
    assert all(row["sound"] for row in rows if row["alarm"])
    assert {row["level"] for row in heard if not row["alarm"]} == {"20 dB", "10 dB"}
    monkeypatch.setattr("kws.evaluate.report.MOST_BYTES_ALONE", bound)
    write_stream_report(tmp_path, expert, thresholds, reports, "a test")
    page = (tmp_path / "streams.html").read_text()
    assert f"the other {len(rows) - len(heard)} are listed without" in re.sub(r"\s+", " ", page)
    assert page.count("data:audio") == len(heard)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_without_storage_a_picture_plays_and_the_table_filters(
    reports: list[StreamReport], expert: Recognizer, tmp_path: Path
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    thresholds = dataclasses.replace(Thresholds.unmeasured(expert.words), measured_on={"curves": []})
    write_stream_report(tmp_path, expert, thresholds, reports, "a test")
    # As Kubeflow's page shows it: in a frame that may run scripts and nothing else.
    frame = tmp_path / "frame.html"
    frame.write_text('<iframe sandbox="allow-scripts" src="streams.html" width="1200" height="600"></iframe>')
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        tab = browser.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(frame.as_uri())
        page = tab.frame_locator("iframe")
        total = sum(len(report.faults) for report in reports)
        status = page.locator("#faults [role=status]")
        playwright.expect(status).to_have_text(f"{total} are shown.")
        page.locator("#faults .view").first.click()
        playing = page.locator("#faults li.playing")
        playwright.expect(playing).to_have_count(1)
        first = playing.inner_text()
        page.locator("#faults .view:focus").press("ArrowDown")
        playwright.expect(playing).not_to_have_text(first)
        playwright.expect(playing).to_have_count(0, timeout=20_000)  # it was heard to its end
        number = sum(one.is_alarm and one.cause == "sentence" for report in reports for one in report.faults)
        page.get_by_role("button", name="in a sentence, all words").click()
        playwright.expect(status).to_have_text(f"{number} are shown.")
        page.get_by_role("button", name="10 dB", exact=True).click()
        playwright.expect(status).to_have_text(f"{number // 2} are shown.")
        page.get_by_role("button", name="Play all shown").click()
        playwright.expect(playing).to_have_count(1)
        browser.close()
    assert not errors
