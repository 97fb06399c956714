"""Registration in a Model Registry that is running.

Started by `KWS_MODEL_REGISTRY=ADDRESS pytest tests/e2e/test_model_registry.py`; leaves a model kws-e2e-….
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest

from kws import files
from kws.model import versions
from kws.promote import registry, registry_client
from kws.settings import MODEL_REGISTRY

ADDRESS = os.environ[MODEL_REGISTRY].rstrip("/")


def published(data_root: Path, version: str) -> str:
    """Lays out a version as promote does, as far as the registry looks, and makes it champion."""
    folder = data_root / versions.MODELS / version
    folder.mkdir(parents=True)
    files.write_json(folder / versions.EVALUATION, {"macro_f1": 0.9, "calibration_error": 0.01, "num_clips": 100})
    manifest = {
        "schema": 2,
        "version": version,
        "accuracy": 0.95,
        "words": ["no", "yes"],
        "about": {"run": "r1"},
        "files": {versions.EVALUATION: files.sha256_of(folder / versions.EVALUATION)},
    }
    files.write_json(folder / files.MANIFEST, manifest)
    versions.appoint(data_root, version, 0.95, by="a test", reason="")
    return version


def get(path: str, **query: str) -> dict[str, Any]:
    """Reads from the registry without its client, in the API version that it has."""
    for api in (registry_client.V1, registry_client.V1ALPHA3):
        url = f"{ADDRESS}{api}{path}?{urllib.parse.urlencode(query)}"
        token = registry._token()
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise AssertionError(f"{url}: {error.code} {error.read().decode()}") from error
    raise AssertionError(f"{ADDRESS} has no {path}")


def test_versions_champion_and_rollback_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kws-e2e-{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr(registry, "MODEL_NAME", name)
    monkeypatch.setattr(registry_client, "PAGE", 2)

    def champions() -> dict[str, bool]:
        found = get(f"registered_models/{model}/versions", pageSize="100", sortOrder="ASC", orderBy="ID")["items"]
        return {each["name"]: each["customProperties"]["champion"]["bool_value"] for each in found}

    for version in ("v1", "v2", "v3", "v4", "v5"):
        registry.register(ADDRESS, tmp_path, published(tmp_path, version))
        registry.register(ADDRESS, tmp_path, version)
    model = get("registered_model", name=name)["id"]
    assert champions() == {"v1": False, "v2": False, "v3": False, "v4": False, "v5": True}
    first = get("model_version", name="v1", parentResourceId=model)
    properties = first["customProperties"]
    assert (properties["accuracy"]["double_value"], properties["words"]["string_value"]) == (0.95, "no, yes")
    (artifact,) = get(f"model_versions/{first['id']}/artifacts")["items"]
    assert (artifact["uri"], artifact["modelFormatName"]) == (registry.uri_of(tmp_path, "v1"), "onnx")
    versions.rollback(tmp_path, "v2", reason="a test")
    registry.register(ADDRESS, tmp_path, "v2")
    assert champions() == {"v1": False, "v2": True, "v3": False, "v4": False, "v5": False}
