"""The download step: recordings from wherever they lie to datasets/<name>-<digest>/ under a data root.

The resulting folder has a subfolder for each word. `torchaudio.datasets.SPEECHCOMMANDS` opens it with
`url="<folder name>.tar.gz", folder_in_archive="datasets"`.
"""

import dataclasses
import hashlib
import io
import itertools
import logging
import os
import re
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kws import files
from kws.config import HEARD, SPEECH_COMMANDS_SHA256, SPEECH_COMMANDS_URL, split_digests, split_sources
from kws.data.digest import Digests, content_digest, listing_digest, names_of, read_manifest
from kws.data.kinds import kind_of_file
from kws.data.listing import Listing
from kws.data.names import THEIR_MANIFEST, is_recording
from kws.data.pack import FOLDER, Pack, Packer, opened, size_of
from kws.data.parts import write_parts
from kws.data.sources import AUTO, list_recordings, unwrapped
from kws.download import credentials
from kws.download.addresses import STORES, resolve, scheme_of, unsigned
from kws.download.archives import EXTRACTED, SUFFIXES, ArchiveError, Skipped, require_space, unpack
from kws.download.stores import Store, objects_digest, open_store
from kws.download.transfer import Remote, decoded, discard, fetch, look
from kws.progress import progress
from kws.settings import require
from kws.text import printable
from kws.volume import require_volume, use

log = logging.getLogger(__name__)

LOOKED_AT = 20
"""Of how many recordings the first bytes are looked at before a data set is made of them."""

_IS_PART = re.compile(r"\.(z\d\d|\d{3}|part\d+\.rar)$", re.IGNORECASE)
"""How the names of parts of an archive end."""


