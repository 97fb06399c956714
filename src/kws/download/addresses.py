"""Addresses of recordings: what they mean, and how they are written without what is secret in them."""

import re
import urllib.parse
from collections.abc import Mapping

STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "hf": "hf"}
"""The schemes of object stores and of the Hugging Face Hub, and how an address is written that is kept."""

HUB = ("huggingface.co", "www.huggingface.co", "hf.co")

_SIGNING = re.compile(
    r"x-(amz|goog|oss|cos)-\w+(-\w+)*|.*(signature|token|secret|password|accesskeyid|accessid|api_?key)|sig|s[epvrt]|"
    r"key-pair-id|policy|expires|rlkey",
    re.IGNORECASE,
)
"""Names of the parameters by which addresses are signed at Amazon, Google, Azure and others, or carry a key."""


def unsigned(url: str) -> str:
    """Returns an address without its signature, to be kept: a signature lets everyone in who reads it, and expires."""
    parts = urllib.parse.urlsplit(url)
    kept = [each for each in parts.query.split("&") if not _is_signing(each)]
    return urllib.parse.urlunsplit(parts._replace(query="&".join(kept), fragment=""))


def is_signed(url: str) -> bool:
    """Tells whether an address carries a signature, a key or a password, and must not be kept."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return bool(parts.scheme) and ("@" in parts.netloc or any(map(_is_signing, parts.query.split("&"))))


def _is_signing(parameter: str) -> bool:
    return _SIGNING.fullmatch(parameter.partition("=")[0]) is not None


def scheme_of(source: str) -> str:
    """Returns the scheme of an address in lower case, or nothing for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
    return match[1].lower() if match else ""


def resolve(source: str, environ: Mapping[str, str]) -> str:
    """Returns the address or path that a source stands for.

    Args:
        source: as a user gave it. `env:NAME` stands for the content of an environment variable, such as an address with
            a signature, which is then in no parameter; a page of the Hub for `hf://datasets/…`.
        environ: the environment variables.

    Raises:
        ValueError: there is no such variable.
    """
    if source.startswith("env:"):
        name = source.removeprefix("env:")
        if not environ.get(name):
            raise ValueError(
                f"source must name an environment variable that holds an address, got {source}, which is not set (on a "
                "cluster: an entry of the secret kws-download)"
            )
        return resolve(environ[name], {})
    scheme = scheme_of(source)
    if scheme in ("http", "https"):
        return _of_hub_page(source, environ) or source
    if scheme in STORES:
        return f"{STORES[scheme]}://{source.partition('://')[2]}"
    if scheme == "file":
        parts = urllib.parse.urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"source must be a file of this machine (file:///path), got {source}")
        return urllib.parse.unquote(parts.path)
    return source


def _of_hub_page(url: str, environ: Mapping[str, str]) -> str | None:
    """Returns the hf:// address of a page or a file of a data set on the Hub, or None for any other address."""
    parts = urllib.parse.urlsplit(url)
    endpoint = urllib.parse.urlsplit(environ.get("HF_ENDPOINT") or "")
    if parts.netloc.lower() not in (*HUB, endpoint.netloc.lower() or HUB[0]):
        return None
    names = parts.path.removeprefix(endpoint.path.rstrip("/")).strip("/").split("/")
    if len(names) < 3 or names[0] != "datasets":
        return None
    address = f"hf://datasets/{names[1]}/{names[2]}"
    if len(names) > 4 and names[3] in ("tree", "blob", "resolve", "raw"):
        address += f"@{names[4]}"  # a slash in the name of a branch stays %2F, as on the page
        address += "".join(f"/{urllib.parse.unquote(name)}" for name in names[5:])
    return address
