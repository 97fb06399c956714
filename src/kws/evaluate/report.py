"""Writes the report of an evaluation: a self-contained HTML page with embedded pictures and sounds."""

import importlib.resources
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
from matplotlib.figure import Figure

from kws import files, plots
from kws.data.clip import Clip
from kws.data.digest import read_manifest
from kws.evaluate.accuracy import Evaluation
from kws.evaluate.faults import describe_faults
from kws.evaluate.new_clips import Apart
from kws.evaluate.streams import StreamReport
from kws.model.detector import THRESHOLDS, Thresholds
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, read
from kws.preprocess.features import mel_spectrogram
from kws.preprocess.tensors import Tensors
from kws.recipe import FeatureConfig

MOST_BYTES_ALONE = 32_000_000
"""Bytes of sounds and pictures in `streams.html`, which lies on a disk and is no artifact of Kubeflow."""

MOST_DIFFERING = 60
"""Clips with sound in a comparison, about 35 kB each."""


def write_report(
    path: Path,
    recognizer: AnyRecognizer,
    evaluation: Evaluation,
    title: str,
    recordings: Path,
    training: Sequence[Mapping[str, Any]] = (),
    streams: tuple[Thresholds, Sequence[StreamReport]] | None = None,
) -> None:
    """Writes the report, atomically.

    The page shows and plays mistaken clips that still exist in `recordings`, training curves by the lines of
    metrics.jsonl, and false alarms and misses in `streams`, which `evaluate_streams` returned.
    """
    mistakes = [
        mistake.as_json() | _show(recognizer.features, recordings, mistake.clip) for mistake in evaluation.mistakes
    ]
    page = _render(
        "report.html.jinja",
        title=title,
        evaluation=evaluation,
        matrix=_matrix(evaluation),
        mistakes=mistakes,
        pictures=_pictures(evaluation, training),
        num_mistakes=evaluation.num_clips - int(evaluation.matrix.trace()),
        num_parameters=recognizer.num_parameters,
        sources=_sources(recordings),
        recognizer=recognizer,
        thresholds=None if streams is None else streams[0],
        faults=None if streams is None else describe_faults(streams[1], streams[0]),
    )
    files.write(path, page)