def download(source: str, sha256: str, data_root: Path, layout: str = AUTO) -> Path:
    """Downloads or copies recordings to a data root; does nothing if they are there already.

    An interrupted transfer resumes where it stopped. If two processes download the same recordings at the same time,
    the recordings are transferred once.

    Args:
        source: where the recordings are: the path of a folder or an archive (.tar, compressed or not, .zip, .7z); an
            http(s) address of an archive; an archive or a prefix in an object store (s3://, gs://, az://); a data set
            on the Hugging Face Hub (hf://datasets/…, or its page); file:///…; env:NAME, the content of an environment
            variable. Several of these, separated by line ends, commas or spaces, become one data set of parts, without
            folders of servers in which nothing was confirmed yet.
        sha256: the expected digest of the archive (of a folder: see `content_digest`) as 64 hexadecimal digits; of
            several sources one for each, separated by commas or spaces; empty: the known digest of the published
            archive, no check of others.
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
    credentials.load()
    try:
        while not use(data_root, folder := _download(source, sha256, data_root, layout)):
            log.info("%s was deleted meanwhile", folder)
        return folder
    except OSError as error:
        if not files.is_full(error):
            raise
        raise ValueError(
            f"data_root must have free disk space for the recordings, got {data_root}, which is full: free some and "
            "start again (the transfer resumes), or choose a data_root on another disk"
        ) from error


def _download(source: str, sha256: str, data_root: Path, layout: str) -> Path:
    sources, digests = split_sources(source), split_digests(sha256)
    if digests and len(digests) != len(sources):
        raise ValueError(f"sha256 must be empty or one for each source, got {len(digests)} for {len(sources)} sources")
    chosen = list(zip((resolve(one, os.environ) for one in sources), digests or [""] * len(sources), strict=True))
    filled = [one for one in chosen if not _awaits_review(one[0])] or chosen
    for address, _ in [one for one in chosen if one not in filled]:
        log.info("%s is left out: of what a server heard there nothing was confirmed yet", address)
    folders = [
        _Source(address=address, sha256=digest, data_root=data_root, layout=layout).make() for address, digest in filled
    ]
    unique = list(dict.fromkeys(folders))
    return unique[0] if len(unique) == 1 else _combine(unique, data_root)


def _awaits_review(address: str) -> bool:
    """Tells whether an address is the folder of a server that keeps what it hears, without a recording so far."""
    path = Path(address).expanduser()
    return not scheme_of(address) and (path / HEARD).is_dir() and not list_recordings(path).clips


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where recordings are, and how they become a data set."""

    address: str
    """An address or a path; in a manifest without what is secret in it."""
    sha256: str
    """The expected digest, or empty."""
    data_root: Path
    layout: str

    def make(self) -> Path:
        """Returns the folder of the data set, complete."""
        scheme = scheme_of(self.address)
        if scheme and "@" in (parts := urllib.parse.urlsplit(self.address)).netloc:  # and the password not repeated
            raise ValueError(
                "source must be an address without user name and password, got one on "
                f"{parts.hostname}: use a signed address, or download the archive first"
            )
        if scheme in ("http", "https"):
            return self._from_url()
        if scheme in STORES:
            store = open_store(self.address)
            if store.is_folder:
                return self._from_prefix(store)
            return self._from_remote(Path(store.root).name, store.fetch, store.look)
        path = Path(self.address).expanduser()
        if not path.is_dir():
            require(
                path.is_file(),
                "source",
                "be an address (http://, https://, s3://, gs://, az://, hf://), an archive or a folder that exists "
                "(check the spelling; a relative path starts at the working directory)",
                unsigned(self.address) if scheme else self.address,
            )
        here = dataclasses.replace(self, address=str(path.absolute()))
        return here._from_folder(path) if path.is_dir() else here._from_archive(path)

    def _from_url(self) -> Path:
        url = self.address
        name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
        known = SPEECH_COMMANDS_SHA256 if url == SPEECH_COMMANDS_URL else ""
        one = dataclasses.replace(self, sha256=self.sha256 or known)
        return one._from_remote(name, lambda part: fetch(url, part), lambda: look(url))

    def _from_remote(self, name: str, transfer: Callable[[Path], Remote], check: Callable[[], Remote]) -> Path:
        """Downloads an archive and unpacks it.

        Args:
            name: its name at the end of the address.
            transfer: downloads it to a path, resuming what is there.
            check: asks for what there is at the address.
        """
        one, sha256 = dataclasses.replace(self, address=unsigned(self.address)), self.sha256
        file_name = _safe_name(name) or "archive"
        name = _strip_suffix(file_name)
        part = one._part(f"{file_name}-", ".part")
        with files.lock(part):
            complete = one._present(name) if sha256 else one._fetched_before(check)
            if complete is not None:
                return complete
            was_there = part.exists()
            remote = transfer(part)
            archive, digest = decoded(part, remote, sha256)
            if sha256 and digest != sha256 and was_there:  # the earlier transfer may be at fault
                log.info("sha256 of the earlier download of %s is %s: downloading it again", one.address, digest)
                discard(part)
                remote = transfer(part)
                archive, digest = decoded(part, remote, sha256)
            kept = f"else start again to download it anew. It is kept as {part}"
            one._require_digest(digest, f"correct sha256 if the archive has been replaced; {kept}")
            try:
                folder = one._extract(archive, name, digest, {"remote": dataclasses.asdict(remote)})
            except ArchiveError:
                if not sha256:  # it may be an error page or a broken transfer: the next start downloads again
                    discard(part)
                raise
            finally:
                if archive != part:
                    archive.unlink()
            discard(part)
        return folder

    def _from_prefix(self, store: Store) -> Path:
        """Downloads all objects under a prefix, and makes a data set of them as of a folder."""
        name = _safe_name(_prefix_name(self.address)) or "recordings"
        partial = self._part(f"{name}-")
        with files.lock(partial):
            objects = store.objects()
            listed = objects_digest(objects)
            for folder, manifest in self._manifests():
                before = manifest.get("objects", {}).get("listing")
                if manifest["source"] == self.address and before == listed and not self.sha256:
                    log.info("%s is complete already, and %s has not changed", folder, self.address)
                    return folder
            store.fetch_all(objects, partial)
            inner = _unpack_inner(partial, self.address, self.layout)
            about = {"objects": {"num_objects": len(objects), "listing": listed, "address": store.url}} | inner
            _strip_wrapping_folders(partial, self.layout)
            folder = self._snapshot(partial, name, about, move=True)
            shutil.rmtree(partial)
            partial.with_name(f"{partial.name}.json").unlink()
        return folder

    def _from_archive(self, path: Path) -> Path:
        if _IS_PART.search(path.name):
            raise ValueError(
                f"source must be a whole archive, got the part {path.name}: join the parts "
                "(cat words.zip.* > words.zip; of .z01 files zip -s 0 words.zip --out whole.zip), and give the whole"
            )
        digest = files.sha256_of(path)
        self._require_digest(digest, "correct it or download the archive again")
        return self._extract(path, _strip_suffix(_safe_name(path.name)), digest, {})

    def _from_folder(self, path: Path) -> Path:
        name = _safe_name(path.resolve().name) or "recordings"
        path = unwrapped(path, self.layout)
        if list_recordings(path, self.layout).words or not (archives := _archives_below(path)):
            return self._snapshot(path, name, {}, move=False)
        digest = hashlib.sha256("".join(files.sha256_of(archive) for archive in archives).encode()).hexdigest()
        self._require_digest(digest)
        extra: dict[str, Any] = {}
        return self._build(name, digest, extra, lambda staging: self._arrange(staging, extra, path))

    def _part(self, begin: str, end: str = "") -> Path:
        """Returns where a download lies until it is complete; a hash tells apart addresses that end in one name."""
        return self.data_root / "downloads" / f"{begin}{hashlib.sha256(self.address.encode()).hexdigest()[:8]}{end}"

    def _require_digest(self, digest: str, remedy: str = "correct it or leave it out") -> None:
        if self.sha256 not in ("", digest):
            raise ValueError(f"sha256 of {self.address} must be {self.sha256}, got {digest}: {remedy}")

    def _snapshot(self, path: Path, name: str, extra: dict[str, Any], move: bool) -> Path:
        """Makes a data set of the recordings in a folder.

        Args:
            path: the folder.
            name: of the data set.
            extra: further entries of the manifest.
            move: whether the recordings are moved rather than copied.
        """
        listing = list_recordings(path, self.layout)
        _require_words(listing, self.address)
        digest = content_digest(listing)
        self._require_digest(digest)
        recordings = listing.files_of(listing.clips)
        num_bytes = size_of(path, recordings)

        def fill(staging: Path) -> str:
            if not move:
                require_space(num_bytes, self.data_root)
            listing.report()
            packer = Packer(staging)
            with progress(num_bytes, "B", f"copy {path.name}", scale=True) as bar:
                for recording in recordings:
                    content = opened(path, recording)
                    size = len(content) if isinstance(content, bytes) else content.stat().st_size
                    bar.update(size)
                    target = staging / recording
                    if target.name == files.MANIFEST:
                        target = target.with_name(THEIR_MANIFEST)
                    if packer.takes(recording):
                        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                            packer.add(recording, file, size)
                        if move and isinstance(content, Path):
                            content.unlink()
                        continue
                    target.parent.mkdir(exist_ok=True, parents=True)
                    if isinstance(content, bytes):
                        target.write_bytes(content)
                    elif move:
                        content.rename(target)
                    else:
                        shutil.copyfile(content, target)
            packer.close()
            return listing.layout

        return self._build(name, digest, {"not_read": listing.figures()} | extra, fill)

    def _extract(self, archive: Path, name: str, digest: str, extra: dict[str, Any]) -> Path:
        def extract(staging: Path) -> str:
            require_space(archive.stat().st_size * EXTRACTED, self.data_root)
            skipped = unpack(archive, staging, self.address, name)
            for member, reason in skipped.first.items():
                log.warning("%s: %s is left out: %s", self.address, member, reason)
            if skipped.num_members > len(skipped.first):
                log.warning("%s: %d members are left out in all", self.address, skipped.num_members)
            extra["skipped"] = dataclasses.asdict(skipped)
            return self._arrange(staging, extra)

        return self._build(name, digest, extra, extract)

    def _arrange(self, staging: Path, extra: dict[str, Any], packed: Path | None = None) -> str:
        """Unpacks archives in a folder that is filled, or in `packed`, and moves what wraps the recordings away.

        Returns:
            How the recordings are laid out.
        """
        if packed is None:
            extra.update(_unpack_inner(staging, self.address, self.layout))
        else:
            extra.update(_unpack_inner(packed, self.address, self.layout, staging))
        _strip_wrapping_folders(staging, self.layout)
        listing = list_recordings(staging, self.layout)
        _require_words(listing, self.address)
        listing.report()
        return listing.layout

    def _build(self, name: str, digest: str, extra: dict[str, Any], fill: Callable[[Path], str]) -> Path:
        """Fills the folder of a data set and writes its manifest, unless it is complete.

        `fill` returns the layout by which it was read: what is copied may look otherwise without what was left behind.
        """
        folder = self._folder(name, digest)

        def build(staging: Path) -> None:
            listing = list_recordings(staging, fill(staging))
            digests, names = Digests(staging), names_of(listing)
            digests.save(names)
            files.write_json(
                staging / files.MANIFEST,
                {
                    "schema": 2,
                    "name": name,
                    "source": self.address,
                    "sha256": digest,
                    "num_clips": len(listing.clips),
                    "num_bytes": size_of(staging, listing.clips.distinct_files()),
                    "words": listing.clips.counts(),
                    "layout": listing.layout,
                    "layout_asked_for": self.layout,
                    "not_read": listing.figures(),
                    # While the quick `listing` digest matches, later steps trust `content` without reading the files.
                    "content": digests.of_all(names),
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

    def _folder(self, name: str, digest: str) -> Path:
        """Returns the folder of a data set; one that is read in a layout of the user's choice has its own."""
        chosen = "" if self.layout == AUTO else f"-{_safe_name(self.layout)}"
        return self.data_root / "datasets" / f"{name}-{digest[:8]}{chosen}"

    def _present(self, name: str) -> Path | None:
        folder = self._folder(name, self.sha256)
        if not files.is_complete(folder):
            return None
        log.info("%s is complete already", folder)
        return folder

    def _manifests(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yields all complete data sets that are read in the layout, with their manifests."""
        for manifest_file in sorted((self.data_root / "datasets").glob(f"*/{files.MANIFEST}")):
            manifest = read_manifest(manifest_file.parent)
            if manifest is not None and manifest.get("layout_asked_for", AUTO) == self.layout:
                yield manifest_file.parent, manifest

    def _fetched_before(self, check: Callable[[], Remote]) -> Path | None:
        """Returns the data set downloaded before without a known digest, if the server's file is unchanged."""
        for folder, manifest in self._manifests():
            before = Remote.of_json(manifest.get("remote"))
            if unsigned(manifest["source"]) != self.address or before is None:
                continue
            try:
                now = check()
            except (ConnectionError, ValueError) as error:
                said = printable(str(error))
                log.warning("cannot check %s for changes (%s): using %s as it is", self.address, said, folder)
                return folder
            if before.same(now):
                log.info("%s is complete already, and %s has not changed", folder, self.address)
                return folder
        return None


def _prefix_name(source: str) -> str:
    """Returns a name for the recordings at an address: its last part, or of the Hub the name of the data set."""
    names = [name for name in source.partition("://")[2].split("/") if name]
    if scheme_of(source) == "hf":
        names = [name.partition("@")[0] for name in names[1:3]]
    return names[-1] if names else ""


def _combine(parts: Sequence[Path], data_root: Path) -> Path:
    """Makes one data set of several, which stay where they are."""
    manifests = [files.read_json(part / files.MANIFEST) for part in parts]
    total = sum(manifest["num_clips"] for manifest in manifests)
    sources = [
        {
            "source": manifest["source"],
            "folder": part.name,
            "sha256": manifest["sha256"],
            "num_clips": manifest["num_clips"],
            "share": round(manifest["num_clips"] / max(total, 1), 4),
            "words": len(manifest["words"]),
        }
        for part, manifest in zip(parts, manifests, strict=True)
    ]
    for one in sources:
        log.info("%s: %d clips, %.1f %% of all", one["source"], one["num_clips"], 100 * one["share"])
    digest = hashlib.sha256("".join(sorted(one["folder"] + one["sha256"] for one in sources)).encode()).hexdigest()

    def fill(staging: Path) -> str:
        write_parts(staging, parts)
        return AUTO

    whole = _Source(address="\n".join(one["source"] for one in sources), sha256="", data_root=data_root, layout=AUTO)
    return whole._build(f"{len(parts)}-sources", digest, {"sources": sources}, fill)


def _require_sounds(listing: Listing, source: str) -> None:
    """Refuses recordings of which a look at some of them tells that they are something else."""
    names = listing.clips.distinct_files()
    some = names[:: max(1, len(names) // LOOKED_AT)].tolist()
    paths = [listing.folder / name for name in some if is_recording(name)]
    kinds = Counter(kind_of_file(path) for path in paths if path.is_file())
    for kind, number in kinds.most_common(1):
        if not kind.is_audio and kind.remedy and number > len(paths) / 2:
            raise ValueError(
                f"source must hold recordings, got {source}, where {paths[0].name} is {kind.name}: {kind.remedy}"
            )


def _require_words(listing: Listing, source: str) -> None:
    listing.require_readable_words()
    if listing.words:
        _require_sounds(listing, source)
        return
    folder = listing.folder
    names = sorted(printable(path.name) for path in folder.iterdir() if not path.name.startswith("."))[:5]
    names += [f"{name} ({reason})" for name, reason in list(listing.not_read.items())[:2]]
    names += [f"{count:,} entries of lists ({reason})" for reason, count in listing.left_out.items()]
    # What most of the files are tells more than their names.
    some = [path for path in itertools.islice(folder.rglob("*"), 1000) if path.is_file()][:50]
    kinds = Counter(kind for path in some if not (kind := kind_of_file(path)).is_audio)
    (kind, number), *_ = [*kinds.most_common(1), (None, 0)]
    found = f"; {number} of {len(some)} files are each {kind.name}" if kind and number > 1 else ""
    remedy = "arrange the recordings like this, or list them"
    if kind and kind.remedy and number > len(some) / 2:
        remedy = kind.remedy
    raise ValueError(
        f"source must hold a folder of recordings for each word (<word>/*.wav), got {source} with "
        f"{', '.join(names) or 'nothing'}{found}: {remedy}"
    )


def _archives_below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES))
    return sorted(path for path in found if path.parent.name != FOLDER)


def _unpack_inner(folder: Path, source: str, layout: str, into: Path | None = None) -> dict[str, Any]:
    """Unpacks the archives in a folder that has no words without them, and deletes them.

    Only one level: what is in an archive in an archive is not unpacked. Of several archives each gets a folder of its
    own name.

    Args:
        folder: the folder.
        source: its name in messages.
        layout: how it is laid out.
        into: where to unpack; None: beside the archives. If given, they stay.

    Returns:
        An entry for the manifest with the members that were left out, if there were archives.
    """
    if list_recordings(folder, layout).words:
        return {}
    archives = _archives_below(folder)
    root = into or folder
    skipped, packer = Skipped(), Packer(root)
    for archive in archives:
        require_space(archive.stat().st_size * EXTRACTED, root)
        inside = archive.parent.relative_to(folder)
        target = root / (inside if len(archives) == 1 else inside / _strip_suffix(archive.name))
        staging = root / f".{_strip_suffix(archive.name)}.unpacked"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        below = f"{target.relative_to(root).as_posix()}/".removeprefix("./")
        left_out = unpack(archive, staging, f"{source} ({archive.name})", archive.name, packer, below)
        for member, reason in left_out.first.items():
            log.warning("%s: %s is left out: %s", archive.name, member, reason)
            skipped.add(member, reason)
        if into is None:
            archive.unlink()
        target.mkdir(exist_ok=True, parents=True)
        for path in staging.iterdir():
            path.rename(target / path.name)
        staging.rmdir()
    packer.close()
    return {"inner": dataclasses.asdict(skipped)} if archives else {}


def _strip_wrapping_folders(staging: Path, layout: str) -> None:
    """Moves everything up out of the folders, one in another, that many archives wrap around the word folders."""
    while not list_recordings(staging, layout).words:
        folders = {entry.name for entry in staging.iterdir() if entry.is_dir() and entry.name != FOLDER}
        if pack := Pack.of(staging):
            folders |= {name.split("/")[0] for name in pack.names() if "/" in name}
        if len(folders) != 1:
            return
        (folder,) = folders
        if pack:
            pack.strip(f"{folder}/")
            (staging / folder).mkdir(exist_ok=True)
        wrapping = (staging / folder).rename(staging / ".wrapping")  # a name that none of its own entries has
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
