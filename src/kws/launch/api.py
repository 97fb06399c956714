"""Calls to the Kubernetes API: made again while it is away, and explained when it refuses."""

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from kws.launch.job import LaunchError
from kws.launch.jobs import JobKind

PATIENCE_SECONDS = 600.0
"""How long the Kubernetes API may be away before the step gives up."""


def is_transient(error: Exception) -> bool:
    """Tells whether a call to the API may succeed when made again: no answer, overload, an error of the server.

    The operator's webhook is one of them: until it is up, every PyTorchJob is refused with status 500.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return not error.status or error.status in (408, 429) or error.status >= 500
    return isinstance(error, HTTPError | OSError)


Result = TypeVar("Result")


def retry(call: Callable[[], Result], patience: float = PATIENCE_SECONDS) -> Result:
    """Makes a call until it succeeds, fails for good, or has failed for as long as `patience`, in seconds."""
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
    """Returns what an error of the API says, without its headers."""
    try:
        return str(json.loads(getattr(error, "body", "") or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(getattr(error, "reason", None) or error)


def explain(error: Exception, kind: JobKind, namespace: str) -> LaunchError:
    """Returns an error of the API as one that names the remedy."""
    remedy = {
        401: "; the step needs a service account with a valid token",
        403: f"; the step's service account must be allowed to create, get, patch and delete {kind.plural}, and to "
        f"list pods and get pods/log, in namespace {namespace}",
        404: f"; the training operator must be installed, and namespace {namespace} exist",
    }.get(getattr(error, "status", 0), "")
    return LaunchError(f"the Kubernetes API must accept the {kind.kind}, got: {reason(error)}{remedy}")


def say(text: str) -> None:
    """Prints a line to the log of the step."""
    print(text, file=sys.stderr, flush=True)
