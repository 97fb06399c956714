"""Following a run, over real HTTP, from recorded answers of Kubeflow Pipelines 2.17 and Kubernetes 1.34."""

import argparse
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster_stand_in import StandIn
from kfp_server_api import ApiClient, V2beta1Run
from rich.console import Console

from kws.kube.errors import Refused
from kws.kube.log_lines import LineSorter
from pipeline.cluster import argo_steps as steps
from pipeline.cluster import follow, results, run_pods, runs
from pipeline.cluster.commands import add_cluster_commands
from pipeline.cluster.connect import Cluster
from pipeline.cluster.results import artifacts_of, used
from pipeline.cluster.run_pods import Pods, Tail
from pipeline.shell import ClusterError

RECORDED = Path(__file__).parent / "recorded"
STEPS = ["download", "preprocess", "train", "evaluate", "promote"]
EXECUTORS = {  # of the run that succeeded
    "download": "1370538680",
    "preprocess": "1745189630",
    "train": "1042459628",
    "evaluate": "2897394285",
}


def recorded(name: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return answer


def log(name: str) -> list[str]:
    return (RECORDED / f"{name}.log").read_text().splitlines()


def as_run(answer: dict[str, Any]) -> V2beta1Run:
    """Reads a run as the API's client reads an answer."""

    class Answer:
        data = json.dumps(answer)

    return ApiClient().deserialize(Answer, "V2beta1Run")


# Which nodes are steps


@pytest.mark.parametrize(
    ("name", "states", "attempts"),
    [
        ("succeeded", ["SUCCEEDED"] * 5, [1, 1, 1, 1, 1]),
        ("failed", ["FAILED", *["SKIPPED"] * 4], [1, 0, 0, 0, 0]),
        ("tried_again", ["SUCCEEDED", "SUCCEEDED", "RUNNING", "PENDING", "PENDING"], [1, 1, 2, 0, 0]),
        ("cancelled", ["SUCCEEDED", "SUCCEEDED", "CANCELED", "SKIPPED", "SKIPPED"], [1, 1, 2, 0, 0]),
    ],
)
def test_of_all_nodes_that_argo_makes_the_rows_are_the_five_steps(
    name: str, states: list[str], attempts: list[int]
) -> None:
    found = steps.steps_of(as_run(recorded(name)), STEPS)
    assert [step.name for step in found] == STEPS
    assert [step.state for step in found] == states
    assert [len(step.attempts) for step in found] == attempts


def test_a_node_is_found_by_its_id_among_those_of_other_steps() -> None:
    found = {step.name: step.attempts for step in steps.steps_of(as_run(recorded("succeeded")), STEPS)}
    for step, digest in EXECUTORS.items():
        assert found[step] == (f"speech-commands-tqsdf-{digest}",)
    again = {step.name: step.attempts for step in steps.steps_of(as_run(recorded("tried_again")), STEPS)}
    assert again["train"] == ("speech-commands-x6sgt-1229726666", "speech-commands-x6sgt-1699352903")


@pytest.mark.parametrize(
    "plain",
    [
        "w.root.train.executor",
        "w.root.condition-1.train.executor",
        "w(0).root(0).exit-handler-1(0).condition-2(1).train(0).executor",
    ],
)
def test_node_names_of_argos_own_settings_and_within_groups_are_steps_too(plain: str) -> None:
    groups = [part.partition("(")[0] for part in plain.split(".")[2:-2]]
    tasks = [
        {
            "display_name": name,
            "state": state,
            "create_time": "2026-01-01T10:00:00Z",
            "start_time": "2026-01-01T10:00:00Z",
            "child_tasks": [{"pod_name": each} for each in children],
        }
        for name, state, children in [
            ("w", "RUNNING", [steps.node_id("w.root")]),
            ("root", "RUNNING", [steps.node_id("w.root.train")]),
            *((group, "RUNNING", []) for group in groups),
            ("train", "RUNNING", [steps.node_id(plain)]),
            ("executor", "RUNNING", [steps.node_id(f"{plain}({i})") for i in range(3)]),
        ]
    ]
    run = as_run({"state": "RUNNING", "run_details": {"task_details": tasks}})
    (train,) = (step for step in steps.steps_of(run, STEPS) if step.name == "train")
    assert train.attempts == tuple(steps.node_id(f"{plain}({i})") for i in range(3))
    tasks[-1]["child_tasks"] = []
    run = as_run({"state": "RUNNING", "run_details": {"task_details": tasks}})
    (train,) = (step for step in steps.steps_of(run, STEPS) if step.name == "train")
    assert train.attempts == (steps.node_id(plain),)


@pytest.mark.parametrize("state", ["RUNNING", "SUCCEEDED", "FAILED"])
def test_a_step_in_a_loop_ends_with_the_loop_and_not_with_one_of_its_shards(state: str) -> None:
    for shards in (("SUCCEEDED", "RUNNING"), ("RUNNING", "SUCCEEDED")):
        listed = [("for-loop-2", state), ("for-loop-2(0)", state), *(("features", one) for one in shards)]
        tasks = [{"display_name": name, "state": one} for name, one in listed]
        run = as_run({"state": "RUNNING", "run_details": {"task_details": tasks}})
        assert [step.state for step in steps.steps_of(run, ["download", "features"])] == ["PENDING", state]


def test_of_a_loop_no_pod_tells_the_end_and_one_that_failed_tells_why() -> None:
    pods = Pods(Cluster(host="http://127.0.0.1:1"), "run")
    name = "w(0).root(0).for-loop-2(0).iteration-iterations({0}:{0})(0).iteration-item(0).features(0).executor(0)"
    pods.of_steps = [
        pod(str(shard), name.format(shard), phase=phase) for shard, phase in enumerate(("Failed", "Succeeded"))
    ]
    (step,) = pods.located(pods.updated([steps.Step(name="features")]))
    assert (step.state, step.attempts) == ("RUNNING", ("1",))
    (failed,) = pods.located([steps.Step(name="features", state="FAILED")])
    assert failed.attempts == ("0",)


@pytest.mark.parametrize(
    ("node", "step"),
    [
        ("w.root.train.executor", "train"),
        ("w.root.train.executor(1)", "train"),
        ("w(0).root(0).train(0).executor(0)", "train"),
        ("w(0).root(0).train-driver(0)", "train"),
        ("w.root.train-driver", "train"),
        ("w(0).root(0).download(2).executor(0)", "download"),
        ("w(0).root-driver(0)", ""),
        ("train", "train"),
        ("pretrain.root.executor(0)", ""),
        ("", ""),
    ],
)
def test_a_node_belongs_to_a_step_by_its_name_in_either_form(node: str, step: str) -> None:
    assert steps.step_of_node(node, STEPS) == step


def test_a_cancelled_run_is_told_from_one_that_failed_and_from_one_that_was_retried_since() -> None:
    assert steps.outcome(as_run(recorded("cancelled"))) == "CANCELED"
    assert steps.outcome(as_run(recorded("failed"))) == "FAILED"
    history = [{"state": state} for state in ("RUNNING", "CANCELING", "FAILED", "RUNNING", "FAILED")]
    assert steps.outcome(as_run({"state": "FAILED", "state_history": history})) == "FAILED"
    assert steps.outcome(as_run({"state": "SUCCEEDED", "state_history": history})) == "SUCCEEDED"


def test_a_run_without_details_shows_its_steps_as_pending() -> None:
    assert [step.state for step in steps.steps_of(V2beta1Run(state="PENDING"), STEPS)] == ["PENDING"] * 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7300, "2 h 1 min"), (-9, "0 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert steps.duration(start, start + timedelta(seconds=seconds)) == text


def test_short_ids_are_as_long_as_tells_them_apart() -> None:
    assert steps.short_ids(["12345678-1", "abcdefgh-2"]) == {"12345678-1": "12345678", "abcdefgh-2": "abcdefgh"}
    assert set(steps.short_ids(["12345678-1", "12345678-2"]).values()) == {"12345678-1", "12345678-2"}
    assert steps.short_ids([]) == {}


# What a step wrote


def test_of_a_log_the_lines_of_argo_launcher_and_executor_are_left_out() -> None:
    assert list(LineSorter().own(log("evaluate"))) == ["accuracy 33.33 % on 9 test clips"]
    (line,) = LineSorter().own(log("failed"))
    assert line.startswith("ValueError: source must be an http(s) address")


def test_a_log_that_comes_in_pieces_gives_the_same_lines() -> None:
    whole, sorter = log("promote"), LineSorter()
    assert [line for piece in whole for line in sorter.own([piece])] == list(LineSorter().own(whole))


def test_a_traceback_becomes_its_exceptions_and_what_follows_stays() -> None:
    lines = [
        "before",
        "Traceback (most recent call last):",
        '  File "a.py", line 1',
        "    x",
        "KeyError: 1",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        '  File "b.py"',
        "LaunchError: job failed:",
        "  the pod's line",
    ]
    assert [line for line in LineSorter().own(lines) if line] == [
        "before",
        "KeyError: 1",
        "LaunchError: job failed:",
        "  the pod's line",
    ]


def test_metrics_and_decision_are_read_from_what_the_launcher_says_it_published() -> None:
    assert artifacts_of(log("evaluate"))["metrics"]["metadata"]["num_clips"] == 9
    assert artifacts_of(log("promote"))["decision"]["metadata"]["is_champion"] is True
    assert artifacts_of(log("failed")) == {}
    assert artifacts_of(log("promote")[:-20]) == {}  # cut off


def test_what_a_step_used_is_read_from_its_metrics() -> None:
    metrics = {"cpu_seconds": 0.9, "peak_memory_mb": 88.8, "read_mb": 77.8, "written_mb": 4.1, "accuracy": 1.0}
    shown = used({"model": {"metadata": {}}, "metrics": {"metadata": metrics}})
    assert shown == "1 s of CPU, 88.8 MB of memory, 77.8 MB read, 4.1 MB written"
    some = {"cpu_seconds": 1.0, "peak_memory_mb": 2400.0}
    assert used({"metrics": {"metadata": some}}) == "1 s of CPU, 2.4 GB of memory"
    assert used({"metrics": {"metadata": {"accuracy": 1.0}}}) == used({}) == ""


# Following, over HTTP


@pytest.fixture
def said(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Follows a run, and gives status and what was printed at 80 columns."""

    monkeypatch.setattr(follow, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(follow, "TRAIL_SECONDS", 0.5)

    def call(patience: float = 15, quiet: bool = False) -> tuple[int, str]:
        printed = Console(width=80, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
        for module in (follow, results):
            monkeypatch.setattr(module, "console", printed)
            monkeypatch.setattr(module, "out", printed)
        cluster = Cluster(host=f"http://127.0.0.1:{stand_in.server_port}")
        status = follow.Following(cluster, recorded("succeeded")["run_id"], STEPS, patience=patience, quiet=quiet).run()
        return status, printed.export_text()

    return call


def pod(node: str, node_name: str, **status: Any) -> dict[str, Any]:
    """A pod as the API gives it."""
    annotations = {"workflows.argoproj.io/node-id": node, "workflows.argoproj.io/node-name": node_name}
    metadata = {
        "name": f"pod-of-{node}",
        "uid": node,
        "annotations": annotations,
        "creationTimestamp": "2026-01-01T10:00:00Z",
    }
    return {"metadata": metadata, "status": {"phase": "Pending"} | status}


def waiting(reason: str, message: str, name: str = "main") -> dict[str, Any]:
    return {"containerStatuses": [{"name": name, "state": {"waiting": {"reason": reason, "message": message}}}]}


def running(step: str) -> dict[str, Any]:
    """The run that succeeded, as it was while a step ran."""
    answer = recorded("succeeded")
    later = STEPS[STEPS.index(step) + 1 :]
    answer["state"] = "RUNNING"
    for task in answer["run_details"]["task_details"]:
        name = task["display_name"].partition("(")[0].removesuffix("-driver")
        if name == step:
            task |= {"state": "RUNNING", "end_time": "0001-01-01T00:00:00Z"}
        if name in later:
            task["display_name"] = "later"
    return answer


def train_pod(**status: Any) -> dict[str, Any]:
    return pod("speech-commands-tqsdf-1042459628", "speech-commands-tqsdf(0).root(0).train(0).executor(0)", **status)


def test_a_run_that_succeeded_prints_its_results(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [running("evaluate"), recorded("succeeded")]
    for step, digest in (("evaluate", EXECUTORS["evaluate"]), ("promote", "")):
        name = f"speech-commands-tqsdf(0).root(0).{step}(0).executor(0)"
        node = f"speech-commands-tqsdf-{digest}" if digest else steps.node_id(name)
        stand_in.pods.append(pod(node, name, phase="Succeeded"))
        stand_in.logs[f"pod-of-{node}"] = log(step)
        more = '"metrics": {"artifacts": [{"name": "metrics", "metadata": {"accuracy": 0.5}}]},'
        if step == "promote":
            lines = stand_in.logs[f"pod-of-{node}"]
            start = next(number for number, line in enumerate(lines) if "ExecutorOutput: {" in line)
            lines.insert(lines.index('  "artifacts": {', start) + 1, more)
            assert artifacts_of(lines)["metrics"]["metadata"] == {"accuracy": 0.5}
    status, text = said()
    assert status == 0
    assert "evaluate   │ accuracy 33.33 % on 9 test clips" in text
    assert "accuracy  33.33% on 9 test clips, macro F1 16.67%, calibration error 5.36%" in text
    assert "champion  yes: accuracy 33.33%, and there was none before" in text
    version = "20261125-193703-324b195d-3562-4b6a-a736-ac446348ceb5"
    assert f"make pull-model VERSION={version}" in text
    assert "/artifacts/get?source=minio&namespace=kubeflow&bucket=mlpipeline&key=v2/artifacts/" in text
    assert "#/runs/details/324b195d-3562-4b6a-a736-ac446348ceb5" in text
    assert "launcher_v2.go" not in text
    assert "executor_input" not in text


def test_without_kubernetes_the_result_comes_from_what_kubeflow_pipelines_kept(stand_in: StandIn, said: Any) -> None:
    stand_in.forbidden = True
    stand_in.runs = [recorded("succeeded")]
    for step in ("evaluate", "promote"):
        node = steps.node_id(f"speech-commands-tqsdf(0).root(0).{step}(0).executor(0)")
        stand_in.kept[node] = log(step)
    status, text = said()
    assert status == 0
    assert "accuracy  33.33%" in text
    assert "not shown: status 403: pods is forbidden: User jo cannot list" in " ".join(text.split())


def test_a_failed_step_shows_its_own_last_lines_and_the_run_its_reason(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [recorded("failed")]
    node, name = "speech-commands-m9msh-2843168928", "speech-commands-m9msh(0).root(0).download(0).executor(0)"
    ended = [{"name": "main", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]
    stand_in.pods = [pod(node, name, phase="Failed", containerStatuses=ended)]
    stand_in.logs[f"pod-of-{node}"] = log("failed")
    status, text = said(quiet=True)
    assert status == 1
    assert text.count("ValueError: source must be an http(s) address") == 1
    assert "Traceback" not in text
    assert "the run failed at download: status 1" in text
    assert "make retry RUN=324b195d" in text
    assert "not run" in text


@pytest.mark.parametrize("kubernetes", [True, False])
def test_a_failed_run_never_ends_without_a_reason(stand_in: StandIn, said: Any, kubernetes: bool) -> None:
    stand_in.runs = [recorded("failed")]
    stand_in.forbidden = not kubernetes
    stand_in.pods = [pod("other", "speech-commands-m9msh(0).root(0).download-driver(0)", phase="Succeeded")]
    status, text = said()
    assert status == 1
    expected = "download: its pod vanished" if kubernetes else "neither the API nor a pod says why (download failed"
    assert expected in " ".join(text.split())


def test_when_no_pod_is_left_the_log_that_was_kept_gives_the_reason(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [recorded("failed")]
    stand_in.kept["speech-commands-m9msh-2843168928"] = log("failed")
    text = said()[1]
    assert text.count("ValueError: source must be an http(s) address") == 1
    assert "the run failed at download, in its own words above" in text
    assert "vanished" not in text


def test_a_run_that_went_past_its_deadline_is_not_said_to_be_resumable(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [recorded("failed")]
    why = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}
    name = "speech-commands-m9msh(0).root(0).download(0).executor(0)"
    stand_in.pods = [pod("speech-commands-m9msh-2843168928", name, phase="Failed", **why)]
    text = said()[1]
    assert "the run failed at download: DeadlineExceeded: Pod was active on the node longer" in " ".join(text.split())
    assert "make retry RUN=" not in text
    assert "make pipeline starts another" in " ".join(text.split())


def test_a_step_that_ran_out_of_memory_says_so(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [recorded("failed")]
    ended = [{"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]
    name = "speech-commands-m9msh(0).root(0).download(0).executor(0)"
    stand_in.pods = [pod("speech-commands-m9msh-2843168928", name, phase="Failed", containerStatuses=ended)]
    assert "the run failed at download: OOMKilled (status 137)" in said()[1]


def test_a_retried_step_says_so_and_why_in_its_row(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [recorded("tried_again"), recorded("cancelled")]
    name = "speech-commands-x6sgt(0).root(0).train(0).executor"
    stand_in.nodes = {f"{name}(0)": "pod deleted", f"{name}(1)": ""}
    stand_in.pods = [pod("speech-commands-x6sgt-1699352903", f"{name}(1)", phase="Running")]
    status, text = said()
    assert status == 1
    assert "train      2nd attempt, as the one before ended: pod deleted" in text
    assert "2nd attempt, ended before: pod deleted" in " ".join(text.split())
    assert "executor" not in text
    assert "the run was cancelled" in text
    assert re.search(r"train +cancelled", text)


def test_a_step_of_a_retried_run_shows_the_log_of_its_new_pod_though_the_name_is_the_old_one(
    stand_in: StandIn, said: Any
) -> None:
    retried = running("train")
    for task in retried["run_details"]["task_details"]:
        if task["display_name"].startswith(("train", "executor")) and task["state"] == "RUNNING":
            task["state"] = "FAILED"  # for a few seconds more

    class Runs(list[dict[str, Any]]):
        def pop(self, index: Any = 0) -> dict[str, Any]:
            if len(self) == 3:
                again = train_pod(phase="Running")
                again["metadata"] |= {"uid": "of the retry", "creationTimestamp": "2026-01-01T11:00:00Z"}
                stand_in.pods.append(again)
                stand_in.logs["pod-of-speech-commands-tqsdf-1042459628"] = ["adopted the job"]
            return super().pop(index)

    stand_in.pods = [train_pod(phase="Failed")]
    stand_in.logs["pod-of-speech-commands-tqsdf-1042459628"] = ["the old end"]
    stand_in.runs = Runs([retried, retried, running("train"), running("train"), recorded("succeeded")])
    assert said()[1].count("train      │ adopted the job") == 1


def test_a_missing_image_is_reported_at_once_and_ends_following(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [running("train")]
    stand_in.pods = [train_pod(**waiting("ImagePullBackOff", 'Back-off pulling image "kws-launcher:1"'))]
    status, text = said(patience=0)
    assert status == 1
    assert 'waits: ImagePullBackOff: Back-off pulling image "kws-launcher:1"' in text
    assert "waiting longer will not help: make images" in text
    assert "python -m pipeline cancel 324b195d" in text
    assert not [call for call in stand_in.calls if not call.startswith("GET")]  # the run is left


def test_a_wait_that_may_resolve_by_itself_is_reported_and_following_goes_on(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [*[running("train")] * 5, recorded("succeeded")]
    stand_in.pods = [train_pod(phase="Running")]
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient cpu.",
    }
    worker = pod("", "", conditions=[unschedulable])
    worker["metadata"]["name"] = "kws-20261125-193703-324b195d-3562-4b6a-a7-926c01a6-worker-1"
    other = pod("", "", conditions=[unschedulable])
    other["metadata"]["name"] = "kws-20261125-193703-ffffffff-3562-4b6a-a7-926c01a6-worker-1"
    stand_in.training = [worker, other]
    status, text = said(patience=0)
    assert status == 0
    line = f"{worker['metadata']['name']} waits: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
    assert text.count(line) == 1
    assert "ffffffff" not in text


def test_a_volume_that_cannot_be_mounted_is_told_from_the_events(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [*[running("train")] * 3, recorded("succeeded")]
    stand_in.pods = [train_pod(**waiting("ContainerCreating", ""))]
    stand_in.events = [
        {
            "reason": "FailedMount",
            "message": "MountVolume.SetUp failed",
            "lastTimestamp": "2026",
            "involvedObject": {"uid": "speech-commands-tqsdf-1042459628", "name": "x"},
        }
    ]
    assert "train      waits: FailedMount: MountVolume.SetUp failed" in said()[1]


def test_events_are_asked_for_too_if_the_clock_of_the_cluster_is_ahead(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [*[running("train")] * 3, recorded("succeeded")]
    waits = train_pod(**waiting("ContainerCreating", ""))
    waits["metadata"]["creationTimestamp"] = "2999-01-01T00:00:00Z"
    stand_in.pods = [waits]
    stand_in.events = [
        {
            "reason": "FailedMount",
            "message": "MountVolume.SetUp failed",
            "lastTimestamp": "2026",
            "involvedObject": {"uid": waits["metadata"]["uid"], "name": "x"},
        }
    ]
    assert "train      waits: FailedMount: MountVolume.SetUp failed" in said()[1]


def test_a_log_is_read_on_without_a_line_twice_also_if_the_clock_of_the_node_goes_back(stand_in: StandIn) -> None:
    tail = Tail(Pods(Cluster(host=f"http://127.0.0.1:{stand_in.server_port}"), "x"), "pod")
    lines = [f"2026-11-25T19:38:2{i}.5Z epoch {i}" for i in range(3)]
    stand_in.logs["pod"] = lines[:2]
    assert tail() == ["epoch 0", "epoch 1"]
    stand_in.logs["pod"] = lines
    assert tail() == ["epoch 2"]
    stand_in.logs["pod"] = [*lines, "2026-11-24T19:38:30Z epoch 3"]
    assert tail() == ["epoch 3"]
    assert tail() == []
    stand_in.logs["pod"] = ["2026-11-24T19:38:31Z epoch 4"]  # the kubelet began a new file
    assert tail() == ["epoch 4"]


def test_pods_that_a_quota_forbids_are_told_in_the_words_of_kubernetes(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [*[running("train")] * 3, recorded("succeeded")]
    said_by_argo = 'pods "x" is forbidden: exceeded quota: kws, requested: requests.cpu=1'
    stand_in.nodes = {"speech-commands-tqsdf(0).root(0).train(0).executor(0)": said_by_argo}
    assert "exceeded quota: kws, requested: requests.cpu=1" in said()[1]
    stand_in.runs = [*[running("train")] * 3, recorded("succeeded")]
    stand_in.pods = [train_pod(phase="Running")]
    stand_in.events = [
        {
            "reason": "FailedCreatePod",
            "message": "Error creating: forbidden: exceeded quota: kws",
            "lastTimestamp": "2026",
            "involvedObject": {"name": "kws-20261125-193703-324b195d-3562-4b6a-a7"},
        }
    ]
    assert "waits: FailedCreatePod: Error creating: forbidden: exceeded quota: kws" in said()[1]


def test_a_run_whose_driver_no_quota_lets_in_says_so_and_which_steps_succeeded(stand_in: StandIn, said: Any) -> None:
    failed = recorded("failed")
    failed["run_details"]["task_details"] = []
    failed["error"] = {"message": "No more retries left"}
    stand_in.runs = [failed]
    forbidden = 'pods "x" is forbidden: failed quota: kws: must specify limits.cpu for: init,wait'
    stand_in.nodes = {"w(0)": "No more retries left", "w(0).root(0).preprocess-driver(0)": forbidden}
    stand_in.pods = [pod("w-1", "w(0).root(0).download(0).executor(0)", phase="Succeeded")]
    stand_in.pods += [pod("w-2", "w(0).root(0).preprocess-driver(0)", phase="Succeeded")]
    status, text = said()
    assert status == 1
    assert re.search(r"download +succeeded", text)
    assert re.search(r"preprocess +not run", text)
    assert "must specify limits.cpu for: init,wait; a LimitRange with defaults (" in " ".join(text.split())


def test_a_step_that_failed_and_whose_next_attempts_are_not_let_in_says_why_at_once_and_once(
    stand_in: StandIn, said: Any
) -> None:
    """Argo tries the run again, from its first step, and compresses the nodes of so many attempts."""
    again = running("download")
    for task in again["run_details"]["task_details"]:
        if task["display_name"].startswith("download"):
            task["state"] = "FAILED"
    attempts = [f"speech-commands-tqsdf(0).root({i}).download({j}).executor(0)" for i in (1, 0) for j in (1, 0)]
    forbidden = 'pods "{}" is forbidden: violates PodSecurity "restricted:latest"'
    stand_in.nodes = {name: forbidden.format(number) for number, name in enumerate(attempts)}
    stand_in.compressed = True
    stand_in.runs = [again, again, again | {"state": "FAILED"}]
    text = " ".join(said()[1].split())
    reason = 'the pod is forbidden: violates PodSecurity "restricted:latest"'
    assert text.count(f"download waits: {reason}") == 1
    assert f"the run failed at download: {reason}" in text
    stand_in.pods = [step_pod("download", "Succeeded")]  # the first time
    text = said()[1]
    assert re.search(r"^download +succeeded", text, flags=re.M)
    assert f"the run failed: {reason}" in " ".join(text.split())


def step_pod(step: str, phase: str) -> dict[str, Any]:
    name = f"w(0).root(0).{step}(0).executor(0)"
    return pod(steps.node_id(name), name, phase=phase)


@pytest.fixture
def nothing_reported(stand_in: StandIn) -> None:
    """A run of which Kubeflow's API knows nothing yet but that it runs."""
    unknown = recorded("succeeded") | {"state": "RUNNING", "run_details": None}
    stand_in.runs = [*[unknown] * 4, recorded("succeeded")]


@pytest.mark.usefixtures("nothing_reported")
def test_steps_are_shown_by_their_pods_while_kubeflow_reports_none(stand_in: StandIn, said: Any) -> None:
    training = step_pod("train", "Running")
    stand_in.pods = [step_pod("download", "Succeeded"), step_pod("preprocess", "Succeeded"), training]
    stand_in.logs[training["metadata"]["name"]] = ["submitted the job"]
    text = said()[1]
    before, _, after = text.partition("train      │ submitted the job")
    assert "download   running\npreprocess running\ntrain      running\n" in before
    assert re.search(r"^download +succeeded.*^preprocess +succeeded", after, flags=re.S | re.M)


def test_a_step_that_is_retried_shows_its_log_though_kubeflow_still_reports_it_as_failed(
    stand_in: StandIn, said: Any
) -> None:
    before = running("train")
    for task in before["run_details"]["task_details"]:
        if task["display_name"].startswith("train"):
            task |= {"state": "FAILED", "end_time": task["start_time"]}
    stand_in.runs = [*[before] * 3, recorded("succeeded")]
    stand_in.pods = [train_pod(phase="Running")]
    name = stand_in.pods[0]["metadata"]["name"]

    class Late(dict[str, list[str]]):
        """Gives no log when it is asked for the first time, as the container is being created."""

        asked = 0

        def get(self, key: str, default: Any = None) -> Any:
            self.asked += key == name
            return super().get(key, default) if self.asked > 1 else default

    stand_in.logs = Late({name: ["adopted the job"]})
    text = said()[1]
    assert text.count("train      │ adopted the job") == 1


@pytest.mark.usefixtures("nothing_reported")
def test_a_pod_that_failed_is_not_yet_a_step_that_failed(stand_in: StandIn, said: Any) -> None:
    stand_in.pods = [step_pod("download", "Failed")]
    text = said()[1]
    assert "download   running" in text
    assert "failed" not in text


@pytest.mark.usefixtures("nothing_reported")
@pytest.mark.parametrize("driver", ["w(0).root-driver(0)", "w(0).root(0).download-driver(0)", "w.root-driver"])
def test_a_driver_that_hangs_is_told_with_its_last_line(stand_in: StandIn, said: Any, driver: str) -> None:
    stand_in.pods = [pod("d", driver, phase="Running")]
    stand_in.logs["pod-of-d"] = ["first", "I1130 10:00:00.123456      24 main.go:97] dial tcp: connection refused"]
    line = "download waits: Kubeflow's driver of the step has not ended, which calls the API of Kubeflow Pipelines"
    text = " ".join(said()[1].split())
    assert text.count(f"{line} and its object store: dial tcp: connection refused") == 1


@pytest.mark.usefixtures("nothing_reported")
def test_a_driver_that_has_just_begun_is_not_told(stand_in: StandIn, said: Any) -> None:
    begun = pod("d", "w(0).root-driver(0)", phase="Running")
    begun["metadata"]["creationTimestamp"] = datetime.now(UTC).isoformat()
    stand_in.pods = [begun]
    assert "waits" not in said()[1]


@pytest.mark.usefixtures("nothing_reported")
@pytest.mark.parametrize(
    ("phases", "line"),
    [
        ([], ""),  # perhaps kubeconfig names another cluster than --host
        (["Succeeded"], "preprocess waits: there is no pod yet; Argo's workflow controller creates them"),
        (["Succeeded"] * 5, "promote waits: all steps have ended, which the persistence agent"),
    ],
)
def test_a_run_without_any_pod_at_work_says_whom_it_waits_for(
    stand_in: StandIn, said: Any, monkeypatch: pytest.MonkeyPatch, phases: list[str], line: str
) -> None:
    monkeypatch.setattr(run_pods, "HANGING_SECONDS", 0)
    stand_in.pods = [step_pod(step, phase) for step, phase in zip(STEPS, phases, strict=False)]
    text = " ".join(said()[1].split())
    assert line in text
    assert bool(line) == ("waits" in text)


def test_a_right_that_is_away_for_a_while_is_waited_for_as_an_api_is(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [running("train"), 403, 500, recorded("succeeded")]
    status, text = said()
    assert status == 0
    assert "no answer, trying again: status 403: pods is forbidden" in text


def test_a_run_that_may_not_be_read_at_all_ends_following_at_once(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [403]
    with pytest.raises(Refused, match="status 403"):
        said()


def test_a_run_that_is_deleted_while_it_is_followed_says_so(stand_in: StandIn, said: Any) -> None:
    stand_in.runs = [running("train"), 404]
    with pytest.raises(ClusterError, match="the run must not be deleted while it is followed, got status 404"):
        said()


def test_the_final_table_waits_for_steps_that_trail_the_run(stand_in: StandIn, said: Any) -> None:
    trailing = running("promote") | {"state": "SUCCEEDED"}
    stand_in.runs = [trailing, trailing, recorded("succeeded")]
    status, text = said()
    assert status == 0
    assert re.search(r"promote +succeeded +22 s", text)
    stand_in.runs = [trailing]  # for ever
    status, text = said()
    assert status == 0
    assert re.search(r"promote +running", text)


def test_a_run_without_anything_new_has_settled_though_its_last_steps_are_not_listed() -> None:
    names = ("download", "preprocess", "changes", "train", "promote")
    states = ("SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "PENDING", "PENDING")
    found = [steps.Step(name=name, state=state) for name, state in zip(names, states, strict=True)]
    run = as_run({"state": "SUCCEEDED"})
    assert follow._settled(run, found)
    assert not follow._settled(run, [*found[:2], *found[3:]]), "without the step that compares, they are only late"


def test_quiet_prints_changes_of_state_only_and_many_lines_are_thinned(stand_in: StandIn, said: Any) -> None:
    stand_in.pods = [train_pod(phase="Running")]
    stand_in.logs["pod-of-speech-commands-tqsdf-1042459628"] = [f"epoch {i}" for i in range(100)]
    stand_in.runs = [*[running("train")] * 3, recorded("succeeded")]
    text = said()[1]
    assert "train      │ … 85 lines" in text
    assert text.count("│ epoch 99\n") == 1
    assert "│ epoch 4\n" in text  # the first lines say which job was submitted or adopted
    assert "│ epoch 5\n" not in text
    assert "│ epoch 89\n" not in text
    stand_in.runs = [*[running("train")] * 3, recorded("succeeded")]
    text = said(quiet=True)[1]
    assert "epoch" not in text
    assert re.search(r"train +running\n", text)


def test_a_long_line_of_a_log_squeezes_no_other_column_of_the_table() -> None:
    found = steps.steps_of(as_run(recorded("succeeded")), STEPS)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(follow.step_table(found, {"train": "epoch " * 100}))
    lines = console.export_text().splitlines()
    assert len(lines) == 6
    assert re.match(r"train +succeeded +58 s +epoch epoch ", lines[3])


# Lists


def test_at_80_columns_ids_and_states_of_runs_are_whole(stand_in: StandIn) -> None:
    stand_in.runs = [recorded(name) for name in ("succeeded", "failed", "cancelled")]
    cluster = Cluster(host=f"http://127.0.0.1:{stand_in.server_port}")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(runs.table_of_runs(cluster, 20))
    lines = console.export_text().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["324b195d", "succeeded"],
        ["3ed5963a", "failed"],
        ["13637f2b", "cancelled"],
    ]
    assert all(len(line) <= 80 for line in lines)
    assert "3 min 1" in lines[1]


def test_flags_of_following_are_those_of_submit_follow_and_retry() -> None:
    parser = argparse.ArgumentParser()
    add_cluster_commands(parser.add_subparsers(dest="command", required=True))
    for command in (["submit"], ["follow", "r"], ["retry", "r"]):
        options = parser.parse_args([*command, "--patience", "3.5", "--quiet"])
        assert (options.patience, options.quiet) == (3.5, True)
        assert parser.parse_args(command).patience == 15
