"""The download step: recordings from a URL, an archive or a folder to datasets/<name>-<digest>/ under a data root.

The resulting folder has a subfolder for each word. `torchaudio.datasets.SPEECHCOMMANDS` opens it with
`url="<folder name>.tar.gz", folder_in_archive="datasets"`.
"""

import dataclasses
import errno
import hashlib
import logging
import re
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kws import files
from kws.config import SPEECH_COMMANDS_SHA256, SPEECH_COMMANDS_URL
from kws.data.digest import content_digest, listing_digest, read_manifest
from kws.data.listing import Listing
from kws.data.sources import AUTO, list_recordings
from kws.download.archives import EXTRACTED, SUFFIXES, ArchiveError, require_space, unpack
from kws.download.transfer import Remote, decoded, discard, fetch, look
from kws.progress import progress
from kws.settings import require
from kws.text import printable
from kws.volume import require_volume

log = logging.getLogger(__name__)


def download(source: str, sha256: str, data_root: Path, layout: str = AUTO) -> Path:
    """Downloads or copies recordings to a data root; does nothing if they are there already.

    An interrupted transfer resumes where it stopped. If two processes download the same recordings at the same time,
    the recordings are transferred once.

    Args:
        source: an http or https URL or the path of an archive (.tar, compressed or not, or .zip), or a folder of
            <word>/*.wav (.flac, .ogg, .opus, .mp3).
        sha256: the expected digest of the archive (of a folder: see `content_digest`) as 64 hexadecimal digits; empty:
            the known digest of the published archive, no check of others.
        data_root: the folder that holds datasets/.
        layout: how the recordings are laid out, as `kws.data.sources.list_recordings` takes it; other steps read it in
            manifest.json.

    Returns:
        The folder datasets/<name>-<first 8 digits>/ with the recordings and manifest.json.

    Raises:
        ValueError: the source does not exist or is not as described above, the digest is wrong, or the disk is full.
        ConnectionError: the server cannot be reached or keeps breaking off; what was received is kept for the next
            start.
    """
    require_volume(data_root)
    try:
        return _download(source, sha256, data_root, layout)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"data_root must have free disk space for the recordings, got {data_root}, which is full: free some and "
            "start again (the transfer resumes), or choose a data_root on another disk"
        ) from error


def _download(source: str, sha256: str, data_root: Path, layout: str) -> Path:
    require(
        sha256 == "" or re.fullmatch("[0-9a-f]{64}", sha256) is not None,
        "sha256",
        "be 64 lower-case hexadecimal digits",
        sha256,
    )
    if re.match("https?://", source, re.IGNORECASE):
        if "@" in (address := urllib.parse.urlsplit(source)).netloc:  # the error must not repeat the password
            raise ValueError(
                "source must be an address without user name and password, got one on "
                f"{address.hostname}: use a signed address, or download the archive first"
            )
        if source == SPEECH_COMMANDS_URL and not sha256:
            sha256 = SPEECH_COMMANDS_SHA256
        return _from_url(source, sha256, data_root, layout)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, sha256, data_root, layout)
    require(
        path.is_file(),
        "source",
        "be an http(s) address, an archive or a folder that exists (check the spelling; "
        "a relative path starts at the working directory)",
        source,
    )
    return _from_archive(path, sha256, data_root, layout)


_SIGNING = re.compile(
    r"x-(amz|goog|oss)-\w+(-\w+)*|.*(signature|token|secret|password|accesskeyid|accessid|api_?key)|sig|s[epvrt]|"
    r"key-pair-id|policy|expires",
    re.IGNORECASE,
)
"""Names of the parameters by which addresses are signed at Amazon, Google, Azure and others, or carry a key."""


def unsigned(url: str) -> str:
    """Returns an address without its signature, to be kept: a signature lets everyone in who reads it, and expires."""
    parts = urllib.parse.urlsplit(url)
    kept = [each for each in parts.query.split("&") if not _SIGNING.fullmatch(each.partition("=")[0])]
    return urllib.parse.urlunsplit(parts._replace(query="&".join(kept), fragment=""))


