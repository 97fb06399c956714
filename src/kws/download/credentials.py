"""Credentials, certificates and proxies of the download step: from the usual variables and files, or a secret.

On a cluster the secret kws-download, if there is one, is mounted as a folder (`pipeline.placement`): every entry that
is named like an environment variable becomes one, ca.crt is the certificate authority to trust, google.json the key of
a Google service account. None of it is ever a parameter, which Kubeflow would keep in its database and show.
"""

import logging
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

SECRET = "kws-download"
SECRET_FOLDER = Path("/var/run/secrets/kws-download")
"""Where the secret is mounted."""

CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""The variables by which libraries are told which certificate authorities to trust; each heeds only some of them."""


_OF_DOWNLOADS = re.compile("(AWS|AZURE|GOOGLE|HF)_.*|(HTTPS?|NO|ALL)_PROXY|" + "|".join(CERTIFICATES), re.IGNORECASE)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns those environment variables that give access to stores, or say how to reach them."""
    return {name: value for name, value in environ.items() if _OF_DOWNLOADS.fullmatch(name)}


def load(folder: Path = SECRET_FOLDER, environ: MutableMapping[str, str] | None = None) -> None:
    """Sets environment variables from the entries of a mounted secret, unless they are set already.

    Args:
        folder: where the secret is mounted; nothing happens if it is not there.
        environ: where to set them; None: the environment of this process.

    Raises:
        ValueError: a variable names a file of certificates that does not exist.
    """
    environ = os.environ if environ is None else environ
    taken: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.name == "ca.crt":
            name, value = CERTIFICATES[0], str(path)
        elif path.name == "google.json":
            name, value = "GOOGLE_APPLICATION_CREDENTIALS", str(path)
        elif re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", path.name):
            name, value = path.name, path.read_text(encoding="utf-8").strip()
        else:
            log.warning("secret %s: entry %s is not used, as it is not named like a variable", SECRET, path.name)
            continue
        environ.setdefault(name, value)
        taken.append(name)
    if taken:
        log.info("from the secret %s: %s", SECRET, ", ".join(taken))
    if trusted := next((environ[name] for name in CERTIFICATES if environ.get(name)), None):
        if not Path(trusted).exists():
            raise ValueError(f"{' or '.join(CERTIFICATES[:2])} must name a file of certificates, got {trusted!r}")
        for name in CERTIFICATES:
            environ.setdefault(name, trusted)
