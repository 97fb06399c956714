"""Runs of the pipeline on a cluster: submit, find, list, cancel, retry."""

import contextlib
import io
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from kws.config import PipelineConfig
from kws.kube.errors import KubeError, NotFound
from pipeline.cluster.argo_steps import FINISHED, duration, outcome, short_ids, time_of
from pipeline.cluster.connect import Cluster, kubeflow_errors
from pipeline.cluster.follow import COLORS, WORDS
from pipeline.cluster.results import console, out
from pipeline.compiling import compile_to, package_spec, steps_of_spec, version_name
from pipeline.kind import local_cluster as kind
from pipeline.placement import Placement
from pipeline.shell import ClusterError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

EXPERIMENT = "speech-commands"


def upload(cluster: Cluster, path: Path) -> tuple[str, str]:
    """Uploads a compiled package as a new version of the pipeline, unless that version exists.

    Returns:
        The ids of pipeline and version.
    """
    import kfp_server_api

    client, info = cluster.client, package_spec(path)["pipelineInfo"]
    name = str(info["name"])
    found = client.list_pipelines(filter=_named(name), namespace=cluster.user_namespace).pipelines
    if found:
        pipeline_id = found[0].pipeline_id
    else:
        made = kfp_server_api.V2beta1Pipeline(
            display_name=name, description=str(info.get("description", "")), namespace=cluster.user_namespace
        )
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
    if cluster.api is None:
        return
    try:
        phase = cluster.claim(claim_name)["status"]["phase"]
    except ClusterError:
        if not cluster.host:
            raise
        console.print(f"[yellow]no claim {claim_name} in the cluster of kubeconfig[/]; is it that of {cluster.host}?")
    except KubeError:
        pass
    else:
        if phase == "Lost":
            raise ClusterError(
                f"the claim {claim_name} must be bound, got Lost: its volume is gone; docs/cluster.md "
                "(Another volume) tells how to replace it"
            )
        if phase == "Pending":
            console.print(
                f"[yellow]the claim {claim_name} is not bound yet: steps wait until it is[/] "
                f"(kubectl -n {cluster.namespace} describe pvc {claim_name})",
                soft_wrap=True,
            )


def prepare(cluster: Cluster, placement: Placement) -> tuple[str, str, list[str]]:
    """Checks images and volume where possible, compiles and uploads.

    Returns:
        The ids of pipeline and version, and the names of the steps in their order.
    """
    assert cluster.health is not None
    if cluster.kind:
        kind.require_images({"runtime": placement.runtime, "launcher": placement.launcher})
    check_volume(cluster, placement.pvc)
    console.print(f"compiling for {placement.runtime}")
    with tempfile.TemporaryDirectory(prefix="kws-compiled-") as folder:  # others may compile at the same time
        package = compile_to(Path(folder) / "pipeline.yaml", placement)
        return *upload(cluster, package), steps_of_spec(package_spec(package))


def submit(
    cluster: Cluster, config: PipelineConfig, placement: Placement, *, name: str = ""
) -> tuple["V2beta1Run", list[str]]:
    """Starts a run.

    Without a name it gets the time.

    Returns:
        The run, and the names of its steps in their order.
    """
    pipeline_id, version_id, steps = prepare(cluster, placement)
    with contextlib.redirect_stdout(io.StringIO()):
        experiment = cluster.client.create_experiment(EXPERIMENT, namespace=cluster.user_namespace)
        started = cluster.client.run_pipeline(
            experiment.experiment_id,
            name or f"{EXPERIMENT}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
            params=config.arguments(),
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
    return started, steps


def find_run(cluster: Cluster, wanted: str) -> "V2beta1Run":
    """Finds a run by id, the beginning of its id, or its name.

    Raises:
        ValueError: there is no such run, or more than one.
    """
    listed = latest(cluster, 100)
    found = [r for r in listed if wanted in (r.run_id, r.display_name)]
    found = found or [r for r in listed if r.run_id.startswith(wanted)]
    if len(found) != 1:
        raise ValueError(
            f"run must be the id or name of one run (python -m pipeline runs lists them), got {wanted!r}, which "
            f"matches {len(found) or 'none'} of the last {len(listed)} runs"
        )
    return found[0]


def latest(cluster: Cluster, count: int) -> "list[V2beta1Run]":
    """Returns the latest runs."""
    listed = cluster.client.list_runs(page_size=count, sort_by="created_at desc", namespace=cluster.user_namespace)
    return list(listed.runs or [])


def table_of_runs(cluster: Cluster, count: int) -> Table:
    """Returns a table of the latest runs; the id, which other commands take, is never cut to the terminal's width."""
    table = Table(box=None, pad_edge=False)
    for name, width in (("id", 8), ("state", 9), ("started", 16), ("time", 12)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    listed = latest(cluster, count)
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
        ended = f"was {WORDS[state]}" if state == "CANCELED" else f"has {state.lower()}"
        raise ValueError(f"run must be running to be cancelled, got {found.display_name}, which {ended}")
    cluster.client.terminate_run(found.run_id)
    out.print(f"cancelled {found.display_name}")


def retry(cluster: Cluster, wanted: str) -> "V2beta1Run":
    """Starts a run again at the steps that failed or were stopped, and returns it.

    Raises:
        ValueError: there is no such run, it has not failed, or its schedule was deleted: Kubernetes would delete its
            workflow, too, and Kubeflow list it as running for ever.
    """
    found = find_run(cluster, wanted)
    if found.state not in ("FAILED", "CANCELED"):
        raise ValueError(
            f"run must have failed or been cancelled to be retried, got {found.display_name} ({outcome(found).lower()})"
        )
    if found.recurring_run_id:
        try:
            with kubeflow_errors():
                cluster.client.get_recurring_run(found.recurring_run_id)
        except NotFound:
            raise ValueError(
                f"run must not be of a schedule that was deleted, got {found.display_name}: its workflow goes with the "
                "schedule; make pipeline starts a new run"
            ) from None
    cluster.client.runs.run_service_retry_run(found.run_id)
    return found
