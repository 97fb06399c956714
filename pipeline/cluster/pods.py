"""What Kubernetes reports about the pods of a run: what they wait for, how they ended, what they log.

Any of it may be refused or missing: then less is shown, and the reason is kept in `Pods.problem`.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from kws.launch.job_status import waiting_reason
from kws.launch.logs import text_of
from pipeline.cluster.connection import Cluster, said_by
from pipeline.cluster.steps import Step, node_id, pod_node, step_of_node
from pipeline.logs import OwnLines

TRAINING_PODS = "app.kubernetes.io/name=kws,app.kubernetes.io/component=trainer"
_NO_IMAGE = "make images builds it; nodes must be able to pull it (REGISTRY=) or have it (python -m pipeline kind-load)"
LASTING = {
    "ErrImagePull": _NO_IMAGE,
    "ImagePullBackOff": _NO_IMAGE,
    "ErrImageNeverPull": "make images builds it; the nodes must have it (python -m pipeline kind-load)",
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
        self.of_steps: list[Mapping[str, Any]] = []
        self.of_training: list[Mapping[str, Any]] = []
        self.problem = ""
        """Why nothing could be read, in the API's words."""

    def look(self) -> None:
        """Asks for the pods as they are now."""
        self.of_steps = self._list("list_namespaced_pod", label_selector=f"pipeline/runid={self.run_id}")
        # The names of job and pods hold the time and the beginning of the run's id.
        training = self._list("list_namespaced_pod", label_selector=TRAINING_PODS)
        self.of_training = [pod for pod in training if self._ours(pod["metadata"])]

    def _ours(self, metadata: Mapping[str, Any]) -> bool:
        return self.run_id[:13] in str(metadata.get("name"))

    def waits(self, steps: Iterable[Step]) -> list[Wait]:
        """Returns what the pods of running steps wait for, and why a step or job has no pod."""
        found = []
        running = [step.name for step in steps if step.state == "RUNNING"]
        workflow: dict[str, str] | None = None
        for step in running or [step.name for step in steps if step.state == "PENDING"][:1]:
            pods = [pod for pod in self.of_steps if step_of_node(pod_node(pod)[1], [step]) and _unfinished(pod)]
            found += [
                Wait(step=step, pod=pod["metadata"]["name"], reason=reason)
                for pod in pods
                if (reason := self._reason(pod))
            ]
            if not pods and step in running:
                workflow = self.messages() if workflow is None else workflow
                found += [
                    Wait(step=step, pod=step, reason=message)
                    for name, message in workflow.items()
                    if message and step_of_node(name, [step]) and "forbidden" in message
                ][-1:]
            if step == "train" and pods:
                found += [
                    Wait(step=step, pod=pod["metadata"]["name"], reason=reason, training=True)
                    for pod in filter(_unfinished, self.of_training)
                    if (reason := self._reason(pod))
                ]
                if not self.of_training:
                    found += [
                        Wait(step=step, pod=event["involvedObject"]["name"], reason=_event(event), training=True)
                        for event in self._warnings()
                        if self._ours(event["involvedObject"])
                    ][-1:]
        return found

    def _reason(self, pod: Mapping[str, Any]) -> str:
        reason = waiting_reason(pod)
        if reason.partition(":")[0] not in ("PodInitializing", "ContainerCreating"):
            return reason
        # Only events tell that a volume cannot be mounted. A container that has been starting for a few seconds, or
        # whose init containers are running, is not waiting for anything.
        # A negative age means that the clocks of this machine and of the cluster differ.
        if 0 <= _age(pod) < QUIET_SECONDS or any(
            "running" in each.get("state", {}) for each in pod["status"].get("initContainerStatuses") or ()
        ):
            return ""
        warnings = [event for event in self._warnings() if event["involvedObject"].get("uid") == pod["metadata"]["uid"]]
        return _event(warnings[-1]) if warnings else "" if reason == "PodInitializing" else reason

    def _warnings(self) -> list[Any]:
        listed = self._list("list_namespaced_event", field_selector="type=Warning", limit=500)
        return sorted(listed, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")))

    def messages(self) -> dict[str, str]:
        """Returns Argo's messages about the nodes of the run, by node name; an empty string where there is none."""

        def ask() -> Any:
            from kubernetes import client

            return client.CustomObjectsApi(self.cluster.core.api_client).list_namespaced_custom_object(
                "argoproj.io",
                "v1alpha1",
                self.cluster.namespace,
                "workflows",
                label_selector=f"pipeline/runid={self.run_id}",
                _request_timeout=20,
            )

        listed = self._ask(ask)
        nodes = [node for each in (listed or {}).get("items", ()) for node in each["status"].get("nodes", {}).values()]
        return {node["name"]: node.get("message", "") for node in nodes}

    def endings(self, step: Step) -> list[str]:
        """Returns for each attempt of a step why it failed, in the words of Kubernetes or Argo; empty if unknown."""
        pods = {pod_node(pod)[0]: pod for pod in self.of_steps}
        said = {}
        if any(_ending(pods.get(node)) is None for node in step.attempts):
            said = {node_id(name): message for name, message in self.messages().items()}
        # An hour after a run has ended its pods are deleted: then a missing pod tells nothing.
        gone = "its pod vanished" if self.of_steps else ""
        return [_ending(pods.get(node)) or said.get(node) or ("" if node in pods else gone) for node in step.attempts]

    def pod_of(self, node: str) -> tuple[str, str]:
        """Returns name and uid of the latest pod of a node, which has another after a retry; empty if there is none."""
        found = [pod["metadata"] for pod in self.of_steps if pod_node(pod)[0] == node]
        latest: Mapping[str, Any] = max(found, key=lambda about: str(about.get("creationTimestamp")), default={})
        return latest.get("name", ""), latest.get("uid", "")

    def log(self, pod: str, **limits: int) -> list[str]:
        """Returns the log of a step's pod, with a time in front of every line; nothing before its container started."""

        def ask() -> Any:
            answer = self.cluster.core.read_namespaced_pod_log(
                pod,
                self.cluster.namespace,
                container="main",
                timestamps=True,
                _preload_content=False,
                _request_timeout=20,
                **limits,
            )
            return answer.data.decode(errors="replace").splitlines()

        return self._ask(ask, but=(400, 404)) or []

    def _list(self, call: str, **selectors: Any) -> list[Any]:
        def ask() -> Any:
            method = getattr(self.cluster.core, call)
            return json.loads(
                method(self.cluster.namespace, _preload_content=False, _request_timeout=20, **selectors).data
            )["items"]

        return self._ask(ask) or []

    def _ask(self, call: Callable[[], Result], but: Sequence[int] = (404,)) -> Result | None:
        """Makes a call; None without a kubeconfig, or without a usable answer."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        if self.cluster.core is None:
            return None
        try:
            return call()
        except ApiException as error:
            if error.status not in but:
                self.problem = said_by(error)
        except (HTTPError, OSError, ValueError):
            pass  # asked again in a few seconds
        return None


class Tail:
    """Reads the new lines of a pod's log at each call; only those of the step itself."""

    def __init__(self, pods: Pods, pod: str, uid: str = "") -> None:
        self.pods, self.pod, self.uid = pods, pod, uid
        self.own = OwnLines()
        self.last = ""
        self.asked: float | None = None

    def __call__(self) -> list[str]:
        """Returns the lines that came since the last call."""
        now = time.monotonic()
        limits = {} if self.asked is None else {"since_seconds": math.ceil(now - self.asked) + 5}
        if lines := self.pods.log(self.pod, **limits):
            self.asked = now
        if self.last in lines:  # times tell less, as the clock of the node may go back
            lines = lines[len(lines) - lines[::-1].index(self.last) :]
        self.last = lines[-1] if lines else self.last
        return list(self.own(map(text_of, lines)))


def _unfinished(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def _age(pod: Mapping[str, Any]) -> float:
    made = datetime.fromisoformat(pod["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    return (datetime.now(UTC) - made).total_seconds()


def _event(event: Mapping[str, Any]) -> str:
    return f"{event.get('reason')}: {event.get('message')}"


def _ending(pod: Mapping[str, Any] | None) -> str | None:
    """Returns why a pod failed, empty if it did not; None if the pod does not tell."""
    if pod is None:
        return None
    status = pod.get("status", {})
    if status.get("reason"):  # evicted, or its node went away
        return ": ".join(filter(None, (status["reason"], status.get("message"))))
    ended = [
        (each["name"], each["state"]["terminated"])
        for each in status.get("containerStatuses") or ()
        if "terminated" in each.get("state", {})
    ]
    for name, how in ended:
        if name == "main" and how["exitCode"]:
            reason = how.get("reason") or "Error"
            return f"{reason} (status {how['exitCode']})" if reason != "Error" else f"status {how['exitCode']}"
    return "" if status.get("phase") in ("Succeeded", "Running", "Pending") else None
