"""Evaluating a model, and the report on it."""

import csv
import dataclasses
import io
import json
import re
import shutil
import tracemalloc
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recognizers import MakeRecognizer
from tensor_folders import copy_tensors

from kws import files, plots
from kws.data.clip import Clip
from kws.data.folder import clip_of
from kws.evaluate import accuracy
from kws.evaluate.accuracy import (
    Confusion,
    Evaluation,
    compare,
    evaluate_recordings,
    evaluate_tensors,
    predict_clips,
    save_confusion,
)
from kws.evaluate.report import write_report
from kws.evaluate.step import evaluate
from kws.model import bundle
from kws.model.bundle import Recognizer
from kws.preprocess.tensors import Tensors
from kws.recipe import FeatureConfig

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def by_hand() -> Evaluation:
    """Ten clips: a is said five times and heard as a, a, a, b, b; b four times, heard as b, b, b, a; c as a."""
    return Evaluation(
        words=["a", "b", "c"], matrix=np.array([[3.0, 2, 0], [1, 3, 0], [1, 0, 0]]), calibration_error=0.1, mistakes=[]
    )


def test_metrics_equal_those_computed_by_hand(by_hand: Evaluation) -> None:
    assert by_hand.num_clips == 10
    assert by_hand.accuracy == pytest.approx(0.6)
    a, b, c = by_hand.word_scores
    assert (a.word, a.num_clips, a.precision, a.recall) == ("a", 5, pytest.approx(3 / 5), pytest.approx(3 / 5))
    assert (b.word, b.num_clips, b.precision, b.recall) == ("b", 4, pytest.approx(3 / 5), pytest.approx(3 / 4))
    assert (c.word, c.num_clips, c.precision, c.recall, c.f1) == ("c", 1, 0, 0, 0)
    assert (a.f1, b.f1) == (pytest.approx(0.6), pytest.approx(2 * 0.6 * 0.75 / 1.35))
    assert by_hand.macro_f1 == pytest.approx((0.6 + 2 / 3 + 0) / 3)


