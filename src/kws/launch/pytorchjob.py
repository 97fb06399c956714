"""A PyTorchJob, for the training operator (Kubeflow Trainer v1)."""

from typing import TYPE_CHECKING, Any

from kws.config import require
from kws.launch.job import Training
from kws.launch.job_status import JobKind
from kws.launch.pod_template import FINGERPRINT, LABELS, PORT, fingerprint, pod_template, to_manifest
from kws.launch.settings import ClusterConfig, own_namespace

if TYPE_CHECKING:
    from kubeflow.training import KubeflowOrgV1PyTorchJob
    from kubernetes.client import V1OwnerReference

GROUP, VERSION = "kubeflow.org", "v1"
CONTAINER = "pytorch"
"""The operator looks for the container of this name."""


def build_job(
    job: Training, config: ClusterConfig, owner: "V1OwnerReference | None" = None
) -> "KubeflowOrgV1PyTorchJob":
    """Builds the PyTorchJob that trains.

    What the operator does with it, and why it looks so:

    * The operator tells torchrun through PET_* variables how many nodes there are and where they meet: the c10d store
      in `<job>-worker-0:23456`. It does not pass on nprocPerNode, so the command names the number as well. Left out,
      nprocPerNode becomes "auto", one process for every core, while WORLD_SIZE counts one.
    * There are workers only. To the workers of a job that has a master, the operator adds an init container without a
      security context, which a namespace with the restricted pod security standard refuses. A job that is not elastic
      is one whose fewest nodes are all of them.
    * restartPolicy is OnFailure. A training process that gets SIGTERM exits with 143, but torchrun stands above it and
      exits with 1, which the policy ExitCode takes for an error that will not mend: a drained machine would fail the
      job. OnFailure restarts whatever the status was, and replaces a pod that was evicted. The price is that a real
      error is tried again too, as often as backoffLimit, the sum over all pods, allows.

    Args:
        job: what to train.
        config: where and how.
        owner: the pod whose end ends the job.

    Raises:
        ValueError: the cluster's settings do not allow as many nodes or processes.
    """
    from kubeflow import training
    from kubernetes import client

    nodes = job.num_nodes
    require(not config.elastic or config.min_nodes <= nodes, "min_nodes", f"be at most num_nodes ({nodes})",
            config.min_nodes)  # fmt: skip
    require(config.gpus_per_node == 0 or job.processes_per_node <= config.gpus_per_node, "processes_per_node",
            f"be at most gpus_per_node ({config.gpus_per_node}), a GPU for each", job.processes_per_node)  # fmt: skip

    wait = str(config.rendezvous_seconds)
    elastic_policy = training.KubeflowOrgV1ElasticPolicy(
        min_replicas=config.min_nodes if config.elastic else nodes, max_replicas=nodes,
        max_restarts=config.max_restarts,
        rdzv_backend="c10d", rdzv_host=f"{job.name}-worker-0", rdzv_port=PORT, rdzv_id=job.name,
        # By default a pod gives up after 60 s without the first one, and after 600 s with too few.
        rdzv_conf=[training.KubeflowOrgV1RDZVConf(key=key, value=wait) for key in ("read_timeout", "join_timeout")],
    )  # fmt: skip
    workers = training.KubeflowOrgV1ReplicaSpec(
        replicas=nodes, restart_policy="OnFailure", template=pod_template(job, config, CONTAINER)
    )

    spec = training.KubeflowOrgV1PyTorchJobSpec(
        elastic_policy=elastic_policy,
        nproc_per_node=str(job.processes_per_node),
        pytorch_replica_specs={"Worker": workers},
        run_policy=training.KubeflowOrgV1RunPolicy(
            active_deadline_seconds=config.active_deadline_seconds,
            # The job fails as soon as the restarts of all pods, counted together, reach this number.
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
