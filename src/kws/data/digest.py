"""Digests of recordings, which tell whether they are the same as before."""

import hashlib
import itertools
import logging
import os
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.config import SILENCE
from kws.cores import num_cores
from kws.data.index import Index, Lookup, Strings, pooled, strings, unpooled
from kws.data.listing import Listing
from kws.data.pack import FOLDER, PLACES, Pack, by_part, not_packed

log = logging.getLogger(__name__)

FILES_PER_TASK = 256

DIGESTS = ".digests.npz"
"""The file in a downloaded folder with names, sizes, modification times and SHA-256 of all its files that matter."""

KEY = np.dtype("V16")
"""The type of the key of a clip: a digest of 128 bits."""

Keys = npt.NDArray[np.void]

DIGEST = np.dtype("V32")
"""The type of a SHA-256."""


class Digests:
    """The SHA-256 of the files of a recordings folder. None is computed twice, nor again after its download."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[str, _Known] = {}

    def of(self, names: Strings) -> npt.NDArray[np.void]:
        """Returns the digests of files, [names]; those that are not known are computed by one thread for every core.

        Raises:
            OSError: a file cannot be read.
        """
        found = np.zeros(len(names), DIGEST)
        for part, rows, there in by_part(names):
            if part not in self._parts:
                self._parts[part] = _Known(self.folder / part)
            found[rows] = self._parts[part].of(there)
        return found

    def of_all(self, names: Strings) -> str:
        """Returns the SHA-256 of names and contents of files."""
        digest = hashlib.sha256()
        for name, one in zip(names, self.of(names), strict=True):
            digest.update(f"{name}\0{one.tobytes().hex()}\n".encode())
        return digest.hexdigest()

    def keys(self, clips: Index) -> Keys:
        """Returns what tells apart the sounds of clips, [clips]: digests of the files' contents and what is cut out."""
        files, codes = clips.files_of_clips()
        contents, keys = self.of(files), np.zeros(len(clips), KEY)
        for number, (clip, code) in enumerate(zip(clips, codes, strict=True)):
            stretch = clip.stretch and tuple(map(float, clip.stretch))
            part = (clip.row, stretch, clip.begin, clip.gain, clip.word == SILENCE)
            keys[number] = hashlib.sha256(contents[code].tobytes() + repr(part).encode()).digest()[: KEY.itemsize]
        return keys

    def save(self, names: Strings) -> None:
        """Writes the digests of files to the folder, where they are valid for as long as the files do not change."""
        names = next((not_packed(self.folder, there) for part, _, there in by_part(names) if not part), names[:0])
        status = np.array([_size_and_time(self.folder, name) for name in names], np.int64).reshape(-1, 2)
        ends, pool = pooled(names)
        digests = self.of(names).view(np.uint8).reshape(-1, DIGEST.itemsize)
        with (self.folder / DIGESTS).open("wb") as file:
            columns: dict[str, Any] = {
                "ends": ends,
                "pool": pool,
                "sizes": status[:, 0],
                "times": status[:, 1],
                "digests": digests,
            }
            np.savez(file, allow_pickle=False, **columns)


class _Known:
    """What is known of the digests of the files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pack = Pack.of(folder)
        self.names, self.digests = _read(folder)
        self.lookup = Lookup(self.names)

    def of(self, names: Strings) -> npt.NDArray[np.void]:
        """Returns the digests of files, [names]."""
        found = np.zeros(len(names), DIGEST)
        packed = np.full(len(names), -1) if self.pack is None else self.pack.rows(names)
        if self.pack is not None:
            found[packed >= 0] = self.pack.places["digest"][packed[packed >= 0]]
        others = np.flatnonzero(packed < 0)
        missing = np.unique(names[others[self.lookup.row_of(names[others]) < 0]])
        if len(missing):
            tasks = [missing[first : first + FILES_PER_TASK] for first in range(0, len(missing), FILES_PER_TASK)]
            with ThreadPoolExecutor(num_cores()) as pool:
                self.digests = np.concatenate([self.digests, *pool.map(self._compute, tasks)])
            self.names = np.concatenate([self.names, missing])
            self.lookup = Lookup(self.names)
        found[others] = self.digests[self.lookup.row_of(names[others])]
        return found

    def _compute(self, names: Strings) -> npt.NDArray[np.void]:
        digests = [bytes.fromhex(files.sha256_of(self.folder / name)) for name in names]
        return np.frombuffer(b"".join(digests), DIGEST)


def _read(folder: Path) -> tuple[Strings, npt.NDArray[np.void]]:
    """Returns the names of the files that have not changed since a download left their digests, and these."""
    path = folder / DIGESTS
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as stored:
                names, digests = unpooled(stored["ends"], stored["pool"]), stored["digests"].reshape(-1).view(DIGEST)
                before = np.stack([stored["sizes"], stored["times"]], 1)
            same = [
                _size_and_time(folder, name) == (size, time) for name, (size, time) in zip(names, before, strict=True)
            ]
            return names[same], digests[same]
        except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s): reading the recordings again", path, error)
    return strings([]), np.zeros(0, DIGEST)


def _size_and_time(folder: Path, name: str) -> tuple[int, int]:
    try:
        status = os.stat(f"{folder}/{name}")
    except FileNotFoundError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def fingerprint(listing: Listing, clips: Index, digests: Digests) -> str:
    """Returns the digest of the recordings: from the manifest of an unedited download, else computed from all files."""
    if (known := known_digest(listing)) is not None:
        return known
    if read_manifest(listing.folder) is not None:
        return digests.of_all(names_of(listing))  # as a manifest written now would have
    return digests.of_all(listing.files_of(clips))


def content_digest(listing: Listing) -> str:
    """Returns the SHA-256 of the names and contents of all recordings, noise recordings and lists, in sorted order."""
    return Digests(listing.folder).of_all(names_of(listing))


def listing_digest(listing: Listing) -> str:
    """Returns the SHA-256 of names, sizes and modification times: quick to compute, and different after an edit."""
    digest = hashlib.sha256()
    for part, _, names in by_part(names_of(listing)):
        folder, prefix = listing.folder / part, f"{part}/" if part else ""
        packed = (f"{FOLDER}/{PLACES}",) if Pack.of(folder) is not None else ()
        for name in itertools.chain(not_packed(folder, names), packed):
            status = os.stat(f"{folder}/{name}")
            digest.update(f"{prefix}{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
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
        before, now = Counter(manifest["words"]), Counter(listing.clips.counts())
        changed = ", ".join(sorted((now - before) | (before - now))[:5])
        log.warning(
            "%s was edited (or copied) after its download%s: reading what has changed",
            listing.folder,
            f" (the number of recordings changed for {changed})" if changed else "",
        )
    return None


def names_of(listing: Listing) -> Strings:
    """Returns all files on which a data set depends, sorted folder by folder."""
    names = listing.files_of(listing.clips)
    return names[np.argsort(np.strings.replace(names, "/", "\0"), kind="stable")]
