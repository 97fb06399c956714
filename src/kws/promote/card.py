"""Writes the model card, in the format of Hugging Face's cards."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from kws import files
from kws.config import SPEECH_COMMANDS_SHA256, SPEECH_COMMANDS_URL, UNKNOWN
from kws.evaluate.accuracy import wilson
from kws.model import versions
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds

SPEECH_COMMANDS = {
    "name": "Speech Commands v0.02",
    "hub": "google/speech_commands",
    "licence_id": "cc-by-4.0",
    "language": "en",
    "text": "Recordings of [Speech Commands v0.02](https://arxiv.org/abs/1804.03209) by Pete Warden, Google, under "
    "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/): one-second clips by 2,618 volunteers, over the "
    "microphones of their own devices. Whoever redistributes this model must credit the source.",
}


def write_card(
    path: Path,
    recognizer: Recognizer,
    *,
    version: str,
    evaluation: Mapping[str, Any],
    tensors: Mapping[str, Any],
    thresholds: Thresholds,
    formats: Mapping[str, str],
) -> None:
    """Writes MODEL_CARD.md, atomically.

    It lies beside the models that it describes. `evaluation` is the content of evaluation.json, `tensors` that of the
    manifest of the tensors; `formats` has a sentence about every file, which says whether it was published, and why.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kws", "promote"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    environment.filters["cell"] = lambda text: _code(text).replace("|", "\\|")  # as GitHub's tables want it
    about = recognizer.about
    init = about.get("init", {})
    measured = not math.isnan(thresholds.false_alarms_per_hour)
    page = environment.get_template(
        "card.md.jinja"
    ).render(
        version=version,
        words=recognizer.words,
        features=recognizer.features,
        num_parameters=recognizer.num_parameters,
        about=about,
        init=init and init | {"model": Path(init["model"]).name},  # the folders of a machine are no one else's business
        digests={
            name: files.sha256_of(path.parent / name)
            for name in (versions.MODEL, versions.ONNX, *formats)
            if (path.parent / name).is_file()
        },
        versions=", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items()) or "unknown",
        evaluation=evaluation,
        interval=wilson(evaluation["accuracy"], evaluation["num_clips"]),
        robustness=evaluation.get("robustness", {}),
        num_robustness_clips=evaluation.get("num_robustness_clips", 0),
        streams=evaluation.get("streams", []),
        hardest=sorted((word for word in evaluation["words"] if word["f1"] < 1), key=lambda word: word["f1"])[:5],
        unknown=UNKNOWN if UNKNOWN in recognizer.words else "",
        counts=tensors["counts"],
        data=_describe(tensors),
        thresholds=f"chosen for at most {thresholds.false_alarms_per_hour:.1f} false alarms per hour."
        if measured
        else "0.8 for every word, as none were measured.",
        formats=formats,
        percent=_percent,
        missed=_missed,
        alarms=_alarms,
    )
    files.write(path, page)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _missed(row: Mapping[str, Any]) -> str:
    """Returns the miss rate with its interval, of a stream or of a word in it."""
    low, high = row["missed_95"]
    return f"{_percent(row['missed'])} ({100 * low:.1f} to {100 * high:.1f})"


def _alarms(row: Mapping[str, Any], stream: Mapping[str, Any]) -> str:
    """Returns the false alarms per hour with their interval, of a stream or of a word in it."""
    low, high = row["false_alarms_per_hour_95"]
    return f"{row['false_alarms'] / stream['hours']:.1f} ({low:.1f} to {high:.1f})"


def _code(text: str) -> str:
    """Returns a text as code in Markdown, whatever backticks it has itself."""
    fence = "`"
    while fence in text:
        fence += "`"
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def _describe(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Returns what is known about the recordings: name, licence, language, and text for the card."""
    folder = Path(tensors["recordings"]["path"])
    try:
        manifest = files.read_json(folder / files.MANIFEST)
    except (OSError, ValueError):
        manifest = {}
    source, digest = manifest.get("source", ""), manifest.get("sha256", "")
    speakers = _describe_speakers(tensors)
    if source == SPEECH_COMMANDS_URL or digest == SPEECH_COMMANDS_SHA256:
        return SPEECH_COMMANDS | {"speakers": speakers}
    return {
        "name": manifest.get("name", folder.name),
        "hub": "",
        "licence_id": "other",
        "language": "und",
        "text": f"Recordings of the folder `{folder.name}` (fingerprint "
        f"`{tensors['recordings']['fingerprint'][:12]}`). Their licence and the speakers' consent are known only to "
        "whoever recorded them: state both here before redistributing the model.",
        "speakers": speakers,
    }


def _describe_speakers(tensors: Mapping[str, Any]) -> str:
    """Says for which speakers the figures hold, as far as the data set names its speakers."""
    if tensors.get("split", "speaker") == "random":
        return (
            "The split is random: speakers of the test split also occur in training, so the figures are too good for "
            "new speakers."
        )
    shared = tensors.get("speakers_in_two_splits", {})
    if shared.get("clips"):
        return (
            f"{shared['speakers']} speakers of the training split also speak {shared['clips']} clips of validation and "
            "test, so the figures are too good for new speakers."
        )
    known = tensors.get("speakers", {"speakers": 0, "clips_without": sum(tensors["counts"].values())})
    if known["clips_without"] == 0:
        return "Each speaker is in one split only, so the figures apply to speakers unseen in training."
    unnamed = f"{known['clips_without']} clips name" if known["speakers"] else "The recordings name"
    return (
        f"{unnamed} no speaker: speakers of the test split may also occur in training, and then the figures are too "
        "good for new speakers."
    )
