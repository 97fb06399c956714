"""Trains on a cluster: submits a job, of whatever kind, and follows it to its end.

The manifests are built with the classes of Kubeflow's SDKs, but sent with the plain Kubernetes client: the SDKs' own
clients hide the status of an error, which decides here whether to adopt a job or to retry, and their logs omit pods
that are not running yet.
"""

import contextlib
import itertools
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from kws.files import write_json
from kws.heartbeat import LEASE, Heartbeat
from kws.launch import settings
from kws.launch.job import LaunchError, Training
from kws.launch.job_status import (
    JobKind,
    failure_message,
    is_hopeless,
    is_refused_for_good,
    last_complaint,
    may_mend,
    on_conflict,
    verdict,
    waiting_reason,
)
from kws.launch.kubernetes_api import PATIENCE_SECONDS, explain, is_held_by_quota, is_of_api, reason, retry, say
from kws.launch.logs import LogFollower
from kws.launch.output import LOGS
from kws.launch.pod_template import save_manifest, step_pod, to_manifest
from kws.launch.settings import ClusterConfig

if TYPE_CHECKING:
    from kubernetes.client import V1OwnerReference

POLL_SECONDS = 5.0
EVENTS_SECONDS = 15.0
"""Seconds without pods after which the events of the job are searched for a reason."""

