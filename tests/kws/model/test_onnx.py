"""Models as ONNX files."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest
import torch
from recognizers import MakeRecognizer

from kws.cli import main
from kws.evaluate.accuracy import evaluate_recordings
from kws.model import bundle, onnx
from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.model.predict import predict
from kws.preprocess.audio import read_clip
from kws.preprocess.features import MelSpectrogram
from kws.recipe import RECIPES, FeatureConfig


@pytest.fixture(scope="module")
def exported(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.export(expert, path)
    return path


def real_waveforms(recordings: Path, features: FeatureConfig) -> np.ndarray:
    clips = sorted(recordings.glob("[a-z]*/*.wav"))[::12]
    return np.stack([read_clip(clip, features) for clip in clips])


@pytest.mark.parametrize("preset", RECIPES)
def test_model_of_every_preset_gives_the_same_probabilities_as_a_file(
    preset: str, real_corpus: Path, tmp_path: Path
) -> None:
    features = RECIPES[preset].features
    torch.manual_seed(1)
    config = RECIPES[preset].model
    config = dataclasses.replace(config, other_words=min(2, config.other_words))  # more would outweigh the words here
    model = AudioTransformer(config, features, 5).eval()
    if features.normalize:
        bins = (features.num_mels,)
        model.set_normalization(torch.full(bins, -7.0), torch.full(bins, 4.0))
    recognizer = Recognizer(model=model, words=list("abcde"), features=features, temperature=0.5)
    onnx.export(recognizer, tmp_path / "model.onnx")
    waveforms = real_waveforms(real_corpus, features)
    expected = recognizer.predict(waveforms)
    assert np.ptp(expected, axis=0).max() > 1e-3  # clips differ
    for some in (waveforms, waveforms[:1]):
        np.testing.assert_allclose(onnx.load(tmp_path / "model.onnx").predict(some), expected[: len(some)], atol=2e-4)


def test_features_of_other_settings_are_exported_too(
    make_recognizer: MakeRecognizer, other_features: FeatureConfig, real_corpus: Path, tmp_path: Path
) -> None:
    recognizer = make_recognizer(features=other_features)
    onnx.export(recognizer, tmp_path / "model.onnx")
    read = onnx.load(tmp_path / "model.onnx")
    assert (read.features, read.words) == (other_features, recognizer.words)
    assert read.num_parameters == recognizer.num_parameters
    waveforms = real_waveforms(real_corpus, other_features)
    np.testing.assert_allclose(read.predict(waveforms), recognizer.predict(waveforms), atol=2e-4)


@pytest.mark.parametrize("preset", RECIPES)
def test_int8_of_every_preset_quantizes_each_matrix_on_all_ways_through_the_model(
    preset: str, real_corpus: Path, tmp_path: Path
) -> None:
    recipe = RECIPES[preset]
    torch.manual_seed(1)
    model = AudioTransformer(recipe.model, recipe.features, 5).eval()
    if recipe.features.normalize:
        bins = (recipe.features.num_mels,)
        model.set_normalization(torch.full(bins, -7.0), torch.full(bins, 4.0))
    recognizer = Recognizer(model=model, words=list("abcde"), features=recipe.features)
    onnx.export(recognizer, tmp_path / "model.onnx")
    onnx.export(recognizer, tmp_path / "int8.onnx", int8=True)
    graph = onnx_format.load(tmp_path / "int8.onnx").graph
    constants = {one.name: one for one in graph.initializer}
    products = [
        constants[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input[1:]
        if name in constants
    ]
    assert [one.name for one in products] == ["cosines", "sines", "mel_filters"]
    assert not [node for node in graph.node if node.op_type == "Identity" and node.input[0] in constants]
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    if recipe.features.log:  # raw power spans too many decades for an untrained model
        waveforms = real_waveforms(real_corpus, recipe.features)
        features = MelSpectrogram(recipe.features)(torch.from_numpy(waveforms)).numpy()
        heard = [onnx.load(tmp_path / name).predict_features(features) for name in ("model.onnx", "int8.onnx")]
        np.testing.assert_allclose(*heard, atol=0.03)


def test_int8_keeps_the_words_and_quantizes_all_matrices_but_those_of_the_features(
    expert: Recognizer, exported: Path, tone_corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    onnx.export(expert, path, int8=True)
    evaluation, _ = evaluate_recordings(onnx.load(path), tone_corpus)
    assert evaluation.accuracy == 1
    nodes = onnx_format.load(path).graph.node
    products = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]
    constants = {initializer.name for initializer in onnx_format.load(path).graph.initializer}
    assert [set(node.input) & constants for node in products if set(node.input) & constants] == [
        {"cosines"},
        {"sines"},
        {"mel_filters"},
    ]
    assert sum(node.op_type == "MatMulInteger" for node in nodes) >= 6
    assert onnx.load(path).about["int8"]


def test_recordings_are_evaluated_and_named_by_a_file(expert: Recognizer, exported: Path, tone_corpus: Path) -> None:
    read = onnx.load(exported)
    evaluation, unreadable = evaluate_recordings(read, tone_corpus)
    assert (evaluation.accuracy, unreadable) == (1, {})
    clip = min((tone_corpus / "yes").iterdir())
    (mine,), (theirs,) = predict(read, clip), predict(expert, clip)
    assert mine.word == theirs.word == "yes"
    assert mine.probability == pytest.approx(theirs.probability, abs=1e-4)


def test_command_exports_evaluates_and_predicts(
    expert: Recognizer, tone_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    model = str(tmp_path / "new" / "model.onnx")
    for arguments in (
        ["export", "--model", str(tmp_path / "model.pth"), "--int8", model],
        ["evaluate", "--model", model, "--recordings", str(tone_corpus), "--output", str(tmp_path / "evaluation")],
        ["predict", "--model", model, str(tone_corpus / "stop")],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{model}\n")
    assert "accuracy 100.00% on 120 clips" in shown
    assert shown.count("\tstop\t") == 40
    assert "run expert" in (tmp_path / "evaluation" / "report.html").read_text()


def test_hearing_a_file_imports_no_torch(exported: Path, tone_corpus: Path) -> None:
    code = f"""
