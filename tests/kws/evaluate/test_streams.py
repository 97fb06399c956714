"""Detection in streams: plans with known truth, what counts, thresholds, metrics."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recognizers import MakeRecognizer

from kws.cli import main
from kws.config import BACKGROUND_NOISE, RUNNING_SPEECH, UNKNOWN
from kws.data.folder import clip_of
from kws.data.sources import list_recordings
from kws.data.speech import Talk
from kws.data.splits import split_of_speaker
from kws.download.sentences import SENTENCES, speak_sentences
from kws.evaluate import step
from kws.evaluate.outcomes import Scored, compare, detect, score
from kws.evaluate.script import NUM_SENTENCES, SPEECH_LEVEL, Script, Utterance
from kws.evaluate.streams import evaluate_streams, poisson_interval
from kws.evaluate.thresholds import NEVER, choose_thresholds, expected_alarms
from kws.model import bundle, onnx
from kws.model.bundle import Recognizer
from kws.model.detector import UNMEASURED, Detector, Thresholds
from kws.preprocess.tensors import Tensors
from research import score_events

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
    outcome = compare(detections, SPOKEN, hours=0.5)
    assert dict(outcome.found) == {"go": 1}
    assert outcome.missed == 0.5
    assert dict(outcome.causes) == {"again": 1, "word": 1, "unknown": 1, "sentence": 1, "noise": 1}
    assert outcome.per_hour == 10
    assert dict(outcome.false_alarms) == {"go": 3, "stop": 2}


def test_nothing_detected_is_all_missed_and_no_alarm() -> None:
    outcome = compare([], SPOKEN, hours=1)
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
    alarms = [(100.0 + 10 * i, "go", 0.3 + 0.05 * i) for i in range(9)]
    stream = scored((1.5, "go", 0.97), (4.5, "stop", 0.6), *alarms)
    base = Thresholds.unmeasured(WORDS)
    chosen = choose_thresholds([stream], WORDS, base, false_alarms_per_hour=1)
    outcome = compare(detect(stream, WORDS, chosen), stream.spoken, stream.hours)
    assert (outcome.missed, outcome.per_hour) == (0, 0)
    assert 0.7 < chosen.thresholds["go"] <= 0.97
    assert chosen.thresholds["stop"] <= 0.6
    assert chosen.false_alarms_per_hour == 0


def test_false_alarms_are_expected_as_others_like_them_come_not_as_they_were_counted() -> None:
    random = np.random.default_rng(0)
    levels = 1 / (1 + np.exp(-np.linspace(-1.4, 6, 60)))
    right = int(np.searchsorted(levels, 1 / (1 + np.exp(1.4 - np.log(40)))))  # 40 · exp(-(x + 1.4)) is 1 there
    estimated, just_above = [], []
    for _ in range(200):
        odds = random.exponential(1.0, (2, random.poisson(40))) - 1.4
        counts = [(1 / (1 + np.exp(-word[:, None])) >= levels).sum(0) for word in odds]
        expected = expected_alarms(levels.tolist(), {str(index): list(count) for index, count in enumerate(counts)})
        estimated.append(expected["0"][right])
        just_above.append(expected["0"][min(int((counts[0] > 0).sum()), 59)])
    assert 1 < np.mean(estimated) < 1.5
    assert 0.4 < np.mean(just_above) < 1  # there, none was counted


def test_a_lower_threshold_that_costs_no_more_false_alarms_is_taken() -> None:
    again = dataclasses.replace(SPOKEN[0], begin=20, end=21)
    stream = dataclasses.replace(
        scored((1.5, "go", 0.96), (20.5, "go", 0.7), (100.0, "go", 0.95), (200.0, "stop", 0.2)), spoken=[*SPOKEN, again]
    )
    chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=2)
    outcome = compare(detect(stream, WORDS, chosen), stream.spoken, 1)
    assert (outcome.found["go"], outcome.false_alarms["go"]) == (2, 1)


def test_short_streams_are_no_proof_of_rare_false_alarms(caplog: pytest.LogCaptureFixture) -> None:
    stream = dataclasses.replace(scored((1.5, "go", 0.9), (4.5, "stop", 0.6)), seconds=600)
    chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=1)
    assert chosen.measured_on["limit"] == pytest.approx(6)
    loud = [(100.0 + 10 * i, "stop", 0.3 + 0.05 * i) for i in range(9)]  # up to 0.7
    stream = dataclasses.replace(scored((1.5, "go", 0.9), (4.5, "stop", 0.6), *loud), seconds=600)
    chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=1)
    assert UNMEASURED <= chosen.thresholds["stop"] < 1, "not never"
    assert "for 6 false alarms an hour, not 1" in caplog.text


def test_word_that_cannot_be_told_from_other_sounds_is_never_reported() -> None:
    hopeless = [(100.0 + 10 * i, "stop", 0.99) for i in range(9)]
    stream = scored((1.5, "go", 0.9), (4.5, "stop", 0.3), *hopeless)
    chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=1)
    assert chosen.thresholds["stop"] == NEVER
    assert {word for _, word, _ in detect(stream, WORDS, chosen)} == {"go"}


def test_word_that_nobody_speaks_in_the_streams_is_reported_where_it_causes_no_false_alarm() -> None:
    only_go = [one for one in SPOKEN if one.word != "stop"]
    stream = dataclasses.replace(scored((1.5, "go", 0.9), (500.0, "stop", 0.85), (600.0, "go", 0.5)), spoken=only_go)
    chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=1)
    assert 0.85 < chosen.thresholds["stop"] <= 0.9
    quiet = dataclasses.replace(scored((1.5, "go", 0.9), (600.0, "go", 0.5)), spoken=only_go)
    chosen = choose_thresholds([quiet], WORDS, Thresholds.unmeasured(WORDS), false_alarms_per_hour=1)
    assert chosen.thresholds["stop"] == 0.8


def test_a_limit_that_allows_more_finds_more() -> None:
    alarms = [(100.0 + 10 * i, "go", 0.5 + i / 20) for i in range(9)]
    stream = scored((1.5, "go", 0.62), *alarms)
    found = [
        compare(
            detect(stream, WORDS, choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS), limit)), SPOKEN, 1
        )
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
    assert {one.source for one in sentences} <= {str(number) for number in range(NUM_SENTENCES)}
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
    monkeypatch.setattr(step, "STREAM_CLIPS", 1)
    monkeypatch.setattr(step, "CLIPS_PER_HOUR", 60 * len(Tensors(tone_tensors).split("test").clips))
    more = step.evaluate(tmp_path / "model.pth", tone_tensors, tmp_path / "report.html").more
    (row,) = more["streams"]
    thresholds, (report,) = evaluate_streams(expert, tone_corpus, hours=1 / 60, snrs_db=[10])
    assert (row["spoken"], row["missed"]) == (report.outcome.spoken.total(), report.outcome.missed)
    assert more["thresholds"]["thresholds"] == pytest.approx(thresholds.thresholds, abs=2e-3)
    page = (tmp_path / "report.html").read_text()
    assert "In streams, by word" in page
    assert page.count("data:audio/mpeg") == len(report.faults)


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
        outcome = compare(row["detections"], spoken, row["hours"])
        assert outcome.missed == pytest.approx(row["missed"])
        for one in (row, *row["words"].values()):
            low, high = one["missed_95"]
            assert 0 <= low < one["missed"] + 1e-9 < high + 2e-9 < 1 + 1e-8
            assert one["false_alarms_per_hour_95"][0] <= one["false_alarms"] / outcome.hours
            assert one["false_alarms"] / outcome.hours < one["false_alarms_per_hour_95"][1]
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


def test_synthetic_sentences_have_none_of_the_words_nor_what_sounds_like_them() -> None:
    said = [one.text for one in speak_sentences(60, 16_000, [1], without=["no", "four", "water"])]
    assert set(said) < set(SENTENCES)
    assert not [text for text in said if Talk(file="", text=text).places_of(["no", "four", "water"])]
    assert any("water" in text for text in SENTENCES)
    with pytest.raises(ValueError, match="leave at least one sentence"):
        next(speak_sentences(1, 16_000, [1], without=[text.split()[0].lower() for text in SENTENCES]))


@pytest.fixture(scope="module")
def talking(tone_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tones, and 30 recordings of running speech by as many speakers, half of which may say "stop"."""
    folder = tmp_path_factory.mktemp("talking") / "corpus"
    shutil.copytree(tone_corpus, folder)
    speech = folder / RUNNING_SPEECH
    speech.mkdir()
    random = np.random.default_rng(0)
    for number in range(30):
        soundfile.write(speech / f"s{number}_nohash_0.wav", 0.1 * random.standard_normal(32_000), 16_000)
        (speech / f"s{number}_nohash_0.txt").write_text(f"well {'stop' if number % 2 else 'go'} there")
    soundfile.write(speech / "unknown.wav", 0.1 * random.standard_normal(32_000), 16_000)
    return folder


