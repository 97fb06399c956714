"""Runs and schedules, over real HTTP: a stand-in keeps what the API server of Kubeflow Pipelines keeps."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_server import JsonServer, running
from rich.console import Console

from kws.config import PipelineConfig
from kws.kube.errors import Refused
from pipeline.cluster import connect, runs, schedules
from pipeline.cluster.connect import Cluster, kubeflow_errors
from pipeline.placement import Placement
from pipeline.shell import ClusterError

ROOT = Path(__file__).resolve().parents[3]
PLACEMENT = Placement(runtime="kws-runtime:1", launcher="kws-launcher:1")
CREATED = "2026-11-25T19:38:23Z"


class Pipelines(JsonServer):
    """Keeps what the API server of Kubeflow Pipelines keeps."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {
            kind: [] for kind in ("pipelines", "versions", "experiments", "runs", "recurringruns")
        }
        self.asked: list[str] = []
        self.uploaded: list[str] = []
        self.status = 200
        self.token = ""
        super().__init__()

    def add(self, kind: str, **thing: Any) -> dict[str, Any]:
        singular = {"versions": "pipeline_version", "recurringruns": "recurring_run"}.get(kind, kind[:-1])
        thing |= {f"{singular}_id": f"{singular}-{len(self.kept[kind])}", "created_at": CREATED}
        self.kept[kind].append(thing)
        return thing

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        path = path.removeprefix("/apis/v2beta1/")
        self.asked.append(f"{method} {path}")
        if self.token and headers["Authorization"] != f"Bearer {self.token}":
            return 401, {"message": "the token is invalid"}
        kind, _, name = path.partition("/")
        if (method, kind) == ("GET", "recurringruns") and name and not self.kept[kind]:
            return 404, {"message": "there is none"}
        return self.status, self.found(method, path, query, body) if self.status == 200 else {"message": "no"}

    def found(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        if path == "healthz":
            return {"multi_user": False}
        if path == "pipelines/upload_version":
            assert b"pipelineInfo" in body
            self.uploaded.append(body.decode(errors="replace"))
            return self.add("versions", display_name=query["name"], pipeline_id=query["pipelineid"])
        kind, _, rest = path.partition("/")
        if rest.endswith("/versions"):
            return {"pipeline_versions": self.filtered("versions", query)}
        if method == "DELETE":
            (thing,) = (each for each in self.kept[kind] if f"{each['recurring_run_id']}" == rest)
            self.kept[kind].remove(thing)
            return {}
        if rest.endswith(":terminate"):
            next(each for each in self.kept[kind] if f"{each['run_id']}:terminate" == rest)["state"] = "CANCELED"
        if ":" in rest:
            return {}
        if method == "POST":
            return self.add(kind, **json.loads(body))
        named = {"recurringruns": "recurringRuns"}.get(kind, kind)
        return {named: self.filtered(kind, query)}

    def filtered(self, kind: str, query: dict[str, str]) -> list[dict[str, Any]]:
        kept = self.kept[kind]
        if "filter" not in query:
            return kept
        (predicate,) = json.loads(query["filter"])["predicates"]
        wanted = predicate.get("stringValue") or predicate.get("string_value")
        return [each for each in kept if each["display_name"] == wanted]


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipelines]:
    monkeypatch.setattr(connect.Cluster, "api", None)  # no kubeconfig, as where a token alone is given
    with running(Pipelines()) as server:
        yield server


@pytest.fixture
def cluster(pipelines: Pipelines) -> Cluster:
    return Cluster(host=pipelines.address)


def add_run(pipelines: Pipelines, name: str, state: str) -> str:
    ended = {"finished_at": "2026-11-25T19:48:23Z"} if state != "RUNNING" else {}
    return str(pipelines.add("runs", display_name=name, state=state, **ended)["run_id"])


def drawn(table: Any) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_submitted_run_has_all_parameters_and_the_version_is_uploaded_once(
    pipelines: Pipelines, cluster: Cluster
) -> None:
    started, steps = runs.submit(cluster, PipelineConfig(epochs=7), PLACEMENT, name="mine")
    runs.submit(cluster, PipelineConfig(), PLACEMENT)
    mine, _ = pipelines.kept["runs"]
    assert (mine["run_id"], mine["display_name"]) == (started.run_id, "mine")
    assert steps == ["download", "preprocess", "train", "evaluate", "promote"]
    assert pipelines.kept["pipelines"][0]["description"].startswith("Trains, evaluates and ships a recognizer")
    assert mine["runtime_config"]["parameters"]["epochs"] == "7"
    assert mine["pipeline_version_reference"]["pipeline_version_id"] == "pipeline_version-0"
    assert {kind: len(pipelines.kept[kind]) for kind in ("pipelines", "versions", "experiments")} == {
        "pipelines": 1,
        "versions": 1,
        "experiments": 1,
    }


