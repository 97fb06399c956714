"""What is published: the files of a version, the one that is champion, and how it came to be. Needs no torch.

models/<version>/       manifest.json states the SHA-256 of every other file, and is written last
    model.pth           to train on, and what kws.model.bundle reads
    model.onnx          waveform in, probabilities out; model.int8.onnx where it is as good
    thresholds.json     from what probability on a word counts as heard
    reference.wav       a clip, and in manifest.json what each model heard in it when it was published
    evaluation.json, report.html, MODEL_CARD.md
models/champion.json    the version in use, since when, by whom and why, and those before it
"""

import getpass
import itertools
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kws import files
from kws.config import require
from kws.model.detector import THRESHOLDS

MODELS = "models"
CHAMPION = "champion.json"
MODEL = "model.pth"
ONNX = "model.onnx"
INT8 = "model.int8.onnx"
REFERENCE = "reference.wav"
EVALUATION = "evaluation.json"
REPORT = "report.html"
CARD = "MODEL_CARD.md"

SERVED = (THRESHOLDS, REFERENCE, CARD)
"""What a server reads beside the model, where a version has it; those of before had none."""

REFERENCE_TOLERANCE = 0.05
"""How far a probability of the reference clip may be from what it was when the model was published. Processors differ
by 1e-5 in float32, and by 0.01 in 8 bits; one that saturates products of 8 bits is off by tenths."""

KEPT = 100
"""Changes of the champion that champion.json remembers."""


def version_folder(data_root: Path, version: str) -> Path:
    """Returns models/<version>.

    Raises:
        ValueError: the version is no name of a folder.
    """
    require(is_name(version), "version", "be the name of a folder of models/", version)
    return data_root / MODELS / version


def is_name(name: object) -> bool:
    """Tells whether something can name a folder or a file of its folder, and nothing outside."""
    return isinstance(name, str) and Path(name).name == name != "" and not name.startswith(".") and "\0" not in name


