"""Recordings from an address, an archive or a folder to datasets/<name>-<digest>/ under a data root.

What it leaves behind has a folder for each word at its root and is what `torchaudio.datasets.SPEECHCOMMANDS` opens with
`url="<folder name>.tar.gz", folder_in_archive="datasets"`.
"""

import dataclasses
import hashlib
import http.client
import json
import logging
import lzma
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws import files
from kws.config import SPEECH_COMMANDS_SHA256, SPEECH_COMMANDS_URL, require
from kws.download.recordings import Listing, content_digest, list_recordings, listing_digest, printable
from kws.progress import progress

log = logging.getLogger(__name__)

SUFFIXES = (".tar.gz", ".tgz", ".tar")
USER_AGENT = "kws-download/1 (Python urllib)"
CHUNK = 1 << 18
"""Bytes read at a time; as many are lost at most when a connection breaks."""

TIMEOUT = 30
"""Seconds without a byte after which a connection counts as cut."""

TRIES = 5
"""Times that an address is asked while no new byte comes; every new byte starts the count again."""

BACKOFF = 1.0
"""Seconds before the second try; every further one waits twice as long."""

EXTRACTED = 2
"""Bytes of disk for the recordings per byte of archive: speech in 16 bits compresses to 0.6 to 0.7."""


def download(source: str, sha256: str, data_root: Path) -> Path:
    """Brings recordings to a data root; does nothing where they are there already.

    An interrupted transfer resumes where it stopped. Two processes that ask for the same recordings at the same time
    fetch them once.

    Args:
        source: an http or https address or the path of an archive (.tar.gz, .tgz, .tar), or a folder of <word>/*.wav.
        sha256: the expected digest of the archive (of a folder: see `content_digest`) as 64 hexadecimal digits; empty:
            that of the published archive where it is the source, else unchecked.
        data_root: the folder that holds datasets/.

    Returns:
        The folder datasets/<name>-<first 8 digits>/ with the folders of the words and manifest.json.

    Raises:
        ValueError: the source is not there or not what it should be, the digest is wrong, or the disk is too small.
        ConnectionError: the server cannot be reached or keeps breaking off; what came is kept for the next start.
    """
    require(sha256 == "" or re.fullmatch("[0-9a-f]{64}", sha256) is not None, "sha256",
            "be 64 lower-case hexadecimal digits", sha256)  # fmt: skip
    if re.match("https?://", source):
        if source == SPEECH_COMMANDS_URL and not sha256:
            sha256 = SPEECH_COMMANDS_SHA256
        return _from_url(source, sha256, data_root)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, sha256, data_root)
    require(path.is_file(), "source", "be an http(s) address, an archive or a folder that exists (see the spelling, "
            "and from where a relative path starts)", source)  # fmt: skip
    return _from_archive(path, sha256, data_root)


def _from_url(url: str, sha256: str, data_root: Path) -> Path:
    file_name = _safe_name(Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name) or "archive"
    name = _strip_suffix(file_name)
    # Another address may end in the same name.
    part = data_root / "downloads" / f"{file_name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    with files.lock(part):
        complete = _present(name, sha256, data_root) if sha256 else _fetched_before(url, data_root)
        if complete is not None:
            return complete
        remote = _fetch(url, part)
        digest = files.sha256_of(part)
        if sha256 and digest != sha256:
            _discard(part)
            raise ValueError(f"sha256 of {url} must be {sha256}, got {digest}: the file was deleted; start again if "
                             "the transfer may be at fault, or correct sha256 if the archive is a new one")  # fmt: skip
        try:
            folder = _extract(part, url, name, digest, data_root, {"remote": dataclasses.asdict(remote)})
        except ValueError:
            if not sha256:  # it may not be what the server meant to send: the next start asks again
                _discard(part)
            raise
        _discard(part)
    return folder


def _from_archive(path: Path, sha256: str, data_root: Path) -> Path:
    digest = files.sha256_of(path)
    require(sha256 in ("", digest), f"sha256 of {path}", f"be {sha256} (correct it or get the archive anew)", digest)
    return _extract(path, str(path.absolute()), _strip_suffix(_safe_name(path.name)), digest, data_root, {})


def _from_folder(path: Path, sha256: str, data_root: Path) -> Path:
    listing = list_recordings(path)
    _require_words(listing, str(path))
    name = _safe_name(path.resolve().name) or "recordings"
    digest = content_digest(listing)
    require(sha256 in ("", digest), f"sha256 of {path}", f"be {sha256} (correct it or leave it out)", digest)
    recordings = [*listing.clips_of(listing.words), *listing.noise, *(file.name for file in listing.lists.values())]
    num_bytes = sum((path / recording).stat().st_size for recording in recordings)

    def copy(staging: Path) -> None:
        _require_space(num_bytes, data_root)
        listing.report()
        with progress(num_bytes, "B", f"copy {path.name}", scale=True) as bar:
            for recording in recordings:
                target = staging / recording
                target.parent.mkdir(exist_ok=True)
                bar.update(shutil.copyfile(path / recording, target).stat().st_size)

    return _build(str(path.absolute()), name, digest, data_root, {"not_read": listing.figures()}, copy)


