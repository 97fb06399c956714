"""The `.pth` file of a model, which holds everything needed to use it.

It is a dict of weights, words, feature and model settings, normalization (among the weights), temperature, metrics and
versions, in types that `torch.load(weights_only=True)` reads, so that loading a file executes no code.
"""

import dataclasses
import io
import math
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kws import files
from kws.config import require_words
from kws.model.network import AudioTransformer
from kws.preprocess.audio import Waveform
from kws.preprocess.features import mel_spectrogram
from kws.recipe import FeatureConfig, ModelConfig
from kws.settings import from_dict, require

FORMAT = 2

CONTENT = {
    "weights": dict,
    "words": list,
    "features": dict,
    "model": dict,
    "temperature": float,
    "metrics": dict,
    "about": dict,
}
"""The entries of a `.pth` besides its format."""


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """A trained model with its words, feature settings and metrics."""

    model: AudioTransformer
    words: list[str]
    features: FeatureConfig
    temperature: float = 1.0
    """Divisor of the scores before the softmax, fitted on the validation split."""
    metrics: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """Origin of the model: preset, training settings, fingerprint of the tensors, versions."""

    def probabilities(self, scores: Tensor) -> Tensor:
        """Converts scores [clips, words] to calibrated probabilities of the same shape."""
        return (scores.float() / self.temperature).softmax(-1)

    @torch.inference_mode()
    def predict(self, waveforms: Waveform) -> npt.NDArray[np.float32]:
        """Converts waveforms, float32 [clips, num_samples] in -1 to 1, to probabilities, float32 [clips, words]."""
        return self._predict(mel_spectrogram(self.features)(torch.from_numpy(waveforms)), self.model)

    @torch.inference_mode()
    def predict_features(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Converts mel spectrograms of clips or, if tokens get scores, of streams, to probabilities.

        Args:
            features: float32 [clips, num_mels, num_frames].

        Returns:
            float32 [clips, words], or [streams, tokens, words].
        """
        score = self.model if self.margin is None else self.model.token_scores
        return self._predict(torch.from_numpy(features), score)

    def _predict(self, features: Tensor, score: Callable[[Tensor], Tensor]) -> npt.NDArray[np.float32]:
        return self.probabilities(score(features.to(self.model.mean.device))).cpu().numpy()

    @property
    def margin(self) -> tuple[int, int] | None:
        """The numbers of tokens before and after a token on which its scores depend; None: only clips get scores."""
        return self.model.margin if self.model.config.scores == "tokens" else None

    @property
    def frames_per_token(self) -> int:
        """Frames per token."""
        return self.model.config.frames_per_token

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def save(path: Path, recognizer: Recognizer) -> None:
    """Writes a `.pth`, atomically."""
    content = {
        "format": FORMAT,
        "weights": {name: value.detach().cpu() for name, value in recognizer.model.state_dict().items()},
        "words": list(recognizer.words),
        "features": dataclasses.asdict(recognizer.features),
        "model": dataclasses.asdict(recognizer.model.config),
        "temperature": recognizer.temperature,
        "metrics": recognizer.metrics,
        "about": {"versions": versions()} | recognizer.about,
    }
    write(path, content)


def write(path: Path, content: object) -> None:
    """Writes a value with `torch.save`, atomically.

    The file is made in memory first, as on a full disk `torch.save` reports an unexpected position instead.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.write(path, buffer.getbuffer())


def load(path: Path, device: torch.device | str = "cpu") -> Recognizer:
    """Reads and checks a `.pth`; no other code reads one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a model of this project, has another format, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model must be a .pth file, got {str(path)!r}, which does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location=device, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch passes on whatever its unpickler and its zip reader raise
        raise ValueError(
            f"model must be a .pth file of kws train, got {str(path)!r}, which is damaged or another kind of file"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"model must have format {FORMAT} (train it again), got {found!r} in {path}")
    try:
        return _recognizer(content, device)
    except ValueError as error:
        raise ValueError(
            f"model must be intact, got {path}, which is damaged or of another version (train it again): {error}"
        ) from error


def _recognizer(content: Mapping[str, Any], device: torch.device | str) -> Recognizer:
    """Builds a recognizer from the content of a `.pth`.

    Raises:
        ValueError: an entry is missing, or does not fit the others.
    """
    for name, kind in CONTENT.items():
        require(isinstance(content.get(name), kind), name, f"be a {kind.__name__}", type(content.get(name)).__name__)
    words, weights, temperature = content["words"], content["weights"], float(content["temperature"])
    require_words(words)
    require(math.isfinite(temperature) and temperature > 0, "temperature", "be positive", temperature)
    # Settings that models of earlier versions do not have.
    added = {"model": {"scores", "reach", "stem_pool", "stem_channels", "other_words"}}
    for kind, name in ((FeatureConfig, "features"), (ModelConfig, "model")):  # other defaults may not be what they were
        wanted = {one.name for one in dataclasses.fields(kind)} - added.get(name, set())
        missing = ", ".join(sorted(wanted - content[name].keys()))
        require(not missing, name, "have all settings", f"none for {missing}")
    features, config = from_dict(FeatureConfig, content["features"]), from_dict(ModelConfig, content["model"])
    require(config.num_layers <= len(weights), "num_layers", "match the weights", config.num_layers)
    try:
        with torch.device("meta"):  # only the shapes, without allocating memory
            expected = AudioTransformer(config, features, len(words)).state_dict()
    except RuntimeError as error:
        raise ValueError(f"the settings must be those of a model, got {error}") from error
    for name in sorted(map(str, expected.keys() ^ weights.keys())):
        raise ValueError(f"weights must be those of the model, got {'no' if name in expected else 'an extra'} {name}")
    for name, like in expected.items():
        value = weights[name]
        plain = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
        require(plain, name, "be a tensor of floats", type(value).__name__)
        require(value.shape == like.shape, name, f"have the shape {list(like.shape)}", list(value.shape))
        require(bool(value.isfinite().all()), name, "be finite", "NaN or infinity")
    require(bool((weights["std"] > 0).all()), "std", "be positive", weights["std"].min().item())
    model = AudioTransformer(config, features, len(words))
    model.load_state_dict(weights)
    return Recognizer(
        model=model.to(device).eval(),
        words=words,
        features=features,
        temperature=temperature,
        metrics=content["metrics"],
        about=content["about"],
    )


def versions() -> dict[str, str]:
    """Returns the versions of kws, torch and Python."""
    return {"kws": version("kws"), "torch": version("torch"), "python": platform.python_version()}
