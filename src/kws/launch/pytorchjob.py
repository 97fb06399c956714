"""Trains on a cluster: builds a PyTorchJob, submits it, follows it to its end.

The objects are built with the models of the kubeflow-training SDK, but sent with the plain Kubernetes client: the
SDK's TrainingClient hides the status of an error, which decides here whether to adopt a job or to try again, and its
`get_job_logs` leaves out the pods that are not running yet.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from kws.config import from_dict, require
from kws.files import atomic_write
from kws.launch.job import FRESH_STORE, MAX_RESTARTS, TRAINER, LaunchError, TrainJob

if TYPE_CHECKING:
    from kubeflow.training import KubeflowOrgV1PyTorchJob
    from kubernetes.client import V1OwnerReference, V1PodTemplateSpec

GROUP, VERSION, PLURAL = "kubeflow.org", "v1", "pytorchjobs"
CONTAINER = "pytorch"
"""The operator looks for the container of this name."""

PORT = 23456
"""Port of the rendezvous, the operator's default."""

USER = 1000
"""Numeric user and group of the pods: the kubelet cannot tell whether a user with a name is root."""

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Holds the namespace of the pod that this runs in."""

SETTINGS = "KWS_PYTORCHJOB"
"""Environment variable with a JSON object of the fields of `ClusterConfig`."""

JOB_NAME_LABEL = "training.kubeflow.org/job-name"
FINGERPRINT = "kws/spec-sha256"
LABELS = {"app.kubernetes.io/name": "kws", "app.kubernetes.io/component": "trainer"}

GRACE_SECONDS = 60
"""From SIGTERM to SIGKILL. torchrun gives its processes 30 s of it, and they write a checkpoint within 10."""

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""How long the Kubernetes API may be away before the step gives up."""

NUM_LAST_LINES = 30
"""Lines of a failed pod's log that the error quotes: torchrun's summary with the trainer's own error fits."""

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
    """Whether training goes on with fewer pods while one is away. Elastic pods are all workers and meet at the first
    one; without it there are a master and workers, and training waits until all are there."""

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

    service_account: str = ""
    """Service account of the pods, whose token they do not get; empty: the namespace's default."""

    active_deadline_seconds: int = 86_400
    """After so long the job is stopped and has failed."""

    ttl_seconds_after_finished: int = 86_400
    """So long after its end the job is deleted, with its pods and their logs."""

    clean_pod_policy: Literal["Running", "All", "None"] = "Running"
    """Which pods are deleted when the job ends. Running ends those that wait for one that will not come, and keeps the
    logs of the others; the operator's default, None, keeps their resources too."""

    delete_when_done: bool = False
    """Delete the job as soon as it has succeeded. One that failed stays, to be looked into, until its time is over."""

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
                            "rendezvous_seconds": 1, "active_deadline_seconds": 1,
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
            'ClusterConfig, such as {"image": "kws-runtime:0.1.0"}', text)  # fmt: skip
    return dict(values)


def own_namespace() -> str:
    """Returns the namespace of the pod that this runs in, or that of a standalone Kubeflow Pipelines outside of one."""
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "kubeflow"


def step_owner(namespace: str) -> "V1OwnerReference | None":
    """Returns a reference to the step's own pod, so that the job goes when the pod goes.

    Name and uid come from KWS_POD_NAME and KWS_POD_UID (downward API) or from KFP_POD_NAME and KFP_POD_UID, which
    Kubeflow Pipelines sets on every step.

    Args:
        namespace: that of the job. An owner in another would count as missing, and the job would be deleted at once.

    Returns:
        The reference, or None outside a pod and for a job in another namespace.
    """
    from kubernetes.client import V1OwnerReference

    if not NAMESPACE_FILE.exists() or own_namespace() != namespace:
        return None
    for prefix in ("KWS", "KFP"):
        name, uid = os.environ.get(f"{prefix}_POD_NAME"), os.environ.get(f"{prefix}_POD_UID")
        if name and uid:
            return V1OwnerReference(api_version="v1", kind="Pod", name=name, uid=uid)
    return None


