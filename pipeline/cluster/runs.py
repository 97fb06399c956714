"""Runs and schedules of the pipeline on a cluster: submit, follow, list, cancel, retry, retrain at fixed times."""

import contextlib
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich.table import Table

from kws.config import PipelineConfig
from pipeline.cluster.connection import Cluster
from pipeline.cluster.follow import COLORS, WORDS, console, out
from pipeline.cluster.steps import FINISHED, duration, outcome, short_ids, time_of
from pipeline.compiling import PACKAGE, compile_to, package_spec, steps_of_spec, version_name
from pipeline.kind import local_cluster as kind
from pipeline.placement import Placement
from pipeline.shell import ClusterError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

EXPERIMENT = "speech-commands"
CANCEL_SECONDS = 120.0
"""How long a run that was cancelled may take to end."""

POLL_SECONDS = 3.0


def upload(cluster: Cluster, path: Path) -> tuple[str, str]:
    """Uploads a compiled package as a new version of the pipeline, unless that version exists.

    Returns:
        The ids of pipeline and version.
    """
    import kfp_server_api

    client, name = cluster.client, str(package_spec(path)["pipelineInfo"]["name"])
    found = client.list_pipelines(filter=_named(name), namespace=cluster.user_namespace).pipelines
    if found:
        pipeline_id = found[0].pipeline_id
    else:
        made = kfp_server_api.V2beta1Pipeline(display_name=name, namespace=cluster.user_namespace)
        pipeline_id = client.pipelines.pipeline_service_create_pipeline(pipeline=made).pipeline_id
    version = version_name(path)
    versions = client.list_pipeline_versions(pipeline_id, filter=_named(version)).pipeline_versions
    if versions:
        return pipeline_id, versions[0].pipeline_version_id
    with contextlib.redirect_stdout(io.StringIO()):
        uploaded = client.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id)
    return pipeline_id, uploaded.pipeline_version_id