def _extract(archive: Path, source: str, name: str, digest: str, data_root: Path, extra: dict[str, Any]) -> Path:
    size = archive.stat().st_size

    def extract(staging: Path) -> None:
        _require_space(size * EXTRACTED, data_root)
        try:
            with (
                archive.open("rb") as file,
                progress(size, "B", f"extract {name}", scale=True) as bar,
                tarfile.open(fileobj=file, mode="r:*") as members,
            ):
                for member in members:
                    # macOS packs a ._name beside every file, which is no recording though it ends in .wav.
                    if not re.search(r"(^|/)\.[^./]", member.name):
                        members.extract(member, staging, filter="data")
                    bar.update(file.tell() - bar.n)
                # An archive ends before its file does: only the rest has the checksum over everything.
                while members.fileobj is not None and members.fileobj.read(CHUNK):
                    pass
        except tarfile.FilterError as error:
            raise ValueError(f"source must be an archive whose members stay in its folder, got {source}: {error}; do "
                             "not use it, or pack its recordings anew") from error  # fmt: skip
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the archive's
            raise ValueError(f"source must be a whole archive ({', '.join(SUFFIXES)}), got {source}: {error}; fetch or "
                             "pack it anew") from error  # fmt: skip
        _strip_wrapping_folders(staging)
        listing = list_recordings(staging)
        _require_words(listing, source)
        listing.report()

    return _build(source, name, digest, data_root, extra, extract)


def _build(source: str, name: str, digest: str, data_root: Path, extra: dict[str, Any],
           fill: Callable[[Path], None]) -> Path:  # fmt: skip
    """Fills the folder of a data set and writes its manifest, unless it is complete."""
    folder = data_root / "datasets" / f"{name}-{digest[:8]}"

    def build(staging: Path) -> None:
        fill(staging)
        listing = list_recordings(staging)
        clips = listing.clips_of(listing.words)
        files.write_json(staging / files.MANIFEST, {
            "schema": 2, "name": name, "source": source, "sha256": digest, "num_clips": len(clips),
            "num_bytes": sum((staging / clip).stat().st_size for clip in clips),
            "words": {word: len(some) for word, some in listing.clips.items()}, "not_read": listing.figures(),
            # By the second a later step knows that nothing was edited, and that the first still holds.
            "content": content_digest(listing), "listing": listing_digest(listing),
        } | extra)  # fmt: skip

    if files.build_folder(folder, build):
        manifest = files.read_json(folder / files.MANIFEST)
        log.info("%s: %d clips of %d words", folder, manifest["num_clips"], len(manifest["words"]))
    else:
        log.info("%s is complete already", folder)
    return folder


def _present(name: str, sha256: str, data_root: Path) -> Path | None:
    folder = data_root / "datasets" / f"{name}-{sha256[:8]}"
    if not files.is_complete(folder):
        return None
    log.info("%s is complete already", folder)
    return folder


def _fetched_before(url: str, data_root: Path) -> Path | None:
    """Returns the data set that came from an address without a known digest, if the server still has the same."""
    for manifest_file in sorted((data_root / "datasets").glob(f"*/{files.MANIFEST}")):
        manifest = files.read_json(manifest_file)
        if manifest.get("source") != url or "remote" not in manifest:
            continue
        folder = manifest_file.parent
        try:
            with _open(url, method="HEAD") as response:
                now = Remote.of(response, response.headers.get("Content-Length"))
        except (OSError, http.client.HTTPException) as error:
            log.warning("%s cannot be asked for changes (%s): using %s as it is", url, error, folder)
            return folder
        if now == Remote(**manifest["remote"]) != Remote(None, None, None):
            log.info("%s is complete already, and %s has not changed", folder, url)
            return folder
    return None


