"""Calls to the Kubernetes API, with retries while it is unavailable, and explanations of its errors."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from kws.launch.job import LaunchError
from kws.launch.job_status import JobKind

PATIENCE_SECONDS = 600.0
"""How long the Kubernetes API may be unavailable before the step gives up."""


def is_transient(error: Exception) -> bool:
    """Tells whether a failed call may succeed on a retry: no answer, overload, or an error of the server.

    This includes the operator's webhook: until it is up, every PyTorchJob is refused with status 500.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return not error.status or error.status in (408, 429) or error.status >= 500
    return isinstance(error, HTTPError | OSError)


def is_of_api(error: Exception) -> bool:
    """Tells whether a call to the API failed, by its answer or for want of one; all else is an error of ours."""
    from kubernetes.client import ApiException

    return isinstance(error, ApiException) or is_transient(error)


Result = TypeVar("Result")


def retry(call: Callable[[], Result], patience: float = PATIENCE_SECONDS) -> Result:
    """Repeats a call, with exponential back-off, until it succeeds.

    Args:
        call: the call.
        patience: seconds of transient failures after which to give up.

    Raises:
        Exception: the error of the last call, if it is not transient or `patience` is exhausted.
    """
    start = time.monotonic()
    for attempt in itertools.count():
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or time.monotonic() - start > patience:
                raise
            delay = min(2**attempt, 30)
            say(f"the Kubernetes API does not answer as it should, trying again in {delay} s: {reason(error)}")
            time.sleep(delay)
    raise AssertionError


def reason(error: Exception) -> str:
    """Returns the message of an API error, without its headers."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", None) or error)


def is_held_by_quota(error: Exception) -> bool:
    """Tells whether a quota refuses an object for now: it is used up, or Kubernetes has not computed its usage yet.

    The latter lasts up to five minutes if the quota is older than the CustomResourceDefinition of the jobs it counts.
    """
    said = reason(error)
    return getattr(error, "status", 0) == 403 and ("exceeded quota" in said or "status unknown for quota" in said)


def explain(error: Exception, kind: JobKind, namespace: str) -> LaunchError:
    """Converts an API error to a LaunchError with the API's message, and a remedy if one is known."""
    remedy = _remedy(getattr(error, "status", 0), reason(error), kind, namespace)
    return LaunchError(f"the Kubernetes API must accept the {kind.kind}, got: {reason(error)}{remedy and '; '}{remedy}")


def _remedy(status: int, said: str, kind: JobKind, namespace: str) -> str:
    if status == 401:
        return "the step needs a service account with a valid token"
    if status == 404 and "namespaces" in said:
        return f"create the namespace {namespace}, or name another one in KWS_PYTORCHJOB"
    if status == 404:
        return f"install the operator of {kind.plural}.{kind.group}: {kind.operator}"
    if status == 403 and "exceeded quota" in said:
        return (
            f"delete what is not needed (kubectl -n {namespace} get resourcequotas,{kind.plural}), request less "
            "in KWS_PYTORCHJOB, or have the quota raised"
        )
    if status == 403 and "status unknown for quota" in said:
        return f"wait until kubectl -n {namespace} get resourcequotas shows the usage, then try again"
    if "being terminated" in said:
        return f"the namespace {namespace} is being deleted: name another one"
    if "denied the request" in said or status == 422:
        return "change what it names: num_nodes, processes_per_node or a field of KWS_PYTORCHJOB"
    if status == 403 and ("cannot " in said or said == "Forbidden"):
        return (
            f"the step's service account must be allowed to create, get, patch and delete {kind.plural}, to list "
            f"pods and events and to get pods/log in namespace {namespace}: apply manifests/base"
        )
    return ""


def say(text: str) -> None:
    """Prints a line to the log of the step, if anyone still reads it.

    The launcher of Kubeflow Pipelines, which does, ends at the same signal as the step: what is to be done then must
    not fail for want of a reader.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
