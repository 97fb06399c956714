"""Builds a PyTorchJob, for the training operator (Kubeflow Trainer v1)."""

from collections.abc import Mapping
from typing import Any

from kws.kube.client import Resource, own_namespace
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import Training
from kws.launch.kinds.job_kind import JobKind
from kws.launch.kinds.pod import (
    FINGERPRINT,
    LABELS,
    PORT,
    WAIT_SECONDS,
    fingerprint,
    pod_template,
    require_gpu_for_each,
    to_manifest,
)
from kws.settings import require

RESOURCE = Resource("pytorchjobs", "kubeflow.org")
CONTAINER = "pytorch"
"""The container name that the operator requires."""


KEEP_SECONDS = 86_400
"""Seconds after its end at which a job is deleted that the step could not delete."""


def build_job(job: Training, config: ClusterConfig, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Builds the PyTorchJob of a training.

    How the operator treats it, and the reasons for its form:

    * The operator tells torchrun through PET_* variables how many nodes there are and where the rendezvous is: the c10d
      store at `<job>-worker-0:23456`. It does not pass on nprocPerNode, so the command states the number as well.
      Without nprocPerNode it would be "auto", one process for every core, while WORLD_SIZE counts one.
    * There are only workers. If a job has a master, the operator adds to its workers an init container without a
      security context, which a namespace with the restricted pod security standard refuses. A job that is not elastic
      has as its minimum the full number of nodes.
    * restartPolicy is OnFailure. A training process that gets SIGTERM exits with 143, but its parent torchrun exits
      with 1, which the policy ExitCode treats as a permanent error: draining a machine would fail the job. OnFailure
      restarts on any status, and replaces evicted pods. The price is that a permanent error is retried as well, up to
      backoffLimit, which counts the restarts of all pods.

    The job is deleted with its owner, an ownerReference.

    Raises:
        ValueError: the settings do not allow this number of nodes or processes.
    """
    from kubeflow import training
    from kubernetes import client

    nodes = job.num_nodes
    require(
        not config.elastic or config.min_nodes <= nodes,
        "min_nodes",
        f"be at most num_nodes ({nodes})",
        config.min_nodes,
    )
    require_gpu_for_each(job, config)

    elastic_policy = training.KubeflowOrgV1ElasticPolicy(
        min_replicas=config.min_nodes if config.elastic else nodes,
        max_replicas=nodes,
        max_restarts=config.max_restarts,
        rdzv_backend="c10d",
        rdzv_host=f"{job.name}-worker-0",
        rdzv_port=PORT,
        rdzv_id=job.name,
        rdzv_conf=[
            training.KubeflowOrgV1RDZVConf(key=key, value=str(WAIT_SECONDS)) for key in ("read_timeout", "join_timeout")
        ],
    )
    workers = training.KubeflowOrgV1ReplicaSpec(
        replicas=nodes, restart_policy="OnFailure", template=pod_template(job, config, CONTAINER)
    )

    spec = training.KubeflowOrgV1PyTorchJobSpec(
        elastic_policy=elastic_policy,
        nproc_per_node=str(job.processes_per_node),
        pytorch_replica_specs={"Worker": workers},
        run_policy=training.KubeflowOrgV1RunPolicy(
            active_deadline_seconds=config.active_deadline_seconds,
            # The job fails as soon as the total number of restarts of all pods reaches this number.
            backoff_limit=config.pod_restarts * nodes + 1,
            # Pods that still wait for others would keep their resources by default; the logs of the rest are kept.
            clean_pod_policy="Running",
            ttl_seconds_after_finished=KEEP_SECONDS,
        ),
    )
    manifest = training.KubeflowOrgV1PyTorchJob(
        api_version=f"{RESOURCE.group}/{RESOURCE.version}",
        kind="PyTorchJob",
        metadata=client.V1ObjectMeta(
            name=job.name,
            namespace=config.namespace or own_namespace(),
            labels=LABELS,
            annotations={FINGERPRINT: fingerprint(spec)},
            owner_references=[owner] if owner else None,
        ),
        spec=spec,
    )
    return dict(to_manifest(manifest))


PYTORCH_JOB = JobKind(
    kind="PyTorchJob",
    resource=RESOURCE,
    operator="the training operator (manifests/training-operator)",
    lacking="install the training operator of manifests/training-operator, which has it",
    container=CONTAINER,
    name_label="training.kubeflow.org/job-name",
    rank_label="training.kubeflow.org/replica-index",
    pods_made_by=lambda name: name,
    build=build_job,
)
