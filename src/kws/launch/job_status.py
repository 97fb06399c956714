"""Interprets the state of a training job: how it ended, why its pods wait, whether it is ours. Pure functions.

Jobs and pods are dictionaries, as the Kubernetes API returns them.
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
    """A kind of training job, as far as `ClusterLauncher` needs to know it."""

    kind: str
    group: str
    version: str
    plural: str

    operator: str
    """What must be installed on the cluster, for error messages."""

    container: str
    """Name of the container that trains."""

    name_label: str
    """Pod label that holds the name of the job."""

    pods_made_by: Callable[[str], str]
    """Maps the name of a job to that of the object whose events say why there are no pods."""

    build: "Callable[[Training, ClusterConfig, V1OwnerReference | None], dict[str, Any]]"
    """Builds the manifest of a job."""

    node_rank: Callable[[Mapping[str, str]], int]
    """Maps the labels of a pod to its number in the job."""


def verdict(job: Mapping[str, Any]) -> Literal["Succeeded", "Failed"] | None:
    """Returns how a job ended, or None if it has not ended."""
    if _condition(job, "Failed") is not None:
        return "Failed"
    return "Succeeded" if _condition(job, "Succeeded", "Complete") is not None else None


def _condition(job: Mapping[str, Any], *states: str) -> Mapping[str, Any] | None:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] in states and condition["status"] == "True":
            return dict(condition)
    return None


def on_conflict(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> Literal["adopt", "replace", "wait"]:
    """Decides what to do about an existing job with the name of the one to submit.

    A job that runs or has succeeded was submitted by an earlier attempt of the same step, and is adopted. A failed job
    is replaced, and training resumes from the latest checkpoint. A job that is being deleted must be waited for.

    Raises:
        LaunchError: the job is not ours, or has other settings.
    """
    name, namespace = existing["metadata"]["name"], existing["metadata"]["namespace"]
    remedy = f"delete it: kubectl -n {namespace} delete {existing['kind'].lower()} {name}"
    labels, annotations = (existing["metadata"].get(part) or {} for part in ("labels", "annotations"))
    if any(labels.get(key) != value for key, value in LABELS.items()):
        raise LaunchError(
            f"the name {name} must be unused or that of a job of kws, got another {existing['kind']}; {remedy}"
        )
    if "deletionTimestamp" in existing["metadata"]:
        return "wait"
    if verdict(existing) == "Failed":
        return "replace"
    if annotations.get(FINGERPRINT) != wanted["metadata"]["annotations"][FINGERPRINT]:
        raise LaunchError(f"{existing['kind']} {name} must have the settings of this run, got others; {remedy}")
    return "adopt"


def waiting_reason(pod: Mapping[str, Any]) -> str:
    """Returns why a pod does not run (no node, no image, too many restarts …), or "" if it runs."""
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    return ""


def last_complaint(events: Iterable[Mapping[str, Any]], job: Mapping[str, Any]) -> str:
    """Returns the latest of some events that is not older than the job, as "reason: message"; "" if there is none.

    Events outlive their object by an hour, and a job that is submitted again has the name of the one before it.
    """
    made = str(job["metadata"].get("creationTimestamp") or "")
    dated = [(str(event.get("lastTimestamp") or event.get("eventTime") or made), event) for event in events]
    # All are UTC in ISO 8601, so that they sort as text; some have fractions of a second.
    recent = [(when, event) for when, event in dated if when[:19] >= made[:19]]
    if not recent:
        return ""
    _, latest = max(recent, key=lambda each: each[0])
    return f"{latest.get('reason')}: {latest.get('message')}"


def is_refused_for_good(complaint: str) -> bool:
    """Tells whether a warning says that pods will be refused until somebody changes a setting.

    Pod security, policy webhooks and limit ranges refuse for good; a quota becomes free again.
    """
    return any(said in complaint for said in ("violates PodSecurity", "denied the request", "usage per "))


def first_failure(pods: Iterable[Mapping[str, Any]], container: str) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the name of the pod whose container failed first, and the terminated state of that container, or None.

    The previous end of a restarted container is in its `lastState`.
    """
    failures = _failures(pods, container)
    return min(failures, key=lambda failure: failure[:2])[1:] if failures else None


def _failures(pods: Iterable[Mapping[str, Any]], container: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Returns, for each failure of a container, its time, the name of the pod, and the terminated state."""
    return [
        (str(ended.get("finishedAt")), pod["metadata"]["name"], ended)
        for pod in pods
        for status in pod.get("status", {}).get("containerStatuses") or ()
        if status["name"] == container
        for state in ("state", "lastState")
        if (ended := (status.get(state) or {}).get("terminated")) and ended["exitCode"] != 0
    ]


def is_hopeless(pods: Iterable[Mapping[str, Any]], container: str) -> bool:
    """Tells whether a pod ended with an error that would recur after a restart."""
    return any(ended["exitCode"] == HOPELESS_STATUS for _, _, ended in _failures(pods, container))


def may_mend(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], container: str) -> bool:
    """Tells whether a failed job may succeed when it is submitted again.

    It will not if its deadline passed, if no pod failed, if memory was too small, if the error would recur, or if its
    train step was lost.
    """
    failure = first_failure(pods, container)
    if failure is None or "deadline" in (_condition(job, "Failed") or {}).get("message", ""):
        return False
    ended = failure[1]
    return ended.get("reason") != "OOMKilled" and ended["exitCode"] not in (HOPELESS_STATUS, ORPHANED_STATUS)


def failure_message(
    job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], last_lines: Mapping[str, Sequence[str]], container: str
) -> str:
    """Says why a job failed: the job's own condition, then the last log lines of the pod that failed first.

    Args:
        job: the job.
        pods: each pod as last seen; the operator deletes the pods of a job that was restarted too often.
        last_lines: the end of every pod's log, by the name of the pod.
        container: name of the container that trains.
    """
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    condition = _condition(job, "Failed") or {}
    reason = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
    if not reason:
        hopeless = is_hopeless(pods, container)
        reason = "starting it again would not help" if hopeless else "it gives no reason"
    message = f"{job['kind']} {namespace}/{name} failed: {reason}"
    failure = first_failure(pods, container)
    if failure is None:
        stuck = sorted({waiting_reason(pod) for pod in pods} - {""})
        return "; ".join((message, *stuck))
    pod, ended = failure
    lines = last_lines.get(pod) or str(ended.get("message", "")).splitlines()
    why = f"status {ended['exitCode']}" + (f", {ended['reason']}" if ended.get("reason") not in (None, "Error") else "")
    if ended.get("reason") == "OOMKilled":
        why += "; it ran out of memory: raise memory in KWS_PYTORCHJOB"
    return "\n  ".join((f"{message}; {pod} ended with {why}:", *lines))
