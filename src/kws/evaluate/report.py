"""The report of an evaluation: one HTML page with pictures and sounds inside, which needs no network."""

import importlib.resources
import io
import math
from pathlib import Path

import jinja2
import soundfile

from kws import files, plots
from kws.evaluate.accuracy import Evaluation
from kws.model.predict import AnyRecognizer
from kws.preprocess import clips as ids
from kws.preprocess.audio import Waveform
from kws.preprocess.features import mel_spectrogram


def write_report(path: Path, recognizer: AnyRecognizer, evaluation: Evaluation, title: str, recordings: Path) -> None:
    """Writes the page, atomically.

    Args:
        path: the file.
        recognizer: the model that was evaluated.
        evaluation: what was found.
        title: names the clips it heard, as in "test split".
        recordings: the folder of clip ids; where a mistaken clip is still there, the page shows and plays it.
    """
    template = importlib.resources.files("kws.evaluate").joinpath("report.html.jinja").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    mistakes = [
        mistake | _show(recognizer, recordings, mistake["clip"]) for mistake in evaluation.summary()["mistakes"]
    ]
    margin = 1.96 * math.sqrt(evaluation.accuracy * (1 - evaluation.accuracy) / evaluation.num_clips)
    page = environment.from_string(template).render(
        title=title,
        evaluation=evaluation,
        margin=margin,
        confusion=plots.data_uri(plots.png(plots.confusion(evaluation.matrix, evaluation.words)), "image/png"),
        mistakes=mistakes,
        num_mistakes=evaluation.num_clips - int(evaluation.matrix.trace()),
        num_parameters=recognizer.num_parameters,
        recognizer=recognizer,
    )
    with files.atomic_write(path, "w") as file:
        file.write(page)


def _show(recognizer: AnyRecognizer, recordings: Path, clip: str) -> dict[str, str]:
    """Returns sound and picture of a clip as data URIs, or nothing where it cannot be read any more."""
    import torch

    try:
        waveform = ids.read(recordings, clip, recognizer.features)
    except (OSError, ValueError):
        return {"sound": "", "picture": ""}
    features = mel_spectrogram(recognizer.features)(torch.from_numpy(waveform[None]))
    figure = plots.thumbnail(features[0])
    return {
        "sound": plots.data_uri(_wav(waveform, recognizer.features.sample_rate), "audio/wav"),
        "picture": plots.data_uri(plots.png(figure), "image/png"),
    }


def _wav(waveform: Waveform, sample_rate: int) -> bytes:
    """Packs float32 [samples] as a 16-bit WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
