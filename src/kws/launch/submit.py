"""Trains on a cluster: submits a job, of whatever kind, and follows it to its end."""

import collections
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kws.files import atomic_write, write_json
from kws.heartbeat import LEASE, Heartbeat
from kws.kube import client
from kws.kube.client import EVENTS, PODS, WORKFLOWS, Api, echo, own_namespace
from kws.kube.errors import Conflict, KubeError, NotFound, Refused, Unreachable
from kws.kube.pod_logs import PodLog
from kws.kube.pods import has_ended, waiting_reason
from kws.kube.quantities import amounts
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import LaunchError, Training
from kws.launch.job_status import (
    explain,
    failure_message,
    is_hopeless,
    is_refused_for_good,
    last_complaint,
    may_mend,
    on_conflict,
    verdict,
)
from kws.launch.kinds.job_kind import JobKind
from kws.launch.output import LOGS
from kws.processes import handle_signals

CLOCKS_DIFFER_SECONDS = 10.0
"""How far the clock of a node may be behind that of the cluster."""

PATIENCE_SECONDS = 600.0
"""How long the Kubernetes API may be unavailable before the step gives up."""

POLL_SECONDS = 5.0
EVENTS_SECONDS = 15.0
"""Seconds without pods after which the events of the job are searched for a reason."""

QUOTA_SECONDS = 15.0
FIRST_DELAY_SECONDS = 30
"""Seconds before a failed job is submitted again; the delay doubles with every attempt."""

NUM_LAST_LINES = 10
"""Number of lines of a failed pod's log that the error quotes; the last is the trainer's own error."""

REOPEN_SECONDS = 2.0
"""Seconds before a log that broke off is opened again."""


class JobFailed(LaunchError):
    """Raised if a job failed, or is certain to fail."""

    def __init__(self, message: str, job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], hopeless: bool) -> None:
        super().__init__(message)
        self.job, self.pods = job, pods
        self.hopeless = hopeless
        """Whether it would fail again if submitted again."""