def build_job(
    job: TrainJob, config: ClusterConfig, owner: "V1OwnerReference | None" = None
) -> "KubeflowOrgV1PyTorchJob":
    """Builds the PyTorchJob that trains.

    What the operator does with it, and why it looks so:

    * The operator tells torchrun through PET_* variables how many nodes there are and where they meet. For an elastic
      job that is the c10d store in `<job>-worker-0:23456`; for a fixed one the master. Only for a fixed job does it
      pass on nprocPerNode, so the command names the number as well. Left out, nprocPerNode becomes "auto", one process
      for every core, while WORLD_SIZE counts one.
    * Workers of a fixed job get an init container from the operator, which waits for the master. It has no security
      context: where the namespace enforces the restricted pod security standard, give the operator a template with
      one (its option --pytorch-init-container-template-file). Elastic jobs have none; their pods wait in torchrun.
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

    def replicas(number: int) -> Any:
        return training.KubeflowOrgV1ReplicaSpec(
            replicas=number, restart_policy="OnFailure", template=_pod_template(job, config)
        )

    if config.elastic:
        specs = {"Worker": replicas(nodes)}
        wait = str(config.rendezvous_seconds)
        elastic_policy = training.KubeflowOrgV1ElasticPolicy(
            min_replicas=config.min_nodes, max_replicas=nodes, max_restarts=config.max_restarts,
            rdzv_backend="c10d", rdzv_host=f"{job.name}-worker-0", rdzv_port=PORT, rdzv_id=job.name,
            # By default a pod gives up after 60 s without the first one, and after 600 s with too few.
            rdzv_conf=[training.KubeflowOrgV1RDZVConf(key=key, value=wait) for key in ("read_timeout", "join_timeout")],
        )  # fmt: skip
    else:
        # A webhook refuses workers that number 0.
        specs = {"Master": replicas(1)} | ({"Worker": replicas(nodes - 1)} if nodes > 1 else {})
        elastic_policy = None

    spec = training.KubeflowOrgV1PyTorchJobSpec(
        elastic_policy=elastic_policy,
        nproc_per_node=str(job.processes_per_node),
        pytorch_replica_specs=specs,
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
            annotations={FINGERPRINT: _fingerprint(spec)},
            owner_references=[owner] if owner else None,
        ),
        spec=spec,
    )


def _pod_template(job: TrainJob, config: ClusterConfig) -> "V1PodTemplateSpec":
    """Builds the pod of one node, fit for a namespace with the restricted pod security standard."""
    from kubernetes import client

    environment = {
        "HOME": "/tmp",  # the only place that can be written but for the volume; caches go there
        "OMP_NUM_THREADS": str(max(1, int(_cores(config.cpu)) // job.processes_per_node)),
        **FRESH_STORE,
        **config.env,
    }
    command = ["python", "-m", "torch.distributed.run", f"--nproc-per-node={job.processes_per_node}"]
    if not config.elastic:
        command.append(f"--rdzv-conf=timeout={config.rendezvous_seconds}")
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpus_per_node:
        resources[config.gpu_resource] = str(config.gpus_per_node)

    container = client.V1Container(
        name=CONTAINER,
        image=config.image,
        image_pull_policy="IfNotPresent",
        command=[*command, "-m", TRAINER],
        args=list(job.arguments),
        env=[client.V1EnvVar(name=name, value=value) for name, value in environment.items()],
        ports=[client.V1ContainerPort(name="pytorchjob-port", container_port=PORT)],
        resources=client.V1ResourceRequirements(requests=resources, limits=resources),
        # The end of the log becomes part of the pod's status, which outlives a restart.
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
            # Without this every start walks over all files of the volume.
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        service_account_name=config.service_account or None,
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=GRACE_SECONDS,
        node_selector=dict(config.node_selector) or None,
        tolerations=[
            client.V1Toleration(
                key=toleration.get("key"),
                operator=toleration.get("operator"),
                value=toleration.get("value"),
                effect=toleration.get("effect"),
                toleration_seconds=toleration.get("tolerationSeconds"),
            )
            for toleration in config.tolerations
        ]
        or None,
    )
    metadata = client.V1ObjectMeta(
        labels=LABELS,
        # A service mesh's proxy would stand between the processes, and would keep the pod running after they ended.
        annotations={"sidecar.istio.io/inject": "false"},
    )
    return client.V1PodTemplateSpec(metadata=metadata, spec=spec)


def _cores(quantity: str) -> float:
    """Returns the cores that a Kubernetes quantity stands for: "500m" is 0.5."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def to_manifest(model: Any) -> Any:
    """Returns a model of the SDK as what the API takes: dictionaries, lists, strings and numbers."""
    from kubernetes import client

    return client.ApiClient().sanitize_for_serialization(model)


def _fingerprint(spec: Any) -> str:
    return hashlib.sha256(json.dumps(to_manifest(spec), sort_keys=True).encode()).hexdigest()[:16]


