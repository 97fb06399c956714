"""A Kubeflow on this machine: kind, Kubeflow Pipelines, the training operator, the volume and the images.

Every step finds out what is there already and does the rest, so `up` may be killed and started again.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kws.files import human_bytes
from kws.kube.pods import waiting_reason
from pipeline import manifests
from pipeline.kind import docker_images, preflight
from pipeline.shell import ROOT, ClusterError, docker, run, stream

CLUSTER = "kws"
"""Name of the cluster, as in kind-config.yaml."""

CONTEXT = f"kind-{CLUSTER}"
NAMESPACE = "kubeflow"
DATA_ROOT = ROOT / "var" / "kind"
"""The folder of the host that is the volume."""

UI = "http://localhost:8080"
TENSORBOARD = "http://localhost:6006"
READY_SECONDS = 1200
"""How long Kubeflow may take to come up: most of it is downloading images."""

console = Console(stderr=True, highlight=False)


def kubectl(*arguments: str, stdin: str | None = None, remedy: str = "", timeout: float | None = 120) -> str:
    """Runs kubectl against the cluster of this module and returns what it printed."""
    return run("kubectl", "--context", CONTEXT, *arguments, stdin=stdin, remedy=remedy, timeout=timeout)


def exists() -> bool:
    """Tells whether kind knows the cluster, whatever its state."""
    return CLUSTER in run("kind", "get", "clusters").split()


def answers() -> bool:
    """Tells whether the cluster's API is ready."""
    try:
        kubectl("get", "--raw=/readyz", timeout=10)
    except ClusterError:
        return False
    return True


def nodes() -> list[str]:
    """Returns the containers that are the nodes."""
    return run("kind", "get", "nodes", "--name", CLUSTER).split()


def workers() -> list[str]:
    """Returns the nodes that run our pods and need our images: not the control plane, which its taint keeps free."""
    listed = nodes()
    return [node for node in listed if not node.endswith("-control-plane")] or listed


def up(names: Mapping[str, str]) -> None:
    """Creates the cluster with all that the pipeline needs, and the images by role, which must have been built.

    Raises:
        ClusterError: the machine lacks something, or a part did not come up; the message says which.
    """
    preflight.require_all(preflight.tool(name) for name in (docker(), "kind", "kubectl"))
    present = exists()
    # The runtime image is gigabytes: only images that the nodes lack need disk space.
    lacking = [image for image in docker_images.inspect(list(names.values())) if not present or _lacking(image)]
    size = sum(image["Size"] for image in lacking)
    preflight.require_all(preflight.checks(new_cluster=not present, image_bytes=size))
    _make_data_root()
    if not present:
        console.print(f"[bold]cluster {CLUSTER}[/]")
        create = ("create", "cluster", "--config", "kind-config.yaml", "--wait", "5m")
        stream("kind", *create, remedy="make kind-down, then make kind-up")
    elif not _wait_for_api():
        raise ClusterError(
            f"the cluster {CLUSTER} must answer, got one that was made only in part or stopped; "
            f"after a restart of Docker: docker start {' '.join(nodes())}; else make kind-down, then make kind-up"
        )
    console.print("[bold]Kubeflow Pipelines, training operator[/] (downloads manifests and images, a few minutes)")
    offline = "it is downloaded from GitHub: check the network and start again"
    _apply("manifests/kubeflow-pipelines/cluster-scoped", remedy=offline)
    kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all", timeout=150)
    _apply("manifests/kubeflow-pipelines", remedy=offline)
    _apply("manifests/training-operator", remedy=offline)
    load(names)
    _wait_for_deployments(but="kws-tensorboard")
    console.print("[bold]volume, rights, network policies, TensorBoard[/]")
    apply_overlay(overlay(names))
    _wait_for_claim()
    _wait_for_deployments()
    console.print(f"\nKubeflow Pipelines  [link={UI}]{UI}[/]\nTensorBoard         [link={TENSORBOARD}]{TENSORBOARD}[/]")
    console.print(f"volume              {DATA_ROOT}\nnext                make pipeline")


def down() -> None:
    """Deletes the cluster; the volume, a folder of the host, stays."""
    if exists():
        stream("kind", "delete", "cluster", "--name", CLUSTER)
    console.print(f"no cluster {CLUSTER} (its volume stays in {DATA_ROOT})")


