"""Kubeflow's Model Registry: tells it which versions there are and which is champion.

Each of its three records (model, version, artifact) is written only where it is missing, so that what a broken call
left is completed by the next. Nothing depends on the registry: where it is away, the run goes on with a warning.
"""

import asyncio
import contextlib
import logging
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kws import files
from kws.config import PipelineConfig
from kws.model import versions

log = logging.getLogger(__name__)

ADDRESS = "KWS_MODEL_REGISTRY"
"""Environment variable with the address of the registry; without it none is told."""

MODEL_NAME = "kws"
CLAIM = "kws-data"
"""The claim that is mounted as the data root of a cluster."""

SECONDS = 10.0
"""A registry that has not answered by then is away."""

TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
"""Environment variable with the file of a token, where the registry asks for one; Kubeflow sets it in its pods."""


def tell(address: str, data_root: Path, version: str) -> bool:
    """Registers a version and says which one is champion; a registry that is away costs a warning.

    Args:
        address: of the registry, such as http://model-registry-service.kubeflow:8080; empty: nothing is done.
        data_root: the folder of models/.
        version: the version.

    Returns:
        Whether the registry knows now.
    """
    if not address:
        return False
    try:
        register(address, data_root, version)
    except Exception as error:  # of the client, its HTTP library, or a registry that answers nonsense: never the run's
        said = " ".join(str(error).split())[:300]
        log.warning("the model registry %s was not told of %s: %s", address, version, said)
        return False
    log.info("the model registry %s knows %s", address, version)
    return True


def register(address: str, data_root: Path, version: str) -> None:
    """Registers a version, as often as it is called.

    Raises:
        ValueError: the address is none, the registry does not answer in time, or it refuses.
    """
    folder = versions.version_folder(data_root, version)
    manifest = versions.read_manifest(folder)
    champion = versions.champion(data_root)
    parsed = urllib.parse.urlsplit(address)
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        raise ValueError(f"model_registry must be an address such as http://model-registry-service.kubeflow:8080, got "
                         f"{address!r}")  # fmt: skip
    try:
        asyncio.run(asyncio.wait_for(_register(parsed, data_root, folder, manifest, champion), SECONDS))
    except TimeoutError as error:
        raise ValueError(
            f"it must answer within {SECONDS:g} s; is the address right, and may this pod reach it? "
            f"curl {address.rstrip('/')}/api/model_registry/v1alpha3/registered_models"
        ) from error
    except ModuleNotFoundError as error:
        raise ValueError(f"its client must be installed (pip install 'kws[registry]'), got {error}") from error


async def _register(
    address: urllib.parse.SplitResult, data_root: Path, folder: Path, manifest: Mapping[str, Any], champion: str | None
) -> None:
    from model_registry.core import ModelRegistryAPIClient
    from model_registry.types import ArtifactState, ListOptions, ModelArtifact, ModelVersion, RegisteredModel

    token = _token()
    base = f"{address.scheme}://{address.hostname}"
    if address.scheme == "https":
        client = ModelRegistryAPIClient.secure_connection(base, address.port or 443, user_token=token or "")
    else:
        client = ModelRegistryAPIClient.insecure_connection(base, address.port or 80, token)
    version = manifest["version"]
    model = await client.get_registered_model_by_params(MODEL_NAME)
    if model is None:
        model = await client.upsert_registered_model(
            RegisteredModel(name=MODEL_NAME, owner=versions.STEP, description="Spoken command words")
        )
    known = await client.get_model_version_by_params(model.id, version)
    properties = _properties(folder, manifest) | {"champion": version == champion}
    if known is None:
        known = await client.upsert_model_version(
            ModelVersion(name=version, author=versions.STEP, custom_properties=properties), model.id
        )
    elif (known.custom_properties or {}) != properties:
        known.custom_properties = properties
        known = await client.upsert_model_version(known, model.id)
    listed = await client.get_model_version_artifacts(known.id)
    name = versions.ONNX
    if not any(artifact.name == name for artifact in listed):
        artifact = ModelArtifact(
            name=name, uri=uri_of(data_root, version), model_format_name="onnx", model_format_version="1",
            state=ArtifactState.LIVE,
        )  # fmt: skip
        await client.upsert_model_version_artifact(artifact, known.id)
    for other in await client.get_model_versions(model.id, ListOptions(limit=1000)):
        said = dict(other.custom_properties or {})
        if other.name != version and said.get("champion") != (other.name == champion):
            other.custom_properties = said | {"champion": other.name == champion}
            await client.upsert_model_version(other, model.id)


def uri_of(data_root: Path, version: str) -> str:
    """Returns where a version lies: on the claim of a cluster, or in a folder of this machine."""
    path = f"{versions.MODELS}/{version}"
    if data_root == Path(PipelineConfig().data_root):
        return f"pvc://{CLAIM}/{path}"
    return (data_root / path).resolve().as_uri()


def _properties(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is shown beside a version: its figures and where it comes from."""
    found: dict[str, Any] = {
        "accuracy": float(manifest.get("accuracy") or 0.0),
        "words": ", ".join(manifest.get("words", [])),
        "run": str(manifest.get("about", {}).get("run", "")),
        "preset": str(manifest.get("about", {}).get("preset", "")),
        "tensors": str(manifest.get("about", {}).get("tensors", "")),
        "int8": str(manifest.get("int8", "")),
    }
    with contextlib.suppress(OSError, ValueError):
        evaluation = files.read_json(folder / versions.EVALUATION)
        for name in ("macro_f1", "calibration_error", "num_clips"):
            found[name] = float(evaluation[name])
    return found


def _token() -> str | None:
    path = os.environ.get(TOKEN_FILE)
    return Path(path).read_text().strip() if path else None
