"""Fills the folder of a version: the files to deploy, and their documentation."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from kws import files
from kws.config import DEFAULT_FORMATS, parse_formats
from kws.evaluate.accuracy import HEARD, Evaluation, evaluate_tensors
from kws.model import formats, onnx, versions
from kws.model.bundle import Recognizer
from kws.model.detector import THRESHOLDS, Thresholds
from kws.model.onnx import OnnxRecognizer
from kws.model.predict import load
from kws.preprocess.audio import Waveform, read, read_clip
from kws.preprocess.tensors import Tensors
from kws.promote.card import write_card

log = logging.getLogger(__name__)

LOSS = 0.005
"""Largest loss of accuracy (0 to 1) with which an exported model is still published."""

COMPARED_CLIPS = 5_000
"""Clips of the test split on which exported models are compared with model.onnx, where there are more: each is read and
recognized again. On so many, two models that differ by half a point differ by far more than chance."""

ONNX_GAP = 2e-3
"""Largest difference between the probabilities of model.onnx and model.pth."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """The content of a version to publish."""

    name: str
    recognizer: Recognizer
    model: Path
    evaluation: Path
    report: Path
    tensors: Path
    """The tensors folder, on whose test split the exported models are evaluated."""
    formats: str = DEFAULT_FORMATS
    """The formats to publish, see `kws.config.parse_formats`; model.onnx always is."""


def fill(staging: Path, version: Version) -> None:
    """Writes all files of a version, its manifest last.

    Raises:
        ValueError: the probabilities of model.onnx differ from those of model.pth.
    """
    shutil.copyfile(version.model, staging / versions.MODEL)
    shutil.copyfile(version.report, staging / versions.REPORT)
    evaluation = {name: one for name, one in files.read_json(version.evaluation).items() if name != HEARD}
    files.write_json(staging / versions.EVALUATION, evaluation)
    recognizer = version.recognizer
    tensors = Tensors(version.tensors)
    reference = _reference(recognizer, tensors)
    soundfile.write(staging / versions.REFERENCE, reference, recognizer.features.sample_rate, subtype="PCM_16")
    reference = read_clip(staging / versions.REFERENCE, recognizer.features)  # read back, as a server will read it
    onnx.export(recognizer, staging / versions.ONNX)
    exported = onnx.load(staging / versions.ONNX)
    _compare(recognizer, exported, reference)
    published = _publish(staging, version, exported, tensors)
    thresholds = _thresholds(evaluation, recognizer)
    files.write_json(staging / THRESHOLDS, thresholds.as_json())
    write_card(
        staging / versions.CARD,
        recognizer,
        version=version.name,
        evaluation=evaluation,
        tensors=tensors.manifest,
        thresholds=thresholds,
        formats=published,
    )
    heard = {
        name: onnx.load(staging / name, num_threads=1).predict(reference[None])[0].astype(float).round(6).tolist()
        for name in (versions.ONNX, versions.INT8)
        if (staging / name).is_file()
    }
    manifest: dict[str, Any] = {
        "schema": 2,
        "version": version.name,
        "words": recognizer.words,
        "accuracy": float(evaluation["accuracy"]),
        "about": recognizer.about,
        "formats": published,
        "reference": heard,
        "files": {path.name: files.sha256_of(path) for path in sorted(staging.iterdir())},
    }
    files.write_json(staging / files.MANIFEST, manifest)


def _thresholds(evaluation: Mapping[str, Any], recognizer: Recognizer) -> Thresholds:
    """Returns the thresholds that the evaluation chose, or if there are none `Thresholds.unmeasured`."""
    found = evaluation.get("thresholds")
    if found:
        return Thresholds.from_json(found, recognizer.words)
    return Thresholds.unmeasured(recognizer.words, recognizer.margin is not None)


def _reference(recognizer: Recognizer, tensors: Tensors) -> Waveform:
    """Returns the reference clip: the first readable one of the test split, or else a rising tone."""
    recordings = Path(tensors.manifest["recordings"]["path"])
    for clip in tensors.split("test").clips[:20]:
        try:
            return read(recordings, clip, recognizer.features)
        except (OSError, ValueError):
            continue
    time = np.arange(recognizer.features.num_samples) / recognizer.features.sample_rate
    return (0.3 * np.sin(2 * np.pi * (100 * time + 1500 * time**2))).astype(np.float32)


def _compare(recognizer: Recognizer, exported: OnnxRecognizer, reference: Waveform) -> None:
    """Checks the exported model against the trained one on a clip, the same clip 20 dB softer, and silence."""
    waveforms = np.stack([reference, reference / 10, np.zeros_like(reference)])
    gap = float(np.abs(exported.predict(waveforms) - recognizer.predict(waveforms)).max())
    if gap > ONNX_GAP:
        raise ValueError(
            f"{versions.ONNX} must give the probabilities of {versions.MODEL} within {ONNX_GAP:g}, got a "
            f"difference of {gap:.4f}; install the version of onnxruntime in uv.lock"
        )


def _publish(staging: Path, version: Version, exported: OnnxRecognizer, tensors: Tensors) -> dict[str, str]:
    """Writes the formats that are accurate enough, and returns a sentence about each, by the name of its file."""
    said = {}
    whole: Evaluation | None = None
    for name, int8 in parse_formats(version.formats):
        path = staging / formats.file_name(name, int8)
        if path.name == versions.ONNX:
            continue
        if name == "page":
            said[path.name] = "not published: `kws export` makes it from model.pth"
            continue
        try:
            figures = formats.find(name).export(version.recognizer, path, int8)
            whole = whole or evaluate_tensors(exported, tensors, most=COMPARED_CLIPS)
            accuracy = evaluate_tensors(load(path), tensors, most=COMPARED_CLIPS).accuracy
        except (OSError, ValueError) as error:
            said[path.name] = f"not published, as it could not be evaluated: {error}"
        else:
            clips = f"{whole.num_clips:,} clips of the test split"
            shown = f"accuracy {accuracy:.2%} on {clips}, model.onnx {whole.accuracy:.2%}"
            if accuracy >= whole.accuracy - LOSS:
                said[path.name] = "; ".join(
                    (f"published: {shown}", *(f"{what} {value:,}" for what, value in figures.items()))
                )
                continue
            said[path.name] = f"not published: {shown}, more than half a point apart"
        for one in (path, path.with_suffix(".h")):
            one.unlink(missing_ok=True)
    return said
