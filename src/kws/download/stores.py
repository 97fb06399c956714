"""Downloads from object stores (S3 and what speaks its protocol, Google, Azure) and the Hugging Face Hub, by fsspec.

Resumed and checked as downloads over HTTP are: an object goes on where it ended as long as it is the same one by its
ETag, and what has changed meanwhile is downloaded again.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import posixpath
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from kws import files
from kws.data.names import is_utf8
from kws.download import transfer
from kws.download.addresses import scheme_of
from kws.download.archives import EXTRACTED, require_space
from kws.download.transfer import Remote, Transfer
from kws.progress import progress
from kws.text import printable

log = logging.getLogger(__name__)

STEP = 1 << 23
"""Bytes that are asked for at a time, and lost at most when a connection breaks."""

THREADS = 16
"""Objects that are downloaded at the same time: most are small, and waiting for the answer takes longest."""

LOUD = {
    "azure": logging.WARNING,
    "azure.identity": logging.CRITICAL,
    "gcsfs": logging.CRITICAL,
    "google.auth": logging.ERROR,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
}
"""Packages that log every request, azure with all its headers (of 28 small files, 2,900 lines), or the traceback of an
error that they raise as well; and from which level on they are heard."""

MODULES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and AWS_ENDPOINT_URL if it is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (or `gcloud auth application-default login`)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_CONNECTION_STRING)",
    "hf": "HF_TOKEN (or `hf auth login`), and accept the conditions of a gated data set on its page",
}
"""What gives access, by the scheme of the address."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """One object, or all objects under a prefix, at an address of a store."""

    url: str
    """The address; of a data set on the Hub with the commit, so that everything is of one state."""
    files: Any = field(repr=False)
    """The fsspec file system."""
    root: str
    """The path within it."""

    @property
    def scheme(self) -> str:
        """The scheme of the address."""
        return scheme_of(self.url)

    @cached_property
    def is_folder(self) -> bool:
        """Whether the address is a prefix rather than an object.

        Raises:
            ValueError: nothing is there, or it may not be read.
            ConnectionError: the store cannot be reached.
        """
        with self._translated(is_first=True):
            self.files.invalidate_cache()
            if not self.url.endswith("/"):
                with contextlib.suppress(FileNotFoundError):
                    return str(self.files.info(self.root)["type"]) == "directory"
            if not self.files.ls(self.root, detail=False):
                raise FileNotFoundError(self.root)
        return True

    def look(self) -> Remote:
        """Returns what the store says about the object, afresh.

        Raises:
            ValueError: it is not there, or may not be read.
            ConnectionError: the store cannot be reached.
        """
        with self._translated():
            self.files.invalidate_cache()
            return _remote(self.files.info(self.root))

    def objects(self) -> dict[str, Remote]:
        """Lists the objects under the prefix by their names from it on; hidden ones are left out.

        Raises:
            ValueError: there are none, or they may not be read.
            ConnectionError: the store cannot be reached.
        """
        with self._translated(is_first=True):
            self.files.invalidate_cache()
            found = self.files.find(self.root, detail=True)
        listed: dict[str, Remote] = {}
        for path, info in sorted(found.items()):
            name = path[len(self.root) :].lstrip("/")
            parts = name.split("/")
            if (
                not name
                or name.endswith("/")
                or any(part.startswith(".") and part not in (".", "..") for part in parts)
            ):
                continue
            if any(part in ("", ".", "..") for part in parts) or not is_utf8(name) or "\0" in name:
                raise ValueError(
                    f"source must hold objects whose names are paths, got {self.url} with {printable(name)[:200]}: "
                    "rename it"
                )
            listed[name] = _remote(info)
        if not listed:
            raise ValueError(f"source must hold objects, got {self.url} with none: check the spelling")
        return listed

    def fetch(self, part: Path) -> Remote:
        """Downloads the object, resuming what an earlier try or process left.

        Args:
            part: where to write it; a .json beside it records what the store said about it.

        Raises:
            ValueError: it may not be read, or the disk is full.
            ConnectionError: the store cannot be reached or keeps breaking off; what was received is kept.
        """
        return _ObjectTransfer(self, part).run()

    def fetch_all(self, objects: Mapping[str, Remote], folder: Path) -> None:
        """Downloads all objects of the prefix to a folder, in which those that are complete and the same stay.

        Args:
            objects: the result of `objects`.
            folder: where they are written; a .json beside it records what the store said about them.

        Raises:
            ValueError: one may not be read, or the disk is full.
            ConnectionError: the store cannot be reached or keeps breaking off; what was received is kept.
        """
        notes = folder.with_name(f"{folder.name}.json")
        before = _read_notes(notes)
        total = sum(remote.length or 0 for remote in objects.values())
        missing = [name for name, remote in objects.items() if not _is_there(folder / name, remote, before.get(name))]
        done = total - sum(objects[name].length or 0 for name in missing)
        require_space(total - done, folder.parent.parent)
        for path in [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            if name in missing or name not in objects:
                path.unlink()
        files.write_json(notes, {name: dataclasses.asdict(remote) for name, remote in objects.items()})
        with progress(
            total, "B", f"download {posixpath.basename(self.root) or self.root}", scale=True, done=done
        ) as bar:

            def bring(name: str) -> int:
                one = dataclasses.replace(self, url=f"{self.url.rstrip('/')}/{name}", root=f"{self.root}/{name}")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}"[-200:] + ".part")
                _ObjectTransfer(one, part, of_many=objects[name]).run()
                os.replace(part, target)
                part.with_suffix(".json").unlink(missing_ok=True)
                return objects[name].length or 0

            with ThreadPoolExecutor(THREADS, "download") as pool:
                try:
                    for size in pool.map(bring, missing):
                        bar.update(size)
                finally:
                    pool.shutdown(cancel_futures=True)

    def say_no_access(self, error: BaseException) -> ValueError:
        """Returns the error for an object that may not be read, with what gives access."""
        return ValueError(
            f"source must be readable with the credentials that there are, got {self.url}: {_short(error)}; set "
            f"{CREDENTIALS[self.scheme]}; on a cluster in the secret kws-download"
        )

    @contextlib.contextmanager
    def _translated(self, *, is_first: bool = False) -> Iterator[None]:
        """Turns the errors of the libraries into ValueError, where another try is of no use, and ConnectionError.

        Args:
            is_first: whether nothing was received before, and nothing tries again.
        """
        try:
            yield
        except Exception as error:
            ours = isinstance(error, (ValueError, ConnectionError))
            if ours and type(error).__module__.startswith(("kws", "builtins")):
                raise
            meaning = self._meaning(error)
            if is_first and isinstance(meaning, ConnectionError):
                meaning = ConnectionError(
                    f"{self.url} must be reachable, got {meaning}: check the address, the network and HTTPS_PROXY, and "
                    "start again"
                )
            raise meaning from error

    def _meaning(self, error: Exception) -> Exception:
        kind, status = type(error).__name__, _status(error)
        denied = isinstance(error, PermissionError) or str(error).startswith("Forbidden: ")  # the latter by gcsfs
        if denied or status in (401, 403) or "Credential" in kind or "GatedRepo" in kind:
            return self.say_no_access(error)
        if isinstance(error, FileNotFoundError) or status == 404 or kind in ("NoSuchBucket", "RepositoryNotFoundError"):
            also = f", or it is private: set {CREDENTIALS['hf']}" if self.scheme == "hf" else ""
            return ValueError(f"source must exist, got {self.url}, where nothing is: check the spelling{also}")
        if files.is_full(error):
            return error
        causes, cause = [str(error)], error.__cause__ or error.__context__
        while cause is not None and len(causes) < 9:
            causes.append(str(cause))
            cause = cause.__cause__ or cause.__context__
        if any("CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text for text in causes):
            return ValueError(
                f"source must be on a server with a valid certificate, got {self.url}: {_short(error)}"
                f"{transfer.OWN_AUTHORITY}"
            )
        if any("407" in text and "roxy" in text for text in causes):
            return ValueError(
                f"the proxy must connect to the store of {self.url}, got {_short(error)}: set HTTPS_PROXY to "
                "http://USER:PASSWORD@HOST:PORT"
            )
        return ConnectionError(_short(error))


def open_store(url: str) -> Store:
    """Connects to the store of an address; nothing is asked of it yet but, of the Hub, the commit.

    Args:
        url: such as s3://bucket/prefix, gs://…, az://container/prefix, hf://datasets/organisation/name.

    Raises:
        ValueError: the packages are not installed, or there is no such data set.
        ConnectionError: the Hub cannot be reached.
    """
    scheme = scheme_of(url)
    for name, level in LOUD.items():
        logging.getLogger(name).setLevel(level)
    if importlib.util.find_spec(MODULES[scheme]) is None:
        raise ValueError(
            f"the package {MODULES[scheme].replace('_', '-')} must be installed to download from {scheme}://, got "
            "none: pip install 'kws[stores]'"
        )
    log.info("asking for %s", url)  # an answer, or the library's own tries without one, may take a minute or two
    if scheme == "hf":
        return _open_hub(url)
    store = _open(url)
    if scheme == "s3":
        from botocore.exceptions import NoCredentialsError

        try:
            store.files.invalidate_cache()
            store.files.exists(store.root)
        except NoCredentialsError:  # a public bucket is asked without a signature
            return _open(url, anon=True)
        except Exception as error:  # it is met again, with its message, when something is asked for
            log.debug("%s: %s", url, error)
    return store


def _open(url: str, **options: Any) -> Store:
    try:
        made = _connect(url, **options)
    except Exception as error:  # some look for credentials at once
        raise Store(url=url, files=None, root="").say_no_access(error) from error
    return Store(url=url, files=made, root=made._strip_protocol(url.replace("az://", "abfs://", 1)).rstrip("/"))


def _connect(url: str, **options: Any) -> Any:
    """Returns the fsspec file system of an address."""
    import fsspec

    made: Any
    if scheme_of(url) == "gs":
        # Not the class that the package names: it asks Google for the kind of the bucket before each request, also
        # where there are no credentials, which takes seconds each time.
        from gcsfs.core import GCSFileSystem

        made = GCSFileSystem(skip_instance_cache=True, session_kwargs={"trust_env": True}, **options)  # heeds proxies
        made._request = functools.partial(GCSFileSystem._request.__wrapped__, made)  # without its tries: see below
    elif scheme_of(url) == "s3":
        limits = {"connect_timeout": 30, "read_timeout": 60, "retries": {"total_max_attempts": 1}}
        made = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=limits, **options)
        made.retries = 1  # `Transfer` tries again, and says so; together they would for minutes in silence
    else:
        made = fsspec.filesystem("abfs", skip_instance_cache=True, **options)
    return made


def _open_hub(url: str) -> Store:
    """Opens a data set of the Hub at the commit that its branch has now."""
    from huggingface_hub import HfFileSystem

    # The library reads these variables when it is imported, which may be before a secret sets them.
    hub: Any = HfFileSystem(
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        token=os.environ.get("HF_TOKEN") or None,
        skip_instance_cache=True,
    )
    store = Store(url=url, files=hub, root=hub._strip_protocol(url).rstrip("/"))
    with store._translated(is_first=True):
        place: Any = hub.resolve_path(store.root)
        commit = hub._api.repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type).sha
    inside = f"/{place.path_in_repo}" if place.path_in_repo else ""
    root = f"{place.repo_type}s/{place.repo_id}@{commit}"
    return dataclasses.replace(store, url=f"hf://{root}{inside}", root=f"{root}{inside}")


def objects_digest(objects: Mapping[str, Remote]) -> str:
    """Returns a digest of the names, ETags and sizes of objects, which changes if one of them does."""
    lines = [f"{name}\0{remote.etag}\0{remote.length}\n" for name, remote in sorted(objects.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class _ObjectTransfer(Transfer):
    """Transfers an object as `Transfer` does a file over HTTP."""

    def __init__(self, store: Store, part: Path, of_many: Remote | None = None) -> None:
        super().__init__(store.url, part)
        self.store = store
        self.of_many = of_many
        """What the listing says about the object, if it is one of many: there is no progress bar of its own."""

    def try_once(self) -> Remote:
        """Transfers the missing bytes."""
        now = self.of_many if self.of_many and self.of_many.etag else self.store.look()
        assert now.length is not None
        have, known = self.size(), self._read_notes()
        if have and (known is None or not known.same(now) or have > now.length):
            if known is not None:
                log.info("%s has changed: downloading it again", self.shown)
            transfer.discard(self.part)
            have = 0
        if self.of_many is None:
            require_space(now.length - have + now.length * EXTRACTED, self.part.parent.parent)
        self.part.parent.mkdir(parents=True, exist_ok=True)
        if self.of_many is None or now.length > STEP:
            self._write_notes(now)
        with self.part.open("ab") as file, contextlib.ExitStack() as stack:
            name = posixpath.basename(self.store.root)
            title = f"resume {name} at {files.human_bytes(have)}" if have else f"download {name}"
            bar = None
            if self.of_many is None:
                bar = stack.enter_context(progress(now.length, "B", title, scale=True, done=have))
            while have < now.length:
                chunk = self._read(have, min(STEP, now.length - have))
                if not chunk:
                    raise ConnectionError(f"the object ended after {have} of {now.length} bytes")
                file.write(chunk)
                have += len(chunk)
                if bar is not None:
                    bar.update(len(chunk))
        if not self._is_whole(now):
            transfer.discard(self.part)
            raise ConnectionError("it is not what the store says it is, or changed while it was downloaded")
        return now

    def _read(self, start: int, num_bytes: int) -> bytes:
        with self.store._translated():
            file = self.store.files.open(self.store.root, "rb", block_size=STEP, cache_type="none")
            with file:
                file.seek(start)
                return bytes(file.read(num_bytes))

    def _is_whole(self, now: Remote) -> bool:
        """Checks the object by the digest that the store knows, or else by its being still the same one."""
        if expected := _digests(self.store.files.info(self.store.root)):
            content = hashlib.new(*expected[:1], usedforsecurity=False)
            content.update(expected[2])
            with self.part.open("rb") as file:
                while chunk := file.read(STEP):
                    content.update(chunk)
            return content.hexdigest() == expected[1]
        return (now.length or 0) <= STEP or now.same(self.store.look())


def _remote(info: Mapping[str, Any]) -> Remote:
    """Returns what a store says about an object, from its info in fsspec."""
    lfs = info.get("lfs") or {}
    etag = info.get("ETag") or info.get("etag") or lfs.get("sha256") or info.get("blob_id") or info.get("generation")
    modified = info.get("LastModified") or info.get("last_modified") or info.get("updated")
    if isinstance(modified, datetime):
        modified = modified.isoformat()
    return Remote(None if etag is None else str(etag), modified, int(info["size"] or 0))


def _digests(info: Mapping[str, Any]) -> tuple[str, str, bytes] | None:
    """Returns algorithm, digest and what precedes the content in it, where a store knows them for certain."""
    if sha256 := (info.get("lfs") or {}).get("sha256"):
        return "sha256", sha256, b""
    if blob := info.get("blob_id"):
        return "sha1", blob, f"blob {info['size']}\0".encode()  # as Git computes it
    if md5 := info.get("md5Hash"):  # Google
        return "md5", base64.b64decode(md5).hex(), b""
    content_md5 = (info.get("content_settings") or {}).get("content_md5")  # Azure
    return ("md5", bytes(content_md5).hex(), b"") if content_md5 else None


def _is_there(path: Path, remote: Remote, before: Remote | None) -> bool:
    """Tells whether an object was downloaded before and is still the same."""
    return before is not None and before.same(remote) and path.is_file() and path.stat().st_size == remote.length


def _read_notes(path: Path) -> dict[str, Remote]:
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return {}
    remotes = {name: Remote.of_json(value) for name, value in found.items()} if isinstance(found, dict) else {}
    return {name: remote for name, remote in remotes.items() if remote is not None}


def _status(error: BaseException) -> int | None:
    """Returns the status of the HTTP answer behind an error."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for each in (error, response):
        for name in ("status", "status_code", "code"):
            if isinstance(value := getattr(each, name, None), int):
                return value
    return None


def _short(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))[:300] or type(error).__name__
