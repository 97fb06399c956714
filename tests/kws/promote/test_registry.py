"""Registration in the Model Registry, with its own client over real HTTP; a stand-in keeps the records."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_server import JsonServer, running

from kws import cli, files
from kws.launch.cluster_config import CLAIM_VARIABLE
from kws.model import versions
from kws.promote import registry

pytest.importorskip("model_registry", reason="the client of the registry is not installed")
from kws.promote import registry_client  # it imports the client


class Registry(JsonServer):
    """Keeps models, versions and artifacts as the server does."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.writes: list[str] = []
        self.broken_at = ""
        self.api = "v1"
        self.refuses = 0
        self.paths: set[str] = set()
        self.delay = 0.0
        self.tokens: set[str | None] = set()
        super().__init__()

    def champions(self) -> dict[str, bool]:
        """Returns which version is said to be champion."""
        return {each["name"]: each["customProperties"]["champion"]["bool_value"] for each in self.versions}

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        time.sleep(self.delay)
        self.paths.add(path)
        self.tokens.add(headers.get("Authorization"))
        if self.refuses:
            return self.refuses, {"code": "", "message": "no"}
        before, _, path = path.partition(f"/api/model_registry/{self.api}/")
        if before or not path:
            return 404, b"404 page not found"
        found = self.found(method, path, query, json.loads(body) if body else {})
        status = 404 if found is None else 500 if found == "broken" else 201 if method == "POST" else 200
        return status, found if status < 300 else {"code": "", "message": "no"}

    def found(self, method: str, path: str, query: dict[str, str], sent: dict[str, Any]) -> Any:
        name = query.get("name", "")
        if method != "GET":
            if path == self.broken_at:
                return "broken"
            self.writes.append(f"{method} {path}")
        kept = self.artifacts if path.endswith("artifacts") else self.versions if "version" in path else self.models
        if method == "PATCH":
            (thing,) = (each for each in kept if each["id"] == path.rpartition("/")[2])
            thing.update(sent)
            return thing
        if method == "POST":
            kept.append(sent | {"id": str(len(kept) + 1)})
            return kept[-1]
        if name:
            return next((each for each in kept if each["name"] == name), None)
        first = int(query.get("nextPageToken") or 0)
        following = first + int(query["pageSize"]) if "pageSize" in query else len(kept)
        token = str(following) if following < len(kept) else ""
        return {"items": kept[first:following], "size": len(kept), "pageSize": 0, "nextPageToken": token}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr(registry, "SECONDS", 60.0)  # the machine of the tests may be busy
    with running(Registry()) as server:
        yield server


def published(data_root: Path, version: str) -> str:
    """Lays out a version as promote does, as far as the registry looks, and makes it champion."""
    folder = data_root / versions.MODELS / version
    folder.mkdir(parents=True)
    files.write_json(folder / versions.EVALUATION, {"macro_f1": 0.9, "calibration_error": 0.01, "num_clips": 100})
    (folder / versions.ONNX).touch()
    manifest = {
        "schema": 1,
        "version": version,
        "accuracy": 0.95,
        "words": ["no", "yes"],
        "about": {"run": "r1"},
        "files": {name: files.sha256_of(folder / name) for name in (versions.EVALUATION, versions.ONNX)},
    }
    files.write_json(folder / "manifest.json", manifest)
    files.write_json(data_root / versions.MODELS / "champion.json", {"version": version, "accuracy": 0.95})
    return version


def test_version_is_registered_with_its_figures_and_its_address(server: Registry, tmp_path: Path) -> None:
    registry.register(server.address, tmp_path, published(tmp_path, "20261125-1"))
    (model,), (version,), (artifact,) = server.models, server.versions, server.artifacts
    assert (model["name"], version["name"], version["registeredModelId"]) == ("kws", "20261125-1", model["id"])
    properties = version["customProperties"]
    assert properties["accuracy"]["double_value"] == 0.95
    assert properties["num_clips"]["double_value"] == 100
    assert properties["run"]["string_value"] == "r1"
    assert (artifact["uri"], artifact["modelFormatName"]) == (registry.uri_of(tmp_path, "20261125-1"), "onnx")
    assert server.champions() == {"20261125-1": True}


def test_what_is_not_known_of_a_version_is_left_out_also_within_a_running_event_loop(
    server: Registry, tmp_path: Path
) -> None:
    version = published(tmp_path, "20261125-1")
    folder = tmp_path / versions.MODELS / version
    manifest = files.read_json(folder / "manifest.json")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"accuracy": None, "about": {"run": None}}))
    (folder / versions.EVALUATION).write_text('{"macro_f1": NaN, "num_clips": 100}')

    async def in_a_notebook() -> None:
        registry.register(server.address, tmp_path, version)

    asyncio.run(in_a_notebook())
    properties = server.versions[0]["customProperties"]
    assert sorted(properties) == ["champion", "num_clips", "state", "words"]


def test_version_that_is_known_is_not_written_again(server: Registry, tmp_path: Path) -> None:
    version = published(tmp_path, "20261125-1")
    registry.register(server.address, tmp_path, version)
    before = list(server.writes)
    registry.register(server.address, tmp_path, version)
    assert server.writes == before