def test_run_is_found_by_id_by_its_beginning_and_by_name_but_not_by_what_fits_two(
    pipelines: Pipelines, cluster: Cluster
) -> None:
    first, second = add_run(pipelines, "one", "SUCCEEDED"), add_run(pipelines, "two", "FAILED")
    assert runs.find_run(cluster, first).display_name == "one"
    assert runs.find_run(cluster, "two").run_id == second
    with pytest.raises(ValueError, match="got 'run-', which matches 2 of the last 2 runs"):
        runs.find_run(cluster, "run-")
    with pytest.raises(ValueError, match="got 'three', which matches none of the last 2 runs"):
        runs.find_run(cluster, "three")


def test_runs_are_listed_with_state_and_time(pipelines: Pipelines, cluster: Cluster) -> None:
    add_run(pipelines, "good", "SUCCEEDED")
    add_run(pipelines, "going", "RUNNING")
    lines = drawn(runs.table_of_runs(cluster, 10)).splitlines()
    assert lines[0].split() == ["id", "state", "started", "time", "run"]
    assert ["succeeded" in lines[1], "10 min" in lines[1], "running" in lines[2]] == [True, True, True]


def test_run_that_runs_is_cancelled_and_one_that_has_ended_is_not(pipelines: Pipelines, cluster: Cluster) -> None:
    going, done = add_run(pipelines, "going", "RUNNING"), add_run(pipelines, "done", "SUCCEEDED")
    runs.cancel(cluster, going)
    assert pipelines.asked[-1] == f"POST runs/{going}:terminate"
    with pytest.raises(ValueError, match="run must be running to be cancelled, got done, which has succeeded"):
        runs.cancel(cluster, done)


def test_run_that_failed_is_retried_and_one_that_did_not_is_not(pipelines: Pipelines, cluster: Cluster) -> None:
    failed, good = add_run(pipelines, "failed", "FAILED"), add_run(pipelines, "good", "SUCCEEDED")
    assert runs.retry(cluster, failed).run_id == failed
    assert pipelines.asked[-1] == f"POST runs/{failed}:retry"
    with pytest.raises(ValueError, match=r"must have failed or been cancelled to be retried, got good \(succeeded\)"):
        runs.retry(cluster, good)


def test_run_of_a_schedule_that_was_deleted_is_not_retried(pipelines: Pipelines, cluster: Cluster) -> None:
    failed = add_run(pipelines, "nightly", "FAILED")
    pipelines.kept["runs"][0]["recurring_run_id"] = "recurring_run-0"
    with pytest.raises(ValueError, match=r"must not be of a schedule that was deleted, got nightly: .* make pipeline"):
        runs.retry(cluster, failed)
    schedules.schedule(cluster, PipelineConfig(), PLACEMENT, cron="0 3 * * 1")
    runs.retry(cluster, failed)
    assert pipelines.asked[-1] == f"POST runs/{failed}:retry"


