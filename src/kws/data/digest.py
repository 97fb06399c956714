"""Digests of recordings, which tell whether they are the same as before."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kws import files
from kws.cores import num_cores
from kws.data.clip import Clip
from kws.data.listing import Listing

log = logging.getLogger(__name__)

FILES_PER_TASK = 256


def fingerprint(listing: Listing, clips: Sequence[Clip]) -> str:
    """Returns the digest of the recordings: from the manifest of an unedited download, else computed from all files."""
    if (known := known_digest(listing)) is not None:
        return known
    if read_manifest(listing.folder) is not None:
        return content_digest(listing)  # as a manifest written now would have
    return _digest_of(listing.folder, listing.files_of(clips))


def content_digest(listing: Listing) -> str:
    """Returns the SHA-256 of the names and contents of all recordings, noise recordings and lists, in sorted order."""
    return _digest_of(listing.folder, _names(listing))


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
    return sorted(listing.files_of(listing.clips_of(listing.words)), key=lambda name: name.split("/"))


def _digest_of(folder: Path, names: Sequence[str]) -> str:
    """Returns the SHA-256 of names and contents of files, which are read by one thread for every core."""
    digest = hashlib.sha256()
    parts = [names[first : first + FILES_PER_TASK] for first in range(0, len(names), FILES_PER_TASK)]
    with ThreadPoolExecutor(num_cores()) as pool:
        found = pool.map(lambda part: [files.sha256_of(folder / name) for name in part], parts)
        for part, digests in zip(parts, found, strict=True):
            for name, one in zip(part, digests, strict=True):
                digest.update(f"{name}\0{one}\n".encode())
    return digest.hexdigest()
