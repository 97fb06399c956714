"""The model at work: loaded with proof, replaced when another becomes champion, never gone in between.

Whoever answers a request takes `Models.current` once, and with it one version: its session stays as long as someone
holds it, so that a swap neither waits for requests nor breaks them.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kws import files
from kws.model import onnx, versions
from kws.model.detector import Thresholds
from kws.model.onnx import OnnxRecognizer
from kws.preprocess.audio import Waveform, read_clip

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""After so long a champion that was refused is tried again: a volume may have been away."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version of a model, ready to answer."""

    recognizer: OnnxRecognizer
    version: str
    thresholds: Thresholds
    card: str
    """MODEL_CARD.md; empty where there is none."""


def load_file(path: Path) -> Served:
    """Loads one `.onnx` file, from a published folder or alone.

    Raises:
        ValueError: it is no model of this project, or does not hear as it should.
        FileNotFoundError: there is no such file.
    """
    if files.is_complete(path.parent) and path.name in versions.read_manifest(path.parent)["files"]:
        return load_version(path.parent, path.name)
    recognizer = onnx.load(path, num_threads=1)
    _prove(recognizer, None, None, path)
    return Served(
        recognizer=recognizer, version=files.sha256_of(path)[:12],
        thresholds=Thresholds.beside(path, recognizer.words), card="",
    )  # fmt: skip


def load_version(folder: Path, name: str = versions.ONNX) -> Served:
    """Loads a published version, whose every file has the digest that its manifest states.

    Args:
        folder: models/<version>.
        name: the file that answers.

    Raises:
        ValueError: a file is missing or damaged, or the model does not hear its reference clip as it did when it was
            published.
        OSError: the volume cannot be read.
    """
    manifest = versions.verify(
        folder, [name, *(optional for optional in versions.SERVED if (folder / optional).exists())]
    )
    if name not in manifest["files"]:
        raise ValueError(f"version {folder.name} must have a {name}, got none; promote it again")
    recognizer = onnx.load(folder / name, num_threads=1)
    expected = manifest.get("reference", {}).get(name)
    reference = folder / versions.REFERENCE
    _prove(recognizer, reference if expected else None, expected, folder / name)
    card = folder / versions.CARD
    return Served(
        recognizer=recognizer, version=manifest["version"],
        thresholds=Thresholds.beside(folder / name, recognizer.words),
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
    )  # fmt: skip


def _prove(recognizer: OnnxRecognizer, reference: Path | None, expected: list[float] | None, path: Path) -> None:
    """Lets a model hear a clip, so that what is wrong with it shows before it answers anyone.

    Raises:
        ValueError: its answer is no answer, or not that of the machine that published it.
    """
    samples = recognizer.features.num_samples
    clip: Waveform = np.zeros(samples, np.float32)
    if reference is not None:
        clip = read_clip(reference, recognizer.features)
    try:
        heard = recognizer.hear(np.stack([clip, clip]))
    except Exception as error:  # onnxruntime raises a class of its own for every kind of damage
        raise ValueError(f"{path} must hear a clip of {samples} samples, got {error}") from error
    if heard.shape != (2, len(recognizer.words)) or not np.allclose(heard.sum(axis=1), 1, atol=1e-3):
        raise ValueError(f"{path} must give a probability for each of {len(recognizer.words)} words, got another model")
    if expected is not None:
        gap = float(np.abs(heard[0] - np.asarray(expected, np.float32)).max())
        if gap > versions.REFERENCE_TOLERANCE:
            raise ValueError(
                f"{path} must hear its reference clip as when it was published (within "
                f"{versions.REFERENCE_TOLERANCE}), got a probability that is {gap:.3f} away: this machine computes it "
                "otherwise; serve model.onnx, or publish it from a machine like this"
            )


class Models:
    """Holds the model at work, and follows models/champion.json where it was given a data root."""

    def __init__(
        self, *, current: Served | None = None, data_root: Path | None = None, name: str = versions.ONNX
    ) -> None:
        """Takes a model that is loaded, or a data root whose champion is to be followed.

        Args:
            current: the model at first.
            data_root: the folder of models/.
            name: the file of a version that answers.
        """
        self.current = current
        self.num_swaps = 0
        self.num_refused = 0
        self.refusal = ""
        """Why the last champion was refused; empty where it was not."""
        self._data_root = data_root
        self._name = name
        self._refused: tuple[str, float] = ("", 0.0)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def follows(self) -> bool:
        """Whether another champion takes the place of the model at work."""
        return self._data_root is not None

    def look(self) -> bool:
        """Reads champion.json, and swaps models where it names another version; returns whether it did.

        A champion that cannot be loaded is refused with a line in the log, and the model at work stays.
        """
        assert self._data_root is not None
        try:
            version = versions.champion(self._data_root)
            if version is None or (self.current is not None and version == self.current.version):
                self.refusal = "" if version else self.refusal
                return False
            refused, when = self._refused
            if refused == version and time.monotonic() - when < RETRY_SECONDS:
                return False
            served = load_version(self._data_root / versions.MODELS / version, self._name)
        except (ValueError, OSError) as error:
            self._refuse(error)
            return False
        before = self.current.version if self.current else "none"
        self.current, self.refusal = served, ""
        self.num_swaps += 1
        log.info("version %s answers (before: %s)", served.version, before)
        return True

    def _refuse(self, error: Exception) -> None:
        reason = str(error)
        version = ""
        if self._data_root is not None:
            try:
                version = versions.champion(self._data_root) or ""
            except (ValueError, OSError):
                version = ""
        self._refused = (version, time.monotonic())
        if reason != self.refusal:
            self.num_refused += 1
            stays = f"{self.current.version} stays" if self.current else "there is no model yet"
            log.error("the champion was refused, %s: %s", stays, reason)
        self.refusal = reason

    def follow(self, seconds: float, swapped: Callable[[], None] = lambda: None) -> None:
        """Looks for another champion every so many seconds, in a thread, until `close`.

        Polling, as volumes of several machines tell nobody what changed on them.

        Args:
            seconds: between two looks.
            swapped: called in the thread after every swap.
        """

        def run() -> None:
            while not self._ended.wait(seconds):
                if self.look():
                    swapped()

        self._thread = threading.Thread(target=run, name="champion", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends following."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
