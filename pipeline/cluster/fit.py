"""Checks, before a run is submitted, whether the requests of its steps and training pods fit the cluster.

A pod that does not fit would stay Unschedulable for as long as the run may take. Nodes, pods and quotas are compared as
far as they may be read; for a cluster that adds nodes on demand, --unchecked skips the check.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml

from kws.files import human_bytes
from kws.kube.client import CONFIG_MAPS, NODES, PODS, QUOTAS, Api, Resource
from kws.kube.errors import KubeError, Refused
from kws.kube.pods import has_ended
from kws.kube.quantities import amounts
from kws.launch.kinds.pod import LABELS, resources_of
from pipeline.cluster.connect import Cluster
from pipeline.cluster.results import console
from pipeline.kind.local_cluster import NAMESPACE
from pipeline.placement import RESOURCES, Placement
from pipeline.shell import ClusterError

Object = Mapping[str, Any]
Amounts = dict[str, Decimal]
NONE = Decimal(0)

_DRIVER = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}}
"""The resources of a driver, as Kubeflow Pipelines 2.17 compiles them; Argo adds two containers without any."""

LIMIT_RANGE = "a LimitRange with defaults (as manifests/overlays/profile/limits.yaml has) adds what they lack"
"""The remedy where a quota demands limits that Kubeflow's and Argo's own containers do not state."""

_RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a pod requests, and where it may run."""

    name: str
    requests: Amounts
    limits: Amounts
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that its node must have."""
    tolerations: Sequence[Object] = ()


def moments(placement: Placement, num_nodes: int) -> list[list[Ask]]:
    """Returns for every step the pods that run at the same time: for train, the step's own and those of the job."""
    found = [
        [
            Ask(
                name=f"the pod of step {step}",
                requests=amounts({"cpu": needs.cpu, "memory": needs.memory}),
                limits=amounts({"cpu": needs.cpu_limit, "memory": needs.memory_limit}),
            )
        ]
        for step, needs in RESOURCES.items()
    ]
    pods = placement.training_pods
    wanted = amounts(resources_of(pods))
    found[list(RESOURCES).index("train")] += [
        Ask(
            name=f"training pod {number + 1} of {num_nodes}",
            requests=wanted,
            limits=wanted,
            selector=pods.node_selector,
            tolerations=pods.tolerations,
        )
        for number in range(num_nodes)
    ]
    return found


def require_fit(cluster: Cluster, placement: Placement, num_nodes: int) -> None:
    """Compares the requests of a run with the resources of a cluster, as far as these may be read.

    Raises:
        ClusterError: a pod will never fit, or a quota forbids it; the message names the setting that changes it.
    """
    if cluster.api is None or cluster.host:  # kubeconfig may name a cluster other than the host's
        return
    asked = moments(placement, num_nodes)
    if nodes := _list(cluster.api, NODES):
        pods = [pod for pod in _list(cluster.api, PODS) or () if not has_ended(pod)]
        lasting = [pod for pod in pods if not _ends_with_a_run(pod)]
        for asks in asked:
            if ask := _left_over(asks, nodes, lasting):
                raise ClusterError(_does_not_fit(ask, asks, nodes, lasting))
        if any(_left_over(asks, nodes, pods) for asks in asked):
            console.print("[yellow]other runs hold the resources that this one needs: it waits until they end[/]")
    for quota in _list(cluster.api, QUOTAS, cluster.namespace) or ():
        for asks in asked:
            _require_within(quota, asks)
    _require_admitted(cluster.api, cluster.namespace, placement.launcher)


def _list(api: Api, resource: Resource, namespace: str = "") -> list[dict[str, Any]] | None:
    """Returns objects; None where they may not be read."""
    with contextlib.suppress(KubeError):
        return api.list(resource, namespace)
    return None


