"""What Kubernetes reports about the pods of a run: what they wait for, how they ended, what they log.

Any of it may be refused or missing: then less is shown, and the reason is kept in `Pods.problem`.
"""

import base64
import gzip
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kws.kube.client import EVENTS, PODS, WORKFLOWS, Api, Resource
from kws.kube.errors import KubeError, NotFound, Unreachable
from kws.kube.log_lines import LineSorter
from kws.kube.pod_logs import PodLog
from kws.kube.pods import age, by_time, ended_at, has_ended, made_at, pod_ending, waiting_reason, words
from kws.launch.kinds.pod import LABELS
from pipeline.cluster.argo_steps import LOOPED, Step, is_driver, is_root_driver, node_id, pod_node, step_of_node
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

HANGING_SECONDS = 30.0
"""How long the driver of a step, or Argo, may take until it is told; they take seconds."""

_DRIVER = "Kubeflow's driver of the step has not ended, which calls the API of Kubeflow Pipelines and its object store"
_NO_POD = "there is no pod yet; Argo's workflow controller creates them"
_NOT_REPORTED = "all steps have ended, which the persistence agent of Kubeflow Pipelines has not reported yet"
_STAMP = re.compile(r"[IWEF]\d{4} \S+ +\d+ \S+\] ?")
_REFUSED = re.compile(r'^pods "[^"]+" is forbidden')
_ARGO = re.compile(r"time=\S+ level=\w+ msg=")

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
        self.without_pods_since: float | None = None
        """Since when no pod of the run has been there that has not ended."""
        self.problem = ""
        """Why nothing could be read, in the API's words."""

    def look(self) -> None:
        """Asks for the pods as they are now."""
        self.of_steps = self._list(PODS, labelSelector=f"pipeline/runid={self.run_id}")
        # The names of job and pods hold the time and the beginning of the run's id.
        self.of_training = [pod for pod in self._list(PODS, labelSelector=TRAINING_PODS) if self._ours(pod["metadata"])]

    def _ours(self, metadata: Mapping[str, Any]) -> bool:
        return self.run_id[:13] in str(metadata.get("name"))

    def updated(self, steps: Iterable[Step]) -> list[Step]:
        """Returns the steps as their pods show them, where these are ahead of Kubeflow's API.

        The API has what its persistence agent reported last, which may be minutes ago.
        """
        return [step if step.state in ("SUCCEEDED", "SKIPPED") else self._updated(step) for step in steps]

    def located(self, steps: Iterable[Step]) -> list[Step]:
        """Returns the steps with the node of a pod of theirs where Kubeflow's API lists none, which is so for a loop.

        Of a loop that failed it is one that failed.
        """
        return [step if step.attempts else replace(step, attempts=self._node_of(step)) for step in steps]

    def _node_of(self, step: Step) -> tuple[str, ...]:
        pods = self._own_pods(step)
        failed = [pod for pod in pods if step.state == "FAILED" and pod["status"].get("phase") == "Failed"]
        return tuple(pod_node(pod)[0] for pod in (failed or pods)[-1:])

    def _own_pods(self, step: Step) -> list[dict[str, Any]]:
        """Returns the pods of a step without its drivers, the oldest first."""
        pods = sorted(self._of_step(step.name), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        return [pod for pod in pods if not is_driver(pod_node(pod)[1])]

    def _updated(self, step: Step) -> Step:
        pods = self._own_pods(step)
        if not pods or (step.state in ("FAILED", "CANCELED") and has_ended(pods[-1])):  # and no retry has begun
            return step
        looped = step.name == LOOPED
        attempts = step.attempts if looped else step.attempts + tuple(pod_node(pod)[0] for pod in pods)
        ended = pods[-1]["status"].get("phase") == "Succeeded" and not looped  # there may be shards without a pod yet
        return replace(
            step,
            state="SUCCEEDED" if ended else "RUNNING",  # one that failed may be tried again: the API has the last word
            start=step.start or made_at(pods[0]),
            end=(step.end or ended_at(pods[-1])) if ended else None,
            attempts=tuple(dict.fromkeys(attempts)),
        )

    def _of_step(self, step: str) -> list[dict[str, Any]]:
        """Returns the pods of a step, with those of its drivers."""
        return [pod for pod in self.of_steps if step_of_node(pod_node(pod)[1], [step])]

    def waits(self, steps: Iterable[Step]) -> list[Wait]:
        """Returns what the pods of running steps wait for, and why a step, job or run has no pod."""
        found = []
        steps = list(steps)
        running = [step.name for step in steps if step.state == "RUNNING"]
        messages: dict[str, str] | None = None
        if steps and all(step.state == "SUCCEEDED" for step in steps):
            found += self._hangs((), steps[-1].name, _NOT_REPORTED)
        # One that failed is tried again, perhaps with the whole run, for as long as the run goes on.
        for step in running or [step.name for step in steps if step.state in ("PENDING", "FAILED")][:1]:
            pods = [pod for pod in self._of_step(step) if not has_ended(pod)]
            if step not in running:  # what must end before any step begins
                pods += [pod for pod in self.of_steps if is_root_driver(pod_node(pod)[1]) and not has_ended(pod)]
            refused: list[Wait] = []
            if not pods:
                messages = self.messages() if messages is None else messages
                said = [text for name, text in messages.items() if step_of_node(name, [step]) and "forbidden" in text]
                refused = [Wait(step=step, pod=step, reason=message) for message in said[-1:]]
            found += self._waits_of(pods, step) or refused or self._hangs(pods, step)
            if step == "train" and pods:
                found += self._waits_of([pod for pod in self.of_training if not has_ended(pod)], step, training=True)
                if not self.of_training:
                    # Not what says how a job ended that had pods.
                    events = [event for event in self._warnings() if event["reason"].startswith("Failed")]
                    events = [event for event in events if self._ours(event["involvedObject"])]
                    found += [
                        Wait(step=step, pod=event["involvedObject"]["name"], reason=words(event), training=True)
                        for event in events[-1:]
                    ]
        return found

    def _hangs(self, pods: Sequence[Mapping[str, Any]], step: str, reason: str = _NO_POD) -> list[Wait]:
        """Returns what there is to say about a driver that runs for long, or no pod at all: both end in seconds."""
        # Without --host the pods are surely looked for in the cluster of the run.
        seen = self.cluster.api is not None and not self.problem and (self.of_steps or not self.cluster.host)
        if pods or not seen:
            self.without_pods_since = None
        elif self.without_pods_since is None:
            self.without_pods_since = time.monotonic()
        elif time.monotonic() - self.without_pods_since >= HANGING_SECONDS:
            return [Wait(step=step, pod=step, reason=reason)]
        found = []
        for pod in pods:
            if is_driver(pod_node(pod)[1]) and age(pod) >= HANGING_SECONDS:
                name = pod["metadata"]["name"]
                lines = [line for line in self.log(name) if line.strip() and not _ARGO.match(line)]
                last = _STAMP.sub("", lines[-1]).strip() if lines else ""
                found.append(Wait(step=step, pod=name, reason=f"{_DRIVER}{': ' if last else ''}{last}"))
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
        """Returns Argo's messages about the nodes of the run, by node name; an empty string where there is none.

        The name of a pod that was refused is left out, as every attempt has another, and the reason is to be told once.
        """
        listed = self._list(WORKFLOWS, labelSelector=f"pipeline/runid={self.run_id}")
        nodes = [node for each in listed for node in _nodes(each.get("status", {})).values()]
        return {node["name"]: _REFUSED.sub("the pod is forbidden", node.get("message", "")) for node in nodes}

    def endings(self, step: Step) -> list[str]:
        """Returns for each attempt of a step why it failed, in the words of Kubernetes or Argo; empty if unknown."""
        ended = {pod_node(pod)[0]: pod_ending(pod, "main") for pod in self.of_steps}
        said = {}
        if any(ended.get(node) is None for node in step.attempts):
            said = {node_id(name): message for name, message in self.messages().items()}
        # An hour after a run has ended its pods are deleted: then a missing pod tells nothing.
        gone = "its pod vanished" if self.of_steps else ""
        return [ended.get(node) or said.get(node) or ("" if node in ended else gone) for node in step.attempts]

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


def _nodes(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the nodes in the status of a workflow, which Argo compresses where there are hundreds, as of attempts."""
    packed = status.get("compressedNodes")
    return dict(json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status.get("nodes") or {})


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
