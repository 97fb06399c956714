"""What the jobs of all kinds have in common: command, environment and resources of their pods, labels, digest."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from kws.kube.quantities import amounts
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import FRESH_STORE, TRAINER, Training
from kws.settings import require

if TYPE_CHECKING:
    from kubernetes.client import V1PodTemplateSpec

USER = 1000
"""User and group of the pods; numeric, as the kubelet cannot tell whether a named user is root."""

PORT = 23456
"""Port of torchrun's rendezvous, the training operator's default."""

GRACE_SECONDS = 60
"""Seconds from SIGTERM to SIGKILL. torchrun gives its processes 30 of them, and they write a checkpoint within 10."""

WAIT_SECONDS = 1800
"""How long a pod waits for the others, which may still wait for a machine or for their image. By default it gives up
after 60 s without worker 0, and after 600 s with too few workers."""

LABELS = {"app.kubernetes.io/name": "kws", "app.kubernetes.io/component": "trainer"}
FINGERPRINT = "kws/spec-sha256"
"""Annotation with a digest of a job's spec, so that a job with another spec is not adopted."""


def command_of(job: Training, config: ClusterConfig, *flags: str) -> list[str]:
    """Returns the command of a pod: torchrun, which finds the other pods by the variables that the operator sets."""
    return [
        "python",
        "-m",
        "kws.launch.node",
        f"--run={job.folder}",
        f"--lease={config.lease_seconds}",
        "--",
        f"--nproc-per-node={job.processes_per_node}",
        *flags,
        "-m",
        TRAINER,
    ]


def environment_of(job: Training, config: ClusterConfig) -> dict[str, str]:
    """Returns the environment variables of a pod."""
    return {
        "HOME": "/tmp",  # the only writable folder besides the volume; caches go there
        "OMP_NUM_THREADS": str(max(1, int(amounts({"cpu": config.cpu})["cpu"]) // job.processes_per_node)),
        **FRESH_STORE,
        **config.env,
    }


def resources_of(config: ClusterConfig) -> dict[str, str]:
    """Returns the resource requests and limits of a pod, which are equal."""
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpus_per_node:
        resources[config.gpu_resource] = str(config.gpus_per_node)
    return resources


def require_gpu_for_each(job: Training, config: ClusterConfig) -> None:
    """Raises ValueError if a pod has GPUs, but fewer than training processes."""
    require(
        config.gpus_per_node == 0 or job.processes_per_node <= config.gpus_per_node,
        "processes_per_node",
        f"be at most gpus_per_node ({config.gpus_per_node}), a GPU for each",
        job.processes_per_node,
    )


def pod_template(job: Training, config: ClusterConfig, container_name: str) -> "V1PodTemplateSpec":
    """Builds the pod template of a node, which conforms to the restricted pod security standard."""
    from kubernetes import client

    resources = resources_of(config)
    container = client.V1Container(
        name=container_name,
        image=config.image,
        image_pull_policy="IfNotPresent",
        command=command_of(job, config),
        args=list(job.arguments),
        env=[client.V1EnvVar(name=name, value=value) for name, value in environment_of(job, config).items()],
        ports=[client.V1ContainerPort(name="pytorchjob-port", container_port=PORT)],
        resources=client.V1ResourceRequirements(requests=resources, limits=resources),
        # The end of the log goes to the pod's status, which survives a restart.
        termination_message_policy="FallbackToLogsOnError",
        security_context=client.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=client.V1Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        volume_mounts=[
            client.V1VolumeMount(name="data", mount_path=config.mount_path),
            client.V1VolumeMount(name="shm", mount_path="/dev/shm"),
            client.V1VolumeMount(name="tmp", mount_path="/tmp"),
        ],
    )
    spec = client.V1PodSpec(
        containers=[container],
        volumes=[
            client.V1Volume(
                name="data", persistent_volume_claim=client.V1PersistentVolumeClaimVolumeSource(claim_name=config.pvc)
            ),
            client.V1Volume(
                name="shm", empty_dir=client.V1EmptyDirVolumeSource(medium="Memory", size_limit=config.shm_size)
            ),
            client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource()),
        ],
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            run_as_group=USER,
            fs_group=USER,
            # Otherwise every start of a pod changes the owner of all files on the volume.
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        service_account_name=config.service_account or None,
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=GRACE_SECONDS,
        node_selector=dict(config.node_selector) or None,
        tolerations=[dict(one) for one in config.tolerations] or None,  # as in a manifest
    )
    metadata = client.V1ObjectMeta(
        labels=LABELS,
        # A service mesh's sidecar would intercept the rendezvous, and keep the pod running after training has ended.
        annotations={"sidecar.istio.io/inject": "false"},
    )
    return client.V1PodTemplateSpec(metadata=metadata, spec=spec)


def to_manifest(model: Any) -> Any:
    """Converts an object of the Kubernetes SDK to dictionaries, lists, strings and numbers, as the API takes them."""
    from kubernetes import client

    return client.ApiClient().sanitize_for_serialization(model)


def fingerprint(spec: Any) -> str:
    """Returns a digest of the spec of a job, an object of the SDK or a dictionary."""
    return hashlib.sha256(json.dumps(to_manifest(spec), sort_keys=True).encode()).hexdigest()[:16]
