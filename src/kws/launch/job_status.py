"""Interprets the state of a training job: how it ended, whether it may be mended, whether it is ours. Pure functions.

Jobs and pods are dictionaries, as the Kubernetes API returns them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from kws.kube.errors import KubeError, NotFound
from kws.kube.pods import Pod, by_time, ending, event_time, failures, waiting_reason, words
from kws.launch.job import HOPELESS_STATUS, ORPHANED_STATUS, LaunchError
from kws.launch.kinds.job_kind import JobKind
from kws.launch.kinds.pod import FINGERPRINT, LABELS

OUT_OF_MEMORY = "OOMKilled"
MORE_MEMORY = "it ran out of memory: MEMORY= of make pipeline gives the training pods more, a retry does not"

Job = Mapping[str, Any]


def verdict(job: Job) -> Literal["Succeeded", "Failed"] | None:
    """Returns how a job ended, or None if it has not ended."""
    if _condition(job, "Failed"):
        return "Failed"
    return "Succeeded" if _condition(job, "Succeeded", "Complete") else None


def _condition(job: Job, *states: str) -> Mapping[str, Any]:
    conditions = job.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] in states and each["status"] == "True"), {})


def on_conflict(existing: Job, wanted: Job) -> Literal["adopt", "replace", "wait"]:
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


def last_complaint(events: Iterable[Mapping[str, Any]], job: Job) -> str:
    """Returns the latest of some events that is not older than the job, as "reason: message"; "" if there is none.

    Events outlive their object by an hour, and a job that is submitted again has the name of the one before it.
    """
    made = str(job["metadata"].get("creationTimestamp") or "")
    # Some times have fractions of a second.
    recent = [event for event in by_time(events) if (event_time(event) or made)[:19] >= made[:19]]
    return words(recent[-1]) if recent else ""


def is_refused_for_good(complaint: str) -> bool:
    """Tells whether a warning says that pods will be refused until somebody changes a setting.

    Pod security, policy webhooks and limit ranges refuse for good; a quota becomes free again.
    """
    return any(said in complaint for said in ("violates PodSecurity", "denied the request", "usage per "))


def first_failure(pods: Iterable[Pod], container: str) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the name of the pod whose container failed first, and how it failed; None if none failed."""
    failed = [(pod["metadata"]["name"], failure) for pod in pods for failure in failures(pod, container)]
    return min(failed, key=lambda each: (str(each[1].get("finishedAt")), each[0]), default=None)


def is_hopeless(pods: Iterable[Pod], container: str) -> bool:
    """Tells whether a pod ended with an error that would recur after a restart, as a want of memory would."""
    return any(
        ended["exitCode"] == HOPELESS_STATUS or ended.get("reason") == OUT_OF_MEMORY
        for pod in pods
        for ended in failures(pod, container)
    )


def may_mend(job: Job, pods: Sequence[Pod], container: str) -> bool:
    """Tells whether a failed job may succeed when it is submitted again.

    It will not if its deadline passed, if no pod failed, if the error would recur, or if its train step was lost.
    """
    failure = first_failure(pods, container)
    if failure is None or "deadline" in _condition(job, "Failed").get("message", ""):
        return False
    return failure[1]["exitCode"] != ORPHANED_STATUS and not is_hopeless(pods, container)


def failure_message(job: Job, pods: Sequence[Pod], last_lines: Mapping[str, Sequence[str]], container: str) -> str:
    """Says why a job failed: the job's own condition, then the last log lines of the pod that failed first.

    Pods are as last seen, as the operator deletes those of a job that was restarted too often; `last_lines` has the end
    of every pod's log, by its name.
    """
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    recurs = "starting it again would not help" if is_hopeless(pods, container) else "it gives no reason"
    message = f"{job['kind']} {namespace}/{name} failed: {words(_condition(job, 'Failed')) or recurs}"
    failure = first_failure(pods, container)
    if failure is None:
        return "; ".join((message, *sorted({waiting_reason(pod) for pod in pods} - {""})))
    pod, ended = failure
    why = ending(ended) + (f"; {MORE_MEMORY}" if ended.get("reason") == OUT_OF_MEMORY else "")
    lines = last_lines.get(pod) or str(ended.get("message", "")).splitlines()
    return "\n  ".join((f"{message}; {pod} ended with {why}:", *lines))


def explain(error: KubeError, kind: JobKind, namespace: str) -> LaunchError:
    """Converts an error of the API to a LaunchError with the API's message, and a remedy if one is known."""
    remedy = _remedy(error, kind, namespace)
    return LaunchError(f"the Kubernetes API must accept the {kind.kind}, got: {error.message}{remedy and '; '}{remedy}")


def _remedy(error: KubeError, kind: JobKind, namespace: str) -> str:
    said, status, jobs = error.message, error.status, kind.resource
    if status == 401:
        return "the step needs a service account with a valid token"
    if isinstance(error, NotFound) and "namespaces" in said:
        return f"create the namespace {namespace}, or name another one in KWS_PYTORCHJOB"
    if isinstance(error, NotFound):
        return f"install the operator of {jobs.plural}.{jobs.group}: {kind.operator}"
    if status == 403 and "exceeded quota" in said:
        return (
            f"delete what is not needed (kubectl -n {namespace} get resourcequotas,{jobs.plural}), request less "
            "in KWS_PYTORCHJOB, or have the quota raised"
        )
    if status == 403 and "status unknown for quota" in said:
        return f"wait until kubectl -n {namespace} get resourcequotas shows the usage, then try again"
    if "being terminated" in said:
        return f"the namespace {namespace} is being deleted: name another one"
    if "unknown field" in said:
        return kind.lacking
    if "denied the request" in said or status == 422:
        return "change what it names: num_nodes, processes_per_node or a field of KWS_PYTORCHJOB"
    if status == 403 and ("cannot " in said or said == "Forbidden"):
        return (
            f"the step's service account must be allowed to create, get, patch and delete {jobs.plural}, to list "
            f"pods and events and to get pods/log: python -m pipeline install --namespace {namespace}"
        )
    return ""
