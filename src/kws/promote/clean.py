"""Deletes from a data root what nothing needs any more: runs, versions, tensors, parts of features, data sets.

Kept are the latest finished runs with all that they are made of and made; champion, candidate and the champion before;
what a run that has not finished, the Model Registry or the caller needs; and what was used in the last days
(`kws.volume.use`), as a run between two steps holds no lock. A folder is deleted whole: it is renamed into `.deleted/`,
which nothing reads, and then removed. The next call removes what a killed one left there. Needs no torch.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kws import files
from kws.config import CleanConfig
from kws.data import parts
from kws.data.digest import listing_digest, read_manifest
from kws.data.sources import AUTO, list_recordings
from kws.model import versions
from kws.promote import registry
from kws.train import runs
from kws.volume import LOCK, last_used, require_volume

log = logging.getLogger(__name__)

TRASH = ".deleted"

ABANDONED_DAYS = 14.0
"""After so many days without a process a run that has not finished is given up."""

DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A folder or file to delete."""

    path: Path
    kind: str
    """runs, models, tensors, features, datasets, downloads, artifacts or checkpoints."""
    num_bytes: int


@dataclass(kw_only=True)
class Plan:
    """What is to be deleted, in an order in which nothing that is left refers to what is gone."""

    pieces: list[Piece] = field(default_factory=list)
    kept: dict[Path, str] = field(default_factory=dict)
    """What nothing needs and is kept all the same, and why."""

    def lines(self, data_root: Path) -> Iterator[str]:
        """Yields what is to be deleted and how much, and what is kept all the same."""
        for path, why in self.kept.items():
            yield f"kept {path.relative_to(data_root)}: {why}"
        for piece in self.pieces:
            yield f"{piece.path.relative_to(data_root)}  {files.human_bytes(piece.num_bytes)}"
        total = sum(piece.num_bytes for piece in self.pieces)
        kinds = Counter(piece.kind for piece in self.pieces)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        yield f"{files.human_bytes(total)} in all: {counts}" if kinds else "nothing to delete"


def clean(
    data_root: Path,
    config: CleanConfig,
    *,
    model_registry: str = "",
    say: Callable[[str], object] = log.info,
    now: float | None = None,
) -> Plan:
    """Deletes what nothing needs, after saying what and how much.

    The live entries of a registry keep their versions. `say` takes the lines; `now` is in seconds since 1970.

    Returns:
        What was deleted, or would be.

    Raises:
        ValueError: champion.json or candidates.json is damaged, or the registry does not answer: what is needed is
            not known.
    """
    if not config.dry_run:
        require_volume(data_root)
        _empty(data_root / TRASH)
    listed = registry.live_versions(model_registry) if model_registry else set[str]()
    # While this lock is held, nothing that is not in use comes into use.
    with files.lock(data_root / LOCK) if not config.dry_run else contextlib.nullcontext():
        now = time.time() if now is None else now
        plan = _Survey(data_root, config, listed, now).plan()
        for line in plan.lines(data_root):
            say(line)
        if not config.dry_run:
            for piece in plan.pieces:
                _discard(piece.path, data_root / TRASH)
    if not config.dry_run:
        _empty(data_root / TRASH)
    return plan


