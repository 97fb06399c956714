"""The check before submitting whether a run fits, over real HTTP, from objects as Kubernetes gives them."""

from typing import Any

import pytest
from cluster_stand_in import StandIn

from pipeline.cluster.connect import Cluster
from pipeline.cluster.fit import require_fit
from pipeline.kind import local_cluster as kind
from pipeline.placement import Placement
from pipeline.shell import ClusterError

SMALL = Placement(training={"cpu": "600m", "memory": "2Gi"})


def node(name: str = "one", cpu: str = "2", memory: str = "16Gi", **more: Any) -> dict[str, Any]:
    spec = {key: more[key] for key in ("taints", "unschedulable") if key in more}
    ready = {"type": "Ready", "status": more.get("ready", "True")}
    allocatable = {"cpu": cpu, "memory": memory, "pods": "110"} | more.get("extra", {})
    return {
        "metadata": {"name": name, "labels": more.get("labels", {})},
        "spec": spec,
        "status": {"allocatable": allocatable, "conditions": [ready]},
    }


def pod(cpu: str, labels: dict[str, str] | None = None, phase: str = "Running", init: str = "0") -> dict[str, Any]:
    def container(amount: str) -> dict[str, Any]:
        return {"name": "c", "resources": {"requests": {"cpu": amount}}}

    return {
        "metadata": {"name": "p", "labels": labels},
        "status": {"phase": phase},
        "spec": {"nodeName": "one", "containers": [container(cpu), {"name": "d"}], "initContainers": [container(init)]},
    }


def quota(used: dict[str, str] | None = None, **hard: str) -> dict[str, Any]:
    limits = {name.replace("__", "/").replace("_", "."): amount for name, amount in hard.items()}
    return {"metadata": {"name": "kws", "namespace": "kubeflow"}, "status": {"hard": limits, "used": used or {}}}


def test_pods_that_fit_are_submitted_without_a_message(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.nodes_of_cluster = [node()]
    stand_in.pods = [pod("500m"), pod("8", phase="Succeeded")]
    require_fit(Cluster(), SMALL, 2)
    assert capsys.readouterr() == ("", "")


def test_training_pods_that_never_fit_are_named_with_the_setting_that_changes_it(stand_in: StandIn) -> None:
    stand_in.nodes_of_cluster = [node()]
    stand_in.pods = [pod("500m")]
    with pytest.raises(
        ClusterError,
        match=r"training pod 1 of 2 must fit .* requests 2 cpu, 4.29 GB memory: one has "
        r"1.5 cpu, .* free; make pipeline CPU=700m MEMORY= .*--unchecked",
    ):
        require_fit(Cluster(), Placement(), 2)
    stand_in.pods = [pod("750m")]
    with pytest.raises(ClusterError, match=r"training pod 2 of 2 must fit .* CPU=550m"):
        require_fit(Cluster(), SMALL, 2)
    stand_in.nodes_of_cluster = [node(), node("two"), node("three")]
    stand_in.pods = []
    require_fit(Cluster(), Placement(training={"cpu": "1900m"}), 2)


def test_a_step_that_never_fits_is_named(stand_in: StandIn) -> None:
    stand_in.nodes_of_cluster = [node(memory="1Gi")]
    with pytest.raises(ClusterError, match=r"the pod of step preprocess must fit .* free a node or add one"):
        require_fit(Cluster(), SMALL, 1)


@pytest.mark.parametrize("init", ["0", "1800m"])
def test_what_the_largest_init_container_asks_for_counts_too(stand_in: StandIn, init: str) -> None:
    stand_in.nodes_of_cluster = [node()]
    stand_in.pods = [pod("100m", init=init)]
    if init == "0":
        require_fit(Cluster(), SMALL, 2)
    else:
        with pytest.raises(ClusterError, match=r"one has 0.2 cpu"):
            require_fit(Cluster(), SMALL, 2)


def test_other_runs_that_will_end_are_waited_for(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.nodes_of_cluster = [node()]
    stand_in.pods = [pod("1", labels={"pipeline/runid": "1"})]
    stand_in.training = [pod("1", labels={"app.kubernetes.io/name": "kws", "app.kubernetes.io/component": "trainer"})]
    require_fit(Cluster(), SMALL, 2)
    assert "it waits until they end" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "training", "fits"),
    [
        ({"ready": "False"}, {}, False),
        ({"unschedulable": True}, {}, False),
        ({"taints": [{"key": "gpu", "effect": "NoSchedule"}]}, {}, False),
        ({"taints": [{"key": "gpu", "effect": "PreferNoSchedule"}]}, {}, True),
        ({}, {"node_selector": {"disk": "ssd"}}, False),
        ({"labels": {"disk": "ssd"}}, {"node_selector": {"disk": "ssd"}}, True),
        ({}, {"gpus_per_node": 1}, False),
        ({"extra": {"nvidia.com/gpu": "1"}}, {"gpus_per_node": 1}, True),
    ],
)
def test_nodes_admit_pods_by_state_labels_and_taints(
    stand_in: StandIn, more: dict[str, Any], training: dict[str, Any], fits: bool
) -> None:
    stand_in.nodes_of_cluster = [node(**more)]
    placement = Placement(training={"cpu": "1", "memory": "1Gi"} | training)
    if fits:
        require_fit(Cluster(), placement, 1)
    else:
        with pytest.raises(ClusterError, match="must fit on a node"):
            require_fit(Cluster(), placement, 1)


