"""Checks, before a run is submitted, whether the requests of its steps and training pods fit the cluster.

A pod that does not fit would stay Unschedulable for as long as the run may take. Nodes, pods and quotas are compared as
far as they may be read; for a cluster that adds nodes on demand, --unchecked skips the check.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kws.files import human_bytes
from kws.launch.settings import ClusterConfig
from pipeline.cluster.connection import Cluster
from pipeline.cluster.follow import console
from pipeline.cluster.pods import TRAINING_PODS
from pipeline.placement import RESOURCES, Placement
from pipeline.shell import ClusterError

Amounts = Mapping[str, Decimal]
"""Amounts of resources by name: cpu (cores), memory (bytes) and whatever else nodes have."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a pod requests, and where it may run."""

    name: str
    requests: Amounts
    limits: Amounts
    selector: Mapping[str, str]
    """Labels that its node must have."""
    tolerations: Sequence[Mapping[str, Any]]


def moments(placement: Placement, num_nodes: int) -> list[list[Ask]]:
    """Returns for every step the pods that run at the same time: for train, the step's own and those of the job."""
    pods = placement.training_pods
    found = []
    for step, resources in RESOURCES.items():
        asks = [
            Ask(
                name=f"the pod of step {step}",
                requests=_amounts(cpu=resources.cpu, memory=resources.memory),
                limits=_amounts(cpu=resources.cpu_limit, memory=resources.memory_limit),
                selector={},
                tolerations=(),
            )
        ]
        if step == "train":
            wanted = _amounts(cpu=pods.cpu, memory=pods.memory)
            if pods.gpus_per_node:
                wanted = {**wanted, pods.gpu_resource: Decimal(pods.gpus_per_node)}
            asks += [
                Ask(
                    name=f"training pod {number + 1} of {num_nodes}",
                    requests=wanted,
                    limits=wanted,
                    selector=pods.node_selector,
                    tolerations=pods.tolerations,
                )
                for number in range(num_nodes)
            ]
        found.append(asks)
    return found


def require_fit(cluster: Cluster, placement: Placement, num_nodes: int) -> None:
    """Compares the requests of a run with the resources of a cluster, as far as these may be read.

    Args:
        cluster: where the run is to be submitted.
        placement: has the requests of steps and training pods.
        num_nodes: number of training pods.

    Raises:
        ClusterError: a pod will never fit, or a quota forbids it; the message names the setting that changes it.
    """
    if cluster.core is None or cluster.host:  # kubeconfig may name a cluster other than the host's
        return
    core, asked = cluster.core, moments(placement, num_nodes)
    nodes = _read(core.list_node)
    if nodes:
        pods = _read(core.list_pod_for_all_namespaces) or []
        lasting = [pod for pod in pods if not _passing(pod)]
        for asks in asked:
            if ask := _left_over(asks, nodes, lasting):
                raise ClusterError(_does_not_fit(ask, asks, nodes, lasting, placement.training_pods))
        if any(_left_over(asks, nodes, pods) for asks in asked):
            console.print("[yellow]other runs hold the resources that this one needs: it waits until they end[/]")
    for quota in _read(core.list_namespaced_resource_quota, cluster.namespace) or ():
        for asks in asked:
            if problem := _forbidden(quota, asks):
                raise ClusterError(problem)


def _amounts(**quantities: str) -> dict[str, Decimal]:
    from kubernetes.utils.quantity import parse_quantity

    return {name: parse_quantity(quantity) for name, quantity in quantities.items()}


