"""Writes the report of an evaluation: a self-contained HTML page with embedded pictures and sounds."""

import importlib.resources
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import soundfile
from matplotlib.figure import Figure

from kws import files, plots
from kws.data.clip import Clip
from kws.data.digest import read_manifest
from kws.evaluate.accuracy import Evaluation, most_probable, recognize
from kws.evaluate.faults import describe_faults
from kws.evaluate.streams import StreamReport
from kws.model.bundle import Recognizer
from kws.model.detector import THRESHOLDS, Thresholds
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, read
from kws.preprocess.features import mel_spectrogram
from kws.preprocess.tensors import Tensors

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

    Args:
        path: the file.
        recognizer: the model that was evaluated.
        evaluation: the results.
        title: name of the clips, as in "test split".
        recordings: the recordings folder; the page shows and plays mistaken clips that still exist there.
        training: the lines of metrics.jsonl, one for every epoch; empty: no training curves.
        streams: what `evaluate_streams` returned; the page shows and plays false alarms and misses.
    """
    mistakes = [mistake.as_json() | _show(recognizer, recordings, mistake.clip) for mistake in evaluation.mistakes]
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
    with files.atomic_write(path, "w") as file:
        file.write(page)


def write_comparison(
    path: Path, candidate: Recognizer, champion: Recognizer, names: Sequence[str], tensors: Tensors, reason: str
) -> list[dict[str, Any]]:
    """Writes a page with two models side by side, atomically: words, and the clips on which they differ, to be heard.

    Args:
        path: the file.
        candidate: the new model.
        champion: the model in use.
        names: their versions.
        tensors: the tensors folder whose test split both hear.
        reason: how they compare on the whole, in a sentence.

    Returns:
        The rows of words: `word`, `num_clips`, and `recall` of both, 0 to 1.
    """
    heard: list[list[tuple[str, float]]] = []
    for recognizer in (candidate, champion):
        probabilities, truth, clips = recognize(recognizer, tensors)
        confidence, predicted = (of.tolist() for of in most_probable(probabilities))
        heard.append([(recognizer.words[i], p) for i, p in zip(predicted, confidence, strict=True)])
    of_word: dict[str, list[int]] = {}
    for number, word in enumerate(truth):
        of_word.setdefault(word, []).append(number)
    rows = [
        {
            "word": word,
            "num_clips": len(numbers),
            "recall": [sum(of[number][0] == word for number in numbers) / len(numbers) for of in heard],
        }
        for word, numbers in sorted(of_word.items())
    ]
    differing = [number for number, (one, other) in enumerate(zip(*heard, strict=True)) if one[0] != other[0]]
    differing.sort(key=lambda number: (truth[number] not in (heard[0][number][0], heard[1][number][0]), number))
    recordings = Path(tensors.manifest["recordings"]["path"])
    shown = [
        {"clip": clips[number].id, "truth": truth[number], "heard": [of[number] for of in heard]}
        | _show(candidate, recordings, clips[number])
        for number in differing[:MOST_DIFFERING]
    ]
    page = _render(
        "comparison.html.jinja", names=names, reason=reason, rows=rows, num_differing=len(differing), shown=shown
    )
    with files.atomic_write(path, "w") as file:
        file.write(page)
    return rows


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
        found.append(("Training", "Loss and accuracy after every epoch", plots.training(training)))
    return [
        {"title": title, "text": text, "picture": plots.data_uri(plots.png(figure), "image/png")}
        for title, text, figure in found
    ]


def write_stream_report(
    folder: Path, recognizer: AnyRecognizer, thresholds: Thresholds, reports: Sequence[StreamReport], title: str
) -> list[dict[str, Any]]:
    """Writes streams.html, detection.png, streams.json and thresholds.json into a folder, each atomically.

    Args:
        folder: where to write.
        recognizer: the model that was evaluated.
        thresholds: the thresholds that were evaluated.
        reports: the results, one for each noise level.
        title: name of the recordings.

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
    with files.atomic_write(folder / "detection.png") as file:
        file.write(picture)
    with files.atomic_write(folder / "streams.html", "w") as file:
        file.write(page)
    return rows


def _show(recognizer: AnyRecognizer, recordings: Path, clip: Clip) -> dict[str, str]:
    """Returns sound and spectrogram of a clip as data URIs, both empty if it can no longer be read."""
    import torch

    try:
        waveform = read(recordings, clip, recognizer.features)
    except (OSError, ValueError):
        return {"sound": "", "picture": ""}
    features = mel_spectrogram(recognizer.features)(torch.from_numpy(waveform[None]))
    figure = plots.thumbnail(features[0])
    return {
        "sound": plots.data_uri(_wav(waveform, recognizer.features.sample_rate), "audio/wav"),
        "picture": plots.data_uri(plots.png(figure), "image/png"),
    }


def _wav(waveform: Waveform, sample_rate: int) -> bytes:
    """Encodes float32 [samples] as a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
