"""Which Kubeflow, and how it is reached: through kubeconfig, or by address and token."""

import contextlib
import functools
import json
import os
import re
import shlex
import ssl
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kws.download.recordings import one_line
from pipeline.kind import local_cluster as kind
from pipeline.shell import ClusterError

if TYPE_CHECKING:
    import kfp


TOKEN_SECONDS = 5.0
"""How long a token file that is being replaced may hold no token."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which Kubeflow, and how it is reached."""

    host: str = ""
    """Address of Kubeflow Pipelines, such as https://kubeflow.example.com/pipeline; empty: through kubeconfig."""

    namespace: str = "kubeflow"
    """Namespace in which steps run: kubeflow on a standalone installation, otherwise that of your profile."""

    token_file: str = ""
    """A file with the token that the host asks for. It is read again for every call, so it may be renewed meanwhile."""

    ca_file: str = ""
    """A file with the certificate authority of the host, if this machine does not know it."""

    context: str = ""
    """Context of kubeconfig; empty: the current one."""

    def __post_init__(self) -> None:
        if self.host and not self.host.startswith(("http://", "https://")):
            raise ValueError(f"host must begin with http:// or https://, got {self.host!r}")
        if self.ca_file and not Path(self.ca_file).is_file():
            raise ValueError(f"ca_file must be a file, got {self.ca_file!r}, which does not exist")
        if self.token_file:
            _read_token(self)

    @property
    def kubectl(self) -> list[str]:
        """Kubectl with the flags for this cluster and namespace."""
        return ["kubectl", *(["--context", self.context] if self.context else []), "--namespace", self.namespace]

    @functools.cached_property
    def kind(self) -> bool:
        """Whether it is the cluster that `kind-up` made here: by its context, which need not be the current one."""
        return not self.host and (self.context or _current_context()) == kind.CONTEXT

    @property
    def volume(self) -> Path | None:
        """The folder of this machine that is the volume; None if it is none."""
        return kind.DATA_ROOT if self.kind and kind.DATA_ROOT.is_dir() else None

    @functools.cached_property
    def health(self) -> Mapping[str, Any]:
        """The health record of Kubeflow Pipelines.

        Raises:
            ClusterError: it does not answer, or something else answers.
        """
        return _health_of_host(self) if self.host else _health_through_kubeconfig(self)

    @property
    def user_namespace(self) -> str | None:
        """The namespace that calls must name; None on a standalone installation, which refuses any."""
        return self.namespace if self.health.get("multi_user") or self.health.get("multiUser") else None

    @property
    def ui(self) -> str:
        """Address of the UI for links."""
        return self.host.rstrip("/") or kind.UI

    @functools.cached_property
    def client(self) -> "kfp.Client":
        """The client of Kubeflow Pipelines, once it is known to answer."""
        assert self.health is not None
        import kfp

        credentials = _TokenFile(self) if self.token_file else None
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore", FutureWarning)
            return kfp.Client(
                host=self.host or None,
                ui_host=self.ui,
                credentials=credentials,
                ssl_ca_cert=self.ca_file or None,
                kube_context=self.context or None,
            )

    def token(self) -> str:
        """Reads the token file, as it may have been renewed; waits while it is being written.

        Raises:
            ValueError: the file holds no token for some seconds.
        """
        until = time.monotonic() + TOKEN_SECONDS
        while True:
            try:
                return _read_token(self)
            except ValueError:  # `kubectl create token > FILE` empties the file before it asks for the token
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def read(self, path: str) -> bytes:
        """Reads a path of Kubeflow Pipelines for which its client has no call; empty if there is nothing."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            if not self.host:
                answer = self.core.connect_get_namespaced_service_proxy_with_path(
                    "ml-pipeline:http", kind.NAMESPACE, path, _preload_content=False, _request_timeout=20
                )
                return bytes(answer.data)
            with _open(self, path) as response:
                return bytes(response.read())
        except (ApiException, HTTPError, OSError, ValueError):
            return b""

    @functools.cached_property
    def core(self) -> Any:
        """The Kubernetes client; None without a kubeconfig, and then logs are left out."""
        from kubernetes import client, config

        try:
            config.load_kube_config(_kubeconfig(), context=self.context or None)
        except (config.ConfigException, OSError):
            return None
        return client.CoreV1Api()


def _kubeconfig() -> str | None:
    """Returns the files that KUBECONFIG names now, as kubectl takes them; the client reads it when it is imported."""
    return os.environ.get("KUBECONFIG") or None


def _current_context() -> str:
    from kubernetes import config

    try:
        return str(config.list_kube_config_contexts(_kubeconfig())[1]["name"])
    except (config.ConfigException, OSError):
        return ""


@dataclass(frozen=True)
class _TokenFile:
    """The credentials of a client of Kubeflow Pipelines, which asks for them before every call."""

    cluster: Cluster

    def refresh_api_key_hook(self, config: Any) -> None:
        config.api_key["authorization"] = self.cluster.token()


def _read_token(cluster: Cluster) -> str:
    """Reads the token file.

    Raises:
        ValueError: it cannot be read, or does not hold one token.
    """
    path = Path(cluster.token_file)
    try:
        token = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        got = "which does not exist"
    except OSError as error:
        got = f"which cannot be read: {error.strerror}"
    else:
        if re.fullmatch(r"[!-~]+", token):
            return token
        got = "which has more than one word, or characters that no token has" if token else "which is empty"
    raise ValueError(
        f"token_file must be a file that holds one token, got {cluster.token_file!r}, {got}; "
        f"for a fresh one: {_fresh_token(cluster)}"
    )


def _fresh_token(cluster: Cluster) -> str:
    """Returns the command that writes a token for the host into the token file."""
    return (
        f"kubectl create token default-editor -n {cluster.namespace} --audience=pipelines.kubeflow.org > "
        f"{shlex.quote(cluster.token_file or 'token')}"
    )


def _open(cluster: Cluster, path: str) -> Any:
    """Opens a path below the address of Kubeflow Pipelines."""
    # A proxy that asks for a login answers 401 to a client that accepts JSON, and redirects others to its page.
    request = urllib.request.Request(f"{cluster.host.rstrip('/')}/{path}", headers={"Accept": "application/json"})
    if cluster.token_file:
        request.add_header("Authorization", f"Bearer {cluster.token()}")
    context = ssl.create_default_context(cafile=cluster.ca_file or None)
    return urllib.request.urlopen(request, timeout=20, context=context)


def _health_of_host(cluster: Cluster) -> Mapping[str, Any]:
    try:
        with _open(cluster, "apis/v2beta1/healthz") as answer:
            health = json.load(answer)
    except urllib.error.HTTPError as error:
        raise refused(error.code, cluster, _words_of(error)) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        if cluster.token_file:
            remedy = f"then the token is wrong or has expired; for a fresh one: {_fresh_token(cluster)}"
        else:
            remedy = f"then give a token: {_fresh_token(cluster)}, and TOKEN_FILE=token"
        raise ClusterError(
            f"host must be the address of Kubeflow Pipelines, got a page at {cluster.host}; check that it ends with "
            f"/pipeline. Perhaps it is a login page: {remedy}"
        ) from None
    except (urllib.error.URLError, OSError) as error:
        raise ClusterError(
            f"{cluster.host} must answer, got {getattr(error, 'reason', error)}; check that the "
            "address is right and reachable from here"
        ) from None
    return dict(health)


def _words_of(error: urllib.error.HTTPError) -> str:
    """Returns the status and what a server says in a line or as JSON; not its pages."""
    said = error.read(2000).decode(errors="replace").strip()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = str(json.loads(said)["message"])
    is_line = said and len(said) <= 200 and not said.startswith("<")
    return f"status {error.code}: {one_line(' '.join(said.split()))}" if is_line else ""


def _health_through_kubeconfig(cluster: Cluster) -> Mapping[str, Any]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if cluster.core is None:
        raise ClusterError(
            "a cluster must be named by kubeconfig or --host, got neither; make kind-up creates one "
            "here, KUBECONFIG names an existing one"
        )
    try:
        answer = cluster.core.connect_get_namespaced_service_proxy_with_path(
            "ml-pipeline:http", kind.NAMESPACE, "apis/v2beta1/healthz", _preload_content=False, _request_timeout=20
        )
        return dict(json.loads(answer.data))
    except ApiException as error:
        if error.status == 404:
            raise ClusterError(
                f"Kubeflow Pipelines must be installed in namespace {kind.NAMESPACE}, got no service "
                "ml-pipeline there; make kind-up installs it on kind"
            ) from None
        if error.status in (500, 502, 503):
            raise ClusterError(
                "Kubeflow Pipelines must be ready, got no answer from its API yet; python -m pipeline kind-status "
                "shows what it waits for"
            ) from None
        raise refused(error.status, cluster, said_by(error)) from None
    except (HTTPError, OSError) as error:
        raise ClusterError(
            f"the cluster of kubeconfig must answer, got {str(error)[:200]}; see python -m pipeline kind-status, "
            "and check the context with kubectl config get-contexts"
        ) from None


def said_by(error: Exception) -> str:
    """Returns the message of an API error, without headers: `status 403: pods is forbidden: …`."""
    said = str(getattr(error, "reason", None) or error)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = json.loads(getattr(error, "body", "") or "")["message"]
    status = getattr(error, "status", None)
    return f"status {status}: {said}" if status else said


def refused(status: int, cluster: Cluster, said: str = "") -> ClusterError:
    """Returns the error that explains an HTTP status.

    Args:
        status: the status.
        cluster: where it came from.
        said: the API's own message, if there was one.
    """
    who, words = cluster.host or "the cluster", said or f"status {status}"
    if status == 401:
        remedy = f"for a fresh token: {_fresh_token(cluster)}"
        if not cluster.host:
            remedy = "log in again, as your kubeconfig has it: kubectl get pods tells more"
        elif not cluster.token_file:
            remedy += ", and TOKEN_FILE=token"
        return ClusterError(f"{who} must accept your credentials, got {words}; {remedy}")
    if status == 403:
        return ClusterError(
            f"{who} must allow this call, got {words}; check that {cluster.namespace} is "
            "your namespace (NAMESPACE=) and that token or kubeconfig have rights in it"
        )
    return ClusterError(
        f"{who} must have a working Kubeflow Pipelines, got {words}; check that the address ends with /pipeline"
    )
