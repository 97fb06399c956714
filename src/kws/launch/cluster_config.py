"""Settings of the pods of a training job on a cluster, read from the environment of the train step."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kws.kube.client import own_namespace
from kws.launch.job import MAX_RESTARTS
from kws.settings import Settings, choice, from_dict, number, require

CLAIM_VARIABLE = "KWS_PVC"
"""Environment variable with the name of the PersistentVolumeClaim that is mounted as the data root on a cluster."""

CLAIM = "kws-data"
"""The claim of manifests/base, with data sets, tensors, runs and models."""

SETTINGS = "KWS_PYTORCHJOB"
"""Environment variable with a JSON object of the fields of `ClusterConfig`, for every kind of job."""

_CORES = re.compile(r"\d+(\.\d+)?m?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Settings):
    """Where and how the pods of a training job run. What they do is in `kws.launch.job.Training`."""

    image: str
    """Image with the package kws and torch. Its tag must not be latest, which would be pulled for every pod."""

    namespace: str = ""
    """Namespace of the job; empty: the step's own."""

    pvc: str = CLAIM
    """PersistentVolumeClaim with data sets, tensors and runs; ReadWriteMany for more than one machine."""

    mount_path: str = "/data"
    """Where the volume is mounted, which is the pipeline's data_root."""

    gpus_per_node: int = number(0, at_least=0)
    """GPUs per pod; 0: train on CPUs."""

    gpu_resource: str = "nvidia.com/gpu"
    """The device plugin's resource name for a GPU."""

    cpu: str = "2"
    """CPU cores per pod, request and limit."""

    memory: str = "4Gi"
    """Memory per pod, request and limit, including shared memory."""

    shm_size: str = "1Gi"
    """Size of /dev/shm, through which the processes of a pod exchange gradients. A container's default is 64 MB."""

    elastic: bool = True
    """Whether training goes on with fewer pods while some are missing; if false, it waits for all of them. A TrainJob
    always waits."""

    min_nodes: int = number(1, at_least=1)
    """Smallest number of pods with which an elastic job trains."""

    max_restarts: int = number(MAX_RESTARTS, at_least=0)
    """How often torchrun restarts the processes of an elastic job after one died, before the pod fails."""

    pod_restarts: int = number(3, at_least=0)
    """How often each pod may be restarted before the job fails."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the machines on which pods may run."""

    tolerations: Sequence[Mapping[str, Any]] = ()
    """Taints that the pods tolerate, as in a pod's manifest: {"key": …, "operator": …, "value": …, "effect": …}."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the training processes; they override those that the launcher sets."""

    runtime: str = "kws-torch"
    """Only for a TrainJob: name of the runtime that defines its pods; the default is that of manifests/trainer-v2."""

    runtime_kind: str = choice("ClusterTrainingRuntime", "TrainingRuntime")
    """Only for a TrainJob: whether the runtime belongs to the cluster or to the namespace."""

    service_account: str = ""
    """Service account of the pods, which do not get its token; empty: the namespace's default."""

    active_deadline_seconds: int = number(86_400, at_least=1)
    """Seconds after which the job is stopped and counts as failed."""

    lease_seconds: int = number(900, at_least=0)
    """How long a job goes on training after its step was killed. A retry of the step within this time adopts the job;
    after it the job has ended, with a checkpoint, and a retry submits it again. 0: it trains to its end."""

    attempts: int = number(3, at_least=1)
    """How often the step submits a job that fails with a transient error, of a machine, a network or a volume."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tag = self.image.rsplit("/", 1)[-1].partition(":")[2]
        require(tag not in ("", "latest"), "image", "have a tag other than latest, or a digest", self.image)
        require(self.pvc != "", "pvc", "name a PersistentVolumeClaim", self.pvc)
        require(self.mount_path.startswith("/"), "mount_path", "be an absolute path", self.mount_path)
        for name, pattern, example in (
            ("cpu", _CORES, '"500m" or "2"'),
            ("memory", _QUANTITY, '"4Gi"'),
            ("shm_size", _QUANTITY, '"1Gi"'),
        ):
            value = getattr(self, name)
            require(pattern.fullmatch(value) is not None, name, f"be a quantity such as {example}", value)
        known = {"key", "operator", "value", "effect", "tolerationSeconds"}
        for toleration in self.tolerations:
            require(
                set(toleration) <= known, "tolerations", f"have fields among {', '.join(sorted(known))}", toleration
            )
        require(self.runtime != "", "runtime", "name a runtime of Kubeflow Trainer", self.runtime)

    @classmethod
    def from_environment(cls) -> "ClusterConfig":
        """Reads the settings from KWS_PYTORCHJOB; without a namespace there, takes that of the step's own pod.

        Raises:
            ValueError: the variable is missing or not a JSON object, a field is unknown, or a value is out of range.
        """
        values = read_settings(os.environ.get(SETTINGS, ""), "image")
        config = from_dict(cls, values)
        return config if config.namespace else dataclasses.replace(config, namespace=own_namespace())

    def to_environment(self) -> dict[str, str]:
        """Returns the environment variable that `from_environment` reads, for the train step."""
        return {SETTINGS: json.dumps(dataclasses.asdict(self))}


def read_settings(text: str, *needed: str) -> dict[str, Any]:
    """Parses a value of KWS_PYTORCHJOB, which must have the needed fields.

    Raises:
        ValueError: it is not a JSON object, or lacks a needed field.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    require(
        isinstance(values, dict) and values.keys() >= set(needed),
        SETTINGS,
        'be a JSON object of the fields of ClusterConfig, such as {"image": "kws-runtime:0.2.0"}',
        text,
    )
    return dict(values)


def claim_name(environment: Mapping[str, str]) -> str:
    """Returns the claim that an environment, such as `os.environ`, names; by default that of manifests/base."""
    return environment.get(CLAIM_VARIABLE) or CLAIM