def _ends_with_a_run(pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return "pipeline/runid" in labels or LABELS.items() <= labels.items()


def _requests(pod: Object) -> Amounts:
    """Returns the requests of a pod: those of its containers together, or of an init container that requests more."""
    found: Amounts = {}
    for container in pod["spec"]["containers"]:
        for name, amount in amounts(container.get("resources", {}).get("requests", {})).items():
            found[name] = found.get(name, NONE) + amount
    for container in pod["spec"].get("initContainers") or ():
        for name, amount in amounts(container.get("resources", {}).get("requests", {})).items():
            found[name] = max(found.get(name, NONE), amount)
    return found


def _free(node: Object, pods: Iterable[Object]) -> Amounts:
    """Returns what pods leave free on a node."""
    free = amounts(node["status"]["allocatable"])
    for pod in pods:
        if pod["spec"].get("nodeName") == node["metadata"]["name"]:
            for name, amount in _requests(pod).items():
                free[name] = free.get(name, NONE) - amount
    return free


def _admits(node: Object, ask: Ask) -> bool:
    """Tells whether a node admits a pod at all: whether it is ready, and by taints and labels."""
    spec, labels = node["spec"], node["metadata"].get("labels") or {}
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
    taints = [taint for taint in spec.get("taints") or () if taint["effect"] in ("NoSchedule", "NoExecute")]
    tolerated = all(any(_tolerates(each, taint) for each in ask.tolerations) for taint in taints)
    return ready and not spec.get("unschedulable") and tolerated and ask.selector.items() <= labels.items()


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return (toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", ""))


def _left_over(asks: Iterable[Ask], nodes: Iterable[Object], pods: Sequence[Object]) -> Ask | None:
    """Places pods on nodes, in order; returns the first that fits nowhere, or None if all fit."""
    places = [(node, _free(node, pods)) for node in nodes]
    for ask in asks:
        fitting = [
            free
            for node, free in places
            if _admits(node, ask) and all(free.get(name, NONE) >= amount for name, amount in ask.requests.items())
        ]
        if not fitting:
            return ask
        for name, amount in ask.requests.items():
            fitting[0][name] -= amount
    return None


def _does_not_fit(ask: Ask, asks: Sequence[Ask], nodes: Iterable[Object], pods: Sequence[Object]) -> str:
    """Returns the error for a pod that does not fit: what is free, and what to change."""
    admitting = {node["metadata"]["name"]: _free(node, pods) for node in nodes if _admits(node, ask)}
    there_is = "; ".join(
        f"{name} has {_shown({key: free.get(key, NONE) for key in ask.requests})} free"
        for name, free in admitting.items()
    )
    remedy = "free a node or add one (pipeline/placement.py has the requests of the steps)"
    if ask is not asks[0]:
        room = max((free["cpu"] for free in admitting.values()), default=NONE) - asks[0].requests["cpu"]
        sharing = len(asks) - 1 if len(admitting) == 1 else 1
        each = int(room * 1000 / sharing / 50) * 50
        example = f"CPU={each}m" if 0 < each < ask.requests["cpu"] * 1000 else "CPU="
        remedy = f"make pipeline {example} MEMORY= requests less per pod, NUM_NODES= fewer pods"
    return (
        f"{ask.name} must fit on a node beside what runs there, got one that requests {_shown(ask.requests)}: "
        f"{there_is or 'no ready node admits it by labels and taints'}; {remedy}; --unchecked submits anyway, for a "
        "cluster that adds nodes"
    )


def _require_admitted(api: Api, namespace: str, image: str) -> None:
    """Raises ClusterError if quotas and limit ranges never let in the pods of Kubeflow Pipelines' own drivers.

    Kubernetes is asked, with such a pod that it does not create, as far as this user may create pods.
    """
    metadata = {"name": "kws-driver", "namespace": namespace}
    executor = {"name": "wait", "image": image, "securityContext": _RESTRICTED} | _executor_resources(api)
    main = {"name": "main", "image": image, "securityContext": _RESTRICTED, "resources": _DRIVER}
    init = executor | {"name": "init"}
    spec: dict[str, Any] = {"restartPolicy": "Never", "containers": [executor, main], "initContainers": [init]}
    spec["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    try:
        api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, dryRun="All")
    except Refused as error:
        # A quota that is used up becomes free again, and whether policies let in a pod of that name says nothing.
        if any(words in error.message for words in ("must specify", "usage per ", "usage ratio per ")):
            raise ClusterError(
                f"the pods of Kubeflow's own drivers must be let into namespace {namespace}, got: {error.message}; "
                f"{LIMIT_RANGE}, or --unchecked submits anyway"
            ) from error
    except KubeError:
        pass


def _executor_resources(api: Api) -> dict[str, Any]:
    """Returns what the settings of Argo request for its containers init and wait, as far as they may be read."""
    with contextlib.suppress(KubeError):
        settings = api.get(CONFIG_MAPS, NAMESPACE, "workflow-controller-configmap").get("data") or {}
        executor = yaml.safe_load(settings.get("executor", "")) or {}
        return {"resources": executor["resources"]} if executor.get("resources") else {}
    return {}


def _require_within(quota: Object, asks: Sequence[Ask]) -> None:
    """Raises ClusterError if pods would exceed a quota."""
    needed = {"pods": Decimal(len(asks))}
    for ask in asks:
        for kind, wanted in (("requests.", ask.requests), ("limits.", ask.limits), ("", ask.requests)):
            for resource, amount in wanted.items():
                needed[kind + resource] = needed.get(kind + resource, NONE) + amount
    if len(asks) > 1:  # the job of one kind or the other
        needed |= {"count/pytorchjobs.kubeflow.org": Decimal(1), "count/trainjobs.trainer.kubeflow.org": Decimal(1)}
    hard, used = (amounts(quota.get("status", {}).get(part, {})) for part in ("hard", "used"))
    for resource in hard.keys() & needed.keys():
        counted = resource.startswith("count/")
        taken = used.get(resource, NONE) if counted else NONE  # pods that end give back the rest
        if taken + needed[resource] > hard[resource]:
            have = f"{_plain(resource, needed[resource])} of {resource}"
            limit = _plain(resource, hard[resource]) + (f" of which {taken} are taken" if counted else "")
            remedy = (
                f"finished jobs count too: kubectl -n {quota['metadata']['namespace']} get "
                f"{resource.removeprefix('count/')} lists them, delete what is not needed"
                if counted
                else "make pipeline CPU= MEMORY= NUM_NODES= requests less, or have the quota raised"
            )
            raise ClusterError(
                f"{asks[-1].name} must stay within quota {quota['metadata']['name']}, got {have} where it allows "
                f"{limit}; {remedy}"
            )


def _plain(resource: str, amount: Decimal) -> str:
    return human_bytes(int(amount)) if resource.endswith("memory") else f"{amount.normalize():f}"


def _shown(wanted: Amounts) -> str:
    """Formats amounts: 1.5 cpu, 2.1 GB memory."""
    return ", ".join(f"{_plain(name, amount)} {name}" for name, amount in wanted.items())
