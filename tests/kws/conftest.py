"""Small parts for the tests of kws: a corpus of tones, its tensors, and untrained models."""

import dataclasses
import hashlib
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recognizers import MakeRecognizer

from kws.model.bundle import Recognizer
from kws.model.network import AudioTransformer
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import RECIPES, FeatureConfig, ModelConfig

TONE_WORDS = ("no", "stop", "yes")
NUM_SPEAKERS = 40

multiprocessing.set_forkserver_preload(["kws.preprocess.step"])  # imports torch once for all that it forks


@pytest.fixture(scope="session", autouse=True)
def few_sentences() -> Iterator[None]:
    """Sentences by synthetic voices take a third of the time of a corpus, and in tests a few will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kws.download.synthesize.NUM_TALKERS", 2)
        patch.setattr("kws.preprocess.speech.NUM_SENTENCES", 24)
        yield


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 speakers hum each of three words at its own height; one noise of 5 s. No lists, no manifest. Read only."""
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    for index, word in enumerate(TONE_WORDS):
        (folder / word).mkdir()
        for number in range(NUM_SPEAKERS):
            speaker = hashlib.sha1(str(number).encode()).hexdigest()[:8]
            tone = 0.3 * np.sin(2 * np.pi * 400 * 2**index * random.uniform(0.9, 1.1) * time)
            tone += 0.01 * random.standard_normal(len(time))
            soundfile.write(folder / word / f"{speaker}_nohash_0.wav", tone, 16_000)
    (folder / "_background_noise_").mkdir()
    soundfile.write(folder / "_background_noise_" / "hiss.wav", 0.1 * random.standard_normal(80_000), 16_000)
    return folder


@pytest.fixture(scope="session")
def tone_tensors(tone_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of the tones, default preset. Read only."""
    return preprocess(tone_corpus, tmp_path_factory.mktemp("tone_tensors"), words="auto", num_threads=1)


@pytest.fixture
def grown(tone_corpus: Path, tone_tensors: Path, tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """Tensors of the tones without a speaker, of all, where the same sounds have other names, and the new clips."""
    clips = Tensors(tone_tensors).split("test").clips
    speaker = clips[0].speaker
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(tone_corpus, before)
    shutil.copytree(tone_corpus, after)
    for path in before.glob(f"*/{speaker}_*"):
        path.unlink()
    for path in [*after.glob("*/*_nohash_0.wav")]:
        path.rename(path.with_name(path.name.replace("_0.wav", "_7.wav")))
    found = [preprocess(folder, tmp_path / "data", words="auto", num_threads=1) for folder in (before, after)]
    return found[0], found[1], [f"{word}/{speaker}_nohash_7.wav" for word in ("no", "stop", "yes")]


@pytest.fixture(scope="session")
def make_recognizer() -> MakeRecognizer:
    """Builds an untrained model of one layer."""

    def make(
        words: Sequence[str] = TONE_WORDS, seed: int = 1, run: str = "run-1", features: FeatureConfig | None = None
    ) -> Recognizer:
        torch.manual_seed(seed)
        features = features or RECIPES["default"].features
        config = ModelConfig(num_layers=1, num_heads=2, width=32, feedforward=64, frames_per_token=4, stem_pool=2)
        model = AudioTransformer(config, features, len(words)).eval()
        model.set_normalization(torch.full((features.num_mels,), -6.0), torch.full((features.num_mels,), 3.0))
        return Recognizer(model=model, words=list(words), features=features, about={"run": run, "preset": "default"})

    return make


@pytest.fixture(scope="session")
def expert(tone_corpus: Path) -> Recognizer:
    """A model that tells the tones apart without an error: fitted to a quarter of them."""
    from kws.preprocess.audio import read_clip
    from kws.preprocess.features import MelSpectrogram

    torch.manual_seed(0)
    features = RECIPES["default"].features
    clips = [(label, path) for label, word in enumerate(TONE_WORDS) for path in sorted((tone_corpus / word).iterdir())]
    labels = torch.tensor([label for label, _ in clips])
    heard = torch.from_numpy(np.stack([read_clip(path, features) for _, path in clips]))
    values = MelSpectrogram(features)(heard)
    # ReLU and no drop path: with these few steps it is then sure of tones, and less sure of silence.
    config = ModelConfig(
        num_layers=1, num_heads=1, width=16, feedforward=16, frames_per_token=8, stem_activation="relu", drop_path=0.0
    )
    model = AudioTransformer(config, features, len(TONE_WORDS))
    model.set_normalization(values.mean(dim=(0, 2)), values.std(dim=(0, 2)))
    parameters = list(model.parameters())
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(values[::4]), labels[::4])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient
    model.eval()
    assert torch.equal(model(values).argmax(-1), labels)
    return Recognizer(
        model=model, words=list(TONE_WORDS), features=features, about={"run": "expert", "preset": "default"}
    )


@pytest.fixture(scope="session")
def other_features() -> FeatureConfig:
    """Settings other than the default's, of other shapes."""
    return dataclasses.replace(FeatureConfig(), num_mels=40, fit="start", hop_length=400)