def _named(name: str) -> str:
    """Returns a filter of the API for a display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def check_volume(cluster: Cluster, claim_name: str) -> None:
    """Raises ClusterError unless the claim of the volume exists; says nothing where it may not be read."""
    if cluster.core is None:
        return
    from kubernetes.client import ApiException

    try:
        claim = cluster.core.read_namespaced_persistent_volume_claim(claim_name, cluster.namespace)
    except ApiException as error:
        if error.status == 404 and cluster.host:
            console.print(
                f"[yellow]no claim {claim_name} in the cluster of kubeconfig[/]; is it that of {cluster.host}?"
            )
        elif error.status == 404:
            raise ClusterError(
                f"the claim {claim_name} must exist in namespace {cluster.namespace}, got none; "
                "kubectl apply -k manifests/overlays/storage-class, or profile (see docs/cluster.md)"
            ) from None
        return
    if claim.status.phase == "Lost":
        raise ClusterError(
            f"the claim {claim_name} must be bound, got Lost: its volume is gone; docs/cluster.md "
            "(Another volume) tells how to replace it"
        )
    if claim.status.phase == "Pending":
        console.print(
            f"[yellow]the claim {claim_name} is not bound yet: steps wait until it is[/] "
            f"(kubectl -n {cluster.namespace} describe pvc {claim_name})"
        )


def prepare(cluster: Cluster, placement: Placement) -> tuple[str, str]:
    """Checks images and volume where possible, compiles and uploads.

    Returns:
        The ids of pipeline and version.
    """
    assert cluster.health is not None
    if cluster.kind:
        kind.require_images({"runtime": placement.runtime, "launcher": placement.launcher})
    check_volume(cluster, placement.pvc)
    console.print(f"compiling for {placement.runtime}")
    return upload(cluster, compile_to(PACKAGE, placement))


def submit(cluster: Cluster, config: PipelineConfig, placement: Placement, *, name: str = "") -> str:
    """Starts a run.

    Args:
        cluster: where.
        config: the parameters.
        placement: where and how the steps run.
        name: of the run; empty: the time.

    Returns:
        The id of the run.
    """
    pipeline_id, version_id = prepare(cluster, placement)
    with contextlib.redirect_stdout(io.StringIO()):
        experiment = cluster.client.create_experiment(EXPERIMENT, namespace=cluster.user_namespace)
        started = cluster.client.run_pipeline(
            experiment.experiment_id,
            name or f"{EXPERIMENT}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
            params=config.arguments(),
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
    out.print(f"run {started.display_name}  {started.run_id}")
    out.print(f"{cluster.ui}/#/runs/details/{started.run_id}", soft_wrap=True)
    return str(started.run_id)


def find_run(cluster: Cluster, wanted: str) -> "V2beta1Run":
    """Finds a run by id, the beginning of its id, or its name.

    Raises:
        ValueError: there is no such run, or more than one.
    """
    listed = _runs(cluster, 100)
    found = [r for r in listed if wanted in (r.run_id, r.display_name)]
    found = found or [r for r in listed if r.run_id.startswith(wanted)]
    if len(found) != 1:
        raise ValueError(
            f"run must be the id or name of one run (python -m pipeline runs lists them), got {wanted!r}, which "
            f"matches {len(found) or 'none'} of the last {len(listed)} runs"
        )
    return found[0]


def _runs(cluster: Cluster, count: int) -> "list[V2beta1Run]":
    listed = cluster.client.list_runs(page_size=count, sort_by="created_at desc", namespace=cluster.user_namespace)
    return list(listed.runs or [])


def table_of_runs(cluster: Cluster, count: int) -> Table:
    """Returns a table of the latest runs; the id, which other commands take, is never cut to the terminal's width."""
    table = Table(box=None, pad_edge=False)
    for name, width in (("id", 8), ("state", 9), ("started", 16), ("time", 12)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    listed = _runs(cluster, count)
    short = short_ids(each.run_id for each in listed)
    for each in listed:
        state = outcome(each)
        table.add_row(
            short[each.run_id],
            f"[{COLORS.get(state, 'dim')}]{WORDS.get(state, state.lower())}[/]",
            f"{each.created_at.astimezone():%Y-%m-%d %H:%M}",
            duration(time_of(each.created_at), time_of(each.finished_at)),
            each.display_name,
        )
    return table


def steps_of_run(cluster: Cluster, run: "V2beta1Run") -> list[str]:
    """Returns the steps of a run in their order, as in the pipeline that it was created from."""
    spec = run.pipeline_spec
    if not spec and (made_of := run.pipeline_version_reference):
        spec = cluster.client.get_pipeline_version(made_of.pipeline_id, made_of.pipeline_version_id).pipeline_spec
    return steps_of_spec((spec or {}).get("pipeline_spec", spec) or {"root": {"dag": {"tasks": {}}}})


def cancel(cluster: Cluster, wanted: str) -> None:
    """Cancels a run. The launcher deletes the training job when its own pod is told to stop."""
    found = find_run(cluster, wanted)
    if found.state in FINISHED:
        state = outcome(found)
        raise ValueError(
            f"run must be running to be cancelled, got {found.display_name}, which was {WORDS[state]}"
            if state == "CANCELED"
            else f"run must be running to be cancelled, got {found.display_name}, which has {state.lower()}"
        )
    cluster.client.terminate_run(found.run_id)
    out.print(f"cancelled {found.display_name}")


def retry(cluster: Cluster, wanted: str) -> "V2beta1Run":
    """Starts a run again at the steps that failed or were stopped, and returns it."""
    found = find_run(cluster, wanted)
    if found.state not in ("FAILED", "CANCELED"):
        raise ValueError(
            f"run must have failed or been cancelled to be retried, got {found.display_name} ({outcome(found).lower()})"
        )
    cluster.client.runs.run_service_retry_run(found.run_id)
    out.print(f"retrying {found.display_name}")
    return found


def six_fields(cron: str) -> str:
    """Returns a cron expression with a field for seconds in front, which Kubeflow Pipelines expects.

    The five fields of cron must not be passed on as they are: they would be read as seconds to month.

    Raises:
        ValueError: it has neither five nor six fields.
    """
    fields = cron.split()
    if cron.startswith("@") and len(fields) == 1:
        return cron
    if len(fields) not in (5, 6):
        raise ValueError(
            f"cron must have five fields (minute hour day month weekday), or six with seconds in front, got {cron!r}"
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def set_time_zone(cluster: Cluster, zone: str, name: str) -> None:
    """Makes the scheduler of the cluster read cron expressions in a time zone.

    Kubeflow Pipelines has one time zone for all schedules, in the config map pipeline-install-config.

    Raises:
        ValueError: there is no such time zone, or it would change the meaning of schedules other than `name`.
        ClusterError: it may not be changed from here.
    """
    from kubernetes.client import ApiException, AppsV1Api

    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"time zone must be a name such as Europe/Berlin or UTC, got {zone!r}") from None
    advice = "give the cron expression in UTC, or have an administrator set cronScheduleTimezone in the config map "
    advice += f"pipeline-install-config of namespace {kind.NAMESPACE} and restart ml-pipeline-scheduledworkflow"
    if cluster.core is None:
        raise ClusterError(f"the time zone must be set through kubeconfig, got none; {advice}")
    try:
        settings = cluster.core.read_namespaced_config_map("pipeline-install-config", kind.NAMESPACE)
        if (settings.data.get("cronScheduleTimezone") or "UTC") == zone:
            return
        others = sorted({each.display_name for each in _schedules(cluster)} - {name})
        if others:
            raise ValueError(
                f"time zone must suit the other schedules ({', '.join(others)}) too, as there is one for "
                f"all, got {zone}; {advice}"
            )
        cluster.core.patch_namespaced_config_map(
            "pipeline-install-config", kind.NAMESPACE, {"data": {"cronScheduleTimezone": zone}}
        )
        again = {"metadata": {"annotations": {"kws/restarted-at": datetime.now(UTC).isoformat()}}}
        AppsV1Api(cluster.core.api_client).patch_namespaced_deployment(
            "ml-pipeline-scheduledworkflow", kind.NAMESPACE, {"spec": {"template": again}}
        )
    except ApiException as error:
        raise ClusterError(f"the time zone must be yours to change, got status {error.status}; {advice}") from None
    console.print(f"the scheduler now reads cron expressions in {zone}")


def _schedules(cluster: Cluster) -> list[Any]:
    listed = cluster.client.list_recurring_runs(page_size=100, namespace=cluster.user_namespace)
    return list(listed.recurring_runs or [])


def schedule(
    cluster: Cluster,
    config: PipelineConfig,
    placement: Placement,
    *,
    cron: str,
    time_zone: str = "",
    name: str = EXPERIMENT,
) -> None:
    """Creates a recurring run, or replaces the one of that name.

    Args:
        cluster: where.
        config: the parameters.
        placement: where and how the steps run.
        cron: see `six_fields`.
        time_zone: of the cron expression; empty: as it is set on the cluster.
        name: of the schedule.
    """
    cron = six_fields(cron)
    pipeline_id, version_id = prepare(cluster, placement)
    if time_zone:
        set_time_zone(cluster, time_zone, name)
    with contextlib.redirect_stdout(io.StringIO()):
        experiment = cluster.client.create_experiment(EXPERIMENT, namespace=cluster.user_namespace)
    before = [each for each in _schedules(cluster) if each.display_name == name]
    made = cluster.client.create_recurring_run(
        experiment.experiment_id,
        name,
        cron_expression=cron,
        max_concurrency=1,
        no_catchup=True,
        params=config.arguments(),
        pipeline_id=pipeline_id,
        version_id=version_id,
    )
    # The new one first: if this is killed, the next call deletes both old ones, and retraining never stops unnoticed.
    for each in before:
        _delete_schedule(cluster, each)
    out.print(f"{'replaced' if before else 'made'} schedule {name}: {cron}, one run at a time, no catch-up")
    out.print(f"{cluster.ui}/#/recurringrun/details/{made.recurring_run_id}", soft_wrap=True)


def table_of_schedules(cluster: Cluster) -> Table:
    """Returns a table of the recurring runs."""
    table = Table("schedule", "cron", "mode", "since", box=None)
    for each in _schedules(cluster):
        cron = each.trigger.cron_schedule.cron if each.trigger and each.trigger.cron_schedule else "periodic"
        mode = (each.mode or "").lower() + (f": {each.error.message}" if each.error and each.error.message else "")
        table.add_row(each.display_name, cron, mode, f"{each.created_at.astimezone():%Y-%m-%d %H:%M}")
    return table


def unschedule(cluster: Cluster, name: str) -> None:
    """Deletes a recurring run, and cancels its run in progress."""
    found = [each for each in _schedules(cluster) if name in (each.display_name, each.recurring_run_id)]
    if not found:
        raise ValueError(f"name must be that of a schedule (python -m pipeline schedules lists them), got {name!r}")
    for each in found:
        _delete_schedule(cluster, each)
        out.print(f"deleted schedule {each.display_name}")


def _delete_schedule(cluster: Cluster, schedule: Any) -> None:
    """Deletes a recurring run after its runs have ended.

    With a schedule Kubernetes deletes the workflows that it created, and Kubeflow would list a run without a workflow
    as running for ever. So the runs are cancelled first.
    """
    client = cluster.client
    client.disable_recurring_run(schedule.recurring_run_id)
    until = time.monotonic() + CANCEL_SECONDS
    told: set[str] = set()
    while True:
        under_way = [
            run
            for run in _runs(cluster, 100)
            if run.recurring_run_id == schedule.recurring_run_id and run.state not in FINISHED
        ]
        for run in under_way:
            if run.run_id not in told:
                client.terminate_run(run.run_id)
                console.print(
                    f"cancelled {run.display_name}, which this schedule had started; its workflow goes with it"
                )
                told.add(run.run_id)
        if not under_way or time.monotonic() > until:
            break
        time.sleep(POLL_SECONDS)
    client.delete_recurring_run(schedule.recurring_run_id)
