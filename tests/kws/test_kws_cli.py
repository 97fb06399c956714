"""The command `kws` and its subcommands, except predict."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kws import files
from kws.cli import main
from kws.config import PipelineConfig
from kws.model import bundle
from kws.model.bundle import Recognizer

COMMANDS = ("synthesize", "download", "preprocess", "train", "evaluate", "predict", "listen", "export")


@pytest.fixture
def model(expert: Recognizer, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "model.pth", expert)
    return tmp_path / "model.pth"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_of_the_installed_command_names_every_subcommand() -> None:
    command = [str(Path(sys.executable).parent / "kws"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert re.search(rf"^    {name}\b", shown, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_subcommand_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    shown = capsys.readouterr().out
    flags = re.findall(r"^  (--[a-z0-9-]+)(?: [A-Z_]+)?(?:  +(\S.*))?\n(?: {10,}(\S.*))?", shown, re.MULTILINE)
    assert flags
    assert all(beside or below for _, beside, below in flags)


def test_preprocess_has_the_flags_and_defaults_of_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    run("preprocess", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("words", "unknown_words", "preset", "max_bad_fraction"):
        assert f"--{name.replace('_', '-')} {name.upper()}" in shown
        assert f"(default: {getattr(PipelineConfig(), name) or repr('')})" in shown
    assert "(95/3/2 % of the clips; of fewer" in shown


def test_unknown_or_missing_subcommand_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert run("sing") == 2
    assert "usage: kws" in capsys.readouterr().err


def test_preprocess_prints_the_folder_and_nothing_else(
    tone_corpus: Path, tone_tensors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(
        "preprocess", "--recordings", tone_corpus, "--data-root", tmp_path, "--words", "auto", "--num-threads", 1
    )
    assert status == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tensors' / tone_tensors.name}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--words", "yes,maybe"), "error: words must be folders with recordings in "),
        (("--words", "yes"), "error: words must name at least two words, each once, got 'yes'"),
        (("--preset", "best"), "error: preset must be one of default, small, streams, baseline, got 'best'"),
        (("--split", "word"), "error: split must be speaker or random, got 'word'"),
    ],
)
def test_mistake_of_the_user_ends_with_status_2_and_one_line(
    tone_corpus: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("preprocess", "--recordings", tone_corpus, "--data-root", tmp_path, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1


def test_evaluate_prints_a_table_and_writes_report_matrix_and_figures(
    model: Path, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluated"
    assert run("evaluate", "--model", model, "--recordings", tone_corpus, "--output", output) == 0
    shown = capsys.readouterr().out
    assert "accuracy 100.00% on 120 clips, macro F1 1.000" in " ".join(shown.split())
    for word in ("no", "stop", "yes"):
        assert re.search(rf"{word} +│ +40 +│ +100.0% +│ +100.0% +│ +1.000", shown)
    assert {path.name for path in output.iterdir()} == {
        "report.html",
        "confusion.png",
        "confusion.csv",
        "evaluation.json",
    }
    assert (output / "confusion.csv").read_text().splitlines()[1:] == ["no,40,0,0", "stop,0,40,0", "yes,0,0,40"]
    assert files.read_json(output / "evaluation.json")["accuracy"] == 1


def test_evaluate_prints_json_alone_and_lists_what_cannot_be_read(
    model: Path, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = tmp_path / "recordings"
    (recordings / "yes").mkdir(parents=True)
    for path in sorted((tone_corpus / "yes").iterdir())[:3]:
        (recordings / "yes" / path.name).symlink_to(path)
    (recordings / "yes" / "broken.wav").write_bytes(b"")
    arguments = ("--model", model, "--recordings", recordings, "--output", tmp_path / "evaluated", "--json")
    assert run("evaluate", *arguments) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert (summary["num_clips"], summary["accuracy"]) == (3, 1)
    assert list(summary["unreadable"]) == ["yes/broken.wav"]
    assert "left out yes/broken.wav: the recording must be an audio file, got an empty file" in shown.err


def test_evaluate_of_words_that_the_model_does_not_know_ends_with_status_2(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recordings" / "maybe").mkdir(parents=True)
    (tmp_path / "recordings" / "maybe" / "a.wav").write_bytes(b"")
    assert run("evaluate", "--model", model, "--recordings", tmp_path / "recordings", "--output", tmp_path / "o") == 2
    assert "error: recordings must hold folders of words that the model knows (no, stop, yes), got maybe" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "o").exists()


def test_synthesize_then_download_give_a_data_set_that_preprocess_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    corpus = tmp_path / "corpus"
    assert run("synthesize", corpus, "--clips-per-word", 3) == 0
    assert capsys.readouterr().out == f"{corpus}\n"
    assert run("download", "--source", corpus, "--data-root", tmp_path) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == tmp_path / "datasets"
    for recordings in (folder, corpus):  # with the digest of the download, and without
        arguments = ("--recordings", recordings, "--data-root", tmp_path, "--words", "yes,no", "--num-threads", 1)
        assert run("preprocess", *arguments) == 0
        manifest = files.read_json(Path(capsys.readouterr().out.strip()) / files.MANIFEST)
        assert manifest["counts"] == {"train": 2, "validation": 2, "test": 2, "noise": 36}


def test_train_of_no_tensors_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--processes-per-node", "2")):
        assert run("train", "--tensors", tmp_path, "--runs", tmp_path / "runs", *more) == 2
        assert "error: tensors must be a folder that kws preprocess completed" in capsys.readouterr().err
    assert run("train", "--tensors", tmp_path, "--runs", tmp_path / "runs", "--processes-per-node", "0") == 2
    assert "error: processes_per_node must be positive, got 0" in capsys.readouterr().err
