"""The .pth file of a model: all that is needed to use it, and nothing that is executed."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recognizers import MakeRecognizer

from kws.model import bundle
from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.recipe import RECIPES, FeatureConfig, ModelConfig


def test_saved_model_is_the_same_after_loading(
    tmp_path: Path, make_recognizer: MakeRecognizer, other_features: FeatureConfig
) -> None:
    saved = dataclasses.replace(make_recognizer(features=other_features), temperature=1.7, metrics={"accuracy": 0.5})
    bundle.save(tmp_path / "model.pth", saved)
    loaded = bundle.load(tmp_path / "model.pth")
    assert loaded.words == saved.words
    assert loaded.features == other_features
    assert loaded.model.config == saved.model.config
    assert (loaded.temperature, loaded.metrics) == (1.7, {"accuracy": 0.5})
    assert loaded.about == {"versions": bundle.versions()} | saved.about
    assert not loaded.model.training
    features = torch.randn(2, other_features.num_mels, other_features.num_frames)
    assert torch.equal(loaded.model(features), saved.model(features))
    assert torch.equal(loaded.model.mean, saved.model.mean)


def test_file_holds_plain_values_that_load_with_weights_only(tmp_path: Path, expert: Recognizer) -> None:
    bundle.save(tmp_path / "model.pth", expert)
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert set(content) == {"format", "weights", "words", "features", "model", "temperature", "metrics", "about"}
    assert content["words"] == ["no", "stop", "yes"]
    assert content["features"]["num_mels"] == 128
    assert set(content["about"]["versions"]) == {"kws", "torch", "python"}
    assert torch.equal(content["weights"]["mean"], expert.model.mean)


def test_saving_replaces_the_file_whole(tmp_path: Path, make_recognizer: MakeRecognizer) -> None:
    for seed in (1, 2):
        bundle.save(tmp_path / "model.pth", make_recognizer(seed=seed))
    assert torch.equal(bundle.load(tmp_path / "model.pth").model.head.weight, make_recognizer(seed=2).model.head.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_temperature_divides_scores(make_recognizer: MakeRecognizer) -> None:
    recognizer = dataclasses.replace(make_recognizer(), temperature=2.0)
    probabilities = recognizer.probabilities(torch.tensor([[0.0, 2.0, 4.0]]))
    torch.testing.assert_close(probabilities, torch.tensor([[0.0, 1.0, 2.0]]).softmax(-1))


Change = Callable[[dict[str, Any]], object]

DAMAGE: dict[str, tuple[Change, str]] = {
    "no words": (lambda c: c.pop("words"), "words must be a list, got 'NoneType'"),
    "no weights": (lambda c: c.pop("weights"), "weights must be a dict, got 'NoneType'"),
    "one weight less": (lambda c: c["weights"].pop("head.bias"), "must be those of the model, got no head.bias"),
    "one weight more": (lambda c: c["weights"].update(x=torch.zeros(1)), "got an extra x"),
    "wrong shape": (lambda c: c["weights"].update(mean=torch.zeros(7)), r"mean must have the shape \[128\], got \[7\]"),
    "not a number": (lambda c: c["weights"]["head.bias"].fill_(torch.nan), "head.bias must be finite, got 'NaN or"),
    "infinity": (lambda c: c["weights"]["mean"].fill_(torch.inf), "mean must be finite"),
    "no deviation": (lambda c: c["weights"]["std"].zero_(), "std must be positive, got 0.0"),
    "whole numbers": (lambda c: c["weights"].update(std=torch.ones(128).int()), "std must be a tensor of floats"),
    "no tensor": (lambda c: c["weights"].update(std=[1.0] * 128), "std must be a tensor of floats, got 'list'"),
    "more words than scores": (lambda c: c["words"].append("go"), r"head.weight must have the shape \[4, 32\]"),
    "a word twice": (lambda c: c.update(words=["no", "no", "yes"]), "words must be a list of two words or more"),
    "words that are numbers": (lambda c: c.update(words=[1, 2, 3]), "words must be a list of two words or more"),
    "temperature 0": (lambda c: c.update(temperature=0.0), "temperature must be positive, got 0.0"),
    "temperature that is none": (lambda c: c.update(temperature=float("nan")), "temperature must be positive, got nan"),
    "settings of another type": (lambda c: c["features"].update(num_mels="many"), "num_mels must be of the type int"),
    "settings that are no table": (lambda c: c.update(model=[1]), "model must be a dict, got 'list'"),
    "settings out of range": (
        lambda c: c["features"].update(n_fft=0),
        "n_fft must be positive and at most 65536, got 0",
    ),
    "a clip of a year": (
        lambda c: c["features"].update(num_samples=10**12),
        r"num_samples must be positive and at most 1e\+07",
    ),
    "a huge model": (lambda c: c["model"].update(width=2**20, num_heads=1), "must have the shape"),
    "a model beyond all": (lambda c: c["model"].update(width=2**40, num_heads=1), "must be those of a model, got"),
    "endless layers": (lambda c: c["model"].update(num_layers=10**12), "num_layers must match the weights, got"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_model_is_refused_with_what_is_wrong_and_its_file(
    name: str, tmp_path: Path, make_recognizer: MakeRecognizer
) -> None:
    change, message = DAMAGE[name]
    path = tmp_path / "model.pth"
    bundle.save(path, make_recognizer())
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"model must be intact, got .*model\.pth, which is damaged .*: .*{message}"):
        bundle.load(path)


def test_model_with_settings_of_another_version_is_refused(tmp_path: Path, make_recognizer: MakeRecognizer) -> None:
    path = tmp_path / "model.pth"
    bundle.save(path, make_recognizer())
    content = torch.load(path, weights_only=True)
    without = {name: value for name, value in content["model"].items() if name != "stem_activation"}
    torch.save(content | {"model": without}, path)
    with pytest.raises(ValueError, match=r"\(train it again\): model must have all settings, got 'none for stem_act"):
        bundle.load(path)
    for name, value, message in (
        ("conv_kernel", 9, "got 'conv_kernel'"),
        ("stem", "linear", "stem must be conv or none, got 'linear'"),
    ):
        torch.save(content | {"model": content["model"] | {name: value}}, path)
        with pytest.raises(ValueError, match=rf"of another version \(train it again\): .*{message}"):
            bundle.load(path)


def test_model_of_before_a_setting_was_added_is_read_as_it_was(tmp_path: Path) -> None:
    path, features = tmp_path / "model.pth", RECIPES["default"].features
    model = AudioTransformer(ModelConfig(num_layers=1, width=32), features, 2).eval()
    bundle.save(path, bundle.Recognizer(model=model, words=["no", "yes"], features=features))
    content = torch.load(path, weights_only=True)
    for name in ("scores", "reach", "stem_pool", "stem_channels", "other_words"):
        del content["model"][name]
    torch.save(content, path)
    clips = np.ones((1, features.num_mels, features.num_frames), np.float32)
    scores = model(torch.from_numpy(clips)).softmax(-1).detach()
    np.testing.assert_allclose(bundle.load(path).predict_features(clips), scores, atol=1e-6)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_file_of_anything_else_is_refused_and_not_executed(tmp_path: Path, make_recognizer: MakeRecognizer) -> None:
    path = tmp_path / "model.pth"
    bundle.save(path, make_recognizer())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], pickle.dumps(Harmful(tmp_path / "harm"))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^model must be a \.pth file of kws train, got '.*', which is damaged"):
            bundle.load(path)
    torch.save({"format": bundle.FORMAT, "weights": Harmful(tmp_path / "harm")}, path)
    with pytest.raises(ValueError, match="which is damaged"):
        bundle.load(path)
    torch.save({"path": Path("x")}, path)  # a type that weights_only does not let in
    with pytest.raises(ValueError, match=r"^model must be a \.pth") as caught:
        bundle.load(path)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(("content", "found"), [([1, 2], "'list'"), ({"state_dict": {}}, "None"), ({"format": 1}, "1")])
def test_model_of_another_format_is_refused(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"model must have format 2 \(train it again\), got {found} in"):
        bundle.load(tmp_path / "model.pth")


def test_settings_that_this_version_does_not_know_are_refused(tmp_path: Path, make_recognizer: MakeRecognizer) -> None:
    bundle.save(tmp_path / "model.pth", make_recognizer())
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    content["model"]["rotary"] = True
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"ModelConfig must have fields among .*, got 'rotary'"):
        bundle.load(tmp_path / "model.pth")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model must be a .pth file, got '.*absent.pth', which does not exist"):
        bundle.load(tmp_path / "absent.pth")