def test_words_that_nobody_said_are_left_out_of_the_table_and_of_macro_f1(by_hand: Evaluation) -> None:
    matrix = np.array([[2.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    evaluation = dataclasses.replace(by_hand, matrix=matrix)
    assert [score.word for score in evaluation.word_scores] == ["a", "b"]
    assert evaluation.macro_f1 == pytest.approx((0.8 + 1) / 2)


def test_confusion_matrix_is_written_as_csv_and_png(by_hand: Evaluation, tmp_path: Path) -> None:
    save_confusion(by_hand, tmp_path / "new")
    rows = list(csv.reader(io.StringIO((tmp_path / "new" / "confusion.csv").read_text())))
    assert rows == [
        ["true \\ predicted", "a", "b", "c"],
        ["a", "3", "2", "0"],
        ["b", "1", "3", "0"],
        ["c", "1", "0", "0"],
    ]
    assert (tmp_path / "new" / "confusion.png").read_bytes().startswith(PNG)


def test_summary_is_json(by_hand: Evaluation) -> None:
    summary = json.loads(json.dumps(by_hand.summary()))
    assert summary["accuracy"] == pytest.approx(0.6)
    assert [word["word"] for word in summary["words"]] == ["a", "b", "c"]


def probabilities_for(predicted: list[int], confidence: list[float], num_words: int = 3) -> torch.Tensor:
    """Probabilities of which the largest is given."""
    probabilities = torch.full((len(predicted), num_words), 0.0)
    for row, (word, sure) in enumerate(zip(predicted, confidence, strict=True)):
        probabilities[row] = (1 - sure) / (num_words - 1)
        probabilities[row, word] = sure
    return probabilities


def test_mistakes_are_listed_the_surest_first_and_twenty_at_most(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer()
    sure = [0.5 + index / 100 for index in range(30)]
    clips = [clip_of(f"no/{index}.wav") for index in range(30)]
    evaluation = compare(recognizer.words, probabilities_for([2] * 29 + [0], sure), ["no"] * 30, clips)
    assert len(evaluation.mistakes) == 20
    assert [mistake.as_json()["clip"] for mistake in evaluation.mistakes[:2]] == ["no/28.wav", "no/27.wav"]
    worst = evaluation.mistakes[0]
    assert (worst.truth, worst.predicted, worst.probability) == ("no", "yes", pytest.approx(0.78, abs=1e-3))
    assert evaluation.accuracy == pytest.approx(1 / 30)


def test_word_that_the_model_does_not_know_is_a_mistake_with_a_row_of_its_own(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer()
    truth = ["no", "maybe", "yes", "maybe"]
    evaluation = compare(recognizer.words, probabilities_for([0, 0, 2, 2], [0.9] * 4), truth, [clip_of("a")] * 4)
    assert evaluation.words == ["no", "stop", "yes", "maybe"]
    assert evaluation.matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]]
    assert evaluation.accuracy == 0.5
    assert [mistake.truth for mistake in evaluation.mistakes] == ["maybe", "maybe"]
    assert [score.recall for score in evaluation.word_scores] == [1, 1, 0]


def test_temperature_changes_probabilities_but_no_decision(make_recognizer: MakeRecognizer) -> None:
    sharp = make_recognizer()
    flat = dataclasses.replace(sharp, temperature=3.0)
    scores, truth, clips = probabilities_for([0, 2], [0.9, 0.8]).log(), ["no", "no"], [clip_of("a")] * 2
    one, other = (compare(each.words, each.probabilities(scores), truth, clips) for each in (sharp, flat))
    assert one.matrix.tolist() == other.matrix.tolist()
    assert other.mistakes[0].probability < one.mistakes[0].probability


def test_good_model_is_right_on_the_test_split(expert: Recognizer, tone_tensors: Path) -> None:
    evaluation = evaluate_tensors(expert, Tensors(tone_tensors))
    assert evaluation.accuracy == 1
    assert evaluation.mistakes == []
    assert evaluation.num_clips == files.read_json(tone_tensors / files.MANIFEST)["counts"]["test"]


def test_model_of_other_features_hears_the_recordings_of_the_same_clips(
    make_recognizer: MakeRecognizer, other_features: FeatureConfig, tone_tensors: Path, tone_corpus: Path
) -> None:
    recognizer = make_recognizer(features=other_features)
    tensors = Tensors(tone_tensors)
    evaluation = evaluate_tensors(recognizer, tensors)
    clips = tensors.split("test").clips
    heard: dict[str, str] = {}
    probabilities = predict_clips(recognizer, tone_corpus, clips, heard)
    truth = [clip.word for clip in clips]
    assert evaluation.matrix.tolist() == compare(recognizer.words, probabilities, truth, clips).matrix.tolist()
    assert evaluation.num_clips == len(truth)


def test_recordings_that_are_gone_are_an_error_for_a_model_of_other_features(
    make_recognizer: MakeRecognizer,
    other_features: FeatureConfig,
    tone_tensors: Path,
    tone_corpus: Path,
    tmp_path: Path,
) -> None:
    folder = copy_tensors(tone_tensors, tmp_path)
    manifest = files.read_json(folder / files.MANIFEST)
    recordings = Path(shutil.copytree(tone_corpus, tmp_path / "recordings"))
    files.write_json(folder / files.MANIFEST, manifest | {"recordings": {"path": str(recordings)}})
    recognizer = make_recognizer(features=other_features)
    clip = Tensors(folder).split("test").clips[0].file
    (recordings / clip).write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=f"recordings must be as preprocessing read them, got 1 that cannot be read, the first is {clip}",
    ):
        evaluate_tensors(recognizer, Tensors(folder))
    shutil.rmtree(recordings)
    with pytest.raises(ValueError, match="the recordings recordings must still exist for this model to hear"):
        evaluate_tensors(recognizer, Tensors(folder))


def test_folder_of_recordings_is_evaluated_as_far_as_it_can_be_read_and_is_known(
    expert: Recognizer,
    tone_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accuracy, "BATCH", 7)
    for word in ("no", "yes"):
        (tmp_path / word).mkdir()
        for path in sorted((tone_corpus / word).iterdir())[:10]:
            shutil.copy(path, tmp_path / word)
    (tmp_path / "maybe").mkdir()
    shutil.copy(path, tmp_path / "maybe")
    (tmp_path / "yes" / path.name).rename(tmp_path / "yes" / "another.WAV")
    (tmp_path / "yes" / "broken.wav").write_bytes(b"nothing")
    (tmp_path / "yes" / "j\udce4.wav").write_bytes(b"nothing")
    soundfile.write(tmp_path / "yes" / "huge.wav", np.full(100, 1e25), 16_000, subtype="FLOAT")
    (tmp_path / "no" / "notes.txt").write_text("no recording")
    evaluation, unreadable = evaluate_recordings(expert, tmp_path)
    assert (evaluation.num_clips, evaluation.accuracy) == (20, 1)
    assert list(unreadable) == ["yes/broken.wav", "yes/huge.wav"]
    assert "as it is no recording by its name: no/notes.txt" in caplog.text
    assert "as its name is not UTF-8 (rename it): yes/j\\udce4.wav" in caplog.text
    assert [score.word for score in evaluation.word_scores] == ["no", "yes"]


def test_other_words_are_to_be_unknown_to_a_model_that_has_this_class(
    make_recognizer: MakeRecognizer, tone_corpus: Path
) -> None:
    recognizer = make_recognizer(words=["yes", "_unknown_"])
    evaluation, _ = evaluate_recordings(recognizer, tone_corpus)
    assert evaluation.words == ["yes", "_unknown_"]
    assert evaluation.matrix.sum(axis=1).tolist() == [40, 80]


def test_folder_that_cannot_be_evaluated_is_refused_with_the_reason(expert: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recordings must be a folder of <word>/\*.wav, got"):
        evaluate_recordings(expert, tmp_path / "absent")
    (tmp_path / "maybe").mkdir()
    soundfile.write(tmp_path / "maybe" / "a.wav", np.zeros(100), 16_000)
    with pytest.raises(ValueError, match=r"words that the model knows \(no, stop, yes\), got maybe in"):
        evaluate_recordings(expert, tmp_path)
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes" / "a.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="recordings must hold readable files, got 1 unreadable ones in"):
        evaluate_recordings(expert, tmp_path)


def test_real_digits_at_8_khz_are_evaluated(make_recognizer: MakeRecognizer, real_digits: Path, tmp_path: Path) -> None:
    for word in ("one", "five"):
        (tmp_path / word).mkdir()
        for path in sorted((real_digits / word).glob("*.wav"))[::2]:
            shutil.copy(path, tmp_path / word)
    evaluation, unreadable = evaluate_recordings(make_recognizer(words=["five", "one", "two"]), tmp_path)
    assert (evaluation.num_clips, unreadable) == (10, {})


class Page(HTMLParser):
    """Checks that every tag is closed, and collects what the page refers to and says."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    return page


@pytest.fixture
def bad_report(make_recognizer: MakeRecognizer, tone_tensors: Path, tmp_path: Path) -> tuple[Evaluation, Path]:
    """The report on an untrained model, which is mistaken often."""
    bundle.save(tmp_path / "model.pth", make_recognizer())
    report = tmp_path / "report.html"
    return evaluate(tmp_path / "model.pth", tone_tensors, report), report


def test_report_stands_alone(bad_report: tuple[Evaluation, Path]) -> None:
    evaluation, report = bad_report
    assert "streams" not in evaluation.more  # there are too few clips
    page = parse(report)
    # The accuracy in noise; picture and sound of every mistake.
    assert len(page.references) == 1 + 2 * len(evaluation.mistakes)
    assert all(reference.startswith("data:") for reference in page.references)
    kinds = {reference.partition(";")[0].removeprefix("data:") for reference in page.references}
    assert kinds == {"image/png", "image/webp", "audio/wav"}
    own = re.sub(r'"data:[^"]*"', "", report.read_text())
    assert not re.search(r"https?:|//|@import|url\(", own)
    assert not {"script", "link", "iframe"} & page.tags


def test_report_shows_the_figures_the_words_and_the_mistakes(bad_report: tuple[Evaluation, Path]) -> None:
    evaluation, report = bad_report
    page = parse(report)
    assert evaluation.mistakes
    assert f"{100 * evaluation.accuracy:.2f} %" in page.text
    assert f"{evaluation.macro_f1:.3f}" in page.text
    clips = [mistake.clip.id for mistake in evaluation.mistakes]
    for expected in [*evaluation.words, *clips, "run-1", "preset default"]:
        assert expected in page.text


def test_words_with_dollars_are_drawn_as_they_are_and_not_as_formulas() -> None:
    words = ["$\\frac$", "$x$"]
    figure = plots.confusion(np.eye(2), words)
    assert plots.png(figure)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [r"\$\frac\$", r"\$x\$"]


def many(number: int) -> tuple[Evaluation, list[str]]:
    """The evaluation of a model of many words, of which the last two are confused most."""
    words = [f"word{index}" for index in range(number)]
    matrix = np.diag(np.full(number, 9.0))
    matrix[np.arange(number), (np.arange(number) + 1) % number] = 1
    matrix[-1, -2] = 7
    return Evaluation(words=words, matrix=matrix, calibration_error=0.0, mistakes=[]), words


def test_of_a_thousand_words_the_hardest_are_drawn_in_no_more_memory_than_these(
    make_recognizer: MakeRecognizer, tmp_path: Path
) -> None:
    evaluation, words = many(1000)
    figure = plots.confusion(evaluation.matrix, words)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == plots.LARGEST
    assert labels[-2:] == ["word998", "word999"]
    assert figure.axes[0].get_title() == "the 60 hardest of 1,000 words"
    tracemalloc.start()
    save_confusion(evaluation, tmp_path)
    write_report(tmp_path / "report.html", make_recognizer(), evaluation, "test split", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6
    assert (tmp_path / "report.html").stat().st_size < 1e6
    page = parse(tmp_path / "report.html")
    assert "Shown are the 60 words with the most mistakes of 1,000." in " ".join(page.text.split())
    assert evaluation.worst_pairs[0] == Confusion(word="word999", predicted="word998", num_clips=7, share=7 / 17)
    assert len((tmp_path / "confusion.csv").read_text().splitlines()) == 1001


def test_words_of_any_script_stand_in_the_report_and_those_without_a_font_have_numbers_in_the_picture(
    make_recognizer: MakeRecognizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["straße", "はい", "नमस्ते", "نعم", "👍", "\U00050000"]
    evaluation = Evaluation(words=words, matrix=np.eye(6), calibration_error=0.0, mistakes=[])
    write_report(tmp_path / "report.html", make_recognizer(), evaluation, "test split", tmp_path)
    text = parse(tmp_path / "report.html").text
    assert all(word in text for word in words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that is missing
        figure = plots.confusion(evaluation.matrix, words)
        assert plots.png(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "straße"
    assert labels[5] == "#6"  # of a code point that no font has
    assert "no installed font has the characters of some words (" in caplog.text


def test_folders_in_another_case_are_words_of_the_model(expert: Recognizer, tone_corpus: Path, tmp_path: Path) -> None:
    for word in ("No", "YES"):
        shutil.copytree(tone_corpus / word.lower(), tmp_path / word)
    evaluation, _ = evaluate_recordings(expert, tmp_path)
    assert (evaluation.num_clips, evaluation.accuracy) == (80, 1)


def test_report_and_card_have_the_same_interval_which_stays_within_100_percent(
    expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    evaluation = evaluate_tensors(expert, Tensors(tone_tensors))
    write_report(tmp_path / "report.html", expert, evaluation, "test split", tmp_path)
    low, high = evaluation.interval
    assert (evaluation.accuracy, high) == (1, 1)
    assert f"{100 * low:.1f} to 100.0 % (95 %)" in " ".join(parse(tmp_path / "report.html").text.split())


def test_report_of_a_model_without_mistakes_says_so(expert: Recognizer, tone_tensors: Path, tmp_path: Path) -> None:
    write_report(
        tmp_path / "report.html", expert, evaluate_tensors(expert, Tensors(tone_tensors)), "test split", tmp_path
    )
    page = parse(tmp_path / "report.html")
    assert "No mistakes." in page.text
    assert page.references == []


def test_report_of_recordings_of_several_sources_shows_the_share_of_each(
    expert: Recognizer, tone_tensors: Path, tmp_path: Path
) -> None:
    sources = [
        {"source": "s3://bucket/words", "words": 3, "num_clips": 75, "share": 0.75},
        {"source": "/data/mine", "words": 2, "num_clips": 25, "share": 0.25},
    ]
    manifest = {"name": "2-sources", "source": "", "sha256": "", "words": {}, "sources": sources}
    files.write_json(tmp_path / files.MANIFEST, manifest)
    evaluation = evaluate_tensors(expert, Tensors(tone_tensors))
    write_report(tmp_path / "report.html", expert, evaluation, "test split", tmp_path)
    text = " ".join(parse(tmp_path / "report.html").text.split())
    assert "s3://bucket/words375 75.0 %" in text
    assert "/data/mine225 25.0 %" in text


def test_report_does_without_clips_that_are_gone_and_escapes_their_names(
    make_recognizer: MakeRecognizer, tmp_path: Path
) -> None:
    recognizer = make_recognizer()
    clip = Clip(file="no/<script>alert(1)</script>.wav", word="no")
    evaluation = compare(recognizer.words, probabilities_for([2], [0.9]), ["no"], [clip])
    write_report(tmp_path / "report.html", recognizer, evaluation, "my <b>clips", tmp_path)
    page = parse(tmp_path / "report.html")
    assert "<script>alert(1)</script>.wav" in page.text
    assert "script" not in page.tags
    assert page.references == []
