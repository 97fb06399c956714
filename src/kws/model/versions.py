"""Published versions and the champion: their files, verification and rollback. Needs no torch.

models/<version>/       manifest.json holds the SHA-256 of every other file, and is written last
    model.pth           for fine-tuning and for kws.model.bundle
    model.onnx          maps waveforms to probabilities; also model.int8.onnx if it is as accurate
    thresholds.json     the probability from which on a word counts as heard, for every word
    reference.wav       a clip; manifest.json has the probabilities that each model gave it on publication
    evaluation.json, report.html, MODEL_CARD.md
models/champion.json    the version in use, since when, by whom and why, and earlier champions
models/candidates.json  versions that wait or waited for a person's approval, and what became of them
models/candidate.html   the last of them beside the champion
"""

import calendar
import getpass
import itertools
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kws import files
from kws.model.detector import THRESHOLDS
from kws.settings import require
from kws.volume import require_volume

MODELS = "models"
CHAMPION = "champion.json"
CANDIDATES = "candidates.json"
COMPARISON = "candidate.html"
MODEL = "model.pth"
ONNX = "model.onnx"
INT8 = "model.int8.onnx"
REFERENCE = "reference.wav"
EVALUATION = "evaluation.json"
REPORT = "report.html"
CARD = "MODEL_CARD.md"
CANDIDATE = "candidate"
"""The state of a version that waits for a person's approval, and the name by which it is asked for."""

SERVED = (THRESHOLDS, REFERENCE, CARD, EVALUATION)
"""Files that a server reads beside the model, as far as they are there."""

REFERENCE_TOLERANCE = 0.05
"""How much a probability of the reference clip may differ from its value on publication. Processors differ by 1e-5 in
float32 and by 0.01 in 8 bits; one that saturates 8-bit products is off by tenths."""

KEPT = 100
"""Number of earlier champions in champion.json."""


def version_folder(data_root: Path, version: str) -> Path:
    """Returns models/<version>.

    Raises:
        ValueError: the version cannot be the name of a folder.
    """
    require(is_name(version), "version", "be the name of a folder of models/", version)
    return data_root / MODELS / version


def is_name(name: object) -> bool:
    """Tells whether `name` is a plain file name, which cannot lead outside its folder."""
    return isinstance(name, str) and Path(name).name == name != "" and not name.startswith(".") and "\0" not in name


def champion_record(data_root: Path) -> dict[str, Any] | None:
    """Reads models/champion.json; returns None if there is no champion yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = data_root / MODELS / CHAMPION
    try:
        return parse_champion(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def parse_champion(text: bytes, name: str) -> dict[str, Any]:
    """Parses a champion.json: `version`, `history`, and `since`, `by` and `reason` if they were recorded.

    The name is that of the file, for error messages.

    Raises:
        ValueError: the file is damaged, or was not written by kws.
    """
    try:
        record = files.parse_object(text, name, version=str)
        require(is_name(record["version"]), f"{name}: version", "be the name of a folder of models/", record["version"])
        history = record.setdefault("history", [])
        fits = isinstance(history, list) and all(
            isinstance(entry, dict) and is_name(entry.get("version")) for entry in history
        )
        require(fits, f"{name}: history", "be a list of versions", history)
    except ValueError as error:
        raise ValueError(f"{error}; kws rollback --version VERSION writes it anew") from error
    return record


def champion(data_root: Path) -> str | None:
    """Returns the version in use, or None if there is none yet.

    Raises:
        ValueError: models/champion.json is damaged.
    """
    record = champion_record(data_root)
    return None if record is None else str(record["version"])


def states(data_root: Path) -> dict[str, str]:
    """Returns which versions are champion, candidate or rejected; others have no state."""
    found = {one["version"]: one["state"] for one in proposals(data_root) if one["state"] in (CANDIDATE, "rejected")}
    return found | {version: "champion" for version in [champion(data_root)] if version}


def beside_champion(data_root: Path, name: str) -> str | None:
    """Returns the version to try beside the champion, or None if there is none, or it is the champion by now.

    The name is `candidate` for the one that waits, or that of a version.

    Raises:
        ValueError: models/candidates.json or models/champion.json is damaged.
    """
    waits = _waiting(proposals(data_root))
    version = name
    if name == CANDIDATE:
        version = waits["version"] if waits else ""
    return None if version in ("", champion(data_root)) else version


def find_model(name: str, data_root: Path) -> tuple[str, Path]:
    """Finds the `.pth` file of a model.

    Args:
        name: `champion`, the name of a version, or the path of a `.pth` file, relative to the data root.
        data_root: the folder that holds models/.

    Returns:
        The name of the version, or the path as given; and the path of the file.

    Raises:
        ValueError: there is no such model, or the version is damaged.
    """
    version = champion(data_root) if name == "champion" else name
    if version is None:
        raise ValueError(f"init must be a .pth file, as there is no champion in {data_root / MODELS} yet, got {name!r}")
    folder = data_root / MODELS / version
    if name == "champion" or (is_name(version) and files.is_complete(folder)):
        verify(folder, [MODEL])
        return version, folder / MODEL
    if not (data_root / name).is_file():
        known = ", ".join(versions(data_root)) or "there is none yet"
        raise ValueError(
            f"init must be champion, a version ({known}) or the path of a .pth file below {data_root}, got {name!r}"
        )
    return name, data_root / name


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a version.

    Raises:
        ValueError: the manifest is missing or damaged.
    """
    path = folder / files.MANIFEST
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ValueError(f"version {folder.name} must be complete, got no {files.MANIFEST} in {folder}") from None


