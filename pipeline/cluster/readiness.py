"""Waits until pods are ready, and ends early where one waits for what will not come by itself."""

import json
import time
from collections.abc import Sequence
from typing import Any

from kws.kube.pods import waiting_reason
from pipeline.cluster.run_pods import LASTING
from pipeline.shell import ClusterError, run

READY_SECONDS = 300
"""How long pods may take to become ready."""

SLICE_SECONDS = 5
"""How long kubectl waits before it is looked whether waiting helps."""


def wait_for_deployment(kubectl: Sequence[str], name: str, hint: str = "") -> None:
    """Waits until the pods of a deployment, of its latest version, are ready.

    Its pods have its name in the label app.kubernetes.io/name; `hint` ends the message of the error.

    Raises:
        ClusterError: they are not ready in time, or wait for what will not come; the message has Kubernetes' words.
    """
    selector = f"app.kubernetes.io/name={name}"
    namespace = kubectl[kubectl.index("--namespace") + 1]
    look = f"kubectl -n {namespace} describe pods -l {selector} tells more"
    _wait(kubectl, ("rollout", "status", f"deployment/{name}"), ("-l", selector), name, look, hint)


def wait_for_pod(kubectl: Sequence[str], name: str, hint: str = "") -> None:
    """Waits until a pod is ready; see wait_for_deployment."""
    selector = f"--field-selector=metadata.name={name}"
    _wait(kubectl, ("wait", "--for=condition=Ready", f"pod/{name}"), (selector,), name, hint)


def _wait(kubectl: Sequence[str], command: Sequence[str], pods: Sequence[str], name: str, *hints: str) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            run(*kubectl, *command, f"--timeout={SLICE_SECONDS}s", timeout=SLICE_SECONDS + 30)
            return
        except ClusterError:
            listed = json.loads(run(*kubectl, "get", "pods", *pods, "-o", "json"))["items"]
        # Those of an earlier version of the deployment may wait for ever.
        latest = max(listed, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
        listed = [pod for pod in listed if _version(pod) == _version(latest)]
        reasons = [reason for pod in listed if (reason := waiting_reason(pod))]
        remedies = [LASTING[cause] for reason in reasons if (cause := reason.partition(":")[0]) in LASTING]
        if remedies or time.monotonic() > until:
            why = "; ".join(dict.fromkeys(reasons)) or f"no pod that is ready within {READY_SECONDS} s"
            raise ClusterError(
                f"{name} must become ready, got {why}; {'; '.join(filter(None, (*remedies[:1], *hints)))}"
            )


def _version(pod: Any) -> str | None:
    """Returns which version of its deployment a pod is of; None if it is of none."""
    return (pod["metadata"].get("labels") or {}).get("pod-template-hash")
