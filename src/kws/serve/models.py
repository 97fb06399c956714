"""Loads and checks the model to serve, and swaps it without interruption when another version becomes champion.

A second follower of the same class holds the version that is tried beside it, see shadow.py.

Code that handles a request reads `Models.current` once, and so uses one version throughout. Its session lives as long
as it is referenced, so that a swap neither waits for requests nor breaks them.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kws import files
from kws.model import onnx, versions
from kws.model.detector import Thresholds
from kws.model.onnx import OnnxRecognizer
from kws.preprocess.audio import Waveform, read_clip

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""Seconds after which a refused version is tried again, as the volume may have been unavailable."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version of a model, ready to answer."""

    recognizer: OnnxRecognizer
    version: str
    thresholds: Thresholds
    card: str
    """Content of MODEL_CARD.md; empty if there is none."""
    test: Mapping[str, Any] = field(default_factory=dict)
    """Content of evaluation.json, the results on the test split; empty if there is none."""

    def behind(self, after: str, seconds: float | None) -> "Served":
        """Returns the same model with a gate, see `Thresholds.behind`.

        Raises:
            ValueError: `after` is no word of the model, or there are seconds but no gate.
        """
        return dataclasses.replace(self, thresholds=self.thresholds.behind(after, seconds))


def load_file(path: Path) -> Served:
    """Loads an `.onnx` file, which may or may not be in the folder of a version.

    Raises:
        ValueError: the file is not a model of this project, is damaged, or fails its check.
        FileNotFoundError: there is no such file.
    """
    if files.is_complete(path.parent) and path.name in versions.read_manifest(path.parent)["files"]:
        return load_version(path.parent, path.name)
    recognizer = onnx.load(path, num_threads=1)
    _prove(recognizer, None, None, path)
    return Served(
        recognizer=recognizer,
        version=files.sha256_of(path)[:12],
        thresholds=Thresholds.beside(path, recognizer.words, recognizer.margin is not None),
        card="",
    )


def load_version(folder: Path, name: str = versions.ONNX) -> Served:
    """Loads a published version, after checking its files against the digests in its manifest.

    A version that has no model.int8.onnx, as it was too inaccurate, is served in full precision instead.

    Raises:
        ValueError: a file is missing or damaged, or the probabilities of the reference clip differ from those in the
            manifest.
        OSError: the volume cannot be read.
    """
    published = versions.read_manifest(folder)["files"]
    if name not in published:
        log.warning("version %s has no %s: serving %s", folder.name, name, versions.ONNX)
        name = versions.ONNX
    manifest = versions.verify(
        folder, [name, *(optional for optional in versions.SERVED if (folder / optional).exists())]
    )
    recognizer = onnx.load(folder / name, num_threads=1)
    expected = manifest.get("reference", {}).get(name)
    reference = folder / versions.REFERENCE
    _prove(recognizer, reference if expected else None, expected, folder / name)
    card, test = folder / versions.CARD, folder / versions.EVALUATION
    return Served(
        recognizer=recognizer,
        version=manifest["version"],
        thresholds=Thresholds.beside(folder / name, recognizer.words, recognizer.margin is not None),
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
        test=files.read_object(test) if test.is_file() else {},
    )


def _prove(recognizer: OnnxRecognizer, reference: Path | None, expected: list[float] | None, path: Path) -> None:
    """Applies a model to a clip, so that a defect shows before the model is served.

    Raises:
        ValueError: the result is not valid, or differs from the one on publication.
    """
    samples = recognizer.features.num_samples
    clip: Waveform = np.zeros(samples, np.float32)
    if reference is not None:
        clip = read_clip(reference, recognizer.features)
    try:
        heard = recognizer.predict(np.stack([clip, clip]))
    except Exception as error:  # onnxruntime raises a class of its own for every kind of damage
        raise ValueError(f"{path} must accept a clip of {samples} samples, got {error}") from error
    if heard.shape != (2, len(recognizer.words)) or not np.allclose(heard.sum(axis=1), 1, atol=1e-3):
        raise ValueError(f"{path} must give a probability for each of {len(recognizer.words)} words, got another model")
    if expected is not None:
        gap = float(np.abs(heard[0] - np.asarray(expected, np.float32)).max())
        if gap > versions.REFERENCE_TOLERANCE:
            raise ValueError(
                f"{path} must give its reference clip the same probabilities as on publication (within "
                f"{versions.REFERENCE_TOLERANCE}), got one that differs by {gap:.3f}: this machine computes "
                "differently; serve model.onnx, or publish the model from a machine like this one"
            )