class _Survey:
    """What there is on a volume, and what needs what."""

    def __init__(self, data_root: Path, config: CleanConfig, listed: Collection[str], now: float) -> None:
        self.root, self.keep, self.found = data_root, config.keep, Plan()
        self.recent, self.abandoned = now - config.days * DAY, now - max(config.days, ABANDONED_DAYS) * DAY
        self.sources = config.needed.split("\n")
        self.named = {part for name in self.sources for part in Path(name).parts} | set(listed)

    def plan(self) -> Plan:
        record = versions.champion_record(self.root) or {"version": "", "history": []}
        before = [entry["version"] for entry in record["history"] if entry["version"] != record["version"]]
        published = {name: self._read("models", name) for name in self._names("models")}
        trained = {
            name: self._read("runs", name, runs.CONFIG)
            for name in self._names("runs")
            if re.fullmatch(r"\d{8}-\d{6}-.+", name) and (self.root / "runs" / name / runs.CONFIG).is_file()
        }
        finished = sorted(name for name in trained if files.is_complete(self.root / "runs" / name))
        latest = set(finished[-self.keep :])

        # Versions, and the runs that they are of: a version has the name of its run, maybe with a digest behind it.
        wanted = {record["version"], *before[-1:]} | self.named
        wanted |= {one["version"] for one in versions.proposals(self.root) if one["state"] == "candidate"}
        kept_versions = {
            name for name, manifest in published.items() if name in wanted or _run_of(name, manifest) in latest
        } | {name for name in published if self._in_use("models", name)}
        kept_runs = (
            latest
            | {_run_of(name, published[name]) for name in kept_versions}
            | {name for name in trained if name in self.named or self._in_use("runs", name)}
            | {name for name in trained if name not in finished and self._may_go_on(name)}
        )
        for name in kept_runs & trained.keys():  # the models that they started from
            init = str(trained[name].get("init", {}).get("model", ""))
            kept_versions |= {init} & published.keys()
            kept_runs |= set(Path(init).parts) & trained.keys()

        tensors = {name: self._read("tensors", name) for name in self._names("tensors")}
        named = {Path(trained[name]["tensors"]["path"]).name for name in kept_runs & trained.keys()}
        named |= {str(published[name].get("about", {}).get("tensors", "")) for name in kept_versions}
        kept_tensors = {name for name in tensors if name in named or self._in_use("tensors", name)}
        for name in self._names("artifacts")[: -self.keep]:
            self._delete("artifacts", name, re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", name) is not None)
        for name in published.keys() - kept_versions:
            own = {*published[name].get("files", ()), files.MANIFEST}
            self._delete("models", name, published[name].get("version") == name, own.__contains__)
        for name in sorted(trained.keys() - kept_runs):
            self._delete("runs", name, "recipe" in trained[name], _OF_RUN.fullmatch)
        for name in sorted(kept_runs & set(finished)):  # of earlier releases, or of processes that were killed
            if (self.root / "runs" / name / "checkpoints").is_dir():
                self._delete(f"runs/{name}", "checkpoints", True, _OF_CHECKPOINTS.fullmatch)
        for name in sorted(tensors.keys() - kept_tensors):
            self._delete("tensors", name, tensors[name].get("fingerprint") == name, _OF_ARRAYS.fullmatch)
        gone = {piece.path.name for piece in self.found.pieces if piece.kind == "tensors"}
        left = [tensors[name] for name in tensors.keys() - gone]
        kept_parts = {part for manifest in left for part in manifest.get("parts", ())}
        for settings in self._names("features"):
            for name in self._names(f"features/{settings}"):
                if f"{settings}/{name}" not in kept_parts and not self._in_use(f"features/{settings}", name):
                    ours = re.fullmatch("[0-9a-f]{16}/[0-9a-f]{16}", f"{settings}/{name}") is not None
                    self._delete(f"features/{settings}", name, ours, _OF_ARRAYS.fullmatch)
        self._plan_data({Path(manifest.get("recordings", {}).get("path", "")).name for manifest in left})
        for folder in ("models", "tensors", "datasets", *(f"features/{name}" for name in self._names("features"))):
            self._leftovers(folder)
        for path in sorted((self.root / "downloads").glob("[!.]*")):
            if last_used(path) < self.recent and _is_free(path.with_name(path.name.removesuffix(".json"))):
                self._delete("downloads", path.name, True)
        return self.found

    def _plan_data(self, kept: set[str]) -> None:
        """Adds the data sets that are not needed; `kept` are those that tensors name."""
        folder = self.root / "datasets"
        data = {name: read_manifest(folder / name) or {} for name in self._names("datasets")}
        several = [name for name in data if parts.is_of_parts(folder / name)]
        kept |= {name for name in data if self._in_use("datasets", name)}
        for source in self.sources:
            of_source = [name for name, manifest in data.items() if manifest.get("source") == source]
            kept |= set(sorted(of_source, key=lambda name: last_used(folder / name))[-1:])
        for name in kept & set(several):
            kept |= {part["folder"] for part in files.read_object(folder / name / parts.PARTS, parts=list)["parts"]}
        for name in sorted(data.keys() - kept, key=lambda name: name not in several):
            self._delete("datasets", name, _is_as_downloaded(folder / name, data[name]))

    def _names(self, folder: str) -> list[str]:
        """Returns the complete folders in a folder, and of runs/ and artifacts/ all, sorted; no links."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            whole = folder in ("runs", "artifacts", "features")
            return sorted(
                entry.name
                for entry in entries
                if entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
                if whole or files.is_complete(Path(entry.path))
            )
        return []

    def _read(self, folder: str, name: str, file: str = files.MANIFEST) -> dict[str, Any]:
        """Returns a JSON object; one that is damaged or of others is empty, so that nothing follows from it."""
        with contextlib.suppress(ValueError, OSError):
            fields: dict[str, type] = {"tensors": dict, "recipe": dict} if file == runs.CONFIG else {}
            return files.read_object(self.root / folder / name / file, **fields)
        return {"tensors": {"path": ""}}

    def _in_use(self, folder: str, name: str) -> bool:
        return last_used(self.root / folder / name) >= self.recent

    def _may_go_on(self, run: str) -> bool:
        """Tells whether a run that has not finished is being trained, or may be resumed."""
        folder = self.root / "runs" / run
        newest = max((last_used(path) for path in (folder, folder / "checkpoints") if path.exists()), default=0.0)
        return newest >= self.abandoned or not all(map(_is_free_file, (folder / ".owner", folder / runs.STARTER)))

    def _delete(self, folder: str, name: str, is_ours: bool, own: Callable[[str], object] = lambda entry: True) -> None:
        """Adds a folder to the plan unless it is not as kws made it.

        `own` tells of the name of an entry in it whether it is one of ours.
        """
        path = self.root / folder / name
        foreign = (
            sorted(e.name for e in os.scandir(path) if not own(e.name) and e.name[0] != ".") if path.is_dir() else []
        )
        if not is_ours or foreign:
            self.found.kept[path] = f"{foreign[0]} in it is not of kws" if foreign else "it is not as kws made it"
        elif folder == "artifacts" and self._in_use(folder, name):
            pass
        else:
            kind = name if name == "checkpoints" else folder.partition("/")[0]
            self.found.pieces.append(Piece(path=path, kind=kind, num_bytes=size_of(path)))

    def _leftovers(self, folder: str) -> None:
        """Adds what killed processes left half built."""
        for path in sorted((self.root / folder).glob(".*.partial-*")):
            found = re.fullmatch(r"\.(.+)\.partial-[0-9a-f]{8}", path.name)
            if found and last_used(path) < self.recent and _is_free(path.with_name(found[1])):
                self._delete(folder, path.name, True)


_OF_RUN = re.compile(r"config\.json|manifest\.json|metrics\.jsonl|init\.pth|best\.pth|checkpoints|logs|events\.out\..*")
_OF_CHECKPOINTS = re.compile(r"step-\d+\.pth")
_OF_ARRAYS = re.compile(r"manifest\.json|.*\.np[yz]|speech\..*")


def _run_of(version: str, manifest: dict[str, Any]) -> str:
    return str(manifest.get("about", {}).get("run", version))


def _is_as_downloaded(folder: Path, manifest: dict[str, Any]) -> bool:
    """Tells whether a data set was made by kws and holds the recordings that it then held."""
    if not manifest or not folder.name.startswith(f"{manifest['name']}-{manifest['sha256'][:8]}"):
        return False
    if parts.is_of_parts(folder):
        return True
    try:
        listing = list_recordings(folder, manifest.get("layout_asked_for", AUTO))
        return bool(manifest.get("listing") == listing_digest(listing))
    except (ValueError, OSError):
        return False


def _is_free(path: Path) -> bool:
    """Tells whether no process holds the lock of a path."""
    return _is_free_file(path.parent / f".{path.name}.lock")


def _is_free_file(lock: Path) -> bool:
    try:
        with files.hold(lock, 0) if lock.is_file() else contextlib.nullcontext():
            return True
    except files.Busy:
        return False


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    found = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found += os.lstat(os.path.join(folder, name)).st_size
    return found


def _discard(path: Path, trash: Path) -> None:
    """Renames a folder so that nothing finds it."""
    trash.mkdir(exist_ok=True)
    try:
        path.rename(trash / f"{secrets.token_hex(4)}-{path.name.lstrip('.')}")
        files.sync_folder(path.parent)
    except OSError as error:  # another disk, or of another user
        log.warning("%s stays, as it cannot be renamed: %s", path, error.strerror)


def _empty(trash: Path) -> None:
    for path in trash.glob("*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
