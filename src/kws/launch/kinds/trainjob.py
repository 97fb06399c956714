"""Builds a TrainJob, for Kubeflow Trainer v2, based on the runtime of manifests/trainer-v2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kws.kube.client import Resource, own_namespace
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import Training
from kws.launch.kinds.job_kind import JobKind
from kws.launch.kinds.pod import (
    FINGERPRINT,
    LABELS,
    WAIT_SECONDS,
    command_of,
    environment_of,
    fingerprint,
    require_gpu_for_each,
    resources_of,
)
from kws.settings import require

RESOURCE = Resource("trainjobs", "trainer.kubeflow.org", "v1alpha1")
CONTAINER = "node"
"""Name of the replicated job and of its container, whose image, command and environment Trainer replaces."""

OF_THE_RUNTIME = ("shm_size", "node_selector", "tolerations", "service_account")
"""Settings that only a PyTorchJob takes. A TrainJob could override them, but by a different field in every release of
Trainer, so they must be set in the runtime, which the administrator of the cluster writes."""


def build_job(job: Training, config: ClusterConfig, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Builds the TrainJob of a training.

    The runtime defines the pod: volume, shared memory, security and number of restarts. Trainer tells torchrun in PET_*
    variables how many nodes there are, with the rendezvous at the first. It does not support elastic jobs, so a lost
    pod stops the others until it is back.

    Args:
        job: what to train.
        config: settings of the pods.
        owner: an ownerReference to the object with which the job is deleted.

    Raises:
        ValueError: a setting belongs in the runtime, or there are fewer GPUs than processes.
    """
    from kubeflow_trainer_api import models

    for field in dataclasses.fields(ClusterConfig):
        if field.name in OF_THE_RUNTIME:
            default = field.default if field.default is not dataclasses.MISSING else {}
            value = getattr(config, field.name)
            where = f"the {config.runtime_kind} {config.runtime}"
            require(value == default, field.name, f"be set in {where} if KWS_LAUNCHER is trainjob", value)
    require_gpu_for_each(job, config)

    resources = {
        name: models.IoK8sApimachineryPkgApiResourceQuantity(value) for name, value in resources_of(config).items()
    }
    spec = models.TrainerV1alpha1TrainJobSpec(
        runtimeRef=models.TrainerV1alpha1RuntimeRef(
            apiGroup=RESOURCE.group, kind=config.runtime_kind, name=config.runtime
        ),
        trainer=models.TrainerV1alpha1Trainer(
            image=config.image,
            command=command_of(job, config, f"--rdzv-conf=timeout={WAIT_SECONDS}"),
            args=list(job.arguments),
            env=[
                models.IoK8sApiCoreV1EnvVar(name=name, value=value)
                for name, value in environment_of(job, config).items()
            ],
            numNodes=job.num_nodes,
            numProcPerNode=job.processes_per_node,
            resourcesPerNode=models.IoK8sApiCoreV1ResourceRequirements(requests=resources, limits=resources),
        ),
    )
    owners = [models.IoK8sApimachineryPkgApisMetaV1OwnerReference.from_dict(dict(owner))] if owner else None
    manifest = models.TrainerV1alpha1TrainJob(
        apiVersion=f"{RESOURCE.group}/{RESOURCE.version}",
        kind="TrainJob",
        metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=job.name,
            namespace=config.namespace or own_namespace(),
            labels=LABELS,
            annotations={FINGERPRINT: fingerprint(spec.to_dict())},
            ownerReferences=owners,
        ),
        spec=spec,
    )
    return dict(manifest.to_dict())


TRAIN_JOB = JobKind(
    kind="TrainJob",
    resource=RESOURCE,
    operator="Kubeflow Trainer v2 and JobSet",
    container=CONTAINER,
    name_label="jobset.sigs.k8s.io/jobset-name",
    rank_label="batch.kubernetes.io/job-completion-index",
    pods_made_by=lambda name: f"{name}-{CONTAINER}-0",
    build=build_job,
)
