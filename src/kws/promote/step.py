"""The promote step: publishes a model as a version, and decides whether it becomes champion.

The files of a version are described in `kws.model.versions`.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kws import files, memory, outcomes
from kws.config import DEFAULT_FORMATS, CleanConfig
from kws.cores import computing
from kws.evaluate.accuracy import HEARD, Evaluation, compare_heard, evaluate_tensors, wilson
from kws.evaluate.new_clips import Apart, apart, find_new, sentence
from kws.evaluate.report import recall_by_word, render_comparison, render_not_compared
from kws.model import bundle as pth
from kws.model import versions
from kws.preprocess.tensors import Tensors
from kws.promote import registry
from kws.promote.clean import clean
from kws.promote.listening import compare_in_streams
from kws.promote.publish import Version, fill
from kws.settings import require
from kws.volume import require_volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The result of the promote step; what counts is first, as Kubeflow's UI shows the first 255 characters."""

    is_champion: bool
    is_candidate: bool = False
    """Whether it waits for a person's approval."""
    reason: str
    accuracy: float
    champion_accuracy: float | None
    """Accuracy of the previous champion on the same clips; None if they were not compared."""
    version: str
    path: str
    """The folder models/<version>."""
    new_clips: tuple[Apart, ...] = ()
    """How this version and the champion do on new and on old clips; empty: none is new, or they were not compared."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How a version and the champion do on the same clips."""

    tensors: Tensors
    heard: tuple[Evaluation, Evaluation]
    """The evaluations of both."""
    new_clips: tuple[Apart, ...]
    """How both do on new and on old clips; empty: none is new."""


@computing()
def promote(
    model: Path,
    tensors: Path,
    evaluation: Path,
    report: Path,
    data_root: Path,
    min_accuracy: float,
    model_registry: str = "",
    keep_runs: int = 0,
    approval: bool = False,
    comparison: Path | None = None,
    formats: str = DEFAULT_FORMATS,
) -> Decision:
    """Publishes a model as a version, and makes it champion if it is better than the current one.

    Args:
        model: a `.pth` file.
        tensors: the tensors folder on whose test split the models are compared.
        evaluation: JSON of `kws.evaluate.accuracy.Evaluation.summary` on that split.
        report: the HTML report.
        data_root: where to make `models/<version>/`; the version has the name of the training run.
        min_accuracy: test accuracy that a champion must reach, 0 to 1.
        model_registry: address of a Kubeflow Model Registry in which to register the version; empty: none.
        keep_runs: finished runs to keep (see `kws.promote.clean`); 0: all.
        approval: whether a better model becomes a candidate, which `kws approve` makes champion.
        comparison: where to write a page with the version beside the champion, or why there is none.
        formats: the formats to publish besides model.onnx, see `kws.config.parse_formats`.

    Returns:
        The decision with its reason, whether or not the model becomes champion.

    Raises:
        ValueError: an input file is damaged, or the exported model differs from the trained one.
    """
    require(0 <= min_accuracy <= 1, "min_accuracy", "be between 0 and 1", min_accuracy)
    require_volume(data_root)
    memory.warn_if_scarce("promote")
    recognizer = pth.load(model)
    accuracy: float = files.read_object(evaluation, accuracy=float)["accuracy"]
    require(0 <= accuracy <= 1, f"{evaluation}: accuracy", "be between 0 and 1", accuracy)  # false for NaN, too
    version = _free_name(model, recognizer, data_root / versions.MODELS)
    folder = versions.version_folder(data_root, version)
    made = Version(
        name=version,
        recognizer=recognizer,
        model=model,
        evaluation=evaluation,
        report=report,
        tensors=tensors,
        formats=formats,
    )
    files.build_folder(folder, lambda staging: fill(staging, made))
    while True:
        champion, without = _champion(data_root)
        # Without the lock, as the champion may have to listen for minutes.
        is_champion, reason, compared = _decide(made, accuracy, min_accuracy, champion, without, data_root)
        waits = approval and is_champion and champion != version
        page = _page(version, champion, reason, compared)
        with files.lock(data_root / versions.MODELS / versions.CHAMPION):
            if _champion(data_root)[0] == champion:
                if waits:
                    words = recall_by_word(compared.heard) if compared else []
                    files.write(data_root / versions.MODELS / versions.COMPARISON, page)
                    versions.propose(data_root, version, accuracy, reason, words)
                elif is_champion and champion != version:
                    versions.appoint(data_root, version, accuracy, by=versions.STEP, reason=reason)
                break
        log.info("the champion is another one by now: %s is compared again", version)
    other = compared.heard[1].accuracy if compared else None
    decision = Decision(
        version=version,
        path=str(folder),
        is_champion=is_champion and not waits,
        reason=reason,
        accuracy=accuracy,
        champion_accuracy=other,
        is_candidate=waits,
        new_clips=compared.new_clips if compared else (),
    )
    state = "candidate" if waits else "champion" if is_champion else "not champion"
    log.info("%s is %s: %s%s", version, state, reason, "; kws approve makes it champion" if waits else "")
    figures = {
        "version": version,
        "accuracy": accuracy,
        "champion_accuracy": other,
        "report": str(folder / "report.html"),
    }
    outcomes.note("promote", state, reason, **figures)
    if comparison is not None:
        files.write(comparison, page)
    registry.try_register(model_registry, data_root, version)
    if keep_runs:
        try:
            clean(data_root, CleanConfig(keep=keep_runs), model_registry=model_registry)
        except Exception as error:  # the model is published: no trouble with what is old may fail the run
            log.warning("nothing was deleted: %s", error)
    return decision


