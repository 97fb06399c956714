"""Naming the word in recordings: the library, and `kws predict`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kws.cli import main
from kws.model import bundle
from kws.model.bundle import Recognizer
from kws.model.predict import expand, predict
from kws.preprocess.audio import read_clip


@pytest.fixture(scope="module")
def model(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pth"
    bundle.save(path, expert)
    return path


@pytest.fixture
def clip(tone_corpus: Path) -> Path:
    """A recording of "yes"."""
    return min((tone_corpus / "yes").iterdir())


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_words_come_the_most_probable_first_and_add_up_to_one(expert: Recognizer, tone_corpus: Path) -> None:
    for word in expert.words:
        for path in sorted((tone_corpus / word).iterdir())[:3]:
            predictions = predict(expert, path, top=3)
            assert predictions[0].word == word
            assert {prediction.word for prediction in predictions} == set(expert.words)
            probabilities = [prediction.probability for prediction in predictions]
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_more_words_than_there_are_gives_all_of_them(expert: Recognizer, clip: Path) -> None:
    assert len(predict(expert, clip, top=99)) == 3
    assert len(predict(expert, clip)) == 1


def test_recording_of_another_rate_and_channels_gives_the_same_word(
    expert: Recognizer, clip: Path, tmp_path: Path
) -> None:
    samples = read_clip(clip, expert.features)
    stereo = np.repeat(np.stack([samples, samples], axis=1), 3, axis=0)  # 48 kHz
    soundfile.write(tmp_path / "stereo.wav", stereo, 48_000, subtype="PCM_24")
    assert predict(expert, tmp_path / "stereo.wav")[0].word == "yes"


def test_a_line_for_every_file_with_word_and_probability(
    model: Path, clip: Path, tone_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = min((tone_corpus / "no").iterdir())
    assert run("--model", model, clip, other) == 0
    shown = capsys.readouterr()
    lines = [line.split("\t") for line in shown.out.splitlines()]
    assert [line[:2] for line in lines] == [[str(clip), "yes"], [str(other), "no"]]
    assert all(0.5 < float(line[2]) <= 1 and len(line[2]) == 6 for line in lines)
    assert shown.err == ""


def test_top_prints_as_many_lines_for_a_file(model: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", model, "--top", "2", clip) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [str(clip)] * 2
    assert lines[0][1] == "yes"
    assert float(lines[0][2]) >= float(lines[1][2])


def test_json_holds_every_file_with_its_predictions(
    model: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", model, "--json", "--top", "3", clip, clip) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["file"] for entry in found] == [str(clip)] * 2
    assert found[0]["predictions"][0]["word"] == "yes"
    assert sum(prediction["probability"] for prediction in found[0]["predictions"]) == pytest.approx(1, abs=1e-5)


def test_folder_stands_for_the_recordings_in_it(
    model: Path, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips" / "no").mkdir(parents=True)
    for path in sorted((tone_corpus / "no").iterdir())[:5]:
        shutil.copy(path, tmp_path / "clips" / "no")
    (tmp_path / "clips" / "notes.txt").write_text("no recording")
    assert run("--model", model, tmp_path / "clips") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines == sorted(lines)
    assert expand([tmp_path / "clips" / "notes.txt"]) == [tmp_path / "clips" / "notes.txt"]


@pytest.mark.parametrize("output", ["lines", "json"])
def test_files_that_cannot_be_read_end_with_status_1_and_the_others_are_named(
    model: Path, clip: Path, tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "broken.wav", tmp_path / "absent.wav", tmp_path / "empty"]
    assert run("--model", model, *(["--json"] if output == "json" else []), bad[0], clip, *bad[1:], clip) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out) if output == "json" else shown.out.splitlines()
    assert len(found) == 2
    errors = shown.err.splitlines()
    assert [line.split(": ")[:2] for line in errors] == [["error", str(path)] for path in bad]
    assert "must be an audio file, got a web page" in errors[0]


def test_sample_far_beyond_full_scale_is_an_error_and_no_probability(
    model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, rate = soundfile.read(clip)
    samples[7] = 1e25
    soundfile.write(tmp_path / "huge.wav", samples, rate, subtype="FLOAT")
    assert run("--model", model, tmp_path / "huge.wav") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith(
        "at most 16 times full scale, got 1e+25 (if they are integers that were saved as floats, "
        "divide them by 32768)\n"
    )


def test_installed_command_names_the_word_and_prints_names_that_are_no_utf8_as_they_are(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    shutil.copy(clip, tmp_path / "j\udce4.WAV")
    command = [Path(sys.executable).parent / "kws", "predict", "--model", model, tmp_path]
    shown = subprocess.run(command, capture_output=True, check=True)
    path, word, probability = shown.stdout.rstrip(b"\n").split(b"\t")
    assert (path, word) == (bytes(tmp_path) + b"/j\xe4.WAV", b"yes")
    assert float(probability) > 0.5


def test_a_name_with_control_characters_stays_on_its_line(
    model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(clip, tmp_path / "a\n\tb.wav")
    (tmp_path / "\x1b[2J.wav").write_bytes(b"nothing")
    assert run("--model", model, tmp_path) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{tmp_path}/a\\n\\tb.wav\tyes\t")
    assert f"error: {tmp_path}/\\x1b[2J.wav: " in shown.err


def test_model_that_cannot_be_read_ends_with_status_2_and_one_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.pth").write_bytes(b"nothing")
    for name, message in (
        ("absent.pth", "which does not exist"),
        ("other.pth", "which is damaged or another kind of file"),
    ):
        assert run("--model", tmp_path / name, clip) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: model must be a .pth file")
        assert shown.err.endswith(f"{message}\n")
        assert shown.err.count("\n") == 1


def test_number_of_words_must_be_positive(model: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model", model, "--top", "0", clip) == 2
    assert capsys.readouterr().err == "error: top must be positive, got 0\n"
