"""Which Kubeflow, and how it is reached: through kubeconfig, or by address and token."""

import contextlib
import functools
import json
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kws.kube.client import CLAIMS, Api, current_context
from kws.kube.errors import KubeError, NotFound, Unreachable, error_of, no_answer
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
            self._read_token()

    @property
    def kubectl(self) -> list[str]:
        """Kubectl with the flags for this cluster and namespace."""
        return ["kubectl", *(["--context", self.context] if self.context else []), "--namespace", self.namespace]

    @functools.cached_property
    def kind(self) -> bool:
        """Whether it is the cluster that `kind-up` made here: by its context, which need not be the current one."""
        return not self.host and (self.context or current_context()) == kind.CONTEXT

    @property
    def volume(self) -> Path | None:
        """The folder of this machine that is the volume; None if it is none."""
        return kind.DATA_ROOT if self.kind and kind.DATA_ROOT.is_dir() else None

    @functools.cached_property
    def api(self) -> Api | None:
        """The Kubernetes API; None without a kubeconfig, and then logs are left out."""
        with contextlib.suppress(ValueError):
            return Api.of_kubeconfig(self.context)
        return None

    def kubernetes(self) -> Api:
        """Returns the Kubernetes API, for what cannot do without.

        Raises:
            ValueError: kubeconfig has no such context.
            ClusterError: there is no kubeconfig.
        """
        if self.api is None and self.context:
            raise ValueError(
                f"context must be one of kubeconfig (kubectl config get-contexts lists them), got {self.context!r}"
            )
        if self.api is None:
            raise ClusterError(
                "a cluster must be named by kubeconfig or --host, got neither; make kind-up creates one "
                "here, KUBECONFIG names an existing one"
            )
        return self.api

    def installing(self) -> str:
        """Returns the command that applies manifests to this cluster."""
        command = ["python", "-m", "pipeline", "install"]
        command += ["--namespace", self.namespace] if self.namespace != kind.NAMESPACE else []
        command += ["--context", self.context] if self.context else []
        return shlex.join(command)

    def claim(self, name: str) -> dict[str, Any]:
        """Returns the claim of a volume.

        Raises:
            KubeError: it may not be read, or there is no answer.
            ClusterError: there is no such claim, or no kubeconfig.
        """
        found = self.kubernetes().find(CLAIMS, self.namespace, name)
        if found is None:
            raise ClusterError(
                f"the claim {name} must exist in namespace {self.namespace}, got none; {self.installing()} makes it"
            )
        return found

    def read(self, path: str) -> bytes:
        """Reads a path of Kubeflow Pipelines for which its client has no call.

        Raises:
            KubeError: there is nothing, or no answer.
            ClusterError: there is neither kubeconfig nor host.
        """
        if self.host:
            return Api.at(self.host, self.ca_file, self.token if self.token_file else None).read(f"/{path}")
        return self.kubernetes().read(f"/api/v1/namespaces/{kind.NAMESPACE}/services/ml-pipeline:http/proxy/{path}")

    @functools.cached_property
    def health(self) -> Mapping[str, Any]:
        """The health record of Kubeflow Pipelines.

        Raises:
            ClusterError: it does not answer, or something else answers.
        """
        try:
            return dict(json.loads(self.read("apis/v2beta1/healthz")))
        except KubeError as error:
            raise self._not_healthy(error) from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            if self.token_file:
                remedy = f"then the token is wrong or has expired; for a fresh one: {self._fresh_token}"
            else:
                remedy = f"then give a token: {self._fresh_token}, and TOKEN_FILE=token"
            raise ClusterError(
                f"host must be the address of Kubeflow Pipelines, got a page at {self.host}; check that it ends with "
                f"/pipeline. Perhaps it is a login page: {remedy}"
            ) from None

    def _not_healthy(self, error: KubeError) -> ClusterError:
        if error.status in (401, 403):
            return explained(error, self)
        if self.host:
            rule, remedy = "have a working Kubeflow Pipelines", "ends with /pipeline"
            if not error.status:
                rule, remedy = "answer", "is right and reachable from here"
            return ClusterError(f"{self.host} must {rule}, got {error}; check that the address {remedy}")
        if isinstance(error, NotFound):
            return ClusterError(
                f"Kubeflow Pipelines must be installed in namespace {kind.NAMESPACE}, got no service "
                "ml-pipeline there; make kind-up installs it on kind"
            )
        if error.status:
            return ClusterError(
                "Kubeflow Pipelines must be ready, got no answer from its API yet; python -m pipeline kind-status "
                "shows what it waits for"
            )
        return ClusterError(
            f"the cluster of kubeconfig must answer, got {error}; see python -m pipeline kind-status, and check "
            "the context with kubectl config get-contexts"
        )

    @property
    def user_namespace(self) -> str | None:
        """The namespace that calls must name; None on a standalone installation, which refuses any."""
        return self.namespace if self.health.get("multi_user") or self.health.get("multiUser") else None

    @property
    def ui(self) -> str:
        """Address of the UI for links of this machine: on kind, or while `make ui` forwards it, a port of its own."""
        return self.host.rstrip("/") or kind.UI

    @property
    def ui_hint(self) -> str:
        """What to say behind a link that works under a condition only."""
        return "" if self.host or self.kind else "  (while make ui runs)"

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
                return self._read_token()
            except ValueError:  # `kubectl create token > FILE` empties the file before it asks for the token
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _read_token(self) -> str:
        try:
            token = Path(self.token_file).read_text(errors="replace").strip()
        except FileNotFoundError:
            got = "which does not exist"
        except OSError as error:
            got = f"which cannot be read: {error.strerror}"
        else:
            if re.fullmatch(r"[!-~]+", token):
                return token
            got = "which has more than one word, or characters that no token has" if token else "which is empty"
        raise ValueError(
            f"token_file must be a file that holds one token, got {self.token_file!r}, {got}; "
            f"for a fresh one: {self._fresh_token}"
        )

    @property
    def _fresh_token(self) -> str:
        """The command that writes a token for the host into the token file."""
        return (
            f"kubectl create token default-editor -n {self.namespace} --audience=pipelines.kubeflow.org > "
            f"{shlex.quote(self.token_file or 'token')}"
        )