class Models:
    """Holds a model, and follows the version that a data root names if it was given one."""

    def __init__(
        self,
        *,
        current: Served | None = None,
        data_root: Path | None = None,
        name: str = versions.ONNX,
        after: str = "",
        after_seconds: float | None = None,
        candidate: bool = False,
        shadow: str = "",
    ) -> None:
        """Takes a loaded model, or a data root whose champion to follow.

        `name` is the model file of a version. A version that does not know the word of the gate (`after`) is refused.
        With `candidate`, the one that waits is followed while there is one; with `shadow`, the version that it names
        beside the champion, see `versions.beside_champion`.
        """
        self.current = current
        self.num_swaps = 0
        self.num_refused = 0
        self.refusal = ""
        """Why the latest version was refused; empty if it was not."""
        self.data_root = data_root
        self._name = name
        self._gate = after, after_seconds
        self._candidate = candidate
        self._shadow = shadow
        self._role = "shadow" if shadow else "champion"
        self._refused: tuple[str, float] = ("", 0.0)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def why_none(self) -> str:
        """Why there is no model, for clients: the log has the details, which name files of this machine."""
        return "the champion was refused, see the server's log" if self.refusal else "there is no champion yet"

    def look(self) -> None:
        """Reads which version is named, and swaps the model if it is another.

        A version that cannot be loaded is refused with a line in the log, and the current model stays. A champion stays
        also if none is named any more; the version beside it goes.
        """
        assert self.data_root is not None
        version = ""
        try:
            version = self._named(self.data_root) or ""
            if not version:
                self._let_go()
                return
            if self.current is not None and version == self.current.version:
                self.refusal = ""
                return
            refused, when = self._refused
            if refused == version and time.monotonic() - when < RETRY_SECONDS:
                return
            served = load_version(versions.version_folder(self.data_root, version), self._name).behind(*self._gate)
        except (ValueError, OSError) as error:
            self._refused = (version, time.monotonic())
            if str(error) != self.refusal:
                self.num_refused += 1
                stays = f"{self.current.version} stays" if self.current else "there is no model yet"
                log.error("the %s was refused, %s: %s", self._role, stays, error)
            self.refusal = str(error)
            return
        before = self.current.version if self.current else "none"
        self.current, self.refusal = served, ""
        self.num_swaps += 1
        log.info("%s version %s (before: %s)", "in the shadow:" if self._shadow else "serving", served.version, before)

    def _named(self, data_root: Path) -> str | None:
        if self._shadow:
            return versions.beside_champion(data_root, self._shadow)
        waits = versions.beside_champion(data_root, versions.CANDIDATE) if self._candidate else None
        return waits or versions.champion(data_root)

    def _let_go(self) -> None:
        """Drops the version in the shadow, as it was approved or rejected."""
        if self._shadow:
            before, self.current, self.refusal = self.current, None, ""
            if before is not None:
                log.info("in the shadow: no version (before: %s)", before.version)

    def follow(self, seconds: float) -> None:
        """Looks for another version every so many seconds in a thread, until `close`.

        It polls, as volumes that machines share do not notify of changes.
        """

        def run() -> None:
            while not self._ended.wait(seconds):
                self.look()

        self._thread = threading.Thread(target=run, name=self._role, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops following."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
