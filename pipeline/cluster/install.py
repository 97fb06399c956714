"""Applies manifests/ to a cluster that there is: volume, rights, policies, TensorBoard, and what else is asked for."""

import contextlib
from collections.abc import Mapping
from typing import Any

from kws.kube.client import CLAIMS, NAMESPACES, STORAGE_CLASSES, Api
from kws.kube.errors import Refused
from pipeline import manifests
from pipeline.cluster.connect import Cluster
from pipeline.cluster.readiness import READY_SECONDS, wait_for_deployment
from pipeline.cluster.results import out
from pipeline.kind import local_cluster as kind
from pipeline.shell import ClusterError

FOLDERS = {
    "storage-class": "overlays/storage-class",
    "profile": "overlays/profile",
    "trainer-v2": "trainer-v2",
    "kserve": "kserve",
    "kserve-canary": "kserve-canary",
}
"""What can be applied, and the folders of manifests/ with it."""

TENSORBOARD = "kws-tensorboard"
_IS_DEFAULT = "storageclass.kubernetes.io/is-default-class"


def install(
    cluster: Cluster, images: Mapping[str, str], *, claim: str, overlay: str = "", storage_class: str = ""
) -> None:
    """Applies an overlay, over an earlier one if there is one, and waits until TensorBoard is ready.

    A claim that exists is left as it is, as Kubernetes does not let one change it.

    Args:
        cluster: where, by kubeconfig.
        images: the images by role: runtime, serving.
        claim: name of the PersistentVolumeClaim.
        overlay: a key of FOLDERS; empty: on our kind cluster that of kind; elsewhere storage-class in the namespace
            kubeflow, and profile in any other.
        storage_class: of a claim that is made; empty: the default of the cluster.

    Raises:
        ClusterError: the cluster refuses, the claim has another storage class, or the pods do not become ready.
    """
    api = cluster.kubernetes()
    _require_namespace(api, cluster.namespace)
    of_kind = not overlay and cluster.kind and cluster.namespace == kind.NAMESPACE
    overlay = overlay or ("storage-class" if cluster.namespace == kind.NAMESPACE else "profile")
    if of_kind:
        kind.apply_overlay(kind.overlay(images))
    else:
        things = manifests.rendered(FOLDERS[overlay], images, namespace=cluster.namespace, claim=claim)
        things = [thing for thing in things if _is_new(api, thing, storage_class)]
        manifests.apply(cluster.kubectl, things, remedy="check that kubeconfig has these rights in the namespace")
    out.print(f"applied {'kind' if of_kind else overlay} in {cluster.namespace}")
    if of_kind or FOLDERS[overlay].startswith("overlays/"):
        out.print(f"waiting for {TENSORBOARD}, {images['runtime']}: up to {READY_SECONDS} s", soft_wrap=True)
        wait_for_deployment(cluster.kubectl, TENSORBOARD)


def _require_namespace(api: Api, namespace: str) -> None:
    """Raises ClusterError unless the namespace exists, as far as that may be known."""
    with contextlib.suppress(Refused):
        if api.find(NAMESPACES, "", namespace) is None:
            raise ClusterError(
                f"namespace must be that of Kubeflow Pipelines or of a profile, got {namespace!r}, which does not "
                "exist; --namespace names another, --context another cluster"
            )


def _is_new(api: Api, thing: dict[str, Any], storage_class: str) -> bool:
    """Tells whether a thing is to be applied, which a claim that exists is not; gives a new one its storage class."""
    if thing["kind"] != "PersistentVolumeClaim":
        return True
    name = thing["metadata"]["name"]
    if found := api.find(CLAIMS, thing["metadata"]["namespace"], name):
        has = found["spec"].get("storageClassName") or "none"
        if storage_class and storage_class != has:
            raise ClusterError(
                f"the claim {name} must be of storage class {storage_class}, got one of {has}, and a claim cannot be "
                "changed; docs/cluster.md (Another volume) tells how to replace it"
            )
        return False
    try:
        classes = {each["metadata"]["name"]: each["metadata"] for each in api.list(STORAGE_CLASSES)}
    except Refused:  # then Kubernetes has the last word
        classes = {storage_class: {}}
    defaults = [name for name, about in classes.items() if (about.get("annotations") or {}).get(_IS_DEFAULT) == "true"]
    wanted = storage_class or (defaults or [""])[0]
    if wanted not in classes:
        raise ClusterError(
            f"the storage class must be one that the cluster has ({', '.join(classes) or 'none'}), got "
            f"{wanted or 'no default one'}; --storage-class names one that has ReadWriteMany"
        )
    if wanted:
        thing["spec"]["storageClassName"] = wanted
    return True