def _from_url(url: str, sha256: str, data_root: Path, layout: str) -> Path:
    file_name = _safe_name(Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name) or "archive"
    name = _strip_suffix(file_name)
    # The hash tells apart addresses that end in the same name.
    part = data_root / "downloads" / f"{file_name}-{hashlib.sha256(unsigned(url).encode()).hexdigest()[:8]}.part"
    with files.lock(part):
        complete = _present(name, sha256, data_root, layout) if sha256 else _fetched_before(url, data_root, layout)
        if complete is not None:
            return complete
        was_there = part.exists()
        remote = fetch(url, part)
        archive, digest = decoded(part, remote, sha256)
        if sha256 and digest != sha256 and was_there:  # the earlier transfer may be at fault
            log.info("sha256 of the earlier download of %s is %s: downloading it again", url, digest)
            discard(part)
            remote = fetch(url, part)
            archive, digest = decoded(part, remote, sha256)
        if sha256 and digest != sha256:
            raise ValueError(
                f"sha256 of {url} must be {sha256}, got {digest}: correct sha256 if the archive has been "
                f"replaced; else start again to download it anew. It is kept as {part}"
            )
        try:
            extra = {"remote": dataclasses.asdict(remote)}
            folder = _extract(archive, unsigned(url), name, digest, data_root, layout, extra)
        except ArchiveError:
            if not sha256:  # it may be an error page or a broken transfer: the next start downloads again
                discard(part)
            raise
        finally:
            if archive != part:
                archive.unlink()
        discard(part)
    return folder


def _from_archive(path: Path, sha256: str, data_root: Path, layout: str) -> Path:
    digest = files.sha256_of(path)
    require(
        sha256 in ("", digest), f"sha256 of {path}", f"be {sha256} (correct it or download the archive again)", digest
    )
    return _extract(path, str(path.absolute()), _strip_suffix(_safe_name(path.name)), digest, data_root, layout, {})


def _from_folder(path: Path, sha256: str, data_root: Path, layout: str) -> Path:
    listing = list_recordings(path, layout)
    _require_words(listing, str(path))
    name = _safe_name(path.resolve().name) or "recordings"
    digest = content_digest(listing)
    require(sha256 in ("", digest), f"sha256 of {path}", f"be {sha256} (correct it or leave it out)", digest)
    recordings = listing.files_of(listing.clips_of(listing.words))
    num_bytes = sum((path / recording).stat().st_size for recording in recordings)

    def copy(staging: Path) -> None:
        require_space(num_bytes, data_root)
        listing.report()
        with progress(num_bytes, "B", f"copy {path.name}", scale=True) as bar:
            for recording in recordings:
                target = staging / recording
                target.parent.mkdir(parents=True, exist_ok=True)
                bar.update(shutil.copyfile(path / recording, target).stat().st_size)

    return _build(str(path.absolute()), name, digest, data_root, layout, {"not_read": listing.figures()}, copy)


def _extract(
    archive: Path, source: str, name: str, digest: str, data_root: Path, layout: str, extra: dict[str, Any]
) -> Path:
    def extract(staging: Path) -> None:
        require_space(archive.stat().st_size * EXTRACTED, data_root)
        skipped = unpack(archive, staging, source, name)
        for member, reason in skipped.first.items():
            log.warning("%s: %s is left out: %s", source, member, reason)
        if skipped.num_members > len(skipped.first):
            log.warning("%s: %d members are left out in all", source, skipped.num_members)
        extra["skipped"] = dataclasses.asdict(skipped)
        _strip_wrapping_folders(staging, layout)
        listing = list_recordings(staging, layout)
        _require_words(listing, source)
        listing.report()

    return _build(source, name, digest, data_root, layout, extra, extract)


