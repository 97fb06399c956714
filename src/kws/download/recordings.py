"""Lists the contents of a recordings folder, in the same way for every step and command."""

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws import files
from kws.config import BACKGROUND_NOISE

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".opus", ".mp3")
"""File name suffixes of recordings, in upper or lower case; libsndfile reads these formats."""

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
"""The split lists that may lie beside the word folders, by split; their case does not matter."""

NAMED = 20
"""How many of the files that were not read a manifest names; it counts all of them."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The contents of a recordings folder, sorted. A clip id is `<word>/<name>`."""

    folder: Path
    clips: Mapping[str, list[str]]
    """Clip ids by word. A folder whose name begins with _ is not a word."""
    noise: list[str]
    """Ids of the background noise recordings."""
    lists: Mapping[str, Path]
    """The paths of the split lists that exist, by split."""
    not_read: Mapping[str, str]
    """All other files except hidden ones, with the reason why each is not read."""

    @property
    def words(self) -> list[str]:
        """The words, which are the names of their folders."""
        return list(self.clips)

    def clips_of(self, words: Iterable[str]) -> list[str]:
        """Returns the ids of the clips of some words, sorted."""
        return sorted(clip for word in words for clip in self.clips.get(word, []))

    def figures(self) -> dict[str, Any]:
        """Returns, for a manifest, how many files are not read, and the first NAMED of them with the reasons."""
        return {"num_files": len(self.not_read), "first": dict(list(self.not_read.items())[:NAMED])}

    def report(self) -> None:
        """Logs which files are not read, in one line for every reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.not_read.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            log.warning(
                "%s: %d not read, as %s: %s%s", printable(self.folder), len(names), reason, ", ".join(names[:3]), more
            )


def list_recordings(folder: Path) -> Listing:
    """Lists a folder of `<word>/<recording>`.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"recordings must be a folder of <word>/*.wav, got {str(folder)!r}")
    found: dict[str, list[str]] = {}
    lists: dict[str, Path] = {}
    not_read: dict[str, str] = {}
    for entry in _scan(folder):
        split = next((split for split, name in LISTS.items() if name == entry.name.lower()), None)
        if _is_folder(entry):
            recordings, others = _list_word(entry)
            if recordings and not entry.name.isprintable():
                others = {f"{printable(entry.name)}/": "the name of a folder must be of printable UTF-8"}
            elif recordings and entry.name.startswith("_") and entry.name != BACKGROUND_NOISE:
                others = {f"{entry.name}/": "the name of a word must not begin with _"}
            elif recordings:
                found[entry.name] = recordings
            not_read |= others
        elif split and _is_file(entry):
            lists[split] = Path(entry.path)
        elif is_recording(entry.name):
            not_read[printable(entry.name)] = "recordings must lie in the folder of their word"
    noise = found.pop(BACKGROUND_NOISE, [])
    return Listing(folder=folder, clips=found, noise=noise, lists=lists, not_read=not_read)


def list_tree(folder: Path) -> list[Path]:
    """Returns all recordings below a folder, sorted; logs which files are not read."""
    found: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += (recordings := [path for path in paths if is_recording(path.name) and path.is_file()])
        others += set(paths) - set(recordings)
    if found and others:
        listed = ", ".join(printable(path) for path in sorted(others)[:3])
        log.warning(
            "%s: %d files not read, as they are no recordings by their names: %s%s",
            printable(folder),
            len(others),
            listed,
            " …" if len(others) > 3 else "",
        )
    return sorted(found)


def is_recording(name: str) -> bool:
    """Tells by its name whether a file is a recording."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def printable(path: Path | str) -> str:
    r"""Returns a path as a line that can be written anywhere; bytes that are not UTF-8 become \udc…"""
    return one_line(str(path).encode("utf-8", "backslashreplace").decode())


def one_line(text: str) -> str:
    r"""Returns a text with its control characters escaped, such as \n and those that would command a terminal."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) == "Cc" else char for char in text
    )


def content_digest(listing: Listing) -> str:
    """Returns the SHA-256 of the names and contents of all recordings, noise recordings and lists, in sorted order."""
    digest = hashlib.sha256()
    for name in _names(listing):
        digest.update(f"{name}\0{files.sha256_of(listing.folder / name)}\n".encode())
    return digest.hexdigest()


def listing_digest(listing: Listing) -> str:
    """Returns the SHA-256 of names, sizes and modification times: quick to compute, and different after an edit."""
    digest = hashlib.sha256()
    for name in _names(listing):
        status = (listing.folder / name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest that `kws.download.step` left in a folder, or None if there is none or another tool's."""
    if not files.is_complete(folder):
        return None
    try:
        manifest = files.read_json(folder / files.MANIFEST)
    except ValueError:  # for example NeMo's, which has a line of JSON for every recording
        return None
    texts = ("name", "source", "sha256")
    ours = isinstance(manifest, dict) and all(isinstance(manifest.get(key), str) for key in texts)
    return manifest if ours and isinstance(manifest.get("words"), dict) else None


def known_digest(listing: Listing) -> str | None:
    """Returns the content digest from the manifest of a downloaded folder, or None if the folder was edited since."""
    manifest = read_manifest(listing.folder)
    if manifest is None:
        if files.is_complete(listing.folder):
            log.info(
                "%s is not of kws download: reading every file to compute the fingerprint of the recordings",
                listing.folder / files.MANIFEST,
            )
        return None
    if manifest.get("listing") == listing_digest(listing):
        return str(manifest["content"])
    if "listing" in manifest:
        before, now = Counter(manifest["words"]), Counter({word: len(some) for word, some in listing.clips.items()})
        changed = ", ".join(sorted((now - before) | (before - now))[:5])
        log.warning(
            "%s was edited (or copied) after its download%s: reading every file again",
            listing.folder,
            f" (the number of recordings changed for {changed})" if changed else "",
        )
    return None


def _names(listing: Listing) -> list[str]:
    names = [*listing.clips_of(listing.words), *listing.noise, *(path.name for path in listing.lists.values())]
    return sorted(names, key=lambda name: name.split("/"))


def _list_word(folder: "os.DirEntry[str]") -> tuple[list[str], dict[str, str]]:
    """Returns the clip ids in a word folder, sorted, and the other files with the reasons why they are not read."""
    found: list[str] = []
    others: dict[str, str] = {}
    for entry in _scan(folder):
        name = f"{folder.name}/{entry.name}"
        if not is_recording(entry.name):
            kind = "a folder in the folder of a word" if _is_folder(entry) else "no recording by its name"
            others[printable(name)] = f"it is {kind}"
        elif not is_utf8(entry.name):
            others[printable(name)] = "its name is not UTF-8 (rename it)"
        elif not _is_file(entry):
            others[name] = "it is no regular file"
        else:
            found.append(name)
    return found, others


def _scan(folder: "Path | os.DirEntry[str]") -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def is_utf8(name: str) -> bool:
    """Tells whether the name of a file is UTF-8."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a symbolic link to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
