"""What Kubernetes reports about the pods of a run: what they wait for, how they ended, what they log.

Any of it may be refused or missing: then less is shown, and the reason is kept in `Pods.problem`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from kws.kube.client import EVENTS, PODS, WORKFLOWS, Api, Resource
from kws.kube.errors import KubeError, NotFound, Unreachable
from kws.kube.log_lines import LineSorter
from kws.kube.pod_logs import PodLog
from kws.kube.pods import age, by_time, has_ended, pod_ending, waiting_reason, words
from kws.launch.kinds.pod import LABELS
from pipeline.cluster.argo_steps import Step, node_id, pod_node, step_of_node
from pipeline.cluster.connect import Cluster

TRAINING_PODS = ",".join(f"{name}={value}" for name, value in LABELS.items())
_IMAGE = "make images builds it; nodes must be able to pull it (REGISTRY=) or have it (python -m pipeline kind-load)"
LASTING = {
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "ErrImageNeverPull": _IMAGE,
    "InvalidImageName": "give REGISTRY= or KWS_RUNTIME_IMAGE= the name of an image",
    "CreateContainerConfigError": "create or correct what the message names, in the namespace of the run",
    "CreateContainerError": "correct what the message names",
}
"""Reasons to wait that do not resolve by themselves, with the remedy."""

QUIET_SECONDS = 10.0
"""How long a pod may take to start before its events are looked at."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What a pod waits for."""

    step: str
    pod: str
    """The pod, or the job that has none yet."""
    reason: str
    """In Kubernetes' words: the reason, then the message."""
    training: bool = False
    """Whether it is a pod of the training job and not of the step."""

    @property
    def remedy(self) -> str:
        """What to do about a wait that does not resolve by itself; empty for others."""
        return LASTING.get(self.reason.partition(":")[0], "")

    def __str__(self) -> str:
        return f"{f'{self.pod} ' if self.training else ''}waits: {self.reason}"


