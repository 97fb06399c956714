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
from kws.model.network import AudioTransformer
from kws.preprocess.audio import read_waveform
from kws.preprocess.features import MelSpectrogram
from kws.recipe import RECIPES, FeatureConfig, ModelConfig

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


TALK = FeatureConfig()


@pytest.fixture(scope="module")
def listener() -> Recognizer:
    """An untrained model whose tokens get scores, which differ from token to token."""
    torch.manual_seed(4)
    config = ModelConfig(
        num_layers=2, num_heads=2, width=16, feedforward=16, scores="tokens", positions=False, reach=(3, 2)
    )
    model = AudioTransformer(config, TALK, len(WORDS)).eval()
    model.set_normalization(torch.full((128,), -6.0), torch.full((128,), 3.0))
    with torch.no_grad():
        model.head.weight.mul_(5)
    return Recognizer(model=model, words=WORDS, features=TALK)


def chirps(seconds: int) -> np.ndarray:
    time = np.arange(seconds * RATE) / RATE
    noise = np.random.default_rng(0).standard_normal(time.size)
    return (0.1 * np.sin(900 * time * np.sin(time)) + 0.02 * noise).astype(np.float32)


def test_tokens_of_a_stream_are_those_of_the_whole_recording_however_it_is_cut(
    listener: Recognizer, tmp_path: Path
) -> None:
    samples = chirps(8)
    whole = MelSpectrogram(TALK)(torch.from_numpy(samples[None]))
    expected = listener.predict_features(whole.numpy())[0]
    path = tmp_path / "model.onnx"
    onnx.export(listener, path)
    read = onnx.load(path, num_threads=1)
    assert read.margin == listener.margin == (2 * 3 + 3, 2 * 2 + 3)
    single = Thresholds(thresholds={"go": 1.5, "stop": 1.5}, smoothing_seconds=0.05, hop_seconds=0.05)
    for recognizer, at_a_time, length in ((listener, 4, 777), (read, 4, 16_000), (read, 30, 50_000)):
        detector = Detector(recognizer, single, tokens_at_a_time=at_a_time)
        heard = [
            one for piece in np.split(samples, range(length, samples.size, length)) for one in detector.feed(piece)
        ]
        heard += detector.finish()
        times = [one.time - detector.lag for one in heard]
        np.testing.assert_allclose(np.diff(times), 0.05, atol=1e-6)
        first = round(times[0] / 0.05)
        found = np.stack([one.probabilities for one in heard])[: 150 - first]
        inner = slice(20, 140)
        np.testing.assert_allclose(found[inner], expected[first:150][inner], atol=2e-5)


def test_one_token_scores_a_word_at_the_time_of_its_middle(listener: Recognizer) -> None:
    detector = Detector(listener, Thresholds.unmeasured(WORDS, of_tokens=True))
    after = listener.model.margin[1]
    # The end of the newest frame, less the tokens that must follow, and one of the three that are averaged.
    assert detector.lag == pytest.approx(((after + 1) * 4 - 1) * 0.0125 + 0.05)
    heard = detector.feed(chirps(4))
    assert min(one.time - detector.lag for one in heard) >= -0.05


def test_clip_gets_the_scores_of_the_token_that_is_least_silent(listener: Recognizer) -> None:
    features = MelSpectrogram(TALK)(torch.from_numpy(chirps(1)[None]))
    tokens = listener.predict_features(features.numpy())[0]
    clip = listener.predict(chirps(1)[None])[0]
    np.testing.assert_allclose(clip, tokens[tokens[:, -1].argmin()], atol=1e-6)


GATED = Thresholds(thresholds={"go": 0.5, "stop": 0.7}, after="stop", after_seconds=2)


def test_behind_a_gate_words_are_reported_for_some_seconds_after_its_word_and_do_not_shut_it() -> None:
    go, stop, pause = [(0.9, 0)] * 2, [(0, 0.9)] * 2, [(0, 0)] * 7
    heard = [*go, *pause, *stop, *pause, *go, *pause, *go, *pause, *go]
    assert decide(*heard, thresholds=GATED) == [(0.9, "stop", 0.9), (1.8, "go", 0.9), (2.7, "go", 0.9)]
    for windows, words in ((19, ["stop", "go"]), (20, ["stop"])):
        found = decide((0, 0.9), *[(0, 0)] * windows, (0.9, 0), thresholds=GATED)
        assert [word for _, word, _ in found] == words


def test_the_word_of_the_gate_opens_it_again_and_is_not_hidden_by_a_louder_word_while_it_is_shut() -> None:
    found = decide((0, 0.9), *[(0, 0)] * 14, (0, 0.9), *[(0, 0)] * 14, (0.9, 0), thresholds=GATED)
    assert [(time, word) for time, word, _ in found] == [(0.0, "stop"), (1.5, "stop"), (3.0, "go")]
    assert decide((0.95, 0.9), thresholds=GATED) == [(0.0, "stop", 0.9)]