def test_running_speech_of_the_split_is_heard_in_place_of_synthetic_sentences(
    talking: Path, expert: Recognizer
) -> None:
    talks = {talk.file: talk for talk in list_recordings(talking).speech}
    for split in ("validation", "test"):
        script = Script(talking, expert, split, hours=0.05)
        sentences = [one for one in script.spoken if one.kind == "sentence"]
        assert len(sentences) > 5
        assert {talks[one.source].split for one in sentences} == {split}
        assert all(talks[one.source].text for one in sentences)
        for one in sentences:
            assert one.end - one.begin == pytest.approx(2)
            may = "stop" in talks[one.source].text
            assert bool(one.unclear) == may
            assert all(first < one.begin + 1 < last for first, last in one.unclear)
        assert sum(piece.size for piece in script.render(10)) == round(script.seconds * 16_000)


def test_a_detection_where_a_word_may_be_spoken_counts_neither_way() -> None:
    unclear = [Utterance(begin=1, end=9, kind="sentence", word="", source="a.wav", unclear=((3.0, 4.6),))]
    outcome = compare([(3.5, "go", 0.9), (6.0, "go", 0.9)], unclear, hours=1)
    assert (outcome.false_alarms.total(), dict(outcome.causes)) == (1, {"sentence": 1})
    assert outcome.spoken.total() == 0


