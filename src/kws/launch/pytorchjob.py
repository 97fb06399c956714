"""Builds a PyTorchJob, for the training operator (Kubeflow Trainer v1)."""

from typing import TYPE_CHECKING, Any

from kws.launch.job import Training
from kws.launch.job_status import JobKind
from kws.launch.pod_template import FINGERPRINT, LABELS, PORT, fingerprint, pod_template, to_manifest
from kws.launch.settings import ClusterConfig, own_namespace
from kws.settings import require

if TYPE_CHECKING:
    from kubeflow.training import KubeflowOrgV1PyTorchJob
    from kubernetes.client import V1OwnerReference

GROUP, VERSION = "kubeflow.org", "v1"
CONTAINER = "pytorch"
"""The container name that the operator requires."""


def build_job(
    job: Training, config: ClusterConfig, owner: "V1OwnerReference | None" = None
) -> "KubeflowOrgV1PyTorchJob":
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

    Args:
        job: what to train.
        config: settings of the pods.
        owner: the object with which the job is deleted.

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
    require(
        config.gpus_per_node == 0 or job.processes_per_node <= config.gpus_per_node,
        "processes_per_node",
        f"be at most gpus_per_node ({config.gpus_per_node}), a GPU for each",
        job.processes_per_node,
    )

    wait = str(config.rendezvous_seconds)
    elastic_policy = training.KubeflowOrgV1ElasticPolicy(
        min_replicas=config.min_nodes if config.elastic else nodes,
        max_replicas=nodes,
        max_restarts=config.max_restarts,
        rdzv_backend="c10d",
        rdzv_host=f"{job.name}-worker-0",
        rdzv_port=PORT,
        rdzv_id=job.name,
        # By default a pod gives up after 60 s without worker 0, and after 600 s with too few workers.
        rdzv_conf=[training.KubeflowOrgV1RDZVConf(key=key, value=wait) for key in ("read_timeout", "join_timeout")],
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
            clean_pod_policy=config.clean_pod_policy,
            ttl_seconds_after_finished=config.ttl_seconds_after_finished,
        ),
    )
    return training.KubeflowOrgV1PyTorchJob(
        api_version=f"{GROUP}/{VERSION}",
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


def _manifest(job: Training, config: ClusterConfig, owner: "V1OwnerReference | None") -> dict[str, Any]:
    return dict(to_manifest(build_job(job, config, owner)))


PYTORCH_JOB = JobKind(
    kind="PyTorchJob",
    group=GROUP,
    version=VERSION,
    plural="pytorchjobs",
    operator="the training operator (manifests/training-operator)",
    container=CONTAINER,
    name_label="training.kubeflow.org/job-name",
    pods_made_by=lambda name: name,
    build=_manifest,
    node_rank=lambda labels: int(labels["training.kubeflow.org/replica-index"]),
)
