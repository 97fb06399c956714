"""Where and how the steps run: cpu, memory, volume, caching, retries, and the pods of training.

Chosen when the pipeline is compiled, by environment variables where a cluster differs:

    KWS_PVC             the claim that is mounted (kws-data)
    KWS_GPUS_PER_NODE   GPUs of a training pod (0)
    KWS_PYTORCHJOB      JSON with further fields of `kws.launch.settings.ClusterConfig`
"""

import os
from dataclasses import dataclass

from kfp import kubernetes
from kfp.dsl import PipelineTask

from components import images
from kws.config import PipelineConfig, from_dict, require
from kws.launch.settings import SETTINGS, ClusterConfig, read_settings

PVC = os.environ.get("KWS_PVC", "kws-data")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a step asks for."""

    cpu: str
    memory: str
    cpu_limit: str
    memory_limit: str
    retries: int


RESOURCES = {
    "download": Resources(cpu="500m", memory="512Mi", cpu_limit="2", memory_limit="2Gi", retries=3),
    "preprocess": Resources(cpu="1", memory="2Gi", cpu_limit="4", memory_limit="4Gi", retries=2),
    "train": Resources(cpu="100m", memory="256Mi", cpu_limit="1", memory_limit="1Gi", retries=2),
    "evaluate": Resources(cpu="500m", memory="1Gi", cpu_limit="2", memory_limit="4Gi", retries=2),
    "promote": Resources(cpu="500m", memory="1Gi", cpu_limit="2", memory_limit="4Gi", retries=2),
}


def place(**tasks: PipelineTask) -> None:
    """Sets for every step of the pipeline, by name, where and how it runs."""
    for name, task in tasks.items():
        resources = RESOURCES[name]
        task.set_display_name(name)
        task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu_limit)
        task.set_memory_request(resources.memory).set_memory_limit(resources.memory_limit)
        task.set_retry(resources.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
        # The key of KFP's cache knows the name of the claim and not what is on it: a scheduled retraining must train.
        task.set_caching_options(False)
        kubernetes.mount_pvc(task, pvc_name=PVC, mount_path=PipelineConfig().data_root)

    launch = tasks["train"]
    for variable, value in training_pods().to_environment().items():
        launch.set_env_variable(variable, value)


def training_pods() -> ClusterConfig:
    """Returns how the pods of a PyTorchJob run.

    Raises:
        ValueError: KWS_PYTORCHJOB is no JSON object, has an unknown field or a value out of range.
    """
    gpus = os.environ.get("KWS_GPUS_PER_NODE", "0")
    require(gpus.isdigit(), "KWS_GPUS_PER_NODE", "be a whole number", gpus)
    settings = {
        "image": images.RUNTIME,
        "pvc": PVC,
        "mount_path": PipelineConfig().data_root,
        "gpus_per_node": int(gpus),
    }
    return from_dict(ClusterConfig, settings | read_settings(os.environ.get(SETTINGS, "{}")))