class Pods:
    """The pods of a run and of its training job, as they were when they were last looked at."""

    def __init__(self, cluster: Cluster, run_id: str) -> None:
        self.cluster, self.run_id = cluster, run_id
        self.of_steps: list[dict[str, Any]] = []
        self.of_training: list[dict[str, Any]] = []
        self.problem = ""
        """Why nothing could be read, in the API's words."""

    def look(self) -> None:
        """Asks for the pods as they are now."""
        self.of_steps = self._list(PODS, labelSelector=f"pipeline/runid={self.run_id}")
        # The names of job and pods hold the time and the beginning of the run's id.
        self.of_training = [pod for pod in self._list(PODS, labelSelector=TRAINING_PODS) if self._ours(pod["metadata"])]

    def _ours(self, metadata: Mapping[str, Any]) -> bool:
        return self.run_id[:13] in str(metadata.get("name"))

    def waits(self, steps: Iterable[Step]) -> list[Wait]:
        """Returns what the pods of running steps wait for, and why a step or job has no pod."""
        found = []
        running = [step.name for step in steps if step.state == "RUNNING"]
        messages: dict[str, str] | None = None
        for step in running or [step.name for step in steps if step.state == "PENDING"][:1]:
            pods = [pod for pod in self.of_steps if step_of_node(pod_node(pod)[1], [step]) and not has_ended(pod)]
            found += self._waits_of(pods, step)
            if not pods and step in running:
                messages = self.messages() if messages is None else messages
                said = [text for name, text in messages.items() if step_of_node(name, [step]) and "forbidden" in text]
                found += [Wait(step=step, pod=step, reason=message) for message in said[-1:]]
            if step == "train" and pods:
                found += self._waits_of([pod for pod in self.of_training if not has_ended(pod)], step, training=True)
                if not self.of_training:
                    events = [event for event in self._warnings() if self._ours(event["involvedObject"])]
                    found += [
                        Wait(step=step, pod=event["involvedObject"]["name"], reason=words(event), training=True)
                        for event in events[-1:]
                    ]
        return found

    def _waits_of(self, pods: Iterable[Mapping[str, Any]], step: str, training: bool = False) -> list[Wait]:
        waits = [
            Wait(step=step, pod=pod["metadata"]["name"], reason=self._reason(pod), training=training) for pod in pods
        ]
        return [wait for wait in waits if wait.reason]

    def _reason(self, pod: Mapping[str, Any]) -> str:
        reason = waiting_reason(pod)
        if reason.partition(":")[0] not in ("PodInitializing", "ContainerCreating"):
            return reason
        # Only events tell that a volume cannot be mounted. A container that has been starting for a few seconds, or
        # whose init containers are running, is not waiting for anything.
        # A negative age means that the clocks of this machine and of the cluster differ.
        if 0 <= age(pod) < QUIET_SECONDS or any(
            "running" in each.get("state", {}) for each in pod["status"].get("initContainerStatuses") or ()
        ):
            return ""
        warnings = [event for event in self._warnings() if event["involvedObject"].get("uid") == pod["metadata"]["uid"]]
        return words(warnings[-1]) if warnings else "" if reason == "PodInitializing" else reason

    def _warnings(self) -> list[Mapping[str, Any]]:
        return by_time(self._list(EVENTS, fieldSelector="type=Warning", limit=500))

    def messages(self) -> dict[str, str]:
        """Returns Argo's messages about the nodes of the run, by node name; an empty string where there is none."""
        listed = self._list(WORKFLOWS, labelSelector=f"pipeline/runid={self.run_id}")
        nodes = [node for each in listed for node in each.get("status", {}).get("nodes", {}).values()]
        return {node["name"]: node.get("message", "") for node in nodes}

    def endings(self, step: Step) -> list[str]:
        """Returns for each attempt of a step why it failed, in the words of Kubernetes or Argo; empty if unknown."""
        ended = {pod_node(pod)[0]: pod_ending(pod, "main") for pod in self.of_steps}
        said = {}
        if any(ended.get(node) is None for node in step.attempts):
            said = {node_id(name): message for name, message in self.messages().items()}
        # An hour after a run has ended its pods are deleted: then a missing pod tells nothing.
        gone = "its pod vanished" if self.of_steps else ""
        return [ended.get(node) or said.get(node) or ("" if node in ended else gone) for node in step.attempts]

    def succeeded(self, step: str) -> bool:
        """Tells whether there is a pod of a step, not of its driver, that succeeded."""
        return any(
            step_of_node(name, [step]) and "-driver" not in name and pod["status"].get("phase") == "Succeeded"
            for pod in self.of_steps
            for _, name in [pod_node(pod)]
        )

    def pod_of(self, node: str) -> tuple[str, str]:
        """Returns name and uid of the latest pod of a node, which has another after a retry; empty if there is none."""
        found = [pod["metadata"] for pod in self.of_steps if pod_node(pod)[0] == node]
        latest: Mapping[str, Any] = max(found, key=lambda about: str(about.get("creationTimestamp")), default={})
        return latest.get("name", ""), latest.get("uid", "")

    def log(self, pod: str) -> list[str]:
        """Returns the log of a step's pod; nothing before its container started."""
        return self.ask(lambda api: list(PodLog(api, self.cluster.namespace, pod, "main").read())) or []

    def _list(self, resource: Resource, **selectors: Any) -> list[dict[str, Any]]:
        return self.ask(lambda api: api.list(resource, self.cluster.namespace, **selectors)) or []

    def ask(self, call: Callable[[Api], Result]) -> Result | None:
        """Makes a call; None without a kubeconfig, or without a usable answer."""
        if self.cluster.api is None:
            return None
        try:
            return call(self.cluster.api)
        except (NotFound, Unreachable):
            return None  # asked again in a few seconds
        except KubeError as error:
            if error.status != 400:  # the container of a log has not started
                self.problem = str(error)
            return None


class Tail:
    """Reads the new lines of a step's log at each call; only those of the step itself."""

    def __init__(self, pods: Pods, pod: str, uid: str = "") -> None:
        self.pods, self.pod, self.uid = pods, pod, uid
        self.sorter = LineSorter()
        self.log: PodLog | None = None

    def __call__(self) -> list[str]:
        """Returns the lines that came since the last call; none before the container started."""
        found: list[str] = []

        def read(api: Api) -> None:
            self.log = self.log or PodLog(api, self.pods.cluster.namespace, self.pod, "main")
            found.extend(self.sorter.own(self.log.read()))

        self.pods.ask(read)
        return found
