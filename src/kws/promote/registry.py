"""Registers versions in Kubeflow's Model Registry, and marks which one is champion. The others are archived there.

Each of the three records (model, version, artifact) is written only if it is missing, so that the next call completes
what an interrupted one left. Nothing depends on the registry: if it is unavailable, the run goes on with a warning.
"""

import asyncio
import contextlib
import logging
import math
import os
import urllib.parse
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kws import files
from kws.config import PipelineConfig
from kws.launch.cluster_config import claim_name
from kws.model import versions

if TYPE_CHECKING:
    from kws.promote.registry_client import RegistryClient

log = logging.getLogger(__name__)

MODEL_NAME = "kws"

SECONDS = 10.0
"""Seconds after which a registry that has not answered counts as unavailable."""

TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
"""Environment variable with the path of a token file, for a registry that requires one; Kubeflow sets it in pods."""


def try_register(address: str, data_root: Path, version: str) -> bool:
    """Registers a version and marks the champion; errors are only logged.

    Without an address it does nothing.

    Returns:
        Whether the version was registered.
    """
    if not address:
        return False
    try:
        register(address, data_root, version)
    except Exception as error:  # of the client, its HTTP library or the registry: none may fail the run
        said = " ".join(str(error).split())[:500]
        log.warning("the model registry %s did not take %s: %s", address, version, said)
        return False
    log.info("registered %s in the model registry %s", version, address)
    return True


def live_versions(address: str) -> set[str]:
    """Returns the versions whose entries in a registry are not archived.

    Raises:
        ValueError: see `register`.
    """

    async def names(client: "RegistryClient") -> set[str]:
        await client.find_api()
        model = await client.get_registered_model_by_params(MODEL_NAME)
        listed = await client.all_versions(model.id) if model else []
        return {str(one.name) for one in listed if one.state == "LIVE"}

    return _call(address, names)


def register(address: str, data_root: Path, version: str) -> None:
    """Registers a version and marks the champion; may be called repeatedly.

    Raises:
        ValueError: the address is not valid, the registry does not answer in time, or its client is not installed.
    """
    folder = versions.version_folder(data_root, version)
    manifest = versions.read_manifest(folder)
    states = versions.states(data_root)
    _call(address, lambda client: _register(client, data_root, folder, manifest, states))


Result = TypeVar("Result")


def _call(address: str, calls: "Callable[[RegistryClient], Coroutine[Any, Any, Result]]") -> Result:
    """Connects to a registry and returns the result of calls to it; see `register`."""
    parsed = urllib.parse.urlsplit(address)
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise ValueError(
            f"model_registry must be an address such as http://model-registry-service.kubeflow:8080, got {address!r}"
        )
    try:
        # Importing the client may take seconds on a slow processor, which are not the registry's.
        from kws.promote.registry_client import connect

        client = connect(parsed, _token())
        with ThreadPoolExecutor(1) as thread:  # in a notebook, an event loop is already running in this one
            return thread.submit(asyncio.run, asyncio.wait_for(calls(client), SECONDS)).result()
    except TimeoutError as error:
        raise ValueError(
            f"it must answer within {SECONDS:g} s, got no answer; check the address, and whether this pod can reach "
            f"it: curl {address}"
        ) from error
    except ModuleNotFoundError as error:
        raise ValueError(f"its client must be installed (pip install 'kws[registry]'), got {error}") from error
    except Exception as error:
        status = getattr(error, "status", None)  # of the client's ApiException, whose own message lists all headers
        if status is None:
            raise
        said = f"{getattr(error, 'reason', '')}: {getattr(error, 'body', '')}"
        remedy = f"; {TOKEN_FILE} must name a file with a token that it accepts" if status in (401, 403) else ""
        raise ValueError(f"it must accept the call, got status {status} {said[:250]}{remedy}") from error


async def _register(
    client: "RegistryClient", data_root: Path, folder: Path, manifest: Mapping[str, Any], states: Mapping[str, str]
) -> None:
    from model_registry.types import ArtifactState, ModelArtifact, ModelVersion, ModelVersionState, RegisteredModel

    def state_of(name: str) -> tuple[dict[str, Any], ModelVersionState]:
        state = states.get(name, "published")
        live = state in ("champion", "candidate")
        properties = {"champion": state == "champion", "state": state}
        return properties, ModelVersionState.LIVE if live else ModelVersionState.ARCHIVED

    await client.find_api()
    version = manifest["version"]
    model = await client.get_registered_model_by_params(MODEL_NAME)
    if model is None:
        model = await client.upsert_registered_model(
            RegisteredModel(name=MODEL_NAME, owner=versions.STEP, description="Spoken command words")
        )
    known = await client.get_model_version_by_params(model.id, version)
    marks, state = state_of(version)
    properties = _properties(folder, manifest) | marks
    if known is None:
        known = await client.upsert_model_version(
            ModelVersion(name=version, author=versions.STEP, custom_properties=properties, state=state), model.id
        )
    elif (said := known.custom_properties or {}) != properties:
        known.state = state if said.get("state") != marks["state"] else known.state  # or as a person restored it
        known.custom_properties = properties
        known = await client.upsert_model_version(known, model.id)
    listed = await client.get_model_version_artifacts(known.id)
    name = versions.ONNX
    if not any(artifact.name == name for artifact in listed):
        artifact = ModelArtifact(
            name=name,
            uri=uri_of(data_root, version),
            model_format_name="onnx",
            model_format_version="1",
            state=ArtifactState.LIVE,
        )
        await client.upsert_model_version_artifact(artifact, known.id)
    for other in await client.all_versions(model.id):
        said, (marks, state) = dict(other.custom_properties or {}), state_of(other.name)
        if other.name != version and said != said | marks:
            other.custom_properties, other.state = said | marks, state
            await client.upsert_model_version(other, model.id)


def uri_of(data_root: Path, version: str) -> str:
    """Returns the URI of a version: on the PersistentVolumeClaim of a cluster, or in a folder of this machine."""
    path = f"{versions.MODELS}/{version}"
    if data_root == Path(PipelineConfig().data_root):
        return f"pvc://{claim_name(os.environ)}/{path}"
    return (data_root / path).resolve().as_uri()


def _properties(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the properties to show with a version: its metrics and origin."""
    found: dict[str, Any] = {
        "accuracy": manifest.get("accuracy"),
        "words": ", ".join(manifest.get("words", [])),
        "int8": manifest.get("formats", {}).get(versions.INT8),
    }
    found |= {name: manifest.get("about", {}).get(name) for name in ("run", "preset", "tensors")}
    with contextlib.suppress(OSError, ValueError):
        evaluation = files.read_json(folder / versions.EVALUATION)
        found |= {name: evaluation.get(name) for name in ("macro_f1", "calibration_error", "num_clips")}
    # The registry has only texts and finite numbers; what is not known is left out.
    return {
        name: float(value) if isinstance(value, int | float) else str(value)
        for name, value in found.items()
        if value not in (None, "") and not (isinstance(value, float) and not math.isfinite(value))
    }


def _token() -> str | None:
    path = os.environ.get(TOKEN_FILE)
    return Path(path).read_text().strip() if path else None