COMMANDS = [
    Utterance(begin=1, end=2, kind="gate", word="stop", source="stop/a.wav"),
    Utterance(begin=2.5, end=3.5, kind="word", word="go", source="go/a.wav"),
    Utterance(begin=20, end=21, kind="gate", word="stop", source="stop/b.wav"),
    Utterance(begin=21.5, end=22.5, kind="word", word="go", source="go/b.wav"),
    Utterance(begin=40, end=41, kind="closed", word="go", source="go/c.wav"),
    Utterance(begin=50, end=51, kind="closed", word="go", source="go/d.wav", unclear=((49.75, 51.25),)),
    Utterance(begin=60, end=63, kind="sentence", word="", source="0"),
]


def test_script_that_shares_no_code_gets_the_same_figures_behind_a_gate() -> None:
    random = np.random.default_rng(0)
    spoken = [[one.begin, one.end, one.kind, one.word, one.source] for one in COMMANDS]
    unclear = [list(stretch) for one in COMMANDS for stretch in one.unclear]
    for _ in range(50):
        times = np.sort(random.uniform(0, 65, 12))
        events = [(float(time), str(random.choice(["go", "stop"])), 0.9) for time in times]
        outcome = compare(events, COMMANDS, hours=0.5)
        found = score_events.score(
            {"seconds": 1800, "spoken": spoken, "unclear": unclear},
            [{"time": time, "word": word} for time, word, _ in events],
        )
        assert found["missed"] == pytest.approx(outcome.missed)
        assert found["gate_missed"] == pytest.approx(outcome.gate_missed)
        assert found["missed_after_gate"] == pytest.approx(outcome.missed_after_gate)
        assert found["false_alarms_by_cause"] == dict(outcome.causes)


