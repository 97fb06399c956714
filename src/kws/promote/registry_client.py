"""A client of the Model Registry for both versions of its API. Needs the extra `registry`.

Servers have `v1` since August 2026 (kubeflow/hub #3037), and `v1alpha3` beside it until they drop it; those before have
only `v1alpha3`. The package model-registry calls `v1` alone since its release 0.3.15. What is used here differs between
them only in the path.
"""

import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from model_registry.core import ModelRegistryAPIClient
from model_registry.types import ListOptions, ModelVersion
from mr_openapi import ApiClient, ModelRegistryServiceApi
from mr_openapi.exceptions import NotFoundException
from mr_openapi.rest import RESTResponse

V1, V1ALPHA3 = "/api/model_registry/v1/", "/api/model_registry/v1alpha3/"

PAGE = 100
"""Number of versions to ask for at a time."""


class _V1Alpha3(ApiClient):  # type: ignore[misc]
    async def call_api(self, method: str, url: str, *arguments: Any, **named: Any) -> RESTResponse:
        return await super().call_api(method, url.replace(V1, V1ALPHA3, 1), *arguments, **named)


class RegistryClient(ModelRegistryAPIClient):  # type: ignore[misc]
    """Calls the API version that the server has."""

    kind: type[ApiClient] = ApiClient

    @asynccontextmanager
    async def get_client(self) -> AsyncIterator[ModelRegistryServiceApi]:
        """Gives the generated client, which this class's methods use."""
        async with self.kind(self.config) as client:
            yield ModelRegistryServiceApi(client)

    async def find_api(self) -> None:
        """Finds out which API version the server has.

        Raises:
            ValueError: it has none.
        """
        for self.kind in (ApiClient, _V1Alpha3):
            try:
                async with self.get_client() as client:
                    await client.get_registered_models(page_size="1")
                return
            except NotFoundException:
                continue
        raise ValueError(
            f"it must have {V1} or {V1ALPHA3}, got status 404 for both; check host, port and path of the address"
        )

    async def all_versions(self, model_id: str) -> list[ModelVersion]:
        """Returns all versions of a model."""
        options = ListOptions(limit=PAGE)
        found: list[ModelVersion] = await self.get_model_versions(model_id, options)
        while options.next_page_token:
            found += await self.get_model_versions(model_id, options)
        return found


def connect(address: urllib.parse.SplitResult, token: str | None) -> RegistryClient:
    """Returns a client, without connecting yet.

    Args:
        address: scheme, host, port (default: that of the scheme), and a path if the registry is behind a proxy.
        token: a bearer token, or None.
    """
    port = address.port or (443 if address.scheme == "https" else 80)
    host = f"[{address.hostname}]" if ":" in str(address.hostname) else address.hostname
    base = f"{address.scheme}://{host}:{port}{address.path.rstrip('/')}"
    if address.scheme == "https":
        return RegistryClient.secure_connection(base, port, user_token=token or "")  # type: ignore[no-any-return]
    return RegistryClient.insecure_connection(base, port, token)  # type: ignore[no-any-return]