QUOTA_SECONDS = 15.0
FIRST_DELAY_SECONDS = 30
"""Seconds before a failed job is submitted again; the delay doubles with every attempt."""


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
        from kubernetes import client
        from kubernetes import config as kubernetes_config

        self.kind = kind
        self.config = config
        self.namespace = config.namespace or settings.own_namespace()
        if settings.NAMESPACE_FILE.exists():
            kubernetes_config.load_incluster_config()
        else:
            try:
                kubernetes_config.load_kube_config()
            except kubernetes_config.ConfigException as error:
                raise ValueError(f"KUBECONFIG must name the configuration of a cluster, got: {error}") from error
        # urllib3 logs every retried connection in three lines; `retry` logs it in one.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.place = (kind.group, kind.version, self.namespace, kind.plural)
        self.jobs = self.workflows = client.CustomObjectsApi()
        self.core = client.CoreV1Api()
        self.owner: V1OwnerReference | None = None
        """What the job is deleted with."""

    def run(self, job: Training, manifest_path: Path | None = None) -> None:
        """Submits the job, or adopts its own from an earlier attempt, and follows it; see `Launcher.run`.

        Prints the logs of all pods, each line with the number of its node in front. Submits a job again that failed
        with a transient error (of a machine, a network, a volume). Deletes a job that has ended once its logs and
        outcome are on the volume. On SIGTERM or SIGINT deletes the job, whose pods then write a checkpoint; but leaves
        it to the next attempt if the run goes on, as when the pod of this step is deleted or its node drained.
        """
        with _exit_on_sigterm(), Heartbeat(job.folder / LEASE):
            self.owner = self._owner()
            manifest = self.kind.build(job, self.config, self.owner)
            if manifest_path is not None:
                save_manifest(manifest, manifest_path)
            try:
                self._train(job, manifest)
            except (KeyboardInterrupt, SystemExit) as stop:
                if self._is_retried(stop):
                    say(
                        f"told to stop, but the run goes on; {self._called(job.name)} waits "
                        f"{self.config.lease_seconds} s for the next attempt"
                    )
                    raise
                say(f"told to stop; deleting {self._called(job.name)}")
                retry(lambda: self._delete(job.name), patience=10)
                raise
            except Exception as error:
                if is_of_api(error):
                    raise explain(error, self.kind, self.namespace) from error
                raise

    def clean_up(self, job: Training) -> None:
        """Deletes the job of an earlier attempt, which may have ended meanwhile; see `Launcher.clean_up`."""
        if not self.config.delete_when_done:
            return
        try:
            retry(lambda: self._delete(job.name), patience=60)
        except Exception as error:
            if not is_of_api(error):
                raise
            say(f"{self._called(job.name)} of an earlier attempt, if there is one, is not deleted: {reason(error)}")

    def _owner(self) -> "V1OwnerReference | None":
        """Returns a reference to what the job is deleted with: the workflow of this step, or else the step's pod.

        Were the pod the owner of a workflow's job, Kubernetes would delete the job with the pod of an attempt, and the
        next attempt could not adopt it. Outside a pod there is no owner, nor for a job in another namespace, because
        Kubernetes deletes an object at once whose owner is not in its namespace.
        """
        from kubernetes.client import V1OwnerReference

        pod = step_pod()
        if pod is None or settings.own_namespace() != self.namespace:
            return None
        name, uid = pod
        try:
            found = retry(lambda: self.core.read_namespaced_pod(name, self.namespace, _request_timeout=60))
        except Exception as error:
            if not is_of_api(error):
                raise
            say(f"the job will be deleted with the pod {name}, as that pod's owner cannot be read: {reason(error)}")
        else:
            for owner in found.metadata.owner_references or ():
                if owner.controller:
                    return V1OwnerReference(
                        api_version=owner.api_version, kind=owner.kind, name=owner.name, uid=owner.uid
                    )
        return V1OwnerReference(api_version="v1", kind="Pod", name=name, uid=uid)

    def _is_retried(self, stop: BaseException) -> bool:
        """Tells whether a step that is stopped is tried again: its pod was evicted, preempted or deleted, not its run.

        It asks for one object only: Kubeflow's launcher, through which the step runs, ends at the same SIGTERM, and
        the container with it within a second.
        """
        owner = self.owner
        if owner is None or owner.kind != "Workflow" or isinstance(stop, KeyboardInterrupt):
            return False
        group, version = owner.api_version.split("/")
        try:
            workflow = retry(
                lambda: self.workflows.get_namespaced_custom_object(
                    group, version, self.namespace, "workflows", owner.name, _request_timeout=10
                ),
                patience=10,
            )
        except Exception as error:
            if not is_of_api(error):
                raise
            return False
        spec = workflow.get("spec", {})
        return workflow["metadata"]["uid"] == owner.uid and not (
            spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown")
        )

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
                say(f"{error}\nstarting it again in {delay} s, attempt {attempt + 1} of {self.config.attempts}")
                time.sleep(delay)

    def _finish(self, job: Training, last: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> None:
        """Writes the outcome of a job beside its logs, then deletes it, as finished jobs count towards quotas."""
        if not self.config.delete_when_done:
            return
        outcome = {
            "job": last,
            "pods": [{"name": pod["metadata"]["name"], "status": pod.get("status")} for pod in pods],
        }
        try:
            write_json(job.folder / LOGS / "job.json", outcome)
        except OSError as error:
            say(f"{self._called(job.name)} is not deleted, as its outcome could not be written to the volume: {error}")
            return
        retry(lambda: self._delete(job.name))

    def _called(self, name: str) -> str:
        return f"{self.kind.kind} {self.namespace}/{name}"

    def _submit(self, manifest: Mapping[str, Any]) -> str:
        """Creates the job, or adopts the one of an earlier attempt, and returns its uid."""
        from kubernetes.client import ApiException

        name = manifest["metadata"]["name"]
        refused_since = 0.0
        while True:
            try:
                made = retry(
                    lambda: self.jobs.create_namespaced_custom_object(*self.place, manifest, _request_timeout=60)
                )
                say(f"submitted {self._called(name)}")
                return str(made["metadata"]["uid"])
            except ApiException as error:
                if is_held_by_quota(error):  # until other jobs end, or the usage is computed
                    refused_since = refused_since or time.monotonic()
                    if time.monotonic() - refused_since > PATIENCE_SECONDS:
                        raise
                    say(f"waits: {reason(error)}")
                    time.sleep(QUOTA_SECONDS)
                    continue
                if error.status != 409:
                    raise
            existing = self._get(name)
            if existing is None:
                continue  # deleted in the meantime
            what = on_conflict(existing, manifest)
            if what == "adopt":
                say(f"adopted {self._called(name)} of an earlier attempt")
                self._own(name, manifest["metadata"].get("ownerReferences", []))
                return str(existing["metadata"]["uid"])
            if what == "replace":
                say(f"replacing {self._called(name)} of an earlier attempt, which failed")
                retry(lambda: self._delete(name))
            time.sleep(POLL_SECONDS)

    def _own(self, name: str, owners: Sequence[Mapping[str, Any]]) -> None:
        """Makes this step's owner that of an adopted job, which may belong to the pod of the earlier attempt."""
        patch = {"metadata": {"ownerReferences": owners}}
        retry(lambda: self.jobs.patch_namespaced_custom_object(*self.place, name, patch, _request_timeout=60))

    def _follow(self, name: str, uid: str, num_nodes: int) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
        """Waits for the end of the job and prints the logs of its pods.

        Returns:
            The job and its pods as last seen.

        Raises:
            JobFailed: the job failed, or is certain to fail.
            LaunchError: the job was deleted.
        """
        followers: dict[str, LogFollower] = {}
        pods: dict[str, Mapping[str, Any]] = {}
        said: dict[str, str] = {}
        started = time.monotonic()
        while True:
            # The job is read before the pods, so that once it has ended all of its pods have been seen.
            job = self._get(name)
            if job is None or job["metadata"]["uid"] != uid:
                raise LaunchError(f"{self._called(name)} must not be deleted before it ends, but someone deleted it")
            for pod in self._pods(name):
                pod_uid = pod["metadata"]["uid"]
                pods[pod_uid] = pod
                node = self.kind.node_rank(pod["metadata"]["labels"])
                if pod_uid not in followers:
                    followers[pod_uid] = LogFollower(self.core, pod, self.kind.container, node)
                    followers[pod_uid].start()
                waits = waiting_reason(pod)
                if waits and said.get(pod_uid) != waits:
                    say(f"[{node}] waits: {waits}")
                said[pod_uid] = waits
            refused = ""
            if len(pods) < num_nodes and time.monotonic() - started > EVENTS_SECONDS:
                waits = self._why_no_pods(job)
                if waits and said.get("") != waits:
                    say(f"waits for pods: {waits}")
                said[""] = waits
                refused = waits if is_refused_for_good(waits) else ""
            ended = verdict(job)
            hopeless = bool(refused) or is_hopeless(pods.values(), self.kind.container)
            if ended or hopeless:
                break
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + (30 if ended else 5)
        for follower in followers.values():
            follower.join(max(0, deadline - time.monotonic()))
        seen = list(pods.values())
        if ended == "Succeeded":
            return job, seen
        last_lines = {follower.pod: list(follower.last_lines) for follower in followers.values()}
        message = failure_message(job, seen, last_lines, self.kind.container)
        if refused and not ended:
            message = (
                f"{self._called(name)} must be allowed to create its pods, got: {refused}; change the policy of "
                f"the namespace {self.namespace}, or what the message names in KWS_PYTORCHJOB"
            )
        if hopeless:
            retry(lambda: self._delete(name))  # otherwise its pods would be restarted again and again
        raise JobFailed(message, job, seen, hopeless or not may_mend(job, seen, self.kind.container))

    def _why_no_pods(self, job: Mapping[str, Any]) -> str:
        """Returns the latest warning of the controller that creates a job's pods, such as an exceeded quota, or ""."""
        from kubernetes.client import ApiException

        maker = self.kind.pods_made_by(job["metadata"]["name"])
        try:
            listed = retry(
                lambda: self.core.list_namespaced_event(
                    self.namespace, field_selector=f"involvedObject.name={maker},type=Warning", _request_timeout=60
                )
            )
        except ApiException:  # no permission to read events
            return ""
        return last_complaint(to_manifest(listed)["items"], job)

    def _get(self, name: str) -> Any:
        """Returns the job, or None if there is none."""
        from kubernetes.client import ApiException

        try:
            return retry(lambda: self.jobs.get_namespaced_custom_object(*self.place, name, _request_timeout=60))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _pods(self, name: str) -> list[Any]:
        listed = retry(
            lambda: self.core.list_namespaced_pod(
                self.namespace, label_selector=f"{self.kind.name_label}={name}", _request_timeout=60
            )
        )
        return list(to_manifest(listed)["items"])

    def _delete(self, name: str) -> None:
        """Deletes the job, which stays visible until its pods are gone; does nothing if there is none."""
        from kubernetes.client import ApiException

        try:
            self.jobs.delete_namespaced_custom_object(
                *self.place, name, propagation_policy="Foreground", _request_timeout=60
            )
        except ApiException as error:
            if error.status != 404:
                raise


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit in the block; does nothing outside the main thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