@dataclass(frozen=True)
class _TokenFile:
    """The credentials of a client of Kubeflow Pipelines, which asks for them before every call."""

    cluster: Cluster

    def refresh_api_key_hook(self, config: Any) -> None:
        config.api_key["authorization"] = self.cluster.token()


@contextlib.contextmanager
def kubeflow_errors() -> Iterator[None]:
    """Raises the errors of Kubeflow's client, and of the connections beneath it, as those of `kws.kube.errors`."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise error_of(error.status or 0, str(error.reason), error.body) from error
    except HTTPError as error:
        raise no_answer(error) from error


def explained(error: KubeError, cluster: Cluster) -> ClusterError:
    """Returns the error of a call as a sentence with a remedy."""
    who = cluster.host or "the cluster"
    if error.status == 401:
        remedy = "log in again, as your kubeconfig has it: kubectl get pods tells more"
        if cluster.host:
            remedy = (
                f"for a fresh token: {cluster._fresh_token}{'' if cluster.token_file else ', and TOKEN_FILE=token'}"
            )
        return ClusterError(f"{who} must accept your credentials, got {error}; {remedy}")
    if error.status == 403:
        return ClusterError(
            f"{who} must allow this call, got {error}; check that {cluster.namespace} is "
            "your namespace (NAMESPACE=) and that token or kubeconfig have rights in it"
        )
    if isinstance(error, Unreachable) and not error.status:
        return ClusterError(
            f"{who} must answer, got {error}; see python -m pipeline kind-status, and check the context with kubectl "
            "config get-contexts"
        )
    return ClusterError(f"Kubeflow Pipelines must accept the call, got {error}")