def verdict(job: Mapping[str, Any]) -> Literal["Succeeded", "Failed"] | None:
    """Returns how a job, as the API gives it, ended; None while it has not."""
    if _condition(job, "Failed") is not None:
        return "Failed"
    return "Succeeded" if _condition(job, "Succeeded") is not None else None


def _condition(job: Mapping[str, Any], state: str) -> Mapping[str, Any] | None:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] == state and condition["status"] == "True":
            return dict(condition)
    return None


def on_conflict(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> Literal["adopt", "replace", "wait"]:
    """Decides what becomes of a job that has the name of the one to submit.

    It is adopted while it runs and when it succeeded: an earlier attempt of the same step submitted it. One that
    failed is replaced, and training goes on from its last checkpoint. One that is being deleted is waited for.

    Raises:
        LaunchError: the job is not ours, or does something else.
    """
    name, namespace = existing["metadata"]["name"], existing["metadata"]["namespace"]
    remedy = f"delete it: kubectl -n {namespace} delete pytorchjob {name}"
    labels, annotations = (existing["metadata"].get(part) or {} for part in ("labels", "annotations"))
    if any(labels.get(key) != value for key, value in LABELS.items()):
        raise LaunchError(f"the name {name} must be free or our own, got a PyTorchJob of someone else; {remedy}")
    if "deletionTimestamp" in existing["metadata"]:
        return "wait"
    if verdict(existing) == "Failed":
        return "replace"
    if annotations.get(FINGERPRINT) != wanted["metadata"]["annotations"][FINGERPRINT]:
        raise LaunchError(f"PyTorchJob {name} must have the settings of this run, got others; {remedy}")
    return "adopt"


def node_rank(labels: Mapping[str, str], has_master: bool) -> int:
    """Returns the number of a pod in its job, from the operator's labels. The master comes first."""
    if labels["training.kubeflow.org/replica-type"] == "master":
        return 0
    return int(labels["training.kubeflow.org/replica-index"]) + has_master


def waiting_reason(pod: Mapping[str, Any]) -> str:
    """Returns why a pod, as the API gives it, does not run: no machine, no image, too many restarts; "" if it does."""
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    return ""


def first_failure(pods: Iterable[Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the name of the pod whose training container failed first, and how, or None.

    A container that was started again keeps how it ended before in `lastState`.
    """
    failures = [
        (str(ended.get("finishedAt")), pod["metadata"]["name"], ended)
        for pod in pods
        for container in pod.get("status", {}).get("containerStatuses") or ()
        if container["name"] == CONTAINER
        for state in ("state", "lastState")
        if (ended := (container.get(state) or {}).get("terminated")) and ended["exitCode"] != 0
    ]
    return min(failures, key=lambda failure: failure[:2])[1:] if failures else None


def failure_message(
    job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], last_lines: Mapping[str, Sequence[str]]
) -> str:
    """Says why a job failed: the job's own condition, then the last lines of the pod that failed first.

    Args:
        job: as the API gives it.
        pods: the last that was seen of each. The operator deletes those of a job that was tried too often.
        last_lines: the end of the log of every pod, under its name.
    """
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    condition = _condition(job, "Failed") or {}
    reason = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    message = f"PyTorchJob {namespace}/{name} failed: {reason or 'it does not say why'}"
    failure = first_failure(pods)
    if failure is None:
        stuck = sorted({waiting_reason(pod) for pod in pods} - {""})
        return "; ".join((message, *stuck))
    pod, ended = failure
    lines = last_lines.get(pod) or str(ended.get("message", "")).splitlines()
    why = f"status {ended['exitCode']}" + (f", {ended['reason']}" if ended.get("reason") not in (None, "Error") else "")
    return "\n  ".join((f"{message}; {pod} ended with {why}:", *lines))


def is_transient(error: Exception) -> bool:
    """Tells whether a call to the API may succeed when made again: no answer, overload, an error of the server.

    The operator's webhook is one of them: until it is up, every PyTorchJob is refused with status 500.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return not error.status or error.status in (408, 429) or error.status >= 500
    return isinstance(error, HTTPError | OSError)


def split_timestamp(line: str) -> tuple[str, str]:
    """Splits a line of a log into its time, written so that later times sort behind, and its text.

    The kubelet leaves out zeros at the end of the fraction of a second.
    """
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|[+-]\d\d:\d\d) ?", line)
    if match is None:
        return "", line
    seconds, fraction = match.groups()
    return f"{seconds}.{(fraction or '').ljust(9, '0')}", line[match.end() :]


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Splits a stream into lines, wherever it was cut, and gives each as soon as it is whole."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


Result = TypeVar("Result")


def _retry(call: Callable[[], Result], patience: float = PATIENCE_SECONDS) -> Result:
    """Makes a call until it succeeds, fails for good, or has failed for as long as `patience`, in seconds."""
    start = time.monotonic()
    for attempt in itertools.count():
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - start > patience:
                raise
            delay = min(2**attempt, 30)
            _say(f"the Kubernetes API does not answer as it should, trying again in {delay} s: {_reason(error)}")
            time.sleep(delay)
    raise AssertionError


def _reason(error: Exception) -> str:
    """Returns what an error of the API says, without its headers."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", None) or error)


def explain(error: Exception, namespace: str) -> LaunchError:
    """Returns an error of the API as one that names the remedy."""
    remedy = {
        401: "; the step needs a service account with a valid token",
        403: f"; the step's service account must be allowed to create, get, patch and delete pytorchjobs, and to list "
        f"pods and get pods/log, in namespace {namespace}",
        404: f"; the training operator must be installed, and namespace {namespace} exist",
    }.get(getattr(error, "status", 0), "")
    return LaunchError(f"the Kubernetes API must accept the PyTorchJob, got: {_reason(error)}{remedy}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class PyTorchJobLauncher:
    """Trains on the cluster: submits a PyTorchJob and waits for its end, however long it takes."""

    def __init__(self, config: ClusterConfig) -> None:
        from kubernetes import client
        from kubernetes import config as kubernetes_config

        self.config = config
        self.namespace = config.namespace or own_namespace()
        if NAMESPACE_FILE.exists():
            kubernetes_config.load_incluster_config()
        else:
            kubernetes_config.load_kube_config()
        self.jobs = client.CustomObjectsApi()
        self.core = client.CoreV1Api()

    def run(self, job: TrainJob, manifest_path: Path | None = None) -> None:
        """Submits the job, or adopts its own from an earlier attempt, and follows it; see `Launcher.run`.

        The logs of all pods appear with the number of the node in front. Told to stop, it deletes the job, and the
        pods write a checkpoint.
        """
        from kubernetes.client import ApiException

        manifest = to_manifest(build_job(job, self.config, step_owner(self.namespace)))
        if manifest_path is not None:
            save_manifest(manifest, manifest_path)
        with _exit_on_sigterm():
            try:
                uid = self._submit(manifest)
                try:
                    self._follow(job.name, uid)
                except (KeyboardInterrupt, SystemExit):
                    _say(f"told to stop; deleting PyTorchJob {self.namespace}/{job.name}")
                    _retry(lambda: self._delete(job.name), patience=10)
                    raise
                if self.config.delete_when_done:
                    _retry(lambda: self._delete(job.name))
            except Exception as error:
                if isinstance(error, ApiException) or is_transient(error):
                    raise explain(error, self.namespace) from error
                raise

    def _submit(self, manifest: Mapping[str, Any]) -> str:
        """Makes the job, or finds the one that an earlier attempt made, and returns its uid."""
        from kubernetes.client import ApiException

        name = manifest["metadata"]["name"]
        while True:
            try:
                made = _retry(lambda: self.jobs.create_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, manifest, _request_timeout=60))  # fmt: skip
                _say(f"submitted PyTorchJob {self.namespace}/{name}")
                return str(made["metadata"]["uid"])
            except ApiException as error:
                if error.status != 409:
                    raise
            existing = self._get(name)
            if existing is None:
                continue  # deleted in between
            what = on_conflict(existing, manifest)
            if what == "adopt":
                _say(f"adopted PyTorchJob {self.namespace}/{name} of an earlier attempt")
                self._own(name, manifest["metadata"].get("ownerReferences", []))
                return str(existing["metadata"]["uid"])
            if what == "replace":
                _say(f"replacing PyTorchJob {self.namespace}/{name} of an earlier attempt, which failed")
                _retry(lambda: self._delete(name))
            time.sleep(POLL_SECONDS)

    def _own(self, name: str, owners: Sequence[Mapping[str, Any]]) -> None:
        """Hands an adopted job to this step's pod; with the pod of the earlier attempt it would be deleted."""
        patch = {"metadata": {"ownerReferences": owners}}
        _retry(lambda: self.jobs.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, name, patch, _request_timeout=60))  # fmt: skip

    def _follow(self, name: str, uid: str) -> None:
        """Waits for the job's end, showing the logs of its pods.

        Raises:
            LaunchError: the job failed, or was deleted.
        """
        followers: dict[str, _LogFollower] = {}
        pods: dict[str, Mapping[str, Any]] = {}
        said: dict[str, str] = {}
        while True:
            # The job before the pods: those of a job that has ended are then all seen.
            job = self._get(name)
            if job is None or job["metadata"]["uid"] != uid:
                raise LaunchError(f"PyTorchJob {self.namespace}/{name} must stay until it ends, got deleted")
            for pod in self._pods(name):
                pod_uid, pod_name = pod["metadata"]["uid"], pod["metadata"]["name"]
                pods[pod_uid] = pod
                node = node_rank(pod["metadata"]["labels"], has_master=not self.config.elastic)
                if pod_uid not in followers:
                    followers[pod_uid] = _LogFollower(self.core, self.namespace, pod_name, pod_uid, node)
                    followers[pod_uid].start()
                reason = waiting_reason(pod)
                if reason and said.get(pod_uid) != reason:
                    _say(f"[{node}] waits: {reason}")
                said[pod_uid] = reason
            ended = verdict(job)
            if ended:
                break
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + 30
        for follower in followers.values():
            follower.join(max(0, deadline - time.monotonic()))
        if ended == "Failed":
            last_lines = {follower.pod: list(follower.last_lines) for follower in followers.values()}
            raise LaunchError(failure_message(job, list(pods.values()), last_lines))

    def _get(self, name: str) -> Any:
        """Returns the job as the API gives it, or None where there is none."""
        from kubernetes.client import ApiException

        try:
            return _retry(lambda: self.jobs.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=60))  # fmt: skip
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _pods(self, name: str) -> list[Any]:
        listed = _retry(lambda: self.core.list_namespaced_pod(
            self.namespace, label_selector=f"{JOB_NAME_LABEL}={name}", _request_timeout=60))  # fmt: skip
        return list(to_manifest(listed)["items"])

    def _delete(self, name: str) -> None:
        """Deletes the job, which stays visible until its pods are gone; does nothing where there is none."""
        from kubernetes.client import ApiException

        try:
            self.jobs.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, propagation_policy="Foreground", _request_timeout=60
            )
        except ApiException as error:
            if error.status != 404:
                raise