def _build(
    source: str,
    name: str,
    digest: str,
    data_root: Path,
    layout: str,
    extra: dict[str, Any],
    fill: Callable[[Path], None],
) -> Path:
    """Fills the folder of a data set by calling `fill` and writes its manifest, unless it is complete."""
    folder = _folder_of(name, digest, data_root, layout)

    def build(staging: Path) -> None:
        fill(staging)
        listing = list_recordings(staging, layout)
        clips = listing.clips_of(listing.words)
        files.write_json(
            staging / files.MANIFEST,
            {
                "schema": 2,
                "name": name,
                "source": source,
                "sha256": digest,
                "num_clips": len(clips),
                "num_bytes": sum((staging / file).stat().st_size for file in {clip.file for clip in clips}),
                "words": {word: len(some) for word, some in listing.clips.items()},
                "layout": listing.layout,
                "layout_asked_for": layout,
                "not_read": listing.figures(),
                # If the quick `listing` digest still matches, a later step trusts `content` without reading the files.
                "content": content_digest(listing),
                "listing": listing_digest(listing),
            }
            | extra,
        )

    if files.build_folder(folder, build):
        manifest = files.read_json(folder / files.MANIFEST)
        log.info("%s: %d clips of %d words", folder, manifest["num_clips"], len(manifest["words"]))
    else:
        log.info("%s is complete already", folder)
    return folder


def _folder_of(name: str, digest: str, data_root: Path, layout: str) -> Path:
    """Returns the folder of a data set; one that is read in a layout of the user's choice has a folder of its own."""
    chosen = "" if layout == AUTO else f"-{_safe_name(layout)}"
    return data_root / "datasets" / f"{name}-{digest[:8]}{chosen}"


def _present(name: str, sha256: str, data_root: Path, layout: str) -> Path | None:
    folder = _folder_of(name, sha256, data_root, layout)
    if not files.is_complete(folder):
        return None
    log.info("%s is complete already", folder)
    return folder


def _fetched_before(url: str, data_root: Path, layout: str) -> Path | None:
    """Returns the data set downloaded before from a URL without a known digest, if the server's file is unchanged."""
    for manifest_file in sorted((data_root / "datasets").glob(f"*/{files.MANIFEST}")):
        folder = manifest_file.parent
        manifest = read_manifest(folder)
        if (
            manifest is None
            or manifest.get("layout_asked_for", AUTO) != layout
            or unsigned(manifest["source"]) != unsigned(url)
            or (before := Remote.of_json(manifest.get("remote"))) is None
        ):
            continue
        try:
            now = look(url)
        except (ConnectionError, ValueError) as error:
            log.warning("cannot check %s for changes (%s): using %s as it is", url, printable(str(error)), folder)
            return folder
        if before.same(now):
            log.info("%s is complete already, and %s has not changed", folder, url)
            return folder
    return None


def _require_words(listing: Listing, source: str) -> None:
    listing.require_readable_words()
    if not listing.words:
        names = sorted(printable(path.name) for path in listing.folder.iterdir())[:5]
        names += [f"{name} ({reason})" for name, reason in list(listing.not_read.items())[:2]]
        raise ValueError(
            f"source must hold a folder of WAV files for each word (<word>/*.wav), got {source} with "
            f"{', '.join(names) or 'nothing'}: arrange the recordings like this"
        )


def _strip_wrapping_folders(staging: Path, layout: str) -> None:
    """Moves everything up out of the folders, one in another, that many archives wrap around the word folders."""
    while not list_recordings(staging, layout).words:
        folders = [entry for entry in staging.iterdir() if entry.is_dir()]
        if len(folders) != 1:
            return
        wrapping = folders[0].rename(staging / ".wrapping")  # a name that none of its own entries has
        for path in wrapping.iterdir():
            target = staging / path.name
            target.unlink(missing_ok=True)  # of two files with one name, the one beside the words counts
            path.rename(target)
        wrapping.rmdir()


def _strip_suffix(file_name: str) -> str:
    for suffix in SUFFIXES:
        if file_name.lower().endswith(suffix) and file_name.lower() != suffix:
            return file_name[: -len(suffix)]
    return file_name


def _safe_name(name: str) -> str:
    """Returns a folder name without characters that shells and file systems treat specially."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[-100:]
