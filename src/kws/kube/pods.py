"""Why pods wait, and how they ended. Pure functions of pods and events as the Kubernetes API gives them."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Pod = Mapping[str, Any]


def waiting_reason(pod: Pod) -> str:
    """Returns why a pod does not run (no node, no image, too many restarts …), or "" if it runs."""
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        if waiting := container.get("state", {}).get("waiting"):
            return words(waiting)
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return words(condition)
    return ""


def words(about: Mapping[str, Any]) -> str:
    """Returns reason and message of an event, a condition or a state, as "reason: message"."""
    return ": ".join(str(about[part]) for part in ("reason", "message") if about.get(part))


def has_ended(pod: Pod) -> bool:
    """Tells whether all containers of a pod have ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def made_at(pod: Pod) -> datetime:
    """Returns when a pod was created, by the clock of the cluster."""
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def age(pod: Pod) -> float:
    """Returns the seconds since a pod was created; negative if the clock of the cluster is ahead."""
    return (datetime.now(UTC) - made_at(pod)).total_seconds()


def ended_at(pod: Pod) -> datetime | None:
    """Returns when the last container of a pod ended; None where it does not tell."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    ends = [str(each.get("state", {}).get("terminated", {}).get("finishedAt") or "") for each in statuses]
    return datetime.fromisoformat(max(ends)) if any(ends) else None


def failures(pod: Pod, container: str) -> Iterator[Mapping[str, Any]]:
    """Yields each failure of a container; the one before a restart is in its `lastState`."""
    for status in pod.get("status", {}).get("containerStatuses") or ():
        for state in ("state", "lastState") if status["name"] == container else ():
            ended = (status.get(state) or {}).get("terminated")
            if ended and ended["exitCode"] != 0:
                yield ended


def ending(failure: Mapping[str, Any]) -> str:
    """Returns how a container failed: "status 1", or "OOMKilled (status 137)"."""
    reason, status = failure.get("reason"), f"status {failure['exitCode']}"
    return status if reason in (None, "", "Error") else f"{reason} ({status})"


def pod_ending(pod: Pod, container: str) -> str | None:
    """Returns why a pod failed; empty if it did not, None if it does not tell."""
    status = pod.get("status", {})
    if status.get("reason"):  # evicted, or its node went away
        return words(status)
    if failure := next(failures(pod, container), None):
        return ending(failure)
    return "" if status.get("phase") in ("Succeeded", "Running", "Pending") else None


def event_time(event: Mapping[str, Any]) -> str:
    """Returns when an event was last seen: UTC in ISO 8601, to sort as text."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def by_time(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sorts events, the latest last."""
    return sorted(events, key=event_time)