def test_words_count_after_the_gate_and_one_without_it_is_a_false_alarm() -> None:
    detections = [(1.5, "stop", 0.9), (3.0, "go", 0.9)]
    outcome = compare(detections, COMMANDS, hours=1)
    assert (outcome.gate, outcome.gate_missed, outcome.reached, outcome.missed_after_gate) == ("stop", 0.5, 1, 0)
    assert (outcome.missed, outcome.per_hour) == (0.5, 0)
    assert dict(outcome.spoken) == {"stop": 2, "go": 2}
    wrong = [(2.9, "stop", 0.9), (40.5, "go", 0.9), (50.5, "go", 0.9), (62, "go", 0.9), (20.5, "go", 0.9)]
    outcome = compare([*detections, *wrong], COMMANDS, hours=1)
    assert dict(outcome.causes) == {"closed": 1, "sentence": 1, "word": 2}
    both = outcome + compare([(20.4, "stop", 0.9)], COMMANDS, hours=1)
    assert (both.gate_missed, both.reached, both.missed_after_gate, both.missed) == (0.5, 2, 0.5, 0.75)


def commanded(*heard: tuple[float, str, float]) -> Scored:
    return dataclasses.replace(scored(*heard), spoken=COMMANDS)


def test_behind_a_gate_thresholds_of_words_are_lower_and_the_limit_holds_for_all_together() -> None:
    quiet = [(1.5, "stop", 0.9), (3.0, "go", 0.3), (20.5, "stop", 0.8), (22.0, "go", 0.3), (40.5, "go", 0.3)]
    shut = [(100.0 + 10 * i, "go", 0.3 + 0.008 * i) for i in range(50)]
    stream = commanded(*quiet, *shut, (3000.0, "stop", 0.7))
    base = Thresholds.unmeasured(WORDS)
    without = choose_thresholds([stream], WORDS, base, false_alarms_per_hour=2)
    assert without.thresholds["go"] > 0.3
    chosen = choose_thresholds([stream], WORDS, base.behind("stop"), false_alarms_per_hour=2)
    assert (chosen.after, chosen.after_seconds, chosen.false_alarms_per_hour) == ("stop", 3, 0)
    assert 0.7 < chosen.thresholds["stop"] <= 0.8
    assert chosen.thresholds["go"] <= 0.3
    outcome = compare(detect(stream, WORDS, chosen), COMMANDS, stream.hours)
    assert (outcome.missed, outcome.gate_missed, outcome.per_hour) == (0, 0, 0)


def test_the_gate_has_half_of_the_false_alarms_and_the_words_have_what_it_leaves() -> None:
    gate = [(1.5, "stop", 0.9), (20.5, "stop", 0.5), *[(100.0 + 50 * i, "stop", 0.6 + i / 50) for i in range(3)]]
    inside = [(3.0, "go", 0.9), (22.0, "go", 0.4), *[(101.5 + 50 * i, "go", 0.5) for i in range(3)]]
    stream = commanded(*gate, *inside)
    for limit, gate_missed in ((4, 0.5), (6, 0.0)):
        chosen = choose_thresholds([stream], WORDS, Thresholds.unmeasured(WORDS).behind("stop"), limit)
        outcome = compare(detect(stream, WORDS, chosen), COMMANDS, stream.hours)
        assert outcome.gate_missed == gate_missed
        assert outcome.false_alarms["stop"] <= limit / 2
        assert outcome.per_hour <= limit
        assert outcome.missed == gate_missed


def test_half_of_the_words_follow_the_gate_and_one_while_it_is_open_counts_neither_way(
    tone_corpus: Path, expert: Recognizer
) -> None:
    script = Script(tone_corpus, expert, "test", hours=0.2, after="stop")
    gates = [one for one in script.spoken if one.kind == "gate"]
    pairs = [(before, one) for before, one in itertools.pairwise(script.spoken) if one.kind == "word"]
    closed = [one for one in script.spoken if one.kind == "closed"]
    assert {one.word for one in gates} == {"stop"}
    assert {one.word for _, one in pairs} == {one.word for one in closed} == {"no", "yes"}
    assert all(before.kind == "gate" and 0.2 <= one.begin - before.end <= 1.5 for before, one in pairs)
    assert 0.3 < len(pairs) / (len(pairs) + len(closed) + len(gates) - len(pairs)) < 0.7
    assert {bool(one.unclear) for one in closed} == {True, False}
    for one in closed:
        pause = min((one.begin - gate.end for gate in gates if gate.begin < one.begin), default=99)
        assert bool(one.unclear) == (pause <= 3.5)
    short = Script(tone_corpus, expert, "test", hours=0.05, after="stop", after_seconds=2)
    assert all(one.begin - before.end <= 0.5 for before, one in itertools.pairwise(short.spoken) if one.kind == "word")
    assert sum(piece.size for piece in short.render(10)) == round(short.seconds * 16_000)