def start(pipelines: Pipelines, *flags: str) -> "subprocess.Popen[str]":
    """Submits a run as a user does, in a process of its own."""
    command = [sys.executable, "-m", "pipeline", "submit", "--host", pipelines.address, *flags]
    images = {f"KWS_{role}_IMAGE": f"kws-{role.lower()}:1" for role in ("RUNTIME", "LAUNCHER", "SERVING")}
    environment = os.environ | images | {"KUBECONFIG": "/nowhere"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_runs_that_are_submitted_at_the_same_moment_have_each_its_own_settings(pipelines: Pipelines) -> None:
    processes = [start(pipelines, "--no-follow", "--cpu", cpu) for cpu in ("1", "3")]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert sorted(re.findall(r'"cpu":\s+"(\d)"', "".join(pipelines.uploaded))) == ["1", "3"]


def test_ctrl_c_once_the_run_is_printed_ends_following_and_not_the_run(pipelines: Pipelines) -> None:
    process = start(pipelines)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("run speech-commands-")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "no longer following; the run continues (make follow RUN=run-0" in errors
    assert "again to resume" not in errors
    assert not [call for call in pipelines.asked if call.endswith(":terminate")]


def test_schedule_replaces_the_one_of_its_name_and_is_deleted_by_it(
    pipelines: Pipelines, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs in (3, 5):
        schedules.schedule(cluster, PipelineConfig(epochs=epochs), PLACEMENT, cron="0 3 * * 1")
    (kept,) = pipelines.kept["recurringruns"]
    assert kept["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 1"
    assert kept["runtime_config"]["parameters"]["epochs"] == "5"
    assert (kept["no_catchup"], int(kept["max_concurrency"])) == (True, 1)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "schedule speech" in line] == [
        "made schedule speech-commands",
        "replaced schedule speech-commands",
    ]
    kept["mode"] = "ENABLE"
    assert "0 0 3 * * 1" in drawn(schedules.table_of_schedules(cluster))
    schedules.unschedule(cluster, "speech-commands")
    assert pipelines.kept["recurringruns"] == []
    with pytest.raises(ValueError, match="name must be that of a schedule"):
        schedules.unschedule(cluster, "speech-commands")


def test_run_in_progress_is_cancelled_before_its_schedule_is_deleted(
    pipelines: Pipelines, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "POLL_SECONDS", 0.0)
    schedules.schedule(cluster, PipelineConfig(), PLACEMENT, cron="0 3 * * 1")
    of_it, other = add_run(pipelines, "nightly", "RUNNING"), add_run(pipelines, "other", "RUNNING")
    pipelines.kept["runs"][0]["recurring_run_id"] = "recurring_run-0"
    schedules.unschedule(cluster, "speech-commands")
    assert [run["state"] for run in pipelines.kept["runs"]] == ["CANCELED", "RUNNING"]
    ended = pipelines.asked.index(f"POST runs/{of_it}:terminate")
    assert ended < pipelines.asked.index("DELETE recurringruns/recurring_run-0")
    assert f"POST runs/{other}:terminate" not in pipelines.asked


def test_invalid_cron_expression_creates_no_schedule(pipelines: Pipelines, cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="cron must have five fields"):
        schedules.schedule(cluster, PipelineConfig(), PLACEMENT, cron="every monday")
    assert pipelines.asked == []


def test_time_zone_is_refused_if_it_is_unknown_or_cannot_be_set(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="time zone must be a name such as Europe/Berlin or UTC, got 'Mars/Olympus'"):
        schedules.set_time_zone(cluster, "Mars/Olympus", "x")
    with pytest.raises(ClusterError, match="the time zone must be set through kubeconfig, got none"):
        schedules.set_time_zone(cluster, "Europe/Berlin", "x")


@pytest.mark.parametrize(("status", "said"), [(401, "must accept your credentials"), (403, "must allow this call")])
def test_host_that_refuses_is_told_with_the_remedy(
    status: int, said: str, pipelines: Pipelines, cluster: Cluster
) -> None:
    pipelines.status = status
    with pytest.raises(ClusterError, match=said):
        runs.submit(cluster, PipelineConfig(), PLACEMENT)


def test_token_is_read_again_for_every_call_and_a_wrong_one_names_the_remedy(
    pipelines: Pipelines, tmp_path: Path
) -> None:
    add_run(pipelines, "good", "SUCCEEDED")
    file = tmp_path / "token"
    file.write_text("first\n")
    pipelines.token = "first"
    cluster = Cluster(host=pipelines.address, namespace="me", token_file=str(file))
    assert runs.find_run(cluster, "good").display_name == "good"
    pipelines.token = "second"
    with pytest.raises(Refused, match="status 401: the token is invalid"), kubeflow_errors():
        runs.find_run(cluster, "good")
    file.write_text("second")
    assert runs.find_run(cluster, "good").display_name == "good"
    pipelines.token = "third"
    anew = Cluster(host=pipelines.address, namespace="me", token_file=str(file))
    with pytest.raises(ClusterError, match=rf"got status 401: the token is invalid; .* -n me .*> {file}$"):
        runs.find_run(anew, "good")


def test_token_that_is_being_replaced_is_waited_for(pipelines: Pipelines, tmp_path: Path) -> None:
    """`kubectl create token > FILE` empties the file before it asks for the token."""
    file = tmp_path / "token"
    file.write_text("first")
    pipelines.token = "second"
    cluster = Cluster(host=pipelines.address, token_file=str(file))
    file.write_text("")
    threading.Timer(0.5, file.write_text, ["second"]).start()
    assert runs.table_of_runs(cluster, 1).row_count == 0


def test_token_file_that_stays_empty_is_told(
    pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "TOKEN_SECONDS", 0.0)
    file = tmp_path / "token"
    file.write_text("first")
    cluster = Cluster(host=pipelines.address, token_file=str(file))
    file.write_text("")
    with pytest.raises(ValueError, match=r"token_file must .*, got .*, which is empty"):
        runs.find_run(cluster, "good")