def champion_record(data_root: Path) -> dict[str, Any] | None:
    """Reads models/champion.json; None where there is no champion yet.

    Raises:
        ValueError: the file is not as it was written.
    """
    path = data_root / MODELS / CHAMPION
    try:
        return parse_champion(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def parse_champion(text: bytes, name: str) -> dict[str, Any]:
    """Parses a champion.json: `version`, and since when, by whom, why and those before it where they were written.

    Args:
        text: its content.
        name: of the file, for the message.

    Raises:
        ValueError: it is damaged, or not of kws.
    """
    try:
        record = files.parse_object(text, name, version=str)
        require(is_name(record["version"]), f"{name}: version", "be the name of a folder of models/", record["version"])
        history = record.setdefault("history", [])
        fits = isinstance(history, list) and all(isinstance(entry, dict) and is_name(entry.get("version"))
                                                 for entry in history)  # fmt: skip
        require(fits, f"{name}: history", "be a list of versions", history)
    except ValueError as error:
        raise ValueError(f"{error}; kws rollback --version sets it anew") from error
    return record


def champion(data_root: Path) -> str | None:
    """Returns the version in use; None where there is none yet.

    Raises:
        ValueError: models/champion.json is damaged.
    """
    record = champion_record(data_root)
    return None if record is None else str(record["version"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a version.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / files.MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ValueError(f"version {folder.name} must be complete, got no {files.MANIFEST} in {folder}") from None


def parse_manifest(text: bytes, name: str) -> dict[str, Any]:
    """Parses the manifest of a version: `version`, in `files` the SHA-256 of every other file, and what people ask.

    Args:
        text: its content.
        name: of the file, for the message.

    Raises:
        ValueError: it is damaged, or not of kws.
    """
    manifest = files.parse_object(text, name, version=str, files=dict)
    for file, digest in manifest["files"].items():
        require(is_name(file), f"{name}: files", "be names of its folder", file)
        require(isinstance(digest, str), f"{name}: {file}", "have its SHA-256", digest)
    for field, kind in (("about", dict), ("words", list), ("reference", dict)):
        require(isinstance(manifest.get(field, kind()), kind), f"{name}: {field}", f"be a {kind.__name__}",
                manifest.get(field))  # fmt: skip
    return manifest


def verify(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Checks files of a version against the digests of its manifest, which is returned.

    Args:
        folder: models/<version>.
        names: the files; None: all that the manifest states.

    Raises:
        ValueError: one is missing or has another digest; the message names it.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"] if names is None else names:
        path, expected = folder / name, manifest["files"].get(name)
        if expected is None:
            raise ValueError(f"version {folder.name} must have a {name}, got none in its {files.MANIFEST}")
        if not path.is_file():
            raise ValueError(f"version {folder.name} must have its {name}, got none in {folder}")
        if (found := files.sha256_of(path)) != expected:
            raise ValueError(f"{path} must have the SHA-256 {expected[:12]}…, got {found[:12]}…: it is damaged")
    return manifest


def appoint(data_root: Path, version: str, accuracy: float | None, *, by: str, reason: str) -> None:
    """Writes models/champion.json. The caller holds its lock.

    Args:
        data_root: the folder of models/.
        version: the new champion.
        accuracy: of the version on its test split, 0 to 1.
        by: who decided.
        reason: why.
    """
    try:
        before = champion_record(data_root)
    except ValueError:
        before = None
    history = [*before.pop("history", []), before] if before else []
    files.delete_unfinished(data_root / MODELS)
    record = {"version": version, "accuracy": accuracy, "since": _now(), "by": by, "reason": reason}
    files.write_json(data_root / MODELS / CHAMPION, record | {"history": history[-KEPT:]})


def rollback(data_root: Path, version: str = "", *, by: str = "", reason: str = "") -> tuple[str, str]:
    """Makes an earlier version champion, with who and why recorded.

    Args:
        data_root: the folder of models/.
        version: the version; empty: the one that was champion before the present one.
        by: who decides; empty: user and machine.
        reason: why.

    Returns:
        The champion before, and the champion now.

    Raises:
        ValueError: there is no such version, or it is damaged: then the champion stays.
    """
    with files.lock(data_root / MODELS / CHAMPION):
        try:
            record = champion_record(data_root)
        except ValueError:
            if not version:
                raise
            record = None
        now = record["version"] if record else ""
        if not version:
            earlier = [entry["version"] for entry in (record or {}).get("history", []) if entry["version"] != now]
            if not earlier:
                raise ValueError(
                    f"there must have been a champion before {now or 'any'} to go back to, got none; name a version of "
                    f"{', '.join(versions(data_root)) or 'models/, which is empty'}"
                )
            version = earlier[-1]
        folder = version_folder(data_root, version)
        if not files.is_complete(folder):
            raise ValueError(
                f"version must be one of {', '.join(versions(data_root)) or 'models/, which is empty'}, got {version!r}"
            )
        manifest = verify(folder)
        if version != now:
            appoint(data_root, version, manifest.get("accuracy"), by=by or who(), reason=reason or "rollback")
    return now, version


def was_rolled_back(data_root: Path, version: str) -> dict[str, Any] | None:
    """Returns the record of the rollback that took a version out of use, None where nobody did.

    It is the record of the champion that followed, where that was not appointed by the step.
    """
    try:
        record = champion_record(data_root)
    except ValueError:
        return None
    entries = [*record.get("history", []), record] if record else []
    if not entries or entries[-1]["version"] == version:
        return None
    found = None
    for entry, following in itertools.pairwise(entries):
        if entry["version"] == version:
            found = None if following.get("by", STEP) == STEP else following
    return found


STEP = "the promote step"
"""Who appoints a champion where it is not a person."""


def versions(data_root: Path) -> list[str]:
    """Returns the names of all complete versions, sorted: those of runs begin with their time."""
    folder = data_root / MODELS
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if files.is_complete(path))


def who() -> str:
    """Names the user and the machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a user without a name, as in most containers
        return f"somebody@{socket.gethostname()}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
