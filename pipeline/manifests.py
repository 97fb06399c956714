"""Renders a folder of manifests/ for a cluster, and applies it.

Images, namespace and claim are set here; in the folders, images are just kws-runtime and kws-serving.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kws.launch.cluster_config import CLAIM
from pipeline.shell import run

SHARED = ("PersistentVolume", "ClusterTrainingRuntime", "StorageClass", "Namespace")
"""Kinds that are in no namespace."""


def rendered(folder: str, images: Mapping[str, str], *, namespace: str, claim: str = CLAIM) -> list[dict[str, Any]]:
    """Renders a folder below manifests/, such as overlays/kind, with kustomize, for a cluster.

    Images are given by role: runtime, serving. The namespace is that of all objects, and of the service account of the
    steps.

    Returns:
        The objects.
    """
    things = list(yaml.safe_load_all(run("kubectl", "kustomize", f"manifests/{folder}")))
    named = {f"kws-{role}": image for role, image in images.items()}
    for thing in things:
        _set_names(thing, named, claim)
        if thing["kind"] not in SHARED:
            thing["metadata"]["namespace"] = namespace
        if thing["kind"] == "PersistentVolumeClaim":
            thing["metadata"]["name"] = claim
        for subject in thing.get("subjects") or ():
            subject["namespace"] = namespace
    return things


def _set_names(value: Any, images: Mapping[str, str], claim: str) -> None:
    """Puts images and claim into an object, in pods of custom kinds too."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _set_names(part, images, claim)
    if isinstance(value, dict):
        if value.get("image") in images:
            value["image"] = images[value["image"]]
        if value.get("claimName") == CLAIM:
            value["claimName"] = claim
        if value.get("name") == "STORAGE_URI":  # KServe's name of a claim
            value["value"] = f"pvc://{claim}"


def apply(kubectl: Sequence[str], things: Sequence[Mapping[str, Any]], *, remedy: str = "") -> None:
    """Applies objects to a cluster, over what is there of an earlier call; `kubectl` has the flags for the cluster."""
    command = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    run(*kubectl, *command, stdin=yaml.safe_dump_all(things), remedy=remedy, timeout=120)