class _LogFollower(threading.Thread):
    """Prints the log of one pod line by line until the pod has ended, through restarts and cut connections."""

    def __init__(self, core: Any, namespace: str, pod: str, uid: str, node: int) -> None:
        super().__init__(name=f"log of {pod}", daemon=True)
        self.core, self.namespace, self.pod, self.uid, self.node = core, namespace, pod, uid, node
        self.last_lines: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)
        self.last_time = ""
        self.read_at = 0.0

    def run(self) -> None:
        while True:
            read_to_end = self._read()
            if self._ended() and read_to_end:
                return
            time.sleep(2)

    def _read(self) -> bool:
        """Prints what is new, waiting for more until the container ends; returns whether it read to the end."""
        from kubernetes.client import ApiException

        # The API can skip what is old by whole seconds only; the rest is skipped by the times of the lines.
        since = {"since_seconds": int(time.monotonic() - self.read_at) + 5} if self.last_time else {}
        try:
            response = self.core.read_namespaced_pod_log(
                self.pod, self.namespace, container=CONTAINER, follow=True, timestamps=True, _preload_content=False,
                _request_timeout=(30, 300), **since,
            )  # fmt: skip
            # A log that is silent for 300 s may be a connection that died unnoticed: it is opened again.
            with contextlib.closing(response):
                for line in split_lines(response.stream(amt=None, decode_content=False)):
                    self._print(line)
        except ApiException as error:
            return not is_transient(error)  # has no log yet, or none any more
        except Exception as error:
            if not is_transient(error):
                raise
            return False
        return True

    def _print(self, line: str) -> None:
        when, text = split_timestamp(line)
        self.read_at = time.monotonic()
        if when and when <= self.last_time:
            return
        self.last_time = when or self.last_time
        self.last_lines.append(text)
        # One write for a line: the threads of other pods write too.
        sys.stdout.write(f"[{self.node}] {text}\n")
        sys.stdout.flush()

    def _ended(self) -> bool:
        from kubernetes.client import ApiException

        try:
            pod = _retry(lambda: self.core.read_namespaced_pod(self.pod, self.namespace, _request_timeout=60))
        except ApiException as error:
            if error.status == 404:
                return True
            raise
        return pod.metadata.uid != self.uid or pod.status.phase in ("Succeeded", "Failed")


def save_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Writes a manifest as YAML, such that `kubectl apply` takes it."""
    import yaml

    with atomic_write(path, "w") as file:
        yaml.safe_dump(manifest, file, sort_keys=False)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit in the block. Python allows this in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
