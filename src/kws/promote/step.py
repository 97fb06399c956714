"""Publishing models, and deciding which one is in use: `kws.model.versions` says what is written where."""

import logging
from dataclasses import dataclass
from pathlib import Path

from kws import files
from kws.config import require
from kws.cores import computing
from kws.evaluate.accuracy import evaluate_tensors
from kws.model import bundle as pth
from kws.model import versions
from kws.preprocess.tensors import Tensors
from kws.promote import registry
from kws.promote.publish import Version, fill

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of a model."""

    version: str
    path: str
    """The folder models/<version>."""
    is_champion: bool
    reason: str
    accuracy: float
    champion_accuracy: float | None
    """Of the champion it met, on the same clips; None where there was none."""


@computing()
def promote(
    model: Path,
    tensors: Path,
    evaluation: Path,
    report: Path,
    data_root: Path,
    min_accuracy: float,
    model_registry: str = "",
) -> Decision:
    """Publishes a model as a version, and makes it champion if it is better than the champion there is.

    Args:
        model: a `.pth`.
        tensors: the folder whose test split decides.
        evaluation: JSON of `kws.evaluate.accuracy.Evaluation.summary` on that split.
        report: the HTML page.
        data_root: gets `models/<version>/`; the version is the name of the training run.
        min_accuracy: what a champion must reach, 0 to 1.
        model_registry: address of a Kubeflow Model Registry that is told; empty: none.

    Returns:
        The decision with its reason; a model that does not become champion is no error.
    """
    require(0 <= min_accuracy <= 1, "min_accuracy", "lie in 0 to 1", min_accuracy)
    recognizer = pth.load(model)
    accuracy: float = files.read_object(evaluation, accuracy=float)["accuracy"]
    version = _free_name(model, recognizer, data_root / versions.MODELS)
    folder = versions.version_folder(data_root, version)
    made = Version(
        name=version, recognizer=recognizer, model=model, evaluation=evaluation, report=report, tensors=tensors
    )
    files.build_folder(folder, lambda staging: fill(staging, made))
    with files.lock(data_root / versions.MODELS / versions.CHAMPION):
        champion, without = None, "there was none before"
        try:
            champion = versions.champion(data_root)
        except ValueError as error:
            without = f"the one before is not known: {error}"
            log.warning("%s", error)
        is_champion, reason, other = _decide(version, accuracy, min_accuracy, champion, without, data_root, tensors)
        if is_champion and champion != version:
            versions.appoint(data_root, version, accuracy, by=versions.STEP, reason=reason)
    decision = Decision(
        version=version, path=str(folder), is_champion=is_champion, reason=reason, accuracy=accuracy,
        champion_accuracy=other,
    )  # fmt: skip
    log.info("%s is %schampion: %s", version, "" if is_champion else "not ", reason)
    registry.tell(model_registry, data_root, version)
    return decision


def _free_name(model: Path, recognizer: pth.Recognizer, models: Path) -> str:
    """Returns the name of the training run, or the digest of the model where it has none that can be a folder's.

    A folder of that name that holds another model is left alone: then the name gets the digest too. One that is
    damaged is deleted.
    """
    digest = files.sha256_of(model)
    run = recognizer.about.get("run")
    name = str(run) if run and versions.is_name(run) else digest[:12]
    for version in (name, f"{name}-{digest[:8]}"):
        folder = models / version
        if not files.is_complete(folder):
            return version
        try:
            manifest = versions.verify(folder)
        except (ValueError, OSError) as error:
            log.warning("%s is published anew, as it is damaged: %s", version, error)
            (folder / files.MANIFEST).unlink()  # so that it counts as half made
            return version
        if manifest["files"].get(versions.MODEL) == digest:
            return version
    return version


def _decide(
    version: str, accuracy: float, min_accuracy: float, champion: str | None, without: str, data_root: Path,
    tensors: Path,
) -> tuple[bool, str, float | None]:  # fmt: skip
    """Returns whether a version is to be champion, why, and the accuracy of the champion it met.

    Args:
        version: the new one.
        accuracy: of it.
        min_accuracy: what a champion must reach.
        champion: the version in use, or None.
        without: why there is none.
        data_root: has models/.
        tensors: the folder whose test split decides.
    """
    if champion == version:
        return True, "it was before", None
    if accuracy < min_accuracy:
        return False, f"accuracy {accuracy:.2%} is below min_accuracy {min_accuracy:.2%}", None
    if (record := versions.was_rolled_back(data_root, version)) is not None:
        return False, (f"{record['by']} took it out of use on {record['since']} ({record['reason']}); "
                       f"kws rollback --version {version} brings it back"), None  # fmt: skip
    if champion is None:
        return True, f"accuracy {accuracy:.2%}, and {without}", None
    folder = data_root / versions.MODELS / champion
    if not (folder / versions.MODEL).is_file():
        return True, f"accuracy {accuracy:.2%}, and {champion} is no longer there", None
    try:
        rival = pth.load(folder / versions.MODEL)
        versions.verify(folder)
    except (ValueError, OSError) as error:  # of an older version of the project, or damaged: then none can use it
        log.warning("the champion %s cannot be read: %s", champion, error)
        return True, f"accuracy {accuracy:.2%}, and {champion} cannot be read: {error}", None
    other = evaluate_tensors(rival, Tensors(tensors)).accuracy
    if accuracy > other:
        return True, f"accuracy {accuracy:.2%} beats {other:.2%} of {champion} on the same clips", other
    return (False, f"accuracy {accuracy:.2%} does not beat {other:.2%} of {champion} on the same clips", other)
