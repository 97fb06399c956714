"""Schedules: runs of the pipeline that a cluster starts at fixed times."""

import contextlib
import io
import time
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich.table import Table

from kws.config import PipelineConfig, split_sources
from kws.kube.client import CONFIG_MAPS, DEPLOYMENTS
from kws.kube.errors import KubeError
from pipeline.cluster.argo_steps import FINISHED
from pipeline.cluster.connect import Cluster
from pipeline.cluster.results import console, out
from pipeline.cluster.runs import EXPERIMENT, latest, prepare
from pipeline.kind import local_cluster as kind
from pipeline.placement import Placement
from pipeline.shell import ClusterError

CANCEL_SECONDS = 120.0
"""How long a run that was cancelled may take to end."""

POLL_SECONDS = 3.0


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
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"time zone must be a name such as Europe/Berlin or UTC, got {zone!r}") from None
    advice = "give the cron expression in UTC, or have an administrator set cronScheduleTimezone in the config map "
    advice += f"pipeline-install-config of namespace {kind.NAMESPACE} and restart ml-pipeline-scheduledworkflow"
    if cluster.api is None:
        raise ClusterError(f"the time zone must be set through kubeconfig, got none; {advice}")
    try:
        settings = cluster.api.get(CONFIG_MAPS, kind.NAMESPACE, "pipeline-install-config")["data"]
        if (settings.get("cronScheduleTimezone") or "UTC") == zone:
            return
        others = sorted({each.display_name for each in _schedules(cluster)} - {name})
        if others:
            raise ValueError(
                f"time zone must suit the other schedules ({', '.join(others)}) too, as there is one for "
                f"all, got {zone}; {advice}"
            )
        changes: dict[str, Any] = {"data": {"cronScheduleTimezone": zone}}
        cluster.api.patch(CONFIG_MAPS, kind.NAMESPACE, "pipeline-install-config", changes)
        again = {"metadata": {"annotations": {"kws/restarted-at": datetime.now(UTC).isoformat()}}}
        changes = {"spec": {"template": again}}
        cluster.api.patch(DEPLOYMENTS, kind.NAMESPACE, "ml-pipeline-scheduledworkflow", changes)
    except KubeError as error:
        raise ClusterError(f"the time zone must be yours to change, got {error}; {advice}") from None
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

    `cron`: see `six_fields`; without a time zone, that of the cluster stands.
    """
    cron = six_fields(cron)
    pipeline_id, version_id, _ = prepare(cluster, placement)
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
    out.print(f"{cluster.ui}/#/recurringrun/details/{made.recurring_run_id}{cluster.ui_hint}", soft_wrap=True)


def needed(cluster: Cluster) -> list[str]:
    """Returns what the schedules name: sources of recordings, and models to start from."""
    found: list[str] = []
    for each in _schedules(cluster):
        given = (each.runtime_config.parameters if each.runtime_config else None) or {}
        found += [*split_sources(str(given.get("source", ""))), str(given.get("init", ""))]
    return sorted({name for name in found if name})


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
    cancelled: set[str] = set()
    while True:
        under_way = [
            run
            for run in latest(cluster, 100)
            if run.recurring_run_id == schedule.recurring_run_id and run.state not in FINISHED
        ]
        for run in under_way:
            if run.run_id not in cancelled:
                client.terminate_run(run.run_id)
                console.print(
                    f"cancelled {run.display_name}, which this schedule had started; its workflow goes with it"
                )
                cancelled.add(run.run_id)
        if not under_way or time.monotonic() > until:
            break
        time.sleep(POLL_SECONDS)
    client.delete_recurring_run(schedule.recurring_run_id)
