"""Where and how the pods of a training job run on a cluster: settings, read from the environment of the step."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kws.config import from_dict, require
from kws.launch.job import MAX_RESTARTS

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Holds the namespace of the pod that this runs in."""

SETTINGS = "KWS_PYTORCHJOB"
"""Environment variable with a JSON object of the fields of `ClusterConfig`, whichever kind of job is launched."""

_CORES = re.compile(r"\d+(\.\d+)?m?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where and how the pods of a PyTorchJob run. What they do is `TrainJob`'s to say."""

    image: str
    """Image with the package kws and torch. It needs a tag other than latest, which would be pulled anew each time."""

    namespace: str = ""
    """Namespace of the job; empty: the step's own."""

    pvc: str = "kws-data"
    """PersistentVolumeClaim with data sets, tensors and runs. More than one machine needs ReadWriteMany."""

    mount_path: str = "/data"
    """Where the volume is mounted: the pipeline's data_root."""

    gpus_per_node: int = 0
    """GPUs of a pod; 0 trains on CPUs."""

    gpu_resource: str = "nvidia.com/gpu"
    """The name that the device plugin gives to a GPU."""

    cpu: str = "2"
    """Cores of a pod, request and limit."""

    memory: str = "4Gi"
    """Memory of a pod, request and limit. What lies in shared memory counts."""

    shm_size: str = "1Gi"
    """Size of /dev/shm, through which the processes of a pod exchange gradients. A container's default is 64 MB."""

    elastic: bool = True
    """Whether training goes on with fewer pods while one is away; without it, training waits until all are there. A
    TrainJob always waits."""

    min_nodes: int = 1
    """Fewest pods that an elastic job trains with."""

    max_restarts: int = MAX_RESTARTS
    """How often torchrun starts the processes of an elastic job again after one died, before it gives up its pod."""

    pod_restarts: int = 3
    """How often each pod may be started again before the job fails."""

    rendezvous_seconds: int = 1800
    """How long a pod waits for the others, which may have to wait for a machine or for their image."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the machines that may train."""

    tolerations: Sequence[Mapping[str, Any]] = ()
    """Taints that the pods tolerate, as in a pod's manifest: {"key": …, "operator": …, "value": …, "effect": …}."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the training processes; they win over those set here."""

    runtime: str = "kws-torch"
    """Of a TrainJob: the runtime that has its pods, that of manifests/trainer-v2."""

    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    """Of a TrainJob: whether the runtime is the cluster's, or one of the namespace."""

    service_account: str = ""
    """Service account of the pods, whose token they do not get; empty: the namespace's default."""

    active_deadline_seconds: int = 86_400
    """After so long the job is stopped and has failed."""

    ttl_seconds_after_finished: int = 86_400
    """So long after its end the job is deleted, with its pods and their logs."""

    clean_pod_policy: Literal["Running", "All", "None"] = "Running"
    """Which pods are deleted when the job ends. Running ends those that wait for one that will not come, and keeps the
    logs of the others; the operator's default, None, keeps their resources too."""

    lease_seconds: int = 900
    """How long a job trains on after its step was killed. A step that is tried again within it adopts the job; later
    the job has ended, with a checkpoint, and is submitted again. 0: it trains to its end."""

    attempts: int = 3
    """How often the step submits a job that failed of what may mend: a machine, a network, a volume."""

    delete_when_done: bool = True
    """Delete the job as soon as it has ended and its log and outcome are in `logs/` of the run: finished jobs count
    towards quotas."""

    def __post_init__(self) -> None:
        tag = self.image.rsplit("/", 1)[-1].partition(":")[2]
        require(tag not in ("", "latest"), "image", "have a tag other than latest, or a digest", self.image)
        require(self.pvc != "", "pvc", "name a PersistentVolumeClaim", self.pvc)
        require(self.mount_path.startswith("/"), "mount_path", "be an absolute path", self.mount_path)
        for name, pattern, example in (("cpu", _CORES, '"500m" or "2"'), ("memory", _QUANTITY, '"4Gi"'),
                                       ("shm_size", _QUANTITY, '"1Gi"')):  # fmt: skip
            value = getattr(self, name)
            require(isinstance(value, str) and pattern.fullmatch(value) is not None, name,
                    f"be a quantity such as {example}", value)  # fmt: skip
        for name, least in {"gpus_per_node": 0, "min_nodes": 1, "max_restarts": 0, "pod_restarts": 0,
                            "rendezvous_seconds": 1, "lease_seconds": 0, "attempts": 1, "active_deadline_seconds": 1,
                            "ttl_seconds_after_finished": 0}.items():  # fmt: skip
            value = getattr(self, name)
            require(type(value) is int and value >= least, name, f"be a whole number of at least {least}", value)
        for name in ("elastic", "delete_when_done"):
            require(isinstance(getattr(self, name), bool), name, "be true or false", getattr(self, name))
        for name in ("node_selector", "env"):
            value = getattr(self, name)
            text = isinstance(value, Mapping) and all(isinstance(part, str) for part in (*value, *value.values()))
            require(text, name, "map names to strings", value)
        known = {"key", "operator", "value", "effect", "tolerationSeconds"}
        for toleration in self.tolerations:
            require(isinstance(toleration, Mapping) and set(toleration) <= known, "tolerations",
                    f"have fields among {', '.join(sorted(known))}", toleration)  # fmt: skip
        kinds = ("ClusterTrainingRuntime", "TrainingRuntime")
        require(self.runtime_kind in kinds, "runtime_kind", f"be {' or '.join(kinds)}", self.runtime_kind)
        require(self.runtime != "", "runtime", "name a runtime of Kubeflow Trainer", self.runtime)
        require(self.clean_pod_policy in ("Running", "All", "None"), "clean_pod_policy", "be Running, All or None",
                self.clean_pod_policy)  # fmt: skip

    @classmethod
    def from_environment(cls) -> "ClusterConfig":
        """Reads the settings from KWS_PYTORCHJOB, and the namespace, where they name none, from the step's own pod.

        Raises:
            ValueError: the variable is missing or no JSON object, a field is unknown, or a value is out of range.
        """
        values = read_settings(os.environ.get(SETTINGS, ""), "image")
        config = from_dict(cls, values)
        return config if config.namespace else dataclasses.replace(config, namespace=own_namespace())

    def to_environment(self) -> dict[str, str]:
        """Returns what `from_environment` reads, to be set on the step that launches."""
        return {SETTINGS: json.dumps(dataclasses.asdict(self))}


def read_settings(text: str, *needed: str) -> dict[str, Any]:
    """Reads a value of KWS_PYTORCHJOB.

    Raises:
        ValueError: it is no JSON object, or lacks a field that is needed.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    require(isinstance(values, dict) and values.keys() >= set(needed), SETTINGS, "be a JSON object of the fields of "
            'ClusterConfig, such as {"image": "kws-runtime:0.2.0"}', text)  # fmt: skip
    return dict(values)


def own_namespace() -> str:
    """Returns the namespace of the pod that this runs in, or that of a standalone Kubeflow Pipelines outside of one."""
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "kubeflow"


def cores(quantity: str) -> float:
    """Returns the cores that a Kubernetes quantity stands for: "500m" is 0.5."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