class ClusterLauncher:
    """Trains on the cluster: submits a job and waits for its end, however long it takes."""

    def __init__(self, kind: JobKind, config: ClusterConfig) -> None:
        self.kind, self.config = kind, config
        self.namespace = config.namespace or own_namespace()
        # Of every connection that is tried again `Api` prints one line, and urllib3 would print three.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.api = Api.of_pod().patient(PATIENCE_SECONDS)
        self.running = self.api.patient(PATIENCE_SECONDS, Refused)
        """For a job that was submitted: a right that is missing now will come back."""
        self.owner: Mapping[str, Any] | None = None
        """What the job is deleted with, as an ownerReference."""

    def run(self, job: Training, manifest_path: Path | None = None) -> None:
        """Submits the job, or adopts its own from an earlier attempt, and follows it; see `Launcher.run`.

        Prints the logs of all pods, each line with the number of its node in front. Submits a job again that failed
        with a transient error (of a machine, a network, a volume). Deletes a job that has ended once its logs and
        outcome are on the volume. On SIGTERM or SIGINT deletes the job, whose pods then write a checkpoint; but leaves
        it to the next attempt if the run goes on, as when the pod of this step is deleted or its node drained.
        """
        with handle_signals(_leave, signal.SIGTERM), Heartbeat(job.folder / LEASE):
            self.owner = self._owner()
            manifest = self.kind.build(job, self.config, self.owner)
            if manifest_path is not None:
                save_manifest(manifest, manifest_path)
            try:
                self._train(job, manifest)
            except (KeyboardInterrupt, SystemExit) as stop:
                if self._is_retried(stop):
                    echo(
                        f"told to stop, but the run goes on; {self._called(job.name)} waits "
                        f"{self.config.lease_seconds} s for the next attempt"
                    )
                    raise
                echo(f"told to stop; deleting {self._called(job.name)}")
                self.api.patient(10).delete(self.kind.resource, self.namespace, job.name)
                raise
            except KubeError as error:
                raise explain(error, self.kind, self.namespace) from error

    def cores_and_gpus(self) -> tuple[float, int]:
        """Returns what each pod asks for; see `Launcher.cores_and_gpus`."""
        return float(amounts({"cpu": self.config.cpu})["cpu"]), self.config.gpus_per_node

    def clean_up(self, job: Training) -> None:
        """Deletes the job of an earlier attempt, which may have ended meanwhile; see `Launcher.clean_up`."""
        try:
            self.api.patient(60).delete(self.kind.resource, self.namespace, job.name)
        except KubeError as error:
            echo(f"{self._called(job.name)} of an earlier attempt, if there is one, is not deleted: {error.message}")

    def _owner(self) -> Mapping[str, Any] | None:
        """Returns a reference to what the job is deleted with: the workflow of this step, or else the step's pod.

        Were the pod the owner of a workflow's job, Kubernetes would delete the job with the pod of an attempt, and the
        next attempt could not adopt it. Outside a pod there is no owner, nor for a job in another namespace, because
        Kubernetes deletes an object at once whose owner is not in its namespace.
        """
        pod = step_pod()
        if pod is None or own_namespace() != self.namespace:
            return None
        name, uid = pod
        try:
            found = self.api.get(PODS, self.namespace, name)["metadata"].get("ownerReferences") or ()
        except KubeError as error:
            echo(f"the job will be deleted with the pod {name}, as that pod's owner cannot be read: {error.message}")
            found = ()
        for owner in found:
            if owner.get("controller"):
                return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
        return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}

    def _is_retried(self, stop: BaseException) -> bool:
        """Tells whether a step that is stopped is tried again: its pod was evicted, preempted or deleted, not its run.

        It asks for one object only: Kubeflow's launcher, through which the step runs, ends at the same SIGTERM, and
        the container with it within a second.
        """
        if self.owner is None or self.owner["kind"] != "Workflow" or isinstance(stop, KeyboardInterrupt):
            return False
        try:
            workflow = self.api.patient(10).get(WORKFLOWS, self.namespace, self.owner["name"])
        except KubeError:
            return False
        return workflow["metadata"]["uid"] == self.owner["uid"] and not _is_ending(workflow)

    def _train(self, job: Training, manifest: Mapping[str, Any]) -> None:
        """Submits the job until it succeeds, fails permanently, or has failed too often."""
        for attempt in itertools.count(1):
            uid = self._submit(manifest)
            try:
                last, pods = self._follow(job.name, uid, job.num_nodes)
                self._finish(job, last, pods)
                return
            except JobFailed as error:
                self._finish(job, error.job, error.pods)
                if error.hopeless or attempt >= self.config.attempts:
                    raise
                delay = FIRST_DELAY_SECONDS * 2 ** (attempt - 1)
                echo(f"{error}\nstarting it again in {delay} s, attempt {attempt + 1} of {self.config.attempts}")
                time.sleep(delay)

    def _finish(self, job: Training, last: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> None:
        """Writes the outcome of a job beside its logs, then deletes it, as finished jobs count towards quotas."""
        seen = [{"name": pod["metadata"]["name"], "status": pod.get("status")} for pod in pods]
        try:
            write_json(job.folder / LOGS / "job.json", {"job": last, "pods": seen})
        except OSError as error:
            echo(f"{self._called(job.name)} is not deleted, as its outcome could not be written to the volume: {error}")
            return
        self.running.delete(self.kind.resource, self.namespace, job.name)

    def _called(self, name: str) -> str:
        return f"{self.kind.kind} {self.namespace}/{name}"

    def _submit(self, manifest: Mapping[str, Any]) -> str:
        """Creates the job, or adopts the one of an earlier attempt, and returns its uid."""
        name = manifest["metadata"]["name"]
        refused_since = 0.0
        while True:
            try:
                # An operator that does not know a field must not drop it in silence.
                made = self.api.create(self.kind.resource, manifest, fieldValidation="Strict")
                echo(f"submitted {self._called(name)}")
                return str(made["metadata"]["uid"])
            except Refused as error:
                if lacking := [one for one in self.kind.dispensable if f'unknown field "spec.{one}"' in error.message]:
                    echo("\n".join(f"{self._called(name)} {self.kind.dispensable[one]}" for one in lacking))
                    spec = {one: value for one, value in manifest["spec"].items() if one not in lacking}
                    manifest = {**manifest, "spec": spec}
                    continue
                refused_since = refused_since or time.monotonic()
                if not error.by_quota or time.monotonic() - refused_since > PATIENCE_SECONDS:
                    raise
                echo(f"waits: {error.message}")  # until other jobs end, or the usage is computed
                time.sleep(QUOTA_SECONDS)
                continue
            except Conflict:
                existing = self.api.find(self.kind.resource, self.namespace, name)
            if existing is None:
                continue  # deleted in the meantime
            what = on_conflict(existing, manifest)
            if what == "adopt":
                echo(f"adopted {self._called(name)} of an earlier attempt")
                # Its owner may be the pod of the earlier attempt.
                changes = {"metadata": {"ownerReferences": manifest["metadata"].get("ownerReferences", [])}}
                self.api.patch(self.kind.resource, self.namespace, name, changes)
                return str(existing["metadata"]["uid"])
            if what == "replace":
                echo(f"replacing {self._called(name)} of an earlier attempt, which failed")
                self.api.delete(self.kind.resource, self.namespace, name)
            time.sleep(POLL_SECONDS)

    def _follow(self, name: str, uid: str, num_nodes: int) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
        """Waits for the end of the job and prints the logs of its pods.

        Returns:
            The job and its pods as last seen.

        Raises:
            JobFailed: the job failed, or is certain to fail.
            LaunchError: the job was deleted.
        """
        printers: dict[str, LogPrinter] = {}
        pods: dict[str, Mapping[str, Any]] = {}
        said: set[tuple[str, str]] = set()

        def say_once(uid: str, who: str, why: str) -> None:
            """Prints a reason that is new for a pod or the job (uid); those of a back-off come again and again."""
            if why and (uid, why) not in said:
                echo(f"{who}: {why}")
            said.add((uid, why))

        started = time.monotonic()
        while True:
            # The job is read before the pods, so that once it has ended all of its pods have been seen.
            job = self.running.find(self.kind.resource, self.namespace, name)
            if job is None or job["metadata"]["uid"] != uid:
                raise LaunchError(f"{self._called(name)} must not be deleted before it ends, but someone deleted it")
            for pod in self.running.list(PODS, self.namespace, labelSelector=f"{self.kind.name_label}={name}"):
                pod_uid, node = pod["metadata"]["uid"], self.kind.node_rank(pod)
                pods[pod_uid] = pod
                if pod_uid not in printers:
                    printers[pod_uid] = LogPrinter(self.running, pod, self.kind.container, node)
                    printers[pod_uid].start()
                say_once(pod_uid, f"[{node}] waits", waiting_reason(pod))
            refused = ""
            if len(pods) < num_nodes and time.monotonic() - started > EVENTS_SECONDS:
                waits = self._why_no_pods(job)
                say_once(uid, "waits for pods", waits)
                refused = waits if is_refused_for_good(waits) else ""
            ended = verdict(job)
            hopeless = bool(refused) or is_hopeless(pods.values(), self.kind.container)
            if ended or hopeless:
                break
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + (30 if ended else 5)
        for printer in printers.values():
            printer.join(max(0, deadline - time.monotonic()))
        seen = list(pods.values())
        if ended == "Succeeded":
            return job, seen
        last_lines = {printer.pod: list(printer.last_lines) for printer in printers.values()}
        message = failure_message(job, seen, last_lines, self.kind.container)
        if refused and not ended:
            message = (
                f"{self._called(name)} must be allowed to create its pods, got: {refused}; change the policy of "
                f"the namespace {self.namespace}, or what the message names in KWS_PYTORCHJOB"
            )
        if hopeless:  # otherwise its pods would be restarted again and again
            self.running.delete(self.kind.resource, self.namespace, name)
        raise JobFailed(message, job, seen, hopeless or not may_mend(job, seen, self.kind.container))

    def _why_no_pods(self, job: Mapping[str, Any]) -> str:
        """Returns the latest warning of the controller that creates a job's pods, such as an exceeded quota, or ""."""
        maker = self.kind.pods_made_by(job["metadata"]["name"])
        try:
            selector = f"involvedObject.name={maker},type=Warning"
            return last_complaint(self.api.list(EVENTS, self.namespace, fieldSelector=selector), job)
        except (Refused, NotFound):  # no permission to read events
            return ""


class LogPrinter(threading.Thread):
    """Thread that prints the log of a pod line by line until the pod ends, across restarts and broken connections."""

    def __init__(self, api: Api, pod: Mapping[str, Any], container: str, node: int) -> None:
        about = pod["metadata"]
        super().__init__(name=f"log of {about['name']}", daemon=True)
        self.api, self.node = api, node
        self.pod, self.namespace, self.uid = about["name"], about["namespace"], about["uid"]
        self.log = PodLog(api, self.namespace, self.pod, container)
        self.last_lines: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)

    def run(self) -> None:
        """Prints until the pod has ended and its log has been read to the end."""
        while True:
            read_to_end = self._print()
            if self._has_ended() and read_to_end:
                return
            time.sleep(REOPEN_SECONDS)

    def _print(self) -> bool:
        """Prints new lines until the container ends; returns whether it read to the end."""
        try:
            for line in self.log.read(follow=True):
                self.last_lines.append(line)
                # One write per line, as the threads of other pods write too.
                sys.stdout.write(f"[{self.node}] {line}\n")
                sys.stdout.flush()
        except Unreachable:
            return False
        except KubeError:  # there is no log yet, or no longer
            pass
        return True

    def _has_ended(self) -> bool:
        try:
            pod = self.api.find(PODS, self.namespace, self.pod)
        except KubeError:  # for as long as the step has patience
            return True
        return pod is None or pod["metadata"]["uid"] != self.uid or has_ended(pod)


def step_pod() -> tuple[str, str] | None:
    """Returns name and uid of the step's own pod, which Kubeflow Pipelines tells every step, or None outside a pod."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return (name, uid) if name and uid and client.NAMESPACE_FILE.exists() else None


def save_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Writes a manifest as YAML for `kubectl apply`, atomically."""
    import yaml

    with atomic_write(path, "w") as file:
        yaml.safe_dump(manifest, file, sort_keys=False)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def _is_ending(workflow: Mapping[str, Any]) -> bool:
    """Tells whether a workflow was cancelled, or has reached its deadline: Argo then ends its pods and retries none."""
    spec, started = workflow.get("spec", {}), workflow.get("status", {}).get("startedAt")
    deadline = spec.get("activeDeadlineSeconds")
    if deadline and started:
        begin = datetime.fromisoformat(started)
        if datetime.now(UTC) >= begin + timedelta(seconds=deadline - CLOCKS_DIFFER_SECONDS):
            return True
    return deadline == 0 or bool(spec.get("shutdown"))
