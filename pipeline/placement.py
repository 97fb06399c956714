"""Where and how the steps run: images, cpu, memory, volume, caching, and the pods of training.

A `Placement` is a value that is passed to the compiler, so that one process can compile for several clusters.
`read_placement` makes one from a caller's choices and these environment variables (defaults in parentheses):

    KWS_PVC             the claim that is mounted (kws-data)
    KWS_GPUS_PER_NODE   GPUs of a training pod (0; 1 where training is to run on CUDA)
    KWS_LAUNCHER        pytorchjob or trainjob: what the train step launches (pytorchjob)
    KWS_SHARDS          pods among which preprocessing is spread where there are 200,000 clips or more (1)
    KWS_DEADLINE_HOURS  hours after which a run is ended, such as 1.5 (0: none)
    KWS_TTL_DAYS        days after its end after which the pods of a run are deleted (0: as the cluster has it)
    KWS_PYTORCHJOB      JSON with further fields of `kws.launch.cluster_config.ClusterConfig`

No step has a retry policy of Kubeflow Pipelines: see docs/cluster.md, "What is retried".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components import images
from kws import outcomes
from kws.config import PipelineConfig
from kws.download.credentials import SECRET, SECRET_FOLDER
from kws.launch.cluster_config import CLAIM, CLAIM_VARIABLE, SETTINGS, ClusterConfig, claim_name, read_settings
from kws.settings import MODEL_REGISTRY, from_dict, require

if TYPE_CHECKING:
    from kfp.dsl import PipelineConfig as PipelineConfiguration
    from kfp.dsl import PipelineTask

JOBS = ("pytorchjob", "trainjob")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Requests and limits of a step."""

    cpu: str
    memory: str
    cpu_limit: str
    memory_limit: str


RESOURCES = {
    "download": Resources(cpu="500m", memory="512Mi", cpu_limit="2", memory_limit="2Gi"),
    "preprocess": Resources(cpu="1", memory="2Gi", cpu_limit="4", memory_limit="4Gi"),
    "features": Resources(cpu="1", memory="2Gi", cpu_limit="4", memory_limit="4Gi"),
    "train": Resources(cpu="100m", memory="256Mi", cpu_limit="1", memory_limit="1Gi"),
    "evaluate": Resources(cpu="500m", memory="1Gi", cpu_limit="2", memory_limit="4Gi"),
    "promote": Resources(cpu="500m", memory="1Gi", cpu_limit="2", memory_limit="4Gi"),
    "changes": Resources(cpu="100m", memory="256Mi", cpu_limit="1", memory_limit="1Gi"),
    "notify": Resources(cpu="100m", memory="128Mi", cpu_limit="1", memory_limit="512Mi"),
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how the steps of a compiled pipeline run."""

    runtime: str = images.RUNTIME
    """The image that has torch."""

    launcher: str = images.LAUNCHER
    """The image of the step that starts training."""

    pvc: str = CLAIM
    """PersistentVolumeClaim that every step and training pod mounts."""

    launches: str = "pytorchjob"
    """What the train step launches: pytorchjob (training operator) or trainjob (Kubeflow Trainer v2)."""

    model_registry: str = ""
    """Address of a Kubeflow Model Registry in which the promote step registers versions; empty: none."""

    only_new: bool = False
    """Whether a run ends, green, before training if a version was trained on the same data by the same recipe."""

    notify: str = ""
    """Secret that has the address of a hook as `address`, which is told how runs end; empty: nobody is told."""

    outcomes_folder: str = f"{PipelineConfig().data_root}/{outcomes.FOLDER}"
    """Folder where steps note how they ended, for the step that tells it."""

    ui: str = ""
    """Address of the UI of Kubeflow Pipelines, for links in what is told."""

    deadline_hours: float = 0
    """After so many hours Kubeflow Pipelines ends a run; 0: never."""

    ttl_days: int = 0
    """So many days after its end the pods of a run are deleted (it stays listed); 0: as the cluster has it."""

    preprocess_shards: int = 1
    """The most pods that compute features at the same time, where clips are many; 1: the preprocess step alone."""

    clips_per_shard: int = 100_000
    """The least clips of each of these pods."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ClusterConfig` that differ from their defaults: cpu, memory, gpus_per_node, node_selector, …"""

    def __post_init__(self) -> None:
        require(self.launches in JOBS, "KWS_LAUNCHER", f"be {' or '.join(JOBS)} on a cluster", self.launches)
        require(1 <= self.preprocess_shards <= 1000, "KWS_SHARDS", "be between 1 and 1000", self.preprocess_shards)
        assert self.training_pods is not None  # a wrong field or value is an error here, not in the middle of compiling

    @property
    def training_pods(self) -> ClusterConfig:
        """How the pods of a training job run."""
        own = {"image": self.runtime, "pvc": self.pvc, "mount_path": PipelineConfig().data_root}
        return from_dict(ClusterConfig, own | dict(self.training))

    @property
    def pipeline_config(self) -> "PipelineConfiguration":
        """Deadline and time to live of a run, as Kubeflow Pipelines 2.17 has them.

        It has no mutex (kubeflow/pipelines #12305 took it back): promote takes a lock on the volume, and a schedule
        starts one run at a time. Its workspace is a claim that ends with the run, so the volume is none.
        """
        from kfp.dsl import PipelineConfig as PipelineConfiguration

        return PipelineConfiguration(
            active_deadline_seconds=round(3600 * self.deadline_hours) or None,
            ttl_seconds_after_finished=86400 * self.ttl_days or None,
        )

    def place(self, **tasks: "PipelineTask") -> None:
        """Sets for every step of the pipeline, by name, where and how it runs."""
        from kfp import kubernetes

        chosen = {images.RUNTIME: self.runtime, images.LAUNCHER: self.launcher}
        for name, task in tasks.items():
            resources = RESOURCES[name]
            task.set_display_name(name)
            task.set_container_image(chosen[task.container_spec.image])
            task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu_limit)
            task.set_memory_request(resources.memory).set_memory_limit(resources.memory_limit)
            # KFP's cache key has the name of the claim but not its contents: a scheduled retraining would not train.
            task.set_caching_options(False)
            # The images do so anyway; a namespace with the restricted pod security standard wants to read it.
            kubernetes.set_security_context(task, run_as_non_root=True)
            kubernetes.mount_pvc(task, pvc_name=self.pvc, mount_path=PipelineConfig().data_root)
        # Credentials, certificates and proxies, if there is such a secret.
        kubernetes.use_secret_as_volume(
            tasks["download"], secret_name=SECRET, mount_path=str(SECRET_FOLDER), optional=True
        )
        if self.notify:
            for task in tasks.values():
                task.set_env_variable(outcomes.VARIABLE, self.outcomes_folder)
                kubernetes.use_field_path_as_env(task, outcomes.RUN, "metadata.labels['pipeline/runid']")
            kubernetes.use_secret_as_env(tasks["notify"], self.notify, {"address": outcomes.ADDRESS}, optional=True)
            tasks["notify"].set_env_variable(outcomes.UI, self.ui)
        for variable, value in self.training_pods.to_environment().items():
            tasks["train"].set_env_variable(variable, value)
        if self.launches != JOBS[0]:  # the default of the step on a cluster
            tasks["train"].set_env_variable("KWS_LAUNCHER", self.launches)
        if self.model_registry:
            tasks["promote"].set_env_variable(MODEL_REGISTRY, self.model_registry)
            tasks["promote"].set_env_variable(CLAIM_VARIABLE, self.pvc)


