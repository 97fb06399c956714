"""Calls to the Kubernetes API, or to another one over HTTP: dictionaries in and out, with timeouts and patience.

The typed calls of the Kubernetes client give objects whose names differ from those of the API, and know no object of a
custom resource. So its transport alone is used: kubeconfig, tokens, certificates.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kws.kube.errors import KubeError, NotFound, Unreachable, translated

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

TIMEOUT = 60
"""Seconds within which an answer must come."""

CONNECT_TIMEOUT = 10
"""Seconds within which a connection must come about."""

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File with the namespace of the pod in which this runs."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Resource:
    """A kind of object in the API."""

    plural: str
    group: str = ""
    version: str = "v1"

    def path(self, namespace: str = "", name: str = "") -> str:
        """Returns the path of an object or, without a name, of the list; in all namespaces, if none is given."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return "/".join(filter(None, (root, namespace and f"namespaces/{namespace}", self.plural, name)))


CLAIMS = Resource("persistentvolumeclaims")
CONFIG_MAPS = Resource("configmaps")
DEPLOYMENTS = Resource("deployments", "apps")
EVENTS = Resource("events")
NAMESPACES = Resource("namespaces")
NODES = Resource("nodes")
PODS = Resource("pods")
QUOTAS = Resource("resourcequotas")
STORAGE_CLASSES = Resource("storageclasses", "storage.k8s.io")
WORKFLOWS = Resource("workflows", "argoproj.io", "v1alpha1")


def own_namespace() -> str:
    """Returns the namespace of the pod in which this runs; outside a pod, `kubeflow`, as in a standalone install."""
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "kubeflow"


def kubeconfig() -> str | None:
    """Returns the files that KUBECONFIG names now, as kubectl takes them; the library reads it when it is imported."""
    return os.environ.get("KUBECONFIG") or None


def _unusable() -> tuple[type[Exception], ...]:
    """Returns the errors with which the library ends if there is no kubeconfig, or one that it cannot read."""
    from kubernetes import config
    from yaml import YAMLError

    return (config.ConfigException, OSError, YAMLError, AttributeError, TypeError, ValueError)


def current_context() -> str:
    """Returns the name of the current context of kubeconfig; empty if there is none."""
    from kubernetes import config

    try:
        return str(config.list_kube_config_contexts(kubeconfig())[1]["name"])
    except _unusable():
        return ""