def _read(call: Callable[..., Any], *arguments: str) -> list[Any] | None:
    """Reads a list; None where it may not be read."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return list(json.loads(call(*arguments, _preload_content=False, _request_timeout=20).data)["items"])
    except (ApiException, HTTPError, OSError, ValueError):
        return None


def _passing(pod: Mapping[str, Any]) -> bool:
    """Tells whether a pod belongs to a run or a training job, and ends with it."""
    labels = pod["metadata"].get("labels") or {}
    training = dict(pair.split("=") for pair in TRAINING_PODS.split(","))
    return "pipeline/runid" in labels or training.items() <= labels.items()


def _requests(pod: Mapping[str, Any]) -> dict[str, Decimal]:
    """Returns the requests of a pod: those of its containers together, or of an init container that requests more."""
    found: dict[str, Decimal] = {}
    for container in pod["spec"]["containers"]:
        for name, amount in _amounts(**container.get("resources", {}).get("requests", {})).items():
            found[name] = found.get(name, Decimal(0)) + amount
    for container in pod["spec"].get("initContainers") or ():
        for name, amount in _amounts(**container.get("resources", {}).get("requests", {})).items():
            found[name] = max(found.get(name, Decimal(0)), amount)
    return found


def _free(node: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> dict[str, Decimal]:
    """Returns what pods leave free on a node."""
    free = _amounts(**node["status"]["allocatable"])
    for pod in pods:
        if pod["spec"].get("nodeName") == node["metadata"]["name"] and pod["status"].get("phase") not in (
            "Succeeded",
            "Failed",
        ):
            for name, amount in _requests(pod).items():
                free[name] = free.get(name, Decimal(0)) - amount
    return free


def _admits(node: Mapping[str, Any], ask: Ask) -> bool:
    """Tells whether a node admits a pod at all: whether it is ready, and by taints and labels."""
    spec, labels = node["spec"], node["metadata"].get("labels") or {}
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
    taints = [taint for taint in spec.get("taints") or () if taint["effect"] in ("NoSchedule", "NoExecute")]
    tolerated = all(any(_tolerates(each, taint) for each in ask.tolerations) for taint in taints)
    return ready and not spec.get("unschedulable") and tolerated and ask.selector.items() <= labels.items()


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


def _left_over(
    asks: Iterable[Ask], nodes: Iterable[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]
) -> Ask | None:
    """Places pods on nodes, in order; returns the first that fits nowhere, or None if all fit."""
    places = [(node, _free(node, pods)) for node in nodes]
    for ask in asks:
        fitting = [
            free
            for node, free in places
            if _admits(node, ask) and all(free.get(name, Decimal(0)) >= amount for name, amount in ask.requests.items())
        ]
        if not fitting:
            return ask
        for name, amount in ask.requests.items():
            fitting[0][name] -= amount
    return None


def _does_not_fit(
    ask: Ask,
    asks: Sequence[Ask],
    nodes: Iterable[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    training: ClusterConfig,
) -> str:
    """Returns the error for a pod that does not fit: what is free, and what to change."""
    admitting = [(node["metadata"]["name"], _free(node, pods)) for node in nodes if _admits(node, ask)]
    there_is = (
        "; ".join(
            f"{name} has {_shown({key: free.get(key, Decimal(0)) for key in ask.requests})} free"
            for name, free in admitting
        )
        or "no ready node admits it by labels and taints"
    )
    if not ask.name.startswith("training"):
        remedy = "free a node or add one (pipeline/placement.py has the requests of the steps)"
    else:
        number = len(asks) - 1
        room = max((free["cpu"] for _, free in admitting), default=Decimal(0)) - asks[0].requests["cpu"]
        each = int(room * 1000 / number / 50) * 50 if len(admitting) == 1 else int(room * 1000 / 50) * 50
        example = f"CPU={each}m" if 0 < each < training_cores(training) * 1000 else "CPU="
        remedy = f"make pipeline {example} MEMORY= requests less per pod, NUM_NODES= fewer pods"
    return (
        f"{ask.name} must fit on a node beside what runs there, got one that requests {_shown(ask.requests)}: "
        f"{there_is}; {remedy}; --unchecked submits anyway, for a cluster that adds nodes"
    )


def training_cores(config: ClusterConfig) -> Decimal:
    """Returns the cores of a training pod."""
    return _amounts(cpu=config.cpu)["cpu"]


def _forbidden(quota: Mapping[str, Any], asks: Sequence[Ask]) -> str:
    """Returns the error for a quota that pods would exceed; empty if they stay within it."""
    name, needed = quota["metadata"]["name"], {"pods": Decimal(len(asks))}
    for ask in asks:
        for kind, amounts in (("requests.", ask.requests), ("limits.", ask.limits), ("", ask.requests)):
            for resource, amount in amounts.items():
                needed[kind + resource] = needed.get(kind + resource, Decimal(0)) + amount
    if len(asks) > 1:  # the job of one kind or the other
        needed |= {"count/pytorchjobs.kubeflow.org": Decimal(1), "count/trainjobs.trainer.kubeflow.org": Decimal(1)}
    status = quota.get("status", {})
    hard, used = (_amounts(**status.get(part, {})) for part in ("hard", "used"))
    for resource in hard.keys() & needed.keys():
        counted = resource.startswith("count/")
        taken = used.get(resource, Decimal(0)) if counted else Decimal(0)  # pods that end give back the rest
        if taken + needed[resource] > hard[resource]:
            have = f"{_plain(resource, needed[resource])} of {resource}"
            limit = _plain(resource, hard[resource]) + (f" of which {taken} are taken" if counted else "")
            remedy = (
                "finished jobs count too: kubectl delete those that are no longer needed"
                if counted
                else "make pipeline CPU= MEMORY= NUM_NODES= requests less, or have the quota raised"
            )
            return f"{asks[-1].name} must stay within quota {name}, got {have} where it allows {limit}; {remedy}"
    return ""


def _plain(resource: str, amount: Decimal) -> str:
    return human_bytes(int(amount)) if resource.endswith("memory") else f"{amount.normalize():f}"


def _shown(amounts: Amounts) -> str:
    """Formats amounts: 1.5 cpu, 2.1 GB memory."""
    return ", ".join(f"{_plain(name, amount)} {name}" for name, amount in amounts.items())
