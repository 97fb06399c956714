"""The classes of unknown words and of silence."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensor_folders import features_of

from kws import files
from kws.config import SPLITS
from kws.data import classes
from kws.data.clip import Clip, class_of
from kws.data.folder import clip_of
from kws.data.index import Index
from kws.preprocess import audio
from kws.preprocess.audio import read_clip, read_waveform
from kws.preprocess.features import MelSpectrogram
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import RECIPES, make_recipe

FEATURES = RECIPES["default"].features
ALL = ["yes", "_unknown_", "_silence_"]


def read(folder: Path, split: str) -> list[tuple[Clip, str]]:
    """Returns the clips of a split with their classes."""
    tensors = Tensors(folder)
    part = tensors.split(split)
    return [(clip, tensors.words[label]) for clip, label in zip(part.clips, part.labels.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("word", "words", "label"),
    [("yes", ALL, "yes"), ("bed", ALL, "_unknown_"), ("_silence_", ALL, "_silence_"), ("bed", ["yes", "no"], "bed")],
)
def test_class_of_a_clip_follows_from_its_word_and_the_classes_there_are(
    word: str, words: list[str], label: str
) -> None:
    assert class_of(word, words) == Clip(file="a.wav", word=word).label(words) == label


def test_silence_is_the_named_second_of_noise_at_the_named_gain(tone_corpus: Path) -> None:
    noise = read_waveform(tone_corpus / "_background_noise_" / "hiss.wav", FEATURES.sample_rate)
    clip = Clip(file="_background_noise_/hiss.wav", word="_silence_", begin=1234, gain=-20)
    assert clip.id == "_background_noise_/hiss.wav@1234@-20"
    heard = audio.read(tone_corpus, clip, FEATURES)
    np.testing.assert_allclose(heard, noise[1234 : 1234 + FEATURES.num_samples] * 0.1, rtol=1e-6)


def test_splits_have_parts_of_a_noise_recording_to_themselves() -> None:
    length = 60 * FEATURES.sample_rate
    drawn = classes.cut_silence({"a.wav": length, "short.wav": 16_000}, dict.fromkeys(SPLITS, 40), FEATURES)
    ranges = []
    for split in SPLITS:
        starts = [clip.begin or 0 for clip in drawn[split]]
        assert len(starts) == 40
        ranges.append((min(starts), max(starts) + FEATURES.num_samples))
    assert ranges[0][1] <= 0.8 * length <= ranges[1][0]
    assert ranges[1][1] <= 0.9 * length <= ranges[2][0]
    assert ranges[2][1] <= length
    gains = {clip.gain for some in drawn.values() for clip in some}
    assert min(gains) >= -30
    assert max(gains) <= 0
    assert len(gains) > 10


def test_unknown_words_are_drawn_evenly_whatever_the_order() -> None:
    files = [f"{word}/{i}.wav" for word, number in (("bed", 30), ("cat", 30), ("dog", 5)) for i in range(number)]
    found = Index.of(map(clip_of, files))
    chosen = classes.choose_unknown(dict.fromkeys(SPLITS, found), dict.fromkeys(SPLITS, 27))["train"]
    assert chosen.counts() == {"bed": 11, "cat": 11, "dog": 5}
    again = classes.choose_unknown(dict.fromkeys(SPLITS, found[::-1]), dict.fromkeys(SPLITS, 27))["test"]
    assert list(again) == list(chosen)


def test_real_words_become_known_unknown_and_silent_clips(real_corpus: Path, tmp_path: Path) -> None:
    folder = preprocess(real_corpus, tmp_path, words="yes,left", unknown_words="auto", num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["words"] == ["yes", "left", "_unknown_", "_silence_"]
    assert manifest["unknown_words"] == ["stop"]
    heard: set[Clip] = set()
    for split in SPLITS:
        found = read(folder, split)
        assert all(clip.label(manifest["words"]) == word for clip, word in found)
        counts = Counter(word for _, word in found)
        assert counts["_silence_"] == -(-(counts["yes"] + counts["left"]) // 2)
        assert 0 < counts["_unknown_"] <= counts["_silence_"]
        assert heard.isdisjoint(clip for clip, _ in found)
        heard |= {clip for clip, _ in found}
    array = features_of(folder, "train")
    row, clip = next((i, clip) for i, (clip, word) in enumerate(read(folder, "train")) if word == "_silence_")
    waveform = torch.from_numpy(audio.read(real_corpus, clip, FEATURES))
    np.testing.assert_allclose(array[row], MelSpectrogram(FEATURES)(waveform[None])[0], atol=0.02)


def test_preset_streams_trains_on_more_clips_of_unknown_words_but_is_measured_on_the_same(
    tone_corpus: Path, tmp_path: Path
) -> None:
    corpus = shutil.copytree(tone_corpus, tmp_path / "corpus")
    for word in ("yes", "no"):
        for path in sorted((corpus / word).iterdir())[::2]:
            path.unlink()
    found = {}
    for preset in ("default", "streams"):
        folder = preprocess(
            corpus, tmp_path, make_recipe(preset, split="random"), words="yes,no", unknown_words="stop", num_threads=1
        )
        found[preset] = {split: read(folder, split) for split in SPLITS}
    counts = {preset: Counter(word for _, word in splits["train"]) for preset, splits in found.items()}
    assert counts["default"] == {"yes": 16, "no": 16, "_unknown_": 16}
    assert counts["streams"] == {"yes": 16, "no": 16, "_unknown_": 32}, "five times as many are more than there are"
    assert found["streams"]["test"] == found["default"]["test"]
    assert found["streams"]["validation"] == found["default"]["validation"]


def test_without_noise_there_is_no_class_of_silence_and_a_warning(
    tone_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Five seconds of hiss: a tenth of them is no clip.
    folder = preprocess(tone_corpus, tmp_path, words="yes,no", unknown_words="stop", num_threads=1)
    assert files.read_json(folder / files.MANIFEST)["words"] == ["yes", "no", "_unknown_"]
    assert "there is no class _silence_: it needs noise recordings of at least 10 s" in caplog.text
    other = preprocess(tone_corpus, tmp_path, words="yes,no", num_threads=1)
    assert other.name != folder.name
    clip = next(clip for clip, word in read(folder, "test") if word == "_unknown_")
    assert audio.read(tone_corpus, clip, FEATURES).tolist() == read_clip(tone_corpus / clip.file, FEATURES).tolist()


@pytest.mark.parametrize(
    ("words", "unknown_words", "message"),
    [
        ("auto", "auto", r"words must leave folders for unknown_words auto \(name the words\)"),
        ("yes,no", "no", "unknown_words must be none of the words, got 'no'"),
        ("yes,no", "maybe", "unknown_words must be folders with recordings in .*, got 'maybe'"),
        ("yes,no", "_no", "a word must not begin with _, got '_no'"),
    ],
)
def test_unknown_words_that_cannot_be_are_refused(
    tone_corpus: Path, tmp_path: Path, words: str, unknown_words: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(tone_corpus, tmp_path, words=words, unknown_words=unknown_words)
    assert not (tmp_path / "tensors").exists()


@pytest.mark.parametrize(("split", "digest"), [("speaker", "aeb03dd0a6bfc5c1"), ("random", "72270ae4c4b55429")])
def test_splits_labels_and_order_of_the_rows_are_those_of_release_0_2(split: str, digest: str, tmp_path: Path) -> None:
    """Clips in another order would train another model from the same features."""
    random = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(16_000) / 5)
    for word in ("no", "stop", "yes"):
        (tmp_path / "c" / word).mkdir(parents=True)
        for number in range(40):
            speaker = hashlib.sha1(str(number).encode()).hexdigest()[:8]
            soundfile.write(tmp_path / "c" / word / f"{speaker}_nohash_0.wav", tone + 0.01 * random.random(), 16_000)
        soundfile.write(tmp_path / "c" / word / "me.flac", tone + 0.01 * random.random(), 16_000)
    (tmp_path / "c" / "_background_noise_").mkdir()
    for name, seconds in (("hiss", 30), ("hum", 60)):
        noise = np.full(16_000 * seconds, 0.01)
        soundfile.write(tmp_path / "c" / "_background_noise_" / f"{name}.wav", noise, 16_000)
    recipe = make_recipe("default", split=split)
    folder = preprocess(tmp_path / "c", tmp_path, recipe, words="yes,no", unknown_words="stop", num_threads=1)
    tensors = Tensors(folder)
    lines = []
    for name in SPLITS:
        part = tensors.split(name)
        lines += [f"{name} {clip.id} {label}" for clip, label in zip(part.clips, part.labels.tolist(), strict=True)]
    assert len(lines) == 164
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest, lines
