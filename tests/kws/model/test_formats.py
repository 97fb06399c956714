"""Every format in which a model is exported, against the model on real clips."""

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from recognizers import MakeRecognizer

from kws.cli import main
from kws.config import FORMATS, parse_formats
from kws.evaluate.accuracy import evaluate_recordings
from kws.model import bundle, c, formats
from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.model.predict import load
from kws.preprocess.audio import read_clip
from kws.recipe import RECIPES

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
GAPS = {False: 2e-4, True: 0.05}
"""Largest difference of a probability from that of the .pth, without and with 8 bits."""


@pytest.fixture(scope="module")
def heard(real_corpus: Path, make_recognizer: MakeRecognizer) -> tuple[np.ndarray, np.ndarray]:
    recognizer = make_recognizer()
    clips = sorted(real_corpus.glob("[a-z]*/*.wav"))[::6]
    waveforms = np.stack([read_clip(clip, recognizer.features) for clip in clips])
    return waveforms, recognizer.predict(waveforms)


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_probabilities_of_the_model_on_real_clips(
    name: str,
    int8: bool,
    heard: tuple[np.ndarray, np.ndarray],
    make_recognizer: MakeRecognizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waveforms, expected = heard
    assert np.ptp(expected, axis=0).max() > 1e-3  # clips differ
    path = tmp_path / ("index.html" if name == "page" else formats.file_name(name, int8))
    try:
        with monkeypatch.context() as patch:
            if name == "c":
                patch.setenv("PATH", "")  # where there is no compiler there are no figures
            figures = formats.find(name).export(make_recognizer(), path, int8)
        assert name != "c" or figures == {}
        found = load(path)
    except ValueError as error:
        if not re.search("must be (installed|able to fetch)", str(error)):
            raise
        pytest.skip(str(error))
    assert (found.words, found.about["int8"]) == (make_recognizer().words, int8)
    np.testing.assert_allclose(found.predict(waveforms), expected, atol=GAPS[int8])
    np.testing.assert_allclose(found.predict(waveforms[:1]), expected[:1], atol=GAPS[int8])


@needs_compiler
def test_program_in_c_hears_a_clip_as_the_model_does_and_has_no_heap(
    heard: tuple[np.ndarray, np.ndarray], make_recognizer: MakeRecognizer, tmp_path: Path
) -> None:
    recognizer = make_recognizer(words=["no", 'say "*/"', "Größe"])
    figures = c.export(recognizer, tmp_path / "model.c")
    assert 0 < figures["ram_bytes"] < figures["flash_bytes"] < 1_500_000
    assert not re.search("malloc|calloc|fopen", (tmp_path / "model.c").read_text())
    (tmp_path / "main.c").write_text("""
#include <stdio.h>
#include "model.h"
static float sound[1][KWS_NUM_SAMPLES], found[1][KWS_NUM_WORDS];
int main(void) {
    if (fread(sound, sizeof(float), KWS_NUM_SAMPLES, stdin) != KWS_NUM_SAMPLES) return 1;
    kws(sound, found);
    for (int word = 0; word < KWS_NUM_WORDS; word++) printf("%.6f %s\\n", found[0][word], KWS_WORDS[word]);
    return 0;
}
""")
    subprocess.run(
        ["gcc", "-std=c99", "-Wall", "-Werror", "-O1", "main.c", "model.c", "-o", "hear", "-lm"],
        cwd=tmp_path,
        check=True,
    )
    for clip, expected in zip(*heard, strict=True):
        shown = subprocess.run([tmp_path / "hear"], input=clip.tobytes(), capture_output=True, check=True).stdout
        lines = [line.split(" ", 1) for line in shown.decode().splitlines()]
        assert [word for _, word in lines] == recognizer.words
        np.testing.assert_allclose([float(value) for value, _ in lines], expected, atol=2e-4)


@needs_compiler
def test_model_whose_tokens_get_scores_is_written_in_c(
    real_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, config = RECIPES["streams"].features, dataclasses.replace(RECIPES["streams"].model, num_layers=1)
    torch.manual_seed(1)
    recognizer = Recognizer(model=AudioTransformer(config, features, 3).eval(), words=list("abc"), features=features)
    clip = read_clip(min(real_corpus.glob("[a-z]*/*.wav")), features)[None]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")  # what would be measured takes longer
        c.export(recognizer, tmp_path / "model.c")
    np.testing.assert_allclose(load(tmp_path / "model.c").predict(clip), recognizer.predict(clip), atol=2e-4)


@needs_compiler
def test_command_writes_what_the_ending_says_with_figures_and_evaluates_it(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    with pytest.raises(SystemExit) as caught:
        main(["export", "--model", str(tmp_path / "model.pth"), "--int8", str(tmp_path / "model.c")])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert re.search(r"model.c\nflash_bytes [\d,]+\nram_bytes [\d,]+\nseconds_a_clip [\d.]+\n$", shown)
    evaluation, _ = evaluate_recordings(load(tmp_path / "model.c"), tone_corpus)
    assert evaluation.accuracy == 1


def test_what_is_no_format_or_no_file_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the name of the file must end in .onnx or .c or"):
        formats.of_file(Path("model.txt"))
    with pytest.raises(ValueError, match=r"formats must be among onnx, c, .*onnx-int8, .*, got 'coreml'"):
        parse_formats("onnx,coreml")
    assert parse_formats("onnx, c-int8,") == [("onnx", False), ("c", True)]
    (tmp_path / "other.c").write_text("int main(void) { return 0; }\n")
    with pytest.raises(ValueError, match=r"model must be a .c file of kws export, got .*other.c"):
        load(tmp_path / "other.c")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.c")