def read_placement(
    environment: Mapping[str, str],
    names: Mapping[str, str],
    *,
    device: str = "cpu",
    launches: str = "",
    notify: str = "",
    **training: str,
) -> Placement:
    """Returns the placement that follows from a caller's choices and the environment.

    `names` are the images by role, runtime and launcher; `device` is cpu or cuda; `notify` the secret with the address
    of a hook. `launches` takes precedence over KWS_LAUNCHER, and fields of `ClusterConfig` (`training`) over
    KWS_PYTORCHJOB, where they are not empty.

    Raises:
        ValueError: a variable is wrong, or a field unknown or out of range.
    """
    numbers = {"KWS_GPUS_PER_NODE": 1 if device == "cuda" else 0, "KWS_SHARDS": 1, "KWS_TTL_DAYS": 0}
    for name in numbers:
        if given := environment.get(name):
            require(given.isdigit(), name, "be a whole number", given)
            numbers[name] = int(given)
    deadline = environment.get("KWS_DEADLINE_HOURS") or "0"
    require(re.fullmatch(r"\d+(\.\d+)?", deadline) is not None, "KWS_DEADLINE_HOURS", "be a number", deadline)
    fields = {"gpus_per_node": numbers["KWS_GPUS_PER_NODE"]} | read_settings(environment.get(SETTINGS) or "{}")
    return Placement(
        runtime=names["runtime"],
        launcher=names["launcher"],
        pvc=claim_name(environment),
        launches=launches or environment.get("KWS_LAUNCHER") or JOBS[0],
        model_registry=environment.get(MODEL_REGISTRY, ""),
        notify=notify,
        preprocess_shards=numbers["KWS_SHARDS"],
        deadline_hours=float(deadline),
        ttl_days=numbers["KWS_TTL_DAYS"],
        training=fields | {name: value for name, value in training.items() if value},
    )
