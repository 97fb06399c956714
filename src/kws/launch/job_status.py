"""What a training job says about itself: how it ended, why its pods wait, whether it is ours. Pure functions.

Jobs and pods are what the API gives: dictionaries.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kws.launch.job import HOPELESS_STATUS, ORPHANED_STATUS, LaunchError, Training
from kws.launch.pod_template import FINGERPRINT, LABELS
from kws.launch.settings import ClusterConfig

if TYPE_CHECKING:
    from kubernetes.client import V1OwnerReference


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """A kind of job that trains: what `ClusterLauncher` has to know of it."""

    kind: str
    group: str
    version: str
    plural: str

    operator: str
    """What has to be installed for it."""

    container: str
    """Name of the container that trains."""

    name_label: str
    """Label of the pods that holds the name of their job."""

    pods_made_by: Callable[[str], str]
    """Returns, for the name of a job, that of the object whose events tell why there are no pods."""

    build: "Callable[[Training, ClusterConfig, V1OwnerReference | None], dict[str, Any]]"
    """Builds the manifest, as the API takes it."""

    node_rank: Callable[[Mapping[str, str]], int]
    """Returns the number of a pod in its job, from its labels."""


def verdict(job: Mapping[str, Any]) -> Literal["Succeeded", "Failed"] | None:
    """Returns how a job, as the API gives it, ended; None while it has not."""
    if _condition(job, "Failed") is not None:
        return "Failed"
    return "Succeeded" if _condition(job, "Succeeded", "Complete") is not None else None


def _condition(job: Mapping[str, Any], *states: str) -> Mapping[str, Any] | None:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] in states and condition["status"] == "True":
            return dict(condition)
    return None


def on_conflict(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> Literal["adopt", "replace", "wait"]:
    """Decides what becomes of a job that has the name of the one to submit.

    It is adopted while it runs and when it succeeded: an earlier attempt of the same step submitted it. One that
    failed is replaced, and training resumes from its last checkpoint. One that is being deleted is waited for.

    Raises:
        LaunchError: the job is not ours, or does something else.
    """
    name, namespace = existing["metadata"]["name"], existing["metadata"]["namespace"]
    remedy = f"delete it: kubectl -n {namespace} delete {existing['kind'].lower()} {name}"
    labels, annotations = (existing["metadata"].get(part) or {} for part in ("labels", "annotations"))
    if any(labels.get(key) != value for key, value in LABELS.items()):
        raise LaunchError(
            f"the name {name} must be free or our own, got a {existing['kind']} of someone else; {remedy}"
        )
    if "deletionTimestamp" in existing["metadata"]:
        return "wait"
    if verdict(existing) == "Failed":
        return "replace"
    if annotations.get(FINGERPRINT) != wanted["metadata"]["annotations"][FINGERPRINT]:
        raise LaunchError(f"{existing['kind']} {name} must have the settings of this run, got others; {remedy}")
    return "adopt"


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


def first_failure(pods: Iterable[Mapping[str, Any]], container: str) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the name of the pod whose container of that name failed first, and how, or None.

    A container that was started again keeps how it ended before in `lastState`.
    """
    failures = _failures(pods, container)
    return min(failures, key=lambda failure: failure[:2])[1:] if failures else None


def _failures(pods: Iterable[Mapping[str, Any]], container: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Returns when each container that failed did, the name of its pod, and how."""
    return [
        (str(ended.get("finishedAt")), pod["metadata"]["name"], ended)
        for pod in pods
        for status in pod.get("status", {}).get("containerStatuses") or ()
        if status["name"] == container
        for state in ("state", "lastState")
        if (ended := (status.get(state) or {}).get("terminated")) and ended["exitCode"] != 0
    ]


def is_hopeless(pods: Iterable[Mapping[str, Any]], container: str) -> bool:
    """Tells whether a pod ended with an error that starting again cannot mend."""
    return any(ended["exitCode"] == HOPELESS_STATUS for _, _, ended in _failures(pods, container))


def may_mend(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], container: str) -> bool:
    """Tells whether a job that failed may succeed when it is submitted again.

    Not where its time was over, where no pod ever failed, and where memory was too small or nobody waited for it.
    """
    failure = first_failure(pods, container)
    if failure is None or "deadline" in (_condition(job, "Failed") or {}).get("message", ""):
        return False
    ended = failure[1]
    return ended.get("reason") != "OOMKilled" and ended["exitCode"] not in (HOPELESS_STATUS, ORPHANED_STATUS)


def failure_message(
    job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], last_lines: Mapping[str, Sequence[str]], container: str
) -> str:
    """Says why a job failed: the job's own condition, then the last lines of the pod that failed first.

    Args:
        job: as the API gives it.
        pods: the last that was seen of each. The operator deletes those of a job that was tried too often.
        last_lines: the end of the log of every pod, under its name.
        container: name of the container that trains.
    """
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    condition = _condition(job, "Failed") or {}
    reason = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    if not reason:
        hopeless = is_hopeless(pods, container)
        reason = "starting it again cannot mend this" if hopeless else "it does not say why"
    message = f"{job['kind']} {namespace}/{name} failed: {reason}"
    failure = first_failure(pods, container)
    if failure is None:
        stuck = sorted({waiting_reason(pod) for pod in pods} - {""})
        return "; ".join((message, *stuck))
    pod, ended = failure
    lines = last_lines.get(pod) or str(ended.get("message", "")).splitlines()
    why = f"status {ended['exitCode']}" + (f", {ended['reason']}" if ended.get("reason") not in (None, "Error") else "")
    if ended.get("reason") == "OOMKilled":
        why += "; its memory was too small: raise memory in KWS_PYTORCHJOB"
    return "\n  ".join((f"{message}; {pod} ended with {why}:", *lines))