def parse_manifest(text: bytes, name: str) -> dict[str, Any]:
    """Parses the manifest of a version: `version`, in `files` the SHA-256 of every other file, and details for users.

    The name is that of the file, for error messages.

    Raises:
        ValueError: the file is damaged, or was not written by kws.
    """
    manifest = files.parse_object(text, name, version=str, files=dict)
    for file, digest in manifest["files"].items():
        require(is_name(file), f"{name}: files", "be names of files in its folder", file)
        require(isinstance(digest, str), f"{name}: {file}", "have its SHA-256", digest)
    for field, kind in (("about", dict), ("words", list), ("reference", dict)):
        require(
            isinstance(manifest.get(field, kind()), kind),
            f"{name}: {field}",
            f"be a {kind.__name__}",
            manifest.get(field),
        )
    return manifest


def verify(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Checks files of a version against the digests in its manifest, and returns the manifest.

    Without names, these are all in the manifest, and the one that servers need.

    Raises:
        ValueError: a file is missing or has another digest; the message names it.
    """
    manifest = read_manifest(folder)
    for name in dict.fromkeys((*manifest["files"], ONNX)) if names is None else names:
        path, expected = folder / name, manifest["files"].get(name)
        if expected is None:
            raise ValueError(f"version {folder.name} must have a {name}, got none in its {files.MANIFEST}")
        if not path.is_file():
            raise ValueError(f"version {folder.name} must have its {name}, got none in {folder}")
        if (found := files.sha256_of(path)) != expected:
            raise ValueError(f"{path} must have the SHA-256 {expected[:12]}…, got {found[:12]}…: it is damaged")
    return manifest


def appoint(data_root: Path, version: str, accuracy: float | None, *, by: str, reason: str) -> None:
    """Makes a version champion by writing models/champion.json, whose lock the caller must hold.

    Its accuracy on its test split is 0 to 1, or None if unknown.
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
    """Makes an earlier version champion, and records who decided and why.

    Without a version it is the previous champion; without `by` it is user and machine.

    Returns:
        The champion before (empty if there was none) and the champion now.

    Raises:
        ValueError: the version does not exist, is damaged, or cannot be served; the champion stays as it was.
    """
    require_volume(data_root)
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
                    f"version must be given, got '', as there was no champion before {now or 'now'}; choose one of "
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


def proposals(data_root: Path) -> list[dict[str, Any]]:
    """Returns what was proposed as champion, the latest last; only the last may be waiting.

    Each has `version`, `accuracy`, `reason`, `against` (the champion then), `since`, `words` (a row for each, if it
    waits) and `state`: candidate, approved, rejected or replaced by a later one; and then `by`, `decided` and `why`.

    Raises:
        ValueError: the file is damaged.
    """
    path = data_root / MODELS / CANDIDATES
    try:
        return parse_proposals(path.read_bytes(), str(path))
    except FileNotFoundError:
        return []


def parse_proposals(text: bytes, name: str) -> list[dict[str, Any]]:
    """Parses a candidates.json; see `proposals`."""
    try:
        found = files.parse_object(text, name, proposals=list)["proposals"]
        fits = all(isinstance(one, dict) and is_name(one.get("version")) and one.get("state") for one in found)
        require(fits, name, "be as kws wrote it", "something else")
    except ValueError as error:
        raise ValueError(f"{error}; delete it: what was rejected may then be proposed again") from error
    return list(found)


def propose(data_root: Path, version: str, accuracy: float, reason: str, words: list[dict[str, Any]]) -> None:
    """Makes a version the candidate, in the place of one that waits. The caller must hold the lock of the champion.

    `reason` and `words` tell how it compares with the champion, on the whole and on each word.
    """
    before = [one for one in proposals(data_root) if one["version"] != version]
    for one in before:
        if one["state"] == CANDIDATE:
            one |= {"state": "replaced", "decided": _now(), "by": STEP, "why": f"by {version}", "words": []}
    new = {"version": version, "accuracy": accuracy, "reason": reason, "against": champion(data_root), "since": _now()}
    new |= {"words": words, "state": CANDIDATE}
    files.write_json(data_root / MODELS / CANDIDATES, {"proposals": [*before[-KEPT:], new]})


def waiting(proposals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the proposal that waits.

    Raises:
        ValueError: none does.
    """
    found = _waiting(proposals)
    if found is None:
        raise ValueError("a candidate must wait, got none: a run with --approval yes proposes one")
    return found


def _waiting(proposals: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((one for one in proposals[-1:] if one["state"] == CANDIDATE), None)


def decide(
    data_root: Path, is_approved: bool, version: str = "", *, by: str = "", reason: str = "", force: bool = False
) -> str:
    """Makes the candidate champion, or rejects it, and records who decided and why.

    A version is named to be sure which is meant; without `by` it is user and machine. With `force` it is approved even
    if it is old, or was compared with another champion than there is now.

    Returns:
        The version.

    Raises:
        ValueError: no candidate waits, or another one, or it may not be approved without force; all stays as it was.
    """
    require_volume(data_root)
    with files.lock(data_root / MODELS / CHAMPION):
        found = waiting(proposals(data_root))
        require(version in ("", found["version"]), "version", f"be {found['version']}, which waits", version)
        version, now = found["version"], champion(data_root)
        if is_approved:
            folder = version_folder(data_root, version)
            verify(folder)
            days = (time.time() - calendar.timegm(time.strptime(found["since"], _TIME))) / 86400
            if not force and days > CANDIDATE_DAYS:
                raise ValueError(
                    f"a candidate must be at most {CANDIDATE_DAYS} days old, got {days:.0f}; --force overrules"
                )
            if not force and found["against"] != now:
                raise ValueError(
                    f"the champion must be {found['against']}, with which {version} was compared, got {now}; "
                    "--force overrules"
                )
            said = f"approved by {by or who()}" + (f" ({reason})" if reason else "")
            if now != version:
                appoint(data_root, version, found["accuracy"], by=STEP, reason=f"{found['reason']}; {said}")
        decided = {"by": by or who(), "decided": _now(), "why": reason, "words": []}
        decided["state"] = "approved" if is_approved else "rejected"
        others = [one for one in proposals(data_root) if one["version"] != version]
        files.write_json(data_root / MODELS / CANDIDATES, {"proposals": [*others, found | decided]})
    return str(version)


CANDIDATE_DAYS = 30
"""A candidate that is older was compared with a world that is no more."""


def was_rolled_back(data_root: Path, version: str) -> dict[str, Any] | None:
    """Returns the champion record of the rollback that replaced a version, or None if it was not rolled back.

    A change of the champion is a rollback if it was not made by the promote step.
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
"""The value of `by` in a champion record that the pipeline wrote."""


def versions(data_root: Path) -> list[str]:
    """Returns the names of all complete versions, sorted; the name of a training run begins with its time."""
    folder = data_root / MODELS
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if files.is_complete(path))


def who() -> str:
    """Returns user@machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # the user id has no name, as in most containers
        return f"somebody@{socket.gethostname()}"


def _now() -> str:
    return time.strftime(_TIME, time.gmtime())


_TIME = "%Y-%m-%dT%H:%M:%SZ"
