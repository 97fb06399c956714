"""Words in a stream: features computed once, decisions, thresholds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kws import files
from kws.config import SILENCE, UNKNOWN
from kws.model import onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Decider, Detection, Detector, Floats, MelFrames, Thresholds
from kws.preprocess.audio import read_waveform
from kws.preprocess.features import MelSpectrogram
from kws.recipe import RECIPES, FeatureConfig

RATE = 16_000
WORDS = ["go", "stop", UNKNOWN, SILENCE]
THRESHOLDS = Thresholds(thresholds={"go": 0.5, "stop": 0.7}, refractory_seconds=0.8)


def decide(*scores: tuple[float, float], thresholds: Thresholds = THRESHOLDS) -> list[tuple[float, str, float]]:
    """Gives the probabilities of "go" and "stop" to a decider, ten a second, and returns what it detects."""
    decider, found = Decider(WORDS, thresholds), []
    for number, (go, stop) in enumerate(scores):
        found.append(decider.step(number / 10, np.array([go, stop, 0, 0], np.float32)))
    found.append(decider.finish())
    return [(round(time, 3), WORDS[index], round(score, 3)) for score, index, time in filter(None, found)]


@pytest.mark.parametrize("preset", RECIPES)
def test_frames_of_a_stream_are_those_of_training_whatever_the_pieces(preset: str, real_corpus: Path) -> None:
    features = RECIPES[preset].features
    noise = read_waveform(real_corpus / "_background_noise_" / "running_tap.wav", RATE)[: 5 * RATE]
    whole = np.concatenate(MelFrames(features, 8).feed(noise))
    expected = MelSpectrogram(features)(torch.from_numpy(noise[None, :RATE]))[0].T.numpy()
    inner = slice(2, features.num_frames - 2)  # a clip's edges are reflected, a stream has none there
    np.testing.assert_allclose(whole[: features.num_frames][inner], expected[inner], rtol=1e-4, atol=1e-4)
    for lengths in ([1, 799, 3, 4001], [16_000]):
        blocks: list[Floats] = []
        stream, first = MelFrames(features, 8), 0
        while first < noise.size:
            length = lengths[len(blocks) % len(lengths)]
            blocks += stream.feed(noise[first : first + length])
            first += length
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_settings_of_other_shapes_have_frames_too(other_features: FeatureConfig) -> None:
    waveform = np.random.default_rng(1).standard_normal(2 * RATE).astype(np.float32) * 0.1
    frames = np.concatenate(MelFrames(other_features, 4).feed(waveform))
    expected = MelSpectrogram(other_features)(torch.from_numpy(waveform[None, :RATE]))[0].T.numpy()
    np.testing.assert_allclose(frames[2:38], expected[2:38], rtol=1e-4, atol=1e-4)


def test_a_word_is_reported_once_at_its_highest() -> None:
    rise = [(0, 0), (0.6, 0), (0.8, 0), (0.9, 0), (0.7, 0), (0.55, 0), (0, 0)]
    assert decide(*rise) == [(0.3, "go", 0.9)]


def test_each_word_has_its_threshold_and_classes_without_a_word_have_none() -> None:
    assert decide((0.6, 0), (0, 0), thresholds=THRESHOLDS) == [(0.0, "go", 0.6)]
    assert decide((0, 0.6), (0, 0)) == []
    decider = Decider(WORDS, THRESHOLDS)
    assert [decider.step(0, np.array([0, 0, 1, 1], np.float32)), decider.finish()] == [None, None]


def test_a_word_that_stays_high_is_not_reported_again_when_the_pause_ends() -> None:
    assert decide(*[(0.9, 0)] * 40) == [(0.0, "go", 0.9)]
    again = [(0.9, 0)] * 10 + [(0.1, 0)] * 3 + [(0.95, 0)] * 5
    assert decide(*again) == [(0.0, "go", 0.9), (1.3, "go", 0.95)]


def test_another_word_that_follows_soon_is_reported_and_one_in_the_same_sound_is_not() -> None:
    go, stop = [(0.9, 0), (0.6, 0), (0.3, 0)], [(0, 0.3), (0, 0.75), (0, 0.9), (0, 0.6)]
    assert decide(*go, (0, 0), (0, 0), *stop) == [(0.0, "go", 0.9), (0.7, "stop", 0.9)]
    assert decide(*go, (0, 0), *stop) == [(0.0, "go", 0.9), (0.6, "stop", 0.9)]
    assert decide(*go, *stop) == [(0.0, "go", 0.9)]


def test_probability_that_wavers_around_its_threshold_is_one_word() -> None:
    assert decide(*([(0.9, 0)] * 9 + [(0.1, 0)]) * 5) == [(0.0, "go", 0.9)]
    assert decide(*[(0.55, 0), (0.45, 0)] * 20) == [(0.0, "go", 0.55)]


def test_another_word_of_the_same_sound_is_not_reported_after_the_pause() -> None:
    assert decide((0.9, 0), (0.5, 0.75), *[(0, 0.8)] * 20) == [(0.0, "go", 0.9)]


def test_the_more_probable_of_two_words_is_reported() -> None:
    assert decide((0.6, 0), (0.6, 0.9), (0, 0)) == [(0.1, "stop", 0.9)]


def test_a_slow_rise_is_reported_without_waiting_for_its_end() -> None:
    decider = Decider(WORDS, THRESHOLDS)
    steps = [decider.step(number / 10, np.array([0.5 + number / 100, 0, 0, 0], np.float32)) for number in range(10)]
    assert [step is not None for step in steps].index(True) == 3


def spoken(tone_corpus: Path, *, gap_seconds: float, noise: float) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Returns a stream of clips with gaps, and when which word begins."""
    random = np.random.default_rng(3)
    parts, truth, length = [], [], 0
    for number in range(9):
        word = ("no", "stop", "yes")[number % 3]
        clip = read_waveform(sorted((tone_corpus / word).iterdir())[number], RATE)[2_000:14_000]
        gap = np.zeros(int(gap_seconds * RATE), np.float32)
        truth.append(((length + gap.size) / RATE, word))
        parts += [gap, clip]
        length += gap.size + clip.size
    stream = np.concatenate([*parts, np.zeros(RATE, np.float32)])
    return (stream + noise * random.standard_normal(stream.size)).astype(np.float32), truth