@dataclass(frozen=True)
class Api:
    """An API, and how patiently it is called."""

    client: "ApiClient"

    patience: float = 0.0
    """Seconds of failures after which a call is given up; 0: it is made once."""

    passing: tuple[type[KubeError], ...] = (Unreachable,)
    """Errors that are waited out so long."""

    @classmethod
    def of_kubeconfig(cls, context: str = "") -> "Api":
        """Connects to the cluster of kubeconfig, or of one of its contexts.

        Raises:
            ValueError: there is no such configuration.
        """
        from kubernetes import config

        try:
            return cls(config.new_client_from_config(kubeconfig(), context or None))
        except _unusable() as error:
            said = " ".join(str(error).split())
            raise ValueError(f"KUBECONFIG must name the configuration of a cluster, got: {said}") from error

    @classmethod
    def of_pod(cls) -> "Api":
        """Connects to the cluster in which this runs; outside a pod, to that of kubeconfig."""
        from kubernetes import client, config

        if not NAMESPACE_FILE.exists():
            return cls.of_kubeconfig()
        settings = client.Configuration()
        config.load_incluster_config(client_configuration=settings)
        return cls(client.ApiClient(settings))

    @classmethod
    def at(cls, address: str, ca_file: str = "", token: Callable[[], str] | None = None) -> "Api":
        """Connects to an address, http://… or https://…

        `ca_file` has its certificate authority, unless this machine knows it; `token` gives the token for each call.
        """
        from kubernetes import client

        settings = client.Configuration(host=address.rstrip("/"))
        settings.ssl_ca_cert = ca_file or None
        if token is not None:
            settings.api_key["authorization"] = ""
            settings.refresh_api_key_hook = lambda config: config.api_key.update(authorization=f"Bearer {token()}")
        return cls(client.ApiClient(settings))

    def patient(self, seconds: float, *passing: type[KubeError]) -> "Api":
        """Returns the same API, called with another patience, with which more errors may be waited out."""
        return dataclasses.replace(self, patience=seconds, passing=(*self.passing, *passing))

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """Returns an object."""
        return self._call("GET", resource.path(namespace, name))

    def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """Returns an object, or None if there is none."""
        with contextlib.suppress(NotFound):
            return self.get(resource, namespace, name)
        return None

    def list(self, resource: Resource, namespace: str = "", **selectors: Any) -> list[dict[str, Any]]:
        """Returns objects of a namespace, or of all; selectors are parameters of the call, such as labelSelector."""
        return list(self._call("GET", resource.path(namespace), **selectors)["items"])

    def create(self, resource: Resource, manifest: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """Creates an object, and returns it as it is now; with dryRun="All" the API only says whether it would."""
        return self._call("POST", resource.path(manifest["metadata"]["namespace"]), manifest, **query)

    def patch(self, resource: Resource, namespace: str, name: str, changes: Mapping[str, Any]) -> None:
        """Merges changes into an object."""
        self._call("PATCH", resource.path(namespace, name), changes)

    def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """Deletes an object, which stays visible until what belongs to it is gone; does nothing if there is none."""
        with contextlib.suppress(NotFound):
            self._call("DELETE", resource.path(namespace, name), propagationPolicy="Foreground")

    def read(self, path: str) -> bytes:
        """Returns what is at a path."""
        return self._retry(lambda: self._read("GET", path, None, {}))

    @contextlib.contextmanager
    def stream(self, path: str, timeout: float, **query: Any) -> Iterator[Iterator[bytes]]:
        """Opens what is at a path, which may come in pieces for ever.

        After `timeout` seconds without a piece the connection counts as dead.
        """
        with translated():
            response = self._open("GET", path, None, timeout, query)
        with contextlib.closing(response):
            yield self._pieces(response)

    @staticmethod
    def _pieces(response: Any) -> Iterator[bytes]:
        with translated():
            yield from response.stream(amt=None, decode_content=False)

    def _call(self, method: str, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
        return dict(json.loads(self._retry(lambda: self._read(method, path, body, query))))

    def _read(self, method: str, path: str, body: Any, query: Mapping[str, Any]) -> bytes:
        with translated():
            return bytes(self._open(method, path, body, TIMEOUT, query).data)

    def _open(self, method: str, path: str, body: Any, timeout: float, query: Mapping[str, Any]) -> Any:
        # A proxy that asks for a login answers 401 to a client that accepts JSON, and redirects others to its page.
        headers = {"Accept": "application/json, */*"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        return self.client.call_api(
            path,
            method,
            query_params=[(name, str(value).lower() if value is True else value) for name, value in query.items()],
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=(CONNECT_TIMEOUT, timeout),
        )

    def _retry(self, call: Callable[[], Result]) -> Result:
        """Repeats a call, with exponential back-off, while it fails with an error that may pass."""
        start = time.monotonic()
        for attempt in itertools.count():
            try:
                return call()
            except self.passing as error:
                if time.monotonic() - start >= self.patience:
                    raise
                delay = min(2**attempt, 30)
                echo(f"the Kubernetes API does not answer as it should, trying again in {delay} s: {error.message}")
                time.sleep(delay)
        raise AssertionError


def echo(text: str) -> None:
    """Prints a line to standard error, if anyone still reads it.

    The launcher of Kubeflow Pipelines, which reads that of a step, ends at the same signal as the step: what is to be
    done then must not fail for want of a reader.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
