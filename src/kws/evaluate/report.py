"""The report of an evaluation: one HTML page with pictures and sounds inside, which needs no network."""

import importlib.resources
import io
import math
from pathlib import Path

import jinja2
import soundfile

from kws import clips as ids
from kws import files, plots
from kws.audio import Waveform
from kws.evaluate import AnyRecognizer, Judgement
from kws.features import mel_spectrogram


def write_report(path: Path, recognizer: AnyRecognizer, judgement: Judgement, title: str, recordings: Path) -> None:
    """Writes the page, atomically.

    Args:
        path: the file.
        recognizer: the model that was judged.
        judgement: what was found.
        title: names the clips it heard, as in "test split".
        recordings: the folder of clip ids; where a mistaken clip is still there, the page shows and plays it.
    """
    template = importlib.resources.files("kws").joinpath("report.html.jinja").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    mistakes = [mistake | _show(recognizer, recordings, mistake["clip"]) for mistake in judgement.summary()["mistakes"]]
    margin = 1.96 * math.sqrt(judgement.accuracy * (1 - judgement.accuracy) / judgement.num_clips)
    page = environment.from_string(template).render(
        title=title,
        judgement=judgement,
        margin=margin,
        confusion=plots.data_uri(plots.png(plots.confusion(judgement.matrix, judgement.words)), "image/png"),
        mistakes=mistakes,
        num_mistakes=judgement.num_clips - int(judgement.matrix.trace()),
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