def test_next_champion_takes_the_mark_from_the_one_before(server: Registry, tmp_path: Path) -> None:
    for version in ("20261125-1", "20261126-1"):
        registry.register(server.address, tmp_path, published(tmp_path, version))
    assert server.champions() == {"20261125-1": False, "20261126-1": True}


def test_champion_is_marked_when_there_are_several_pages_of_versions(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_client, "PAGE", 2)
    for number in range(5):
        registry.register(server.address, tmp_path, published(tmp_path, f"v{number}"))
    assert [version for version, champion in server.champions().items() if champion] == ["v4"]


def test_rollback_moves_the_mark(server: Registry, tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        registry.register(server.address, tmp_path, published(tmp_path, version))
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollback", "--data-root", str(tmp_path), "--version", "v1", "--model-registry", server.address])
    assert ended.value.code == 0
    assert server.champions() == {"v1": True, "v2": False}


def test_server_that_has_only_the_api_before_v1_is_understood(server: Registry, tmp_path: Path) -> None:
    server.api = "v1alpha3"
    registry.register(server.address, tmp_path, published(tmp_path, "v1"))
    assert (server.champions(), len(server.artifacts)) == ({"v1": True}, 1)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "got status 401 Unauthorized: .*; KF_PIPELINES_SA_TOKEN_PATH must name a file with a token"),
        (404, "must have /api/model_registry/v1/ or /api/model_registry/v1alpha3/, got status 404 for both"),
    ],
)
def test_refusal_is_told_in_a_sentence_with_the_remedy(
    server: Registry, tmp_path: Path, status: int, said: str
) -> None:
    server.refuses = status
    with pytest.raises(ValueError, match=said):
        registry.register(server.address, tmp_path, published(tmp_path, "v1"))


def test_registry_behind_a_path_of_a_proxy_is_called_there(server: Registry, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check host, port and path of the address"):
        registry.register(f"{server.address}/registry/", tmp_path, published(tmp_path, "v1"))
    assert server.paths == {
        "/registry/api/model_registry/v1/registered_models",
        "/registry/api/model_registry/v1alpha3/registered_models",
    }


def test_what_a_broken_call_left_is_completed_by_the_next(server: Registry, tmp_path: Path) -> None:
    version = published(tmp_path, "20261125-1")
    server.broken_at = "model_versions/1/artifacts"
    assert not registry.try_register(server.address, tmp_path, version)
    assert (len(server.versions), server.artifacts) == (1, [])
    server.broken_at = ""
    assert registry.try_register(server.address, tmp_path, version)
    assert (len(server.versions), len(server.artifacts)) == (1, 1)


def test_token_is_sent_where_kubeflow_gives_one(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv(registry.TOKEN_FILE, str(tmp_path / "token"))
    registry.register(server.address, tmp_path, published(tmp_path, "20261125-1"))
    assert server.tokens == {"Bearer secret"}


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:9", "ftp://somewhere"])
def test_registry_that_is_away_costs_a_warning(address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert not registry.try_register(address, tmp_path, published(tmp_path, "20261125-1"))
    assert f"the model registry {address} did not take 20261125-1" in caplog.text


def test_registry_that_does_not_answer_is_given_up(
    server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "SECONDS", 0.2)
    server.delay = 2.0
    assert not registry.try_register(server.address, tmp_path, published(tmp_path, "20261125-1"))
    assert "it must answer within 0.2 s, got no answer; check the address" in caplog.text


def test_version_lies_on_the_claim_of_a_cluster_or_in_a_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CLAIM_VARIABLE, raising=False)
    assert registry.uri_of(Path("/data"), "v1") == "pvc://kws-data/models/v1"
    monkeypatch.setenv(CLAIM_VARIABLE, "speech")
    assert registry.uri_of(Path("/data"), "v1") == "pvc://speech/models/v1"
    assert registry.uri_of(tmp_path, "v1") == (tmp_path / "models" / "v1").resolve().as_uri()


def test_the_registry_says_champion_candidate_or_rejected_and_archives_the_others(
    server: Registry, tmp_path: Path
) -> None:
    for version in ("v1", "v2", "v3"):
        registry.register(server.address, tmp_path, published(tmp_path, version))

    def said() -> dict[str, tuple[str, str]]:
        return {
            one["name"]: (one["customProperties"]["state"]["string_value"], one["state"]) for one in server.versions
        }

    archived = ("published", "ARCHIVED")
    assert said() == {"v1": archived, "v2": archived, "v3": ("champion", "LIVE")}
    versions.propose(tmp_path, "v2", 0.96, "better", [])
    registry.register(server.address, tmp_path, "v2")
    assert said() == {"v1": archived, "v2": ("candidate", "LIVE"), "v3": ("champion", "LIVE")}
    assert registry.live_versions(server.address) == {"v2", "v3"}
    versions.decide(tmp_path, False)
    registry.register(server.address, tmp_path, "v2")
    assert said()["v2"] == ("rejected", "ARCHIVED")
    server.versions[0]["state"] = "LIVE"  # a person restores it, which stays so
    registry.register(server.address, tmp_path, "v2")
    assert registry.live_versions(server.address) == {"v1", "v3"}
