"""Running speech among the tensors: its features, where it is usable, and what takes its place."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kws import files
from kws.config import RUNNING_SPEECH
from kws.preprocess.features import mel_spectrogram
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import RECIPES, Recipe

STREAMS = RECIPES["streams"]
RATE = 16_000


@pytest.fixture
def corpus(tone_corpus: Path, tmp_path: Path) -> Path:
    """The tones, and running speech: 31 s of the training split, a file that is none, one of test."""
    folder = tmp_path / "corpus"
    shutil.copytree(tone_corpus, folder)
    speech = folder / RUNNING_SPEECH
    speech.mkdir()
    random = np.random.default_rng(0)
    long = 0.1 * random.standard_normal(31 * RATE)
    long[: 5 * RATE] *= 1e-4
    soundfile.write(speech / "5_nohash_0.wav", long, RATE)  # speaker 5 trains
    (speech / "5_nohash_0.txt").write_text("nothing at all and then stop and then nothing more to say")
    soundfile.write(speech / "5_nohash_1.wav", 0.01 * random.standard_normal(2 * RATE), RATE)
    (speech / "5_nohash_2.wav").write_bytes(b"RIFF")
    soundfile.write(speech / "12_nohash_0.wav", 0.1 * random.standard_normal(RATE), RATE)
    return folder


def test_speech_of_the_training_split_is_stored_at_one_level_and_marked_where_a_word_may_be(
    corpus: Path, tmp_path: Path
) -> None:
    folder = preprocess(corpus, tmp_path, STREAMS, words="no,yes", unknown_words="auto", num_threads=2)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["counts"]["speech_seconds"] == 33
    assert list(manifest["noise_left_out"]) == [f"{RUNNING_SPEECH}/5_nohash_2.wav"]
    speech = Tensors(folder).speech()
    assert speech is not None
    assert speech.lengths.tolist() == [31 * 80, 2 * 80]
    assert speech.ends.tolist() == [31 * 80, 33 * 80]
    assert speech.features.shape == (33 * 80, STREAMS.features.num_mels)
    for part in speech.features.float().split(speech.lengths.tolist()):
        assert float(part.exp().sum(1).mean()) == pytest.approx(1, rel=0.01)
    waveform, _ = soundfile.read(corpus / RUNNING_SPEECH / "5_nohash_0.wav", dtype="float32")
    power = mel_spectrogram(STREAMS.features)(torch.from_numpy(waveform[None, 8 * RATE : 9 * RATE]))[0].T.exp()
    ratio = speech.features[640 : 640 + 81].float().exp() / power
    assert ratio[2:-2].std() / ratio[2:-2].mean() < 0.02  # but for the reflected edges the same, times a number
    assert bool(speech.usable.all()), "stop is a word that the model does not know"


def test_word_of_the_model_in_a_text_makes_its_stretch_unusable(corpus: Path, tmp_path: Path) -> None:
    folder = preprocess(corpus, tmp_path, STREAMS, words="stop,yes", unknown_words="auto", num_threads=1)
    speech = Tensors(folder).speech()
    assert speech is not None
    unusable = (~speech.usable).nonzero()[:, 0] / 80
    # "stop" is 24 letters into a text of 57, in the 26 s that are not silent.
    middle = 5 + 26 * 26 / 57
    assert [float(unusable[0]), float(unusable[-1])] == pytest.approx([middle - 1.56, middle + 1.56], abs=0.3)
    assert len(unusable) == pytest.approx(2 * 1.56 * 80, abs=3)
    other = preprocess(corpus, tmp_path, STREAMS, words="no,yes", unknown_words="auto", num_threads=1)
    (corpus / RUNNING_SPEECH / "5_nohash_0.txt").write_text("yes")
    changed = preprocess(corpus, tmp_path, STREAMS, words="no,yes", unknown_words="auto", num_threads=1)
    assert len({folder, other, changed}) == 3, "another text is another data set"


def test_without_running_speech_synthetic_voices_read_sentences(
    tone_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kws.preprocess.speech.NUM_SENTENCES", 4)
    with caplog.at_level(logging.WARNING):
        folder = preprocess(tone_corpus, tmp_path, STREAMS, words="no,yes", unknown_words="auto", num_threads=1)
    assert "synthetic voices read 4 sentences" in caplog.text
    speech = Tensors(folder).speech()
    assert speech is not None
    assert len(speech.lengths) == 4
    assert int(speech.lengths.min()) > 80


def test_models_of_clips_need_no_speech(corpus: Path, tmp_path: Path, tone_corpus: Path) -> None:
    recipe = Recipe(features=STREAMS.features, unknown_clips=STREAMS.unknown_clips)
    folder = preprocess(corpus, tmp_path, recipe, words="no,yes", unknown_words="auto", num_threads=1)
    assert Tensors(folder).speech() is None
