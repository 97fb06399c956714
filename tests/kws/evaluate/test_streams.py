"""Detection in streams: plans with known truth, what counts, thresholds, metrics."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recognizers import MakeRecognizer

from kws.cli import main
from kws.config import BACKGROUND_NOISE, UNKNOWN
from kws.data.folder import clip_of
from kws.data.splits import split_of_speaker
from kws.evaluate import step
from kws.evaluate.streams import (
    NEVER,
    SENTENCES,
    SPEECH_LEVEL,
    Scored,
    Script,
    Utterance,
    choose_thresholds,
    detect,
    evaluate_streams,
    judge,
    poisson_interval,
    score,
)
from kws.model import bundle, onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Detector, Thresholds
from kws.preprocess.tensors import Tensors

WORDS = ["go", "stop", UNKNOWN]
SPOKEN = [
    Utterance(begin=1, end=2, kind="word", word="go", source="go/a.wav"),
    Utterance(begin=4, end=5, kind="word", word="stop", source="stop/a.wav"),
    Utterance(begin=7, end=8, kind="unknown", word="", source="cat/a.wav"),
    Utterance(begin=10, end=13, kind="sentence", word="", source="0"),
]


def test_an_alarm_anywhere_counts_and_a_word_counts_once() -> None:
    detections = [
        (1.5, "go", 0.9),
        (1.9, "go", 0.9),
        (4.5, "go", 0.9),
        (7.5, "go", 0.9),
        (12.0, "stop", 0.9),
        (20.0, "stop", 0.9),
    ]
    outcome = judge(detections, SPOKEN, hours=0.5)
    assert dict(outcome.found) == {"go": 1}
    assert outcome.missed == 0.5
    assert dict(outcome.causes) == {"again": 1, "word": 1, "unknown": 1, "sentence": 1, "noise": 1}
    assert outcome.per_hour == 10
    assert dict(outcome.false_alarms) == {"go": 3, "stop": 2}


def test_nothing_detected_is_all_missed_and_no_alarm() -> None:
    outcome = judge([], SPOKEN, hours=1)
    assert (outcome.missed, outcome.per_hour) == (1, 0)


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0, 3.69), (1, 0.0253, 5.57), (10, 4.80, 18.39), (100, 81.4, 121.6)]
)
def test_interval_of_a_count_is_close_to_the_exact_one(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), rel=0.01, abs=0.02)


def scored(*heard: tuple[float, str, float]) -> Scored:
    """A stream of an hour in which some words are heard for three windows each, at a time and with a probability."""
    probabilities = np.zeros((36_000, 3), np.float32)
    for time, word, probability in heard:
        window = round(time * 10)
        probabilities[window : window + 3, WORDS.index(word)] = probability
    return Scored(name="made", seconds=3600, spoken=SPOKEN, times=np.arange(36_000) / 10, probabilities=probabilities)


def test_thresholds_keep_the_limit_and_find_what_can_be_found() -> None:
    stream = scored((1.5, "go", 0.9), (4.5, "stop", 0.6), *[(100.0 + 10 * i, "go", 0.7) for i in range(9)])
    base = Thresholds.unmeasured(WORDS)
    chosen = choose_thresholds([stream], WORDS, base, false_alarms_per_hour=1)
    outcome = judge(detect(stream, WORDS, chosen), stream.spoken, stream.hours)
    assert (outcome.missed, outcome.per_hour) == (0, 0)
    assert 0.7 < chosen.thresholds["go"] <= 0.9
    assert chosen.thresholds["stop"] <= 0.6
    assert chosen.false_alarms_per_hour == 0


def test_word_that_cannot_be_told_from_other_sounds_is_never_reported() -> None:
    hopeless = [(100.0 + 10 * i, "stop", 0.99) for i in range(9)]
    stream = scored((1.5, "go", 0.9), (4.5, "stop", 0.3), *hopeless)
    chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=1)
    assert chosen.thresholds["stop"] == NEVER
    assert {word for _, word, _ in detect(stream, WORDS, chosen)} == {"go"}


def test_a_limit_that_allows_more_finds_more() -> None:
    alarms = [(100.0 + 10 * i, "go", 0.5 + i / 20) for i in range(9)]
    stream = scored((1.5, "go", 0.62), *alarms)
    found = [
        judge(detect(stream, WORDS, choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), limit)), SPOKEN, 1)
        for limit in (1, 20)
    ]
    assert [outcome.found.total() for outcome in found] == [0, 1]
    assert all(outcome.per_hour <= limit for outcome, limit in zip(found, (1, 20), strict=True))


@pytest.fixture(scope="module")
def script(tone_corpus: Path, expert: Recognizer) -> Script:
    return Script(tone_corpus, expert, "test", hours=0.03)


def test_stream_has_clips_of_its_split_only_and_no_sentence_with_a_word(script: Script) -> None:
    clips = [one for one in script.spoken if one.kind == "word"]
    assert len(clips) > 5
    assert {split_of_speaker(clip_of(one.source).group) for one in clips} == {"test"}
    assert all(one.word == clip_of(one.source).word for one in clips)
    sentences = [one for one in script.spoken if one.kind == "sentence"]
    assert len(sentences) > 3
    assert sum(" no " in f" {text.lower()} " for text in SENTENCES) == 0
    assert script.seconds == pytest.approx(108, abs=9)


def test_noises_are_heard_in_any_format_and_a_damaged_one_is_left_out(
    tone_corpus: Path, expert: Recognizer, script: Script, tmp_path: Path
) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(tone_corpus, copy)
    for noise in (copy / BACKGROUND_NOISE).iterdir():
        samples, rate = soundfile.read(noise)
        soundfile.write(noise.with_suffix(".FLAC"), samples, rate, format="FLAC")
        noise.unlink()
    (copy / BACKGROUND_NOISE / "a.wav").write_bytes(b"RIFF")
    again = Script(copy, expert, "test", hours=0.03)
    np.testing.assert_array_equal(next(again.render(10)), next(script.render(10)))


def test_same_stream_comes_again_and_noise_is_as_loud_as_it_is_said_to_be(script: Script) -> None:
    first, again = (np.concatenate(list(script.render(10))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.size == pytest.approx(script.seconds * 16_000, abs=2)
    pause = script.spoken[0]
    noise = first[1_000 : round(pause.begin * 16_000)]
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(SPEECH_LEVEL / 10**0.5, rel=0.1)
    quiet = np.concatenate(list(script.render(100)))
    spoken = quiet[round(pause.begin * 16_000) : round(pause.end * 16_000)]
    assert np.sqrt(np.mean(spoken**2)) == pytest.approx(SPEECH_LEVEL, rel=0.05)


def test_stored_probabilities_of_a_stream_give_the_events_of_the_detector(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path
) -> None:
    onnx.export(expert, tmp_path / "model.onnx")
    recognizer = onnx.load(tmp_path / "model.onnx", num_threads=1)
    script = Script(tone_corpus, recognizer, "validation", hours=0.015)
    thresholds = Thresholds(thresholds={"no": 0.7, "stop": 0.8, "yes": 0.9})
    kept = score(recognizer, thresholds, script.render(20), script.spoken, script.seconds, "test")
    detector = Detector(recognizer, thresholds)
    heard = [one for piece in script.render(20) for one in detector.feed(piece)] + detector.finish()
    events = [one.detection for one in heard if one.detection]
    assert len(events) > 5
    assert detect(kept, expert.words, thresholds) == [
        (pytest.approx(event.time, abs=1e-3), event.word, event.probability) for event in events
    ]


def test_step_measures_streams_as_the_exported_model_hears_them_if_there_are_clips_enough(
    tone_tensors: Path, tone_corpus: Path, expert: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    assert "streams" not in step.evaluate(tmp_path / "model.pth", tone_tensors, tmp_path / "report.html").more
    monkeypatch.setattr(step, "STREAM_CLIPS", 1)
    monkeypatch.setattr(step, "CLIPS_PER_HOUR", 60 * len(Tensors(tone_tensors).split("test").clips))
    more = step.evaluate(tmp_path / "model.pth", tone_tensors, tmp_path / "report.html").more
    (row,) = more["streams"]
    thresholds, (report,) = evaluate_streams(expert, tone_corpus, hours=1 / 60, snrs_db=[10])
    assert (row["spoken"], row["missed"]) == (report.outcome.spoken.total(), report.outcome.missed)
    assert more["thresholds"]["thresholds"] == pytest.approx(thresholds.thresholds, abs=2e-3)


def test_recordings_without_clips_of_the_words_are_refused(tone_corpus: Path, make_recognizer: MakeRecognizer) -> None:
    other = make_recognizer(words=("left", "right"))
    with pytest.raises(ValueError, match="recordings must hold clips of left, right in the test split"):
        Script(tone_corpus, other, "test", hours=0.1)


def test_command_writes_thresholds_and_figures_that_follow_from_its_events(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.export(expert, tmp_path / "model.onnx")
    bundle.save(tmp_path / "model.pth", expert)
    output = tmp_path / "evaluation"
    arguments = ["evaluate", "--stream", "--recordings", str(tone_corpus), "--hours", "0.01", "--output", str(output)]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--model", str(tmp_path / "model.onnx"), "--false-alarms-per-hour", "200"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "missed" in shown
    assert (output / "detection.png").read_bytes().startswith(b"\x89PNG")
    report = (output / "streams.html").read_text()
    assert "run expert" in report
    assert report.count("<img") == 1
    thresholds = Thresholds.read(output / "thresholds.json", expert.words)
    assert thresholds.measured_on["limit"] == 200
    written = json.loads((output / "streams.json").read_text())
    assert [row["snr_db"] for row in written["streams"]] == [20, 10, 5]
    for row in written["streams"]:
        spoken = [
            Utterance(begin=begin, end=end, kind=kind, word=word, source=source)
            for begin, end, kind, word, source in row["truth"]
        ]
        outcome = judge(row["detections"], spoken, row["hours"])
        assert outcome.missed == pytest.approx(row["missed"])
        assert outcome.false_alarms.total() == row["false_alarms"]


def test_thresholds_that_are_given_are_measured_and_not_chosen(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.export(expert, tmp_path / "model.onnx")
    given = tmp_path / "never.json"
    given.write_text('{"thresholds": {"no": 1.5, "stop": 1.5, "yes": 1.5}}')
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "evaluate",
                "--stream",
                "--recordings",
                str(tone_corpus),
                "--hours",
                "0.005",
                "--output",
                str(tmp_path),
                "--model",
                str(tmp_path / "model.onnx"),
                "--thresholds",
                str(given),
                "--json",
            ]
        )
    assert caught.value.code == 0
    written = json.loads(capsys.readouterr().out)
    assert [row["missed"] for row in written["streams"]] == [1, 1, 1]
    assert written["thresholds"]["thresholds"]["no"] == 1.5