@dataclass(frozen=True)
class Remote:
    """What a server says about a file, by which a change of it is noticed."""

    etag: str | None
    modified: str | None
    length: int | None

    @classmethod
    def of(cls, response: http.client.HTTPResponse, length: str | None) -> "Remote":
        """Reads the headers of a response; the length is that of the whole file."""
        headers = response.headers
        return cls(headers.get("ETag"), headers.get("Last-Modified"), int(length) if length else None)

    @property
    def validator(self) -> str | None:
        """What If-Range takes: a strong ETag, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def _fetch(url: str, part: Path) -> Remote:
    """Transfers a file, taking up again what an earlier try or an earlier process left, until it is whole."""
    tries, most = 0, 0
    while True:
        try:
            return _transfer(url, part)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise ValueError(f"source must be the address of an archive, got {error.code} {error.reason} from {url}"
                                 ": see whether a browser opens it") from error  # fmt: skip
            failure: Exception = error
        except http.client.InvalidURL as error:
            raise ValueError(f"source must be an http(s) address, got {url!r}: {error}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            failure = error
        size = part.stat().st_size if part.exists() else 0
        tries, most = (1, size) if size > most else (tries + 1, most)
        if tries == TRIES:
            raise ConnectionError(
                f"{url} must be reachable and send the whole file, got {failure} in {TRIES} tries: see to the network "
                f"and start again; the {files.human_bytes(size)} that came are kept"
            ) from failure
        wait = BACKOFF * 2 ** (tries - 1)
        log.warning("%s: %s; resuming at %s in %g s", url, failure, files.human_bytes(size), wait)
        time.sleep(wait)


def _transfer(url: str, part: Path) -> Remote:
    """Transfers what is missing of a file over one connection."""
    notes = part.with_suffix(".json")  # what the server said about the file when its first byte came
    known = Remote(**json.loads(notes.read_text())) if part.exists() and notes.exists() else None
    start = part.stat().st_size if known is not None else 0
    if known is not None and start == known.length:
        return known
    headers = {}
    if known is not None and start:
        headers = {"Range": f"bytes={start}-"} | ({"If-Range": known.validator} if known.validator else {})
    try:
        response = _open(url, headers=headers)
    except urllib.error.HTTPError as error:
        if known is None or error.code != 416:
            raise
        _discard(part)
        raise ConnectionError(f"the server promised {known.length} bytes but has no more than {start}") from error
    with response:
        remote = _resumed(response, known, start) if response.status == 206 else None
        if response.status == 206 and remote is None:
            _discard(part)
            raise ConnectionError("the file has changed, or the server sent another part of it than asked for")
        if remote is None:
            if start:
                log.info("%s has changed or its server cannot resume: starting again", url)
            _discard(part)
            start, remote = 0, Remote.of(response, response.headers.get("Content-Length"))
            part.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(notes, dataclasses.asdict(remote))
        missing = (remote.length or 0) - start
        _require_space(missing + (remote.length or 0) * EXTRACTED, part.parent.parent)
        name = Path(urllib.parse.urlsplit(url).path).name
        title = f"resume {name} at {files.human_bytes(start)}" if start else f"download {name}"
        with part.open("ab") as file, progress(missing, "B", title, scale=True) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if remote.length is not None and size < remote.length:
        raise ConnectionError(f"the connection ended after {size} of {remote.length} bytes")
    assert remote.length in (None, size), f"{part} is longer than the server said"
    return remote


def _resumed(response: http.client.HTTPResponse, known: Remote | None, start: int) -> Remote | None:
    """Returns what is known about a file if a response carries on with it, else None."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if known is None or match is None or int(match[1]) != start:
        return None
    now = Remote.of(response, match[2])
    for before, after in ((known.etag, now.etag), (known.modified, now.modified), (known.length, now.length)):
        if before is not None and after is not None and before != after:
            return None
    return dataclasses.replace(known, length=now.length)


def _open(url: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    request = urllib.request.Request(
        url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"} | (headers or {}), method=method
    )
    response = urllib.request.urlopen(request, timeout=TIMEOUT)
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".json").unlink(missing_ok=True)


def _require_space(num_bytes: int, folder: Path) -> None:
    free = files.free_bytes(folder)
    if num_bytes > free:
        raise ValueError(
            f"data_root must have {files.human_bytes(num_bytes)} of free disk for the recordings, got "
            f"{files.human_bytes(free)} in {folder}: free some, or name a data_root on another disk"
        )


def _require_words(listing: Listing, source: str) -> None:
    if not listing.words:
        names = sorted(printable(path.name) for path in listing.folder.iterdir())[:5]
        names += [f"{name} ({reason})" for name, reason in list(listing.not_read.items())[:2]]
        raise ValueError(f"source must hold a folder of WAV files for each word (<word>/*.wav), got {source} with "
                         f"{', '.join(names) or 'nothing'}: arrange the recordings so")  # fmt: skip


def _strip_wrapping_folders(staging: Path) -> None:
    """Moves everything up from a folder that holds all the words, as archives often have it, or from two."""
    while not list_recordings(staging).words:
        folders = [entry for entry in staging.iterdir() if entry.is_dir()]
        if len(folders) != 1:
            return
        wrapping = folders[0].rename(staging / ".wrapping")  # a name that none of its own entries has
        for path in wrapping.iterdir():
            target = staging / path.name
            target.unlink(missing_ok=True)  # of two files of a name, that beside the words is meant
            path.rename(target)
        wrapping.rmdir()


def _strip_suffix(file_name: str) -> str:
    for suffix in SUFFIXES:
        if file_name.endswith(suffix) and file_name != suffix:
            return file_name.removesuffix(suffix)
    return file_name


def _safe_name(name: str) -> str:
    """Returns a name for a folder, without what shells and file systems dislike."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