def _page(version: str, champion: str | None, reason: str, compared: Compared | None) -> str:
    """Returns the page with a version beside the champion, or why there is none."""
    if compared is None:
        return render_not_compared(version, reason)
    names = version, str(champion)
    return render_comparison(names, reason, compared.heard, compared.new_clips, compared.tensors)


def _heard(made: Version, evaluation: dict[str, Any], tensors: Tensors) -> Evaluation:
    """Returns the evaluation of a version with what it heard in every clip, by which the evaluate step went."""
    clips = tensors.split("test")
    heard = evaluation.get(HEARD, {"predicted": (), "confidence": ()})
    if len(heard["predicted"]) != len(clips):  # evaluation.json is of an earlier release
        return evaluate_tensors(made.recognizer, tensors)
    truth = [tensors.words[label] for label in clips.labels.tolist()]
    confidence, predicted = torch.tensor(heard["confidence"]), torch.tensor(heard["predicted"])
    return compare_heard(made.recognizer.words, confidence, predicted, truth, clips.clips)


def _champion(data_root: Path) -> tuple[str | None, str]:
    """Returns the version in use, or None, and why there is none."""
    try:
        return versions.champion(data_root), "there was none before"
    except ValueError as error:
        return None, f"the previous champion is unknown: {error}"


def _free_name(model: Path, recognizer: pth.Recognizer, models: Path) -> str:
    """Returns the name for a version: that of the training run, or if it cannot name a folder, the model's digest.

    If a version of that name holds another model, the digest is appended, as much of it as is needed. The manifest of a
    damaged version is deleted, so that the version is published again.
    """
    digest = files.sha256_of(model)
    run = recognizer.about.get("run")
    name = str(run) if run and versions.is_name(run) else digest[:12]
    for version in (name, f"{name}-{digest[:8]}", f"{name}-{digest}"):
        folder = models / version
        if not files.is_complete(folder):
            return version
        try:
            manifest = versions.verify(folder)
        except (ValueError, OSError) as error:
            log.warning("%s is published again, as it is damaged: %s", version, error)
            (folder / files.MANIFEST).unlink()  # so that it counts as incomplete
            return version
        if manifest["files"].get(versions.MODEL) == digest:
            return version
    raise ValueError(f"version {version} must hold the model with its digest, got another; rename {folder}")


def _decide(
    made: Version, accuracy: float, min_accuracy: float, champion: str | None, without: str, data_root: Path
) -> tuple[bool, str, Compared | None]:
    """Returns whether a version becomes champion, the reason, and the comparison with the current one if there is any.

    Without a champion, `without` says why there is none.
    """
    version = made.name
    if champion == version:
        return True, "it already was", None
    if accuracy < min_accuracy:
        return False, f"accuracy {accuracy:.2%} is below min_accuracy {min_accuracy:.2%}", None
    if (record := versions.was_rolled_back(data_root, version)) is not None:
        taken_out = f"{record['by']} took it out of use on {record['since']} ({record['reason']})"
        return False, f"{taken_out}; kws rollback --version {version} brings it back", None
    try:
        proposed = {one["version"]: one["state"] for one in versions.proposals(data_root)}
    except ValueError as error:
        return False, f"it is not known whether it was rejected: {error}, and retry promote", None
    if proposed.get(version) == "rejected":
        return False, "it was rejected; kws rollback brings it back", None
    if champion is None:
        return True, f"accuracy {accuracy:.2%}, and {without}", None
    folder = data_root / versions.MODELS / champion
    if not (folder / versions.MODEL).is_file():
        return True, f"accuracy {accuracy:.2%}, and {champion} no longer exists", None
    try:
        rival = pth.load(folder / versions.MODEL)
        versions.verify(folder)
    except (ValueError, OSError) as error:  # damaged or of an older release, so unusable
        log.warning("the champion %s cannot be read: %s", champion, error)
        return True, f"accuracy {accuracy:.2%}, and {champion} cannot be read: {error}", None
    tensors, evaluation = Tensors(made.tensors), files.read_json(made.evaluation)
    heard = _heard(made, evaluation, tensors), evaluate_tensors(rival, tensors)
    is_new = find_new(tensors, data_root, champion)
    new_clips = () if is_new is None else tuple(apart(one, is_new) for one in heard)
    compared = Compared(tensors=tensors, heard=heard, new_clips=new_clips)
    other = heard[1].accuracy
    is_better = accuracy > other
    verb = "beats" if is_better else "does not beat"
    reason = f"accuracy {accuracy:.2%} {verb} {other:.2%} of {champion} on the same clips"
    if new_clips:
        reason += f"; {sentence(*new_clips)}"
    listened = compare_in_streams(made.recognizer, evaluation, folder, Path(tensors.manifest["recordings"]["path"]))
    if listened.sentence:
        reason += f"; {listened.sentence}"
    if listened.difference < 0:
        return False, f"{reason}, which is clearly worse", compared
    if listened.difference > 0 and other <= wilson(accuracy, evaluation["num_clips"])[1]:
        return True, f"{reason}, which is clearly better, and on clips they differ by no more than chance", compared
    return is_better, reason, compared