@pytest.fixture(scope="module")
def heard_file(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    onnx.export(expert, path)
    return path


# The expert knows no silence, so that its threshold must tell words from gaps: tones are surer than that.
SURE = Thresholds(thresholds=dict.fromkeys(("no", "stop", "yes"), 0.6))


def detections(detector: Detector, *pieces: np.ndarray) -> list[Detection]:
    heard = [one for piece in pieces for one in detector.feed(piece)] + detector.finish()
    return [one.detection for one in heard if one.detection]


def test_detections_depend_on_the_samples_and_not_on_the_pieces(
    expert: Recognizer, heard_file: Path, tone_corpus: Path
) -> None:
    stream, _ = spoken(tone_corpus, gap_seconds=1.5, noise=0.01)
    for recognizer in (expert, onnx.load(heard_file, num_threads=1)):
        whole = detections(Detector(recognizer, SURE), stream)
        assert whole
        for length in (37, 1600, 5001):
            cut = np.split(stream, range(length, stream.size, length))
            assert detections(Detector(recognizer, SURE), *cut) == whole


def test_recording_of_one_word_is_that_word_once_and_no_time_is_before_its_begin(
    expert: Recognizer, tone_corpus: Path
) -> None:
    for word in SURE.thresholds:
        for clip in sorted((tone_corpus / word).iterdir())[:4]:
            samples = read_waveform(clip, RATE)
            for recording in (samples, samples[:9_000], samples[7_000:], samples[:2_000]):
                found = detections(Detector(expert, SURE), recording)
                assert {one.word for one in found} <= {word}
                assert all(0 <= one.begin <= one.end and 0 <= one.time <= recording.size / RATE for one in found)
            assert [one.word for one in detections(Detector(expert, SURE), samples)] == [word]


def test_nothing_is_reported_before_all_windows_of_the_average_have_a_part_of_the_stream(expert: Recognizer) -> None:
    heard = Detector(expert, SURE).feed(np.zeros(RATE, np.float32))
    assert heard[0].time == pytest.approx(0.5 + 0.2, abs=0.1)  # half of a window, and half of the windows after it


def test_thresholds_change_while_it_listens(expert: Recognizer, tone_corpus: Path) -> None:
    stream, _ = spoken(tone_corpus, gap_seconds=1.5, noise=0.01)
    detector = Detector(expert, SURE)
    detector.set_thresholds({"no": 1.5, "stop": 1.5, "yes": 1.5})
    assert not detections(detector, stream)


def test_a_stream_shorter_than_a_window_is_heard_with_silence_around_it(expert: Recognizer) -> None:
    detector = Detector(expert, SURE)
    assert detector.feed(np.zeros(3000, np.float32)) == []
    assert len(detector.finish()) >= 1


def test_thresholds_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    for written in (
        Thresholds.unmeasured(WORDS),
        Thresholds(thresholds={"go": 0.9, "stop": 1.5}, false_alarms_per_hour=0.7, measured_on={"hours": 3}),
    ):
        files.write_json(path, written.as_json())
        read = Thresholds.beside(tmp_path / "model.onnx", WORDS)
        assert read.as_json() == written.as_json()
    assert dict(Thresholds.unmeasured(WORDS).thresholds) == {"go": 0.8, "stop": 0.8}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "must be what kws evaluate --stream wrote"),
        ("[1]", "must be numbers for each word"),
        ("{}", "missing"),
        ('{"thresholds": {"go": 0.5}}', "must be given for the words of the model, go, stop, got .'go'."),
        ('{"thresholds": {"go": 0.5, "stop": -1}}', "the threshold of stop must be more than 0"),
        ('{"thresholds": {"go": 0.5, "stop": "high"}}', "must be numbers"),
        ('{"thresholds": {"go": 0.5, "stop": 0.5}, "hop_seconds": 0}', "hop_seconds must be more than 0 and"),
    ],
)
def test_thresholds_that_are_none_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "thresholds.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        Thresholds.beside(tmp_path / "model.onnx", WORDS)


def test_listening_to_a_file_imports_no_torch(heard_file: Path) -> None:
    code = f"""
import json, sys
from pathlib import Path
import numpy as np
from kws.model import onnx
from kws.model.detector import Detector, Thresholds
recognizer = onnx.load(Path({str(heard_file)!r}), num_threads=1)
heard = Detector(recognizer, Thresholds.unmeasured(recognizer.words)).feed(np.zeros(32_000, np.float32))
print(json.dumps([len(heard), sorted({{"torch", "onnx"}} & set(sys.modules))]))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, modules = json.loads(shown)
    assert (count, modules) == (13, [])


def test_file_that_takes_no_features_is_refused(heard_file: Path, tmp_path: Path) -> None:
    import onnx as onnx_format

    without = onnx_format.load(heard_file)
    kept = [one for one in without.graph.input if one.name != "features"]
    del without.graph.input[:]
    without.graph.input.extend(kept)
    onnx_format.save(without, tmp_path / "without.onnx")
    with pytest.raises(ValueError, match="optional inputs must have features"):
        onnx.load(tmp_path / "without.onnx")