import json, sys
from pathlib import Path
from kws.model import onnx
from kws.model.predict import predict
recognizer = onnx.load(Path({str(exported)!r}), num_threads=1)
(found,) = predict(recognizer, Path({str(min((tone_corpus / "no").iterdir()))!r}))
print(json.dumps([found.word, sorted({{"torch", "onnx"}} & set(sys.modules))]))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == ["no", []]


@pytest.mark.parametrize(
    "code",
    [
        "from kws.model import onnx; onnx.load(exported)",
        "from kws.model import bundle, onnx; onnx.export(bundle.load(trained), home / 'model.onnx', int8=True)",
    ],
    ids=["load", "export"],
)
def test_onnxruntime_keeps_no_id_of_this_machine_and_reports_nothing(
    code: str, exported: Path, expert: Recognizer, tmp_path: Path
) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    (home := tmp_path / "home").mkdir()
    # It reports nothing in continuous integration either, which it knows by its variables.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    places = {"exported": exported, "trained": tmp_path / "model.pth", "home": home}
    first = "; ".join(f"{name} = Path({str(path)!r})" for name, path in places.items())
    code = f"from pathlib import Path; {first}; {code}; import onnxruntime"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=kept | {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    )
    assert not (home / "Microsoft").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("words", None, "words must be a JSON file"),
        ("words", "[1, 2]", "words must be a list of two words or more"),
        ("words", '["no", "stop", "yes", "go"]', r"probabilities must be float32 \[1, 4\], got \(1, 3\)"),
        ("features", '{"num_samples": 8000}', "inputs must be waveforms of 8000 samples"),
        ("features", '{"num_samples": "x"}', "num_samples must be of the type int, got 'x'"),
        ("num_parameters", '"many"', "num_parameters must be a whole number"),
        ("about", "{", "about must be a JSON file"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(
    exported: Path, tmp_path: Path, name: str, value: str | None, message: str
) -> None:
    graph = onnx_format.load(exported)
    metadata = {entry.key: entry.value for entry in graph.metadata_props if entry.key != name}
    onnx_format.helper.set_model_props(graph, metadata | ({} if value is None else {name: value}))
    onnx_format.save(graph, tmp_path / "changed.onnx")
    with pytest.raises(ValueError, match=rf"model must be intact, got .*changed.onnx, which is damaged: {message}"):
        onnx.load(tmp_path / "changed.onnx")


def test_weight_that_is_not_a_number_is_refused(exported: Path, tmp_path: Path) -> None:
    graph = onnx_format.load(exported)
    (filters,) = (constant for constant in graph.graph.initializer if constant.name == "mel_filters")
    values = onnx_format.numpy_helper.to_array(filters).copy()
    values[40] = np.nan
    filters.CopyFrom(onnx_format.numpy_helper.from_array(values, "mel_filters"))
    onnx_format.save(graph, tmp_path / "changed.onnx")
    with pytest.raises(ValueError, match="which is damaged: probabilities must add up to 1, got nan"):
        onnx.load(tmp_path / "changed.onnx")


def test_export_in_8_bits_says_nothing_but_the_file(expert: Recognizer, tmp_path: Path) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    command = [Path(sys.executable).parent / "kws", "export", "--int8", "--model", tmp_path / "model.pth"]
    done = subprocess.run([*command, tmp_path / "model.onnx"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'model.onnx'}\n", "")


def test_file_that_is_no_model_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model must be an .onnx file, got '.*', which does not exist"):
        onnx.load(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model must be an .onnx file of kws export, got '.*', which is damaged"):
        onnx.load(broken)
    other = onnx_format.load(exported)
    del other.metadata_props[:]
    onnx_format.save(other, broken)
    with pytest.raises(ValueError, match=r"model must be an .onnx file of kws export, got one of another program"):
        onnx.load(broken)