def recall_by_word(heard: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Returns how models do on each word of the same clips: `word`, `num_clips`, and `recall` of each, 0 to 1."""
    truth = np.array([heard[0].words[label] for label in heard[0].labels.tolist()])
    rows = []
    for word in sorted(set(truth.tolist())):
        chosen = truth == word
        right = [(one.predicted[chosen] == one.labels[chosen]).mean() for one in heard]
        rows.append({"word": word, "num_clips": int(chosen.sum()), "recall": [float(share) for share in right]})
    return rows


def render_comparison(
    names: Sequence[str], reason: str, heard: Sequence[Evaluation], new_clips: Sequence[Apart], tensors: Tensors
) -> str:
    """Renders a page with two models side by side: words, and the clips on which they differ, to be heard.

    The new version comes first. `reason` says how they compare on the whole; `new_clips` how both do on new and old
    clips, if any is new.
    """
    clips, recordings = tensors.split("test").clips, Path(tensors.manifest["recordings"]["path"])
    rows = [
        [(one.words[word], float(sure)) for word, sure in zip(one.predicted, one.confidence, strict=True)]
        for one in heard
    ]
    truth = [heard[0].words[label] for label in heard[0].labels]
    differing = [number for number, (one, other) in enumerate(zip(*rows, strict=True)) if one[0] != other[0]]
    differing.sort(key=lambda number: (truth[number] not in (rows[0][number][0], rows[1][number][0]), number))
    shown = [
        {"clip": clips[number].id, "truth": truth[number], "heard": [of[number] for of in rows]}
        | _show(tensors.features, recordings, clips[number])
        for number in differing[:MOST_DIFFERING]
    ]
    return _render(
        "comparison.html.jinja",
        names=names,
        reason=reason,
        rows=recall_by_word(heard),
        new_clips=new_clips,
        num_differing=len(differing),
        shown=shown,
    )


def render_not_compared(version: str, reason: str) -> str:
    """Renders the page in place of a comparison, with the reason why a version is champion or is not."""
    return _render("not_compared.html.jinja", version=version, reason=reason)


def _render(name: str, **values: Any) -> str:
    """Renders a template of this package, which may include others."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kws", "evaluate"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script = importlib.resources.files("kws.evaluate").joinpath("faults.js").read_text(encoding="utf-8")
    return environment.get_template(name).render(faults_script=script, **values)


def _sources(recordings: Path) -> list[Mapping[str, Any]]:
    """Returns the sources of recordings that are of several, each with its share of the clips."""
    manifest = read_manifest(recordings) if recordings.is_dir() else None
    return list((manifest or {}).get("sources", []))


def _matrix(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the confusion matrix of all words, or of the hardest ones: their names, and counts and shares by row.

    It is a table and not a picture, as a browser has fonts for every script.
    """
    words, counts = evaluation.of_hardest()
    spoken = {score.word: score.num_clips for score in evaluation.word_scores}
    rows = [
        [(int(count), float(count / spoken.get(word, 1))) for count in row]
        for word, row in zip(words, counts, strict=True)
    ]
    return {"words": words, "rows": rows}


def _pictures(evaluation: Evaluation, training: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the plots for which there are results, each with a title and a caption."""
    found: list[tuple[str, str, Figure]] = []
    if robustness := evaluation.more.get("robustness"):
        number = evaluation.more["num_robustness_clips"]
        found.append(
            (
                "Robustness",
                f"Accuracy on {number} clips of the test split under each condition",
                plots.conditions(robustness),
            )
        )
    if rows := evaluation.more.get("streams"):
        curves = {f"{row['snr_db']:g} dB": row["curve"] for row in rows}
        points = {f"{row['snr_db']:g} dB": (row["false_alarms_per_hour"], row["missed"]) for row in rows}
        hours = ", ".join(f"{row['hours']:.2f} h with {row['spoken']} words" for row in rows)
        found.append(("In a stream", f"Words missed against false alarms, in {hours}", plots.detection(curves, points)))
    if training:
        found.append(
            ("Training", "Loss and accuracy after every epoch, and the learning rate then", plots.training(training))
        )
    return [
        {"title": title, "text": text, "picture": plots.data_uri(plots.png(figure), "image/png")}
        for title, text, figure in found
    ]


def write_stream_report(
    folder: Path, recognizer: AnyRecognizer, thresholds: Thresholds, reports: Sequence[StreamReport], title: str
) -> list[dict[str, Any]]:
    """Writes streams.html, detection.png, streams.json and thresholds.json into a folder, each atomically.

    Returns:
        The metrics, one dictionary for each noise level.
    """
    rows = [report.summary() for report in reports]
    curves = {f"{report.snr_db:g} dB": report.curve for report in reports}
    points = {f"{report.snr_db:g} dB": (report.outcome.per_hour, report.outcome.missed) for report in reports}
    picture = plots.png(plots.detection(curves, points))
    page = _render(
        "streams.html.jinja",
        recognizer=recognizer,
        rows=rows,
        thresholds=thresholds,
        title=title,
        picture=plots.data_uri(picture, "image/png"),
        curve_script=importlib.resources.files("kws").joinpath("curve.js").read_text(encoding="utf-8"),
        faults=describe_faults(reports, thresholds, MOST_BYTES_ALONE),
    )
    files.write_json(folder / THRESHOLDS, thresholds.as_json())
    files.write_json(folder / "streams.json", {"thresholds": thresholds.as_json(), "streams": rows})
    files.write(folder / "detection.png", picture)
    files.write(folder / "streams.html", page)
    return rows


def _show(features: FeatureConfig, recordings: Path, clip: Clip) -> dict[str, str]:
    """Returns sound and spectrogram of a clip as data URIs, both empty if it can no longer be read."""
    import torch

    try:
        waveform = read(recordings, clip, features)
    except (OSError, ValueError):
        return {"sound": "", "picture": ""}
    strip = plots.strip(mel_spectrogram(features)(torch.from_numpy(waveform[None]))[0])
    return {
        "sound": plots.data_uri(_wav(waveform, features.sample_rate), "audio/wav"),
        "picture": plots.data_uri(strip, "image/webp"),
    }


def _wav(waveform: Waveform, sample_rate: int) -> bytes:
    """Encodes float32 [samples] as a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