def overlay(names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Renders manifests/overlays/kind with the images of this revision."""
    return manifests.rendered("overlays/kind", names, namespace=NAMESPACE)


def apply_overlay(things: Sequence[Mapping[str, Any]]) -> None:
    """Applies a rendered overlay, over an earlier one or where a claim was deleted.

    A volume whose claim was deleted is bound again; it is a folder of the host, in which everything is kept.

    Raises:
        ClusterError: there is a claim for another volume, which Kubernetes does not let one change.
    """
    by_kind = {thing["kind"]: thing for thing in things}
    claim, volume = by_kind["PersistentVolumeClaim"], by_kind["PersistentVolume"]["metadata"]["name"]
    name, namespace = claim["metadata"]["name"], claim["metadata"]["namespace"]
    found = _find("persistentvolumeclaim", name, "-n", namespace)
    if found and found["spec"].get("volumeName") != volume:
        where = found["spec"].get("storageClassName") or "none"
        raise ClusterError(
            f"the claim {name} must be for the volume {volume}, got one of storage class {where}, and a claim cannot "
            "be changed; docs/cluster.md (Another volume) tells how to replace it"
        )
    found = _find("persistentvolume", volume)
    if found and found["status"].get("phase") in ("Released", "Failed"):
        # It names the claim that there was by its uid, so that no other would get it.
        kubectl("delete", "persistentvolume", volume)
    manifests.apply(["kubectl", "--context", CONTEXT], things)


def load(names: Mapping[str, str]) -> None:
    """Copies images into the workers that lack them."""
    for image in docker_images.inspect(list(names.values())):
        tag = next(tag for tag in image["RepoTags"] if tag in names.values())
        if lacking := _lacking(image):
            console.print(f"[bold]image {tag}[/] ({human_bytes(image['Size'])}) to {', '.join(lacking)}")
            stream("kind", "load", "docker-image", tag, "--name", CLUSTER, "--nodes", ",".join(lacking))


def require_images(names: Mapping[str, str]) -> None:
    """Raises ClusterError unless every worker has the images."""
    for image in docker_images.inspect(list(names.values())):
        for node in _lacking(image):
            raise ClusterError(
                f"node {node} must have the image {image['RepoTags'][0]}, got none; python -m pipeline kind-load"
            )


def training_pods(num_nodes: int) -> dict[str, str]:
    """Returns the default requests of training pods on a cluster whose nodes share this machine.

    Every kind node reports all cores of the machine as its own.
    """
    cores = max(1, (int(preflight.engine_info()["NCPU"]) - 1) // num_nodes)  # one is for Kubeflow
    return {"cpu": str(min(cores, 4)), "memory": "2Gi"}


def status() -> bool:
    """Prints a table of what is healthy, and returns whether everything is."""
    table = Table("", "part", "state", box=None, title=f"cluster {CLUSTER}", title_justify="left")
    healthy = True

    def row(well: bool, part: str, state: str) -> None:
        nonlocal healthy
        healthy &= well
        table.add_row("[green]✓[/]" if well else "[red]✗[/]", part, escape(state))

    for check in preflight.checks(new_cluster=False):
        row(not check.problem, check.name, check.problem or check.detail)
    if healthy and not exists():
        row(False, "cluster", "there is none; make kind-up")
    elif healthy and not answers():
        row(False, "cluster", f"does not answer; docker start {' '.join(nodes())}, or make kind-down and make kind-up")
    elif healthy:
        for node in _get("nodes")["items"]:
            ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
            row(ready["status"] == "True", f"node {node['metadata']['name']}", ready["message"])
        waiting, total = _unready()
        row(
            total > 0 and not waiting,
            "deployments",
            f"{total - len(waiting)} of {total} ready"
            + (f"; waiting for {', '.join(waiting)}" if waiting else "" if total else "; make kind-up"),
        )
        phases = {
            claim["metadata"]["name"]: claim["status"]["phase"]
            for claim in _get("persistentvolumeclaims", "-n", NAMESPACE)["items"]
        }
        row(phases.get("kws-data") == "Bound", "volume kws-data", phases.get("kws-data", "there is none; make kind-up"))
        try:
            names = docker_images.image_names()
            require_images(names)
            row(True, "images", ", ".join(names.values()))
        except ClusterError as error:
            row(False, "images", str(error))
        for part, address in (("Kubeflow Pipelines", UI), ("TensorBoard", TENSORBOARD)):
            said = reach(address)
            row(not said, part, said or address)
    Console().print(table)
    return healthy


def reach(address: str) -> str:
    """Requests a page and returns what is wrong with the answer; empty if nothing is."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return ""
    except (urllib.error.URLError, OSError) as error:
        return f"{address} does not answer: {error}"


def _make_data_root() -> None:
    """Makes the folder of the volume, and lets user 1000, as whom all containers run, write to it."""
    DATA_ROOT.mkdir(parents=True, exist_ok=True)
    if preflight.rootless(preflight.engine_info()):
        DATA_ROOT.chmod(0o777)  # user 1000 of the containers is some other user here
    elif os.geteuid() == 0:
        os.chown(DATA_ROOT, 1000, 1000)
    elif os.geteuid() != 1000:
        DATA_ROOT.chmod(0o777)


def _apply(folder: str, remedy: str = "") -> None:
    """Applies a kustomization. Server-side, as some definitions are too large for kubectl's annotation."""
    kubectl("apply", "--server-side", "--force-conflicts", "-k", folder, remedy=remedy, timeout=600)


def _get(*arguments: str) -> Any:
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def _find(*arguments: str) -> Any:
    """Returns an object of the cluster, or None if there is none."""
    return json.loads(kubectl("get", *arguments, "--ignore-not-found", "-o", "json") or "null")


def _wait_for_api() -> bool:
    """Waits a minute for the API: the containers of a cluster may just be starting."""
    until = time.monotonic() + 60
    while not answers():
        if time.monotonic() > until:
            return False
        time.sleep(3)
    return True


def _lacking(image: Mapping[str, Any]) -> list[str]:
    """Returns the workers that do not have an image."""
    return [node for node in workers() if not _has_image(node, image["Id"])]


def _has_image(node: str, image_id: str) -> bool:
    listed = json.loads(run(docker(), "exec", node, "crictl", "images", "-o", "json"))
    return any(image["id"] == image_id for image in listed["images"])


def _unready() -> tuple[list[str], int]:
    """Returns the deployments of the namespace that are not ready, and how many there are in all."""
    deployments = _get("deployments", "-n", NAMESPACE)["items"]
    waiting = [
        d["metadata"]["name"]
        for d in deployments
        if d["status"].get("readyReplicas", 0) < d["spec"]["replicas"]
        or d["status"].get("observedGeneration", 0) < d["metadata"]["generation"]
    ]
    return waiting, len(deployments)


def _wait_for_deployments(but: str = "") -> None:
    """Shows how many deployments are ready until all are."""
    until = time.monotonic() + READY_SECONDS
    shown: list[str] | None = None
    with console.status("deployments") as spinner:
        while True:
            waiting, total = _unready()
            waiting = [name for name in waiting if name != but]
            if not waiting:
                console.print(f"{total} deployments are ready")
                return
            line = f"{total - len(waiting)} of {total} deployments ready, waiting for {', '.join(waiting[:4])}"
            spinner.update(line)
            if not console.is_terminal and waiting != shown:
                console.print(line)
            shown = waiting
            if time.monotonic() > until:
                raise ClusterError(
                    f"all deployments must be ready within {READY_SECONDS // 60} minutes, got {', '.join(waiting)} "
                    f"not ready: {_troubles()}; look with kubectl -n {NAMESPACE} get pods, then start again"
                )
            time.sleep(5)


def _troubles() -> str:
    """Returns why pods wait, in Kubernetes' own words."""
    waits = {waiting_reason(pod) for pod in _get("pods", "-n", NAMESPACE)["items"]} - {"", "ContainerCreating"}
    return "; ".join(sorted(waits)) or "no pod says why"


def _wait_for_claim() -> None:
    bound = ("--for=jsonpath={.status.phase}=Bound", "--timeout=60s", "-n", NAMESPACE, "pvc/kws-data")
    kubectl(
        "wait", *bound, remedy="the claim kws-data must be bound: kubectl -n kubeflow describe pvc kws-data tells why"
    )
