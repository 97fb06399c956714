"""Digests of recordings, which tell whether they are the same as before."""

import contextlib
import hashlib
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.config import SILENCE
from kws.cores import num_cores
from kws.data.clip import Clip
from kws.data.index import Texts
from kws.data.listing import Listing

log = logging.getLogger(__name__)

FILES_PER_TASK = 256

DIGESTS = ".digests.npz"
"""The file in a downloaded folder with names, sizes, modification times and SHA-256 of all its files that matter."""

KEY = np.dtype("V16")
"""The type of the key of a clip: a digest of 128 bits."""

Keys = npt.NDArray[np.void]


class Digests:
    """The SHA-256 of the files of a recordings folder. None is computed twice, nor again after its download."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, bytes] = {}
        self._folders: set[str] = set()

    def of(self, names: Sequence[str]) -> list[bytes]:
        """Returns the digests of files; those that are not known are computed by one thread for every core.

        Raises:
            OSError: a file cannot be read.
        """
        for part in {name.split("/")[1] if name.startswith("../") else "" for name in names} - self._folders:
            self._folders.add(part)
            self._known |= _read(self.folder, f"../{part}/" if part else "")
        missing = [name for name in names if name not in self._known]
        tasks = [missing[first : first + FILES_PER_TASK] for first in range(0, len(missing), FILES_PER_TASK)]
        with ThreadPoolExecutor(num_cores()) as pool:
            for found in pool.map(self._compute, tasks):
                self._known |= found
        return [self._known[name] for name in names]

    def of_all(self, names: Sequence[str]) -> str:
        """Returns the SHA-256 of names and contents of files."""
        digest = hashlib.sha256()
        for name, one in zip(names, self.of(names), strict=True):
            digest.update(f"{name}\0{one.hex()}\n".encode())
        return digest.hexdigest()

    def keys(self, clips: Sequence[Clip]) -> Keys:
        """Returns what tells apart the sounds of clips, [clips]: digests of the files' contents and what is cut out."""
        keys = bytearray()
        for clip, content in zip(clips, self.of([clip.file for clip in clips]), strict=True):
            stretch = clip.stretch and tuple(map(float, clip.stretch))
            part = (clip.row, stretch, clip.begin, clip.gain, clip.word == SILENCE)
            keys += hashlib.sha256(content + repr(part).encode()).digest()[: KEY.itemsize]
        return np.frombuffer(keys, KEY)

    def save(self, names: Sequence[str]) -> None:
        """Writes the digests of files to the folder, where they are valid for as long as the files do not change."""
        names = [name for name in names if not name.startswith("../")]
        texts, status = Texts.of(names), [os.stat(f"{self.folder}/{name}") for name in names]
        digests = np.frombuffer(b"".join(self.of(names)), np.uint8).reshape(-1, 32)
        with (self.folder / DIGESTS).open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                ends=texts.ends,
                pool=texts.pool,
                sizes=np.array([one.st_size for one in status], np.int64),
                times=np.array([one.st_mtime_ns for one in status], np.int64),
                digests=digests,
            )

    def _compute(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: bytes.fromhex(files.sha256_of(self.folder / name)) for name in names}


def _read(root: Path, prefix: str) -> dict[str, bytes]:
    """Returns the digests that a download left in a folder, of the files that have not changed since."""
    path, found = root / prefix / DIGESTS, dict[str, bytes]()
    if not path.is_file():
        return found
    try:
        with np.load(path, allow_pickle=False) as stored:
            ends, pool = stored["ends"].tolist(), stored["pool"].tobytes()
            names = [prefix + pool[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
            columns = (names, stored["sizes"].tolist(), stored["times"].tolist(), stored["digests"])
        for name, size, time, digest in zip(*columns, strict=True):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(f"{root}/{name}")
                if (status.st_size, status.st_mtime_ns) == (size, time):
                    found[name] = digest.tobytes()
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s): reading the recordings again", path, error)
    return found


def fingerprint(listing: Listing, clips: Sequence[Clip], digests: Digests) -> str:
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
    for name in names_of(listing):
        status = os.stat(f"{listing.folder}/{name}")
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
            "%s was edited (or copied) after its download%s: reading what has changed",
            listing.folder,
            f" (the number of recordings changed for {changed})" if changed else "",
        )
    return None


def names_of(listing: Listing) -> list[str]:
    """Returns all files on which a data set depends, sorted."""
    return sorted(listing.files_of(listing.clips_of(listing.words)), key=lambda name: name.split("/"))
