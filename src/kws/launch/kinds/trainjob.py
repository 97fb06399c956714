"""Builds a TrainJob, for Kubeflow Trainer v2, based on the runtime of manifests/trainer-v2."""

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

RESOURCE = Resource("trainjobs", "trainer.kubeflow.org", "v1alpha1")
CONTAINER = "node"
"""Name of the replicated job and of its container, whose image, command and environment Trainer replaces."""

MANAGER = "kws.local/launcher"
"""In whose name the pods of the runtime are changed; Trainer wants a domain in front."""

SINCE = "2.2"
"""Release of Trainer since which a job may change pods of its runtime, or has a deadline. An API server refuses a field
that an older release lacks, as jobs are created strictly."""

NO_DEADLINE = f"has no deadline of its own, which Kubeflow Trainer gives jobs since {SINCE}: that of the run counts"


def _changed(config: ClusterConfig, name: str) -> Any:
    """Returns the value of a setting, or None if it is the default, for which the runtime stands."""
    value = getattr(config, name)
    return None if value == getattr(ClusterConfig(image=config.image), name) else value


def _pod_patch(config: ClusterConfig) -> dict[str, Any]:
    """Returns what differs from the runtime in the spec of the pods; a volume is merged with that of its name."""
    volumes = []
    if claim := _changed(config, "pvc"):
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
    if size := _changed(config, "shm_size"):
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    patch = {
        "nodeSelector": dict(config.node_selector),
        "serviceAccountName": config.service_account,
        "tolerations": [dict(toleration) for toleration in config.tolerations],
        "volumes": volumes,
    }
    return {name: value for name, value in patch.items() if value}


def _runtime_patches(config: ClusterConfig) -> list[Any] | None:
    """Returns the patches of the runtime for this job; None if there is nothing to change."""
    from kubeflow_trainer_api import models

    pods = _pod_patch(config)
    if not pods:
        return None
    jobs = [{"name": CONTAINER, "template": {"spec": {"template": {"spec": pods}}}}]
    spec = {"template": {"spec": {"replicatedJobs": jobs}}}
    return [models.TrainerV1alpha1RuntimePatch.from_dict({"manager": MANAGER, "trainingRuntimeSpec": spec})]


def build_job(job: Training, config: ClusterConfig, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Builds the TrainJob of a training.

    The runtime defines the pod: volume, shared memory, security and number of restarts. Where the settings name another
    claim, shared memory, machines or service account, the job patches its runtime, which needs Trainer 2.2; so does a
    deadline, without which an older one runs the job. Trainer tells torchrun in PET_* variables how many nodes there
    are, with the rendezvous at the first. It does not support elastic jobs, so a lost pod stops the others until it is
    back. The job is deleted with its owner, an ownerReference.

    Raises:
        ValueError: there are fewer GPUs than processes.
    """
    from kubeflow_trainer_api import models

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
        runtimePatches=_runtime_patches(config),
        activeDeadlineSeconds=_changed(config, "active_deadline_seconds"),
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
    lacking=f"install Kubeflow Trainer {SINCE} or later, or set it in the runtime and leave it out of KWS_PYTORCHJOB",
    dispensable={"activeDeadlineSeconds": NO_DEADLINE},
    container=CONTAINER,
    name_label="jobset.sigs.k8s.io/jobset-name",
    rank_label="batch.kubernetes.io/job-completion-index",
    pods_made_by=lambda name: f"{name}-{CONTAINER}-0",
    build=build_job,
)