def test_command_chooses_thresholds_behind_a_gate_with_which_the_model_then_listens(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    onnx.export(expert, model)
    arguments = ["evaluate", "--stream", "--recordings", str(tone_corpus), "--hours", "0.01", "--output", str(tmp_path)]
    arguments += ["--model", str(model), "--false-alarms-per-hour", "400"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--after", "left"])
    assert caught.value.code == 2
    assert "after must be one of the words of the model, no, stop, yes, got 'left'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--after", "stop", "--after-seconds", "4"])
    assert caught.value.code == 0
    assert "gate" in capsys.readouterr().out
    thresholds = Thresholds.beside(model, expert.words)
    assert (thresholds.after, thresholds.after_seconds) == ("stop", 4)
    assert "<bdi>stop</bdi> missed" in (tmp_path / "streams.html").read_text()
    for row in json.loads((tmp_path / "streams.json").read_text())["streams"]:
        # A script that shares no code gets the same from the events and the truth alone.
        truth = {"seconds": 3600 * row["hours"], "spoken": row["truth"], "unclear": row["unclear"]}
        found = score_events.score(truth, [{"time": time, "word": word} for time, word, _ in row["detections"]])
        for name in ("missed", "gate_missed", "missed_after_gate", "false_alarms", "spoken"):
            assert found[name] == pytest.approx(row[name]), name
        assert found["false_alarms_by_cause"] == row["false_alarms_by_cause"]
        assert row["after"] == "stop"
        heard = [time for time, word, _ in row["detections"] if word == "stop"]
        for time, word, _ in row["detections"]:
            assert word == "stop" or any(0 <= time - gate <= 4 + 1e-3 for gate in heard)


def test_stored_probabilities_give_the_events_of_the_detector_behind_a_gate_too(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path
) -> None:
    onnx.export(expert, tmp_path / "model.onnx")
    recognizer = onnx.load(tmp_path / "model.onnx", num_threads=1)
    script = Script(tone_corpus, recognizer, "validation", hours=0.02, after="stop")
    thresholds = Thresholds(thresholds={"no": 0.6, "stop": 0.8, "yes": 0.6}, after="stop")
    kept = score(recognizer, thresholds, script.render(20), script.spoken, script.seconds, "test")
    detector = Detector(recognizer, thresholds)
    heard = [one for piece in script.render(20) for one in detector.feed(piece)] + detector.finish()
    events = [one.detection for one in heard if one.detection]
    assert {"stop"} < {one.word for one in events}
    free = dataclasses.replace(thresholds, after="")
    assert len(events) < len(detect(kept, expert.words, free))
    assert detect(kept, expert.words, thresholds) == [
        (pytest.approx(event.time, abs=1e-3), event.word, event.probability) for event in events
    ]


def test_events_that_are_published_score_as_research_says_by_both_ways() -> None:
    folder = Path(__file__).parents[3] / "research" / "stream"
    truth = json.loads((folder / "truth.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    figures = score_events.score(truth, events)
    assert (figures["spoken"], round(figures["missed"], 3), figures["false_alarms"]) == (642, 0.254, 13)
    spoken = [
        Utterance(
            begin=begin,
            end=end,
            kind=kind,
            word=word,
            source=source,
            unclear=[(first, last) for first, last in truth["unclear"] if begin - 1 <= last and first <= end + 1],
        )
        for begin, end, kind, word, source in truth["spoken"]
    ]
    outcome = compare([(one["time"], one["word"], one["probability"]) for one in events], spoken, figures["hours"])
    assert (outcome.spoken.total(), round(outcome.missed, 3)) == (642, 0.254)
    assert outcome.false_alarms.total() == 13