def test_sound_of_the_gates_word_is_no_other_word_when_the_gate_is_open() -> None:
    assert decide(*[(0.9, 0.8)] * 3, *[(0.9, 0)] * 12, thresholds=GATED) == [(0.0, "stop", 0.8)]


def test_only_held_words_are_reported_whether_the_gate_is_open_or_not() -> None:
    decider, found = Decider(WORDS, GATED), []
    for window, (held, go, stop) in enumerate(
        ((None, 0.9, 0), ([True, False], 0.9, 0), ([True, False], 0, 0.9), ([], 0, 0), (None, 0, 0.9), (None, 0.9, 0))
    ):
        decider.hold(None if held is None else held or [False, False])
        found += [decider.step(window + number / 10, np.array([go, stop, 0, 0], np.float32)) for number in range(4)]
        found += [decider.step(window + 0.4 + number / 10, np.zeros(4, np.float32)) for number in range(6)]
    assert [(time, WORDS[index]) for _, index, time in filter(None, found)] == [(1, "go"), (4, "stop"), (5, "go")]


def test_stream_tells_how_long_the_gate_is_open_and_only_words_of_the_model_are_held(
    expert: Recognizer, tone_corpus: Path
) -> None:
    stream, _ = spoken(tone_corpus, gap_seconds=1.5, noise=0.01)
    every = detections(Detector(expert, SURE), stream)
    detector = Detector(expert, SURE.behind("stop", 3.5))
    heard = [one for piece in np.array_split(stream, 20) for one in detector.feed(piece)] + detector.finish()
    gates = [one.time for one in every if one.word == "stop"]
    expected = [one for one in every if any(0 <= one.time - gate <= 3.5 for gate in gates)]
    assert 0 < len(gates) < len(expected) < len(every)
    assert [one.detection for one in heard if one.detection] == expected
    shut = [one.open_seconds for one in heard if one.time < gates[0]]
    assert shut
    assert max(shut) == 0
    opened = next(one for one in heard if one.open_seconds)
    assert opened.open_seconds == pytest.approx(gates[0] + 3.5 - opened.time, abs=2e-3)
    with pytest.raises(ValueError, match="an armed word must be one of the words of the model, no, stop, yes, got 'x'"):
        detector.hold(["no", "x"])


def test_gate_is_read_as_it_was_written_and_a_looser_one_was_not_measured(tmp_path: Path) -> None:
    written = Thresholds(
        thresholds={"go": 0.3, "stop": 0.9},
        after="stop",
        after_seconds=2,
        false_alarms_per_hour=0.1,
        measured_on={"hours": 3},
    )
    files.write_json(tmp_path / "thresholds.json", written.as_json())
    read = Thresholds.beside(tmp_path / "model.onnx", WORDS)
    assert read == written == read.behind("") == read.behind("stop", 2)
    assert read.behind("", 1).false_alarms_per_hour == 0.1
    for other in (read.behind("go"), read.behind("", 4)):
        assert np.isnan(other.false_alarms_per_hour)
        assert other.measured_on == {}
    assert THRESHOLDS.behind("go").after_seconds == 3
    for arguments, said in (
        (("left", None), "after must be one of the words of the model, go, stop, got 'left'"),
        ((UNKNOWN, None), "after must be one of the words of the model, go, stop, got '_unknown_'"),
        (("go", 0.0), "after_seconds must be more than 0 and at most 60 s"),
        (("", 3.0), "after_seconds must be given together with after, the word of a gate"),
    ):
        with pytest.raises(ValueError, match=said):
            THRESHOLDS.behind(*arguments)


def test_model_of_tokens_without_measured_thresholds_is_averaged_over_a_word_s_middle(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for of_tokens, seconds in ((False, 0.5), (True, 0.15)):
        assert Thresholds.beside(path, WORDS, of_tokens).smoothing_seconds == seconds


@pytest.mark.parametrize("frames_per_token", [2, 3, 4, 6, 8])
def test_margin_of_a_token_holds_all_frames_on_which_its_scores_depend(frames_per_token: int) -> None:
    config = ModelConfig(
        num_layers=2,
        num_heads=1,
        width=8,
        feedforward=8,
        scores="tokens",
        positions=False,
        reach=(2, 1),
        frames_per_token=frames_per_token,
    )
    model = AudioTransformer(config, TALK, len(WORDS)).eval()
    before, after = model.margin
    torch.manual_seed(0)
    whole = torch.randn(1, 128, (before + after + 9) * frames_per_token)
    part = whole[:, :, 4 * frames_per_token : -4 * frames_per_token]
    with torch.inference_mode():
        expected, found = model.token_scores(whole), model.token_scores(part)
    torch.testing.assert_close(found[:, before], expected[:, 4 + before], rtol=1e-4, atol=1e-5)