def test_a_taint_that_training_pods_tolerate_lets_them_in_and_the_steps_elsewhere(stand_in: StandIn) -> None:
    stand_in.nodes_of_cluster = [
        node("steps", cpu="2"),
        node("gpus", cpu="8", taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
    ]
    tolerations = [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]
    require_fit(Cluster(), Placement(training={"cpu": "8", "tolerations": tolerations}), 1)
    with pytest.raises(ClusterError, match="must fit on a node"):
        require_fit(Cluster(), Placement(training={"cpu": "8"}), 1)


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        (quota(requests_cpu="1"), r"must stay within quota kws, got 1.3 of requests.cpu where it allows 1; "),
        (quota(limits_memory="4Gi"), r"got 5.37 GB of limits.memory where it allows 4.29 GB"),
        (quota(pods="2"), r"got 3 of pods where it allows 2"),
        (
            quota({"count/pytorchjobs.kubeflow.org": "8"}, count__pytorchjobs_kubeflow_org="8"),
            r"allows 8 of which 8 are taken; finished jobs count too: kubectl -n kubeflow get pytorchjobs.kubeflow.org",
        ),
        (quota(requests_cpu="8", limits_memory="64Gi", requests_storage="1Gi"), ""),
    ],
)
def test_a_quota_that_forbids_a_pod_is_named(stand_in: StandIn, quota: dict[str, Any], message: str) -> None:
    stand_in.quotas = [quota]
    if message:
        with pytest.raises(ClusterError, match=message):
            require_fit(Cluster(), SMALL, 2)
    else:
        require_fit(Cluster(), SMALL, 2)


def test_the_pods_of_kubeflows_drivers_must_be_let_in_and_a_quota_that_is_used_up_is_waited_for(
    stand_in: StandIn,
) -> None:
    stand_in.refusal = 'pods "kws-driver" is forbidden: failed quota: kws: must specify limits.cpu for: init,wait'
    with pytest.raises(ClusterError, match=r"must specify limits\.cpu for: init,wait; a LimitRange with defaults"):
        require_fit(Cluster(), SMALL, 1)
    stand_in.refusal = 'pods "kws-driver" is forbidden: exceeded quota: kws, requested: pods=1'
    require_fit(Cluster(), SMALL, 1)
    stand_in.refusal = 'pods is forbidden: User "jo" cannot create resource "pods"'
    require_fit(Cluster(), SMALL, 1)
    assert "POST /api/v1/namespaces/kubeflow/pods" in stand_in.calls


def test_where_nothing_may_be_read_nothing_is_said(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.forbidden = True
    require_fit(Cluster(), Placement(), 100)
    assert capsys.readouterr() == ("", "")


def test_on_kind_training_pods_share_the_cores_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho '{\"NCPU\": 8}'\n")
    client.chmod(0o755)
    monkeypatch.setenv("DOCKER", str(client))
    assert kind.training_pods(1) == {"cpu": "4", "memory": "2Gi"}
    assert kind.training_pods(2) == {"cpu": "3", "memory": "2Gi"}
    assert kind.training_pods(20) == {"cpu": "1", "memory": "2Gi"}
