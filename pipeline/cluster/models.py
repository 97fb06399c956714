"""The published versions on the volume of a cluster: listed, copied to this machine, served, rolled back to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from kws import files
from kws.launch.cluster_config import CLAIM_VARIABLE
from kws.model import versions
from pipeline import manifests
from pipeline.cluster.connect import Cluster
from pipeline.cluster.readiness import READY_SECONDS, wait_for_deployment
from pipeline.cluster.results import console, out
from pipeline.cluster.volumes import Volume, reader_pod
from pipeline.shell import ClusterError, run

CHAMPION = "champion"
DEPLOYMENT = "kws-serving"
NO_VERSIONS = (versions.CHAMPION, versions.CANDIDATES, versions.COMPARISON)
"""Files of models/."""


def pull(volume: Volume, to: Path, version: str = CHAMPION) -> Path:
    """Copies models/<version>/ of a volume to a folder of that name, and verifies the SHA-256 of every file.

    The folder appears only when it is complete and correct; after an interruption the copy starts over. A folder that
    is complete already is only verified. `version` may be champion, the one in use.

    Returns:
        The folder `to`/<version>.

    Raises:
        ValueError: there is no such version, or its manifest is damaged.
        ClusterError: a file is damaged or cannot be read.
    """
    if version == CHAMPION:
        champion = volume.read(f"models/{versions.CHAMPION}")
        if champion is None:
            raise ValueError(
                f"{_there_are(volume)}: there must be a champion, got none; make pipeline trains one, "
                "which must reach min_accuracy"
            )
        version = str(versions.parse_champion(champion, f"models/{versions.CHAMPION} on the volume")["version"])
    if not versions.is_name(version):
        raise ValueError(f"version must be the name of a folder of models/, got {version!r}")
    text = volume.read(f"models/{version}/{files.MANIFEST}")
    if text is None:
        raise ValueError(f"version must be one of those on the volume ({_there_are(volume)}), got {version!r}")
    manifest = versions.parse_manifest(text, f"{files.MANIFEST} of {version}")
    digests: dict[str, str] = manifest["files"]

    def build(staging: Path) -> None:
        for name, digest in digests.items():
            _copy(volume, f"models/{version}/{name}", staging / name, digest)
        files.write_json(staging / files.MANIFEST, manifest)

    folder = to / version
    to.mkdir(parents=True, exist_ok=True)
    if not files.build_folder(folder, build):
        for name, digest in digests.items():
            found = files.sha256_of(folder / name) if (folder / name).is_file() else "no file"
            if found != digest:
                raise ClusterError(
                    f"{folder / name} must have the sha256 {digest}, got {found}; delete {folder} and start again"
                )
    return folder


def _there_are(volume: Volume) -> str:
    found = [name for name in volume.names("models") if not name.startswith(".") and name not in NO_VERSIONS]
    return f"versions: {', '.join(found)}" if found else "no version was published yet"


def _copy(volume: Volume, path: str, target: Path, digest: str) -> None:
    """Copies a file and verifies its digest."""
    content = volume.read(path)
    if content is None:
        raise FileNotFoundError(f"{path} must be on the volume, got none; publish the version again")
    target.write_bytes(content)
    found = files.sha256_of(target)
    if found != digest:
        raise ClusterError(
            f"{path} must have the sha256 {digest}, got {found}; start again, or publish the version again"
        )
    console.print(f"{target.name}  {files.human_bytes(target.stat().st_size)}  sha256 {digest}", soft_wrap=True)


def serving(*, image: str, namespace: str, claim: str, collect: bool = False, shadow: str = "") -> list[dict[str, Any]]:
    """Returns the objects of the server; see `deploy`."""
    folder = "serving-collect" if collect else "serving"
    things = manifests.rendered(folder, {"serving": image}, namespace=namespace, claim=claim)
    for thing in things:
        if shadow and thing["kind"] == "Deployment":
            thing["spec"]["template"]["spec"]["containers"][0]["args"] += ["--shadow", shadow]
    return things


def deploy(cluster: Cluster, *, image: str, claim: str, collect: bool = False, shadow: str = "") -> None:
    """Applies manifests/serving or serving-collect with an image, and waits until its pods are ready.

    With `collect` the server keeps what it hears, for review. `shadow` is a version, or `candidate`, that hears what
    the champion hears.

    Raises:
        ClusterError: the cluster refuses, or the pods do not become ready; the message says why.
    """
    cluster.claim(claim)
    things = serving(image=image, namespace=cluster.namespace, claim=claim, collect=collect, shadow=shadow)
    manifests.apply(cluster.kubectl, things)
    out.print(f"waiting for {DEPLOYMENT} in {cluster.namespace}, {image}: up to {READY_SECONDS} s", soft_wrap=True)
    wait_for_deployment(cluster.kubectl, DEPLOYMENT, "a server without a champion is not ready until there is one")
    out.print(
        f"next: kubectl -n {cluster.namespace} port-forward service/{DEPLOYMENT} 8080:80, then http://localhost:8080"
        + (", and /review for what it heard" if collect else ""),
        soft_wrap=True,
    )


def table_of_models(volume: Volume) -> Table:
    """Lists the versions on a volume, the latest first, with their metrics and which is champion."""
    record: dict[str, object] = {}
    try:
        if (champion := volume.read(f"{versions.MODELS}/{versions.CHAMPION}")) is not None:
            record = versions.parse_champion(champion, versions.CHAMPION)
    except ValueError as error:
        out.print(f"[red]{error}[/]")
    whole = Column("version", overflow="fold")  # over two lines if need be, as rollback takes it
    short = [Column(name, no_wrap=True) for name in ("accuracy", "words", "preset")]
    table = Table(Column("", no_wrap=True), whole, *short, "files", box=None)
    for version in sorted(volume.names(versions.MODELS), reverse=True):
        if version.startswith(".") or version in NO_VERSIONS:
            continue
        text = volume.read(f"{versions.MODELS}/{version}/{files.MANIFEST}")
        if text is None:  # it is being published
            continue
        try:
            manifest = versions.parse_manifest(text, version)
        except ValueError as error:
            table.add_row("[red]✗[/]", version, str(error))
            continue
        is_champion = record.get("version") == version
        accuracy = manifest.get("accuracy")
        if is_champion:
            table.caption = f"champion since {record.get('since')}, by {record.get('by')}: {record.get('reason')}"
            table.caption_justify = "left"
        table.add_row(
            "[green]champion[/]" if is_champion else "",
            version,
            f"{accuracy:.2%}" if accuracy is not None else "",
            str(len(manifest.get("words", []))),
            str(manifest.get("about", {}).get("preset", "")),
            ", ".join(name.removeprefix("model.") for name in manifest["files"] if name.startswith("model.")),
        )
    return table


def table_of_candidate(volume: Volume) -> Table:
    """Returns a table of the candidate on a volume beside the champion.

    Raises:
        ValueError: none waits, or the file is damaged.
    """
    path = f"{versions.MODELS}/{versions.CANDIDATES}"
    found = versions.waiting(versions.parse_proposals(volume.read(path) or b'{"proposals": []}', path))
    table = Table("word", "clips", "candidate", "champion", box=None)
    for row in found["words"]:
        table.add_row(row["word"], str(row["num_clips"]), *(f"{recall:.1%}" for recall in row["recall"]))
    table.title = f"candidate {found['version']}, champion {found['against'] or 'none'}, since {found['since']}"
    table.caption, table.caption_justify = str(found["reason"]), "left"
    return table


def call_kws(cluster: Cluster, command: str, arguments: Sequence[str], *, image: str, claim: str) -> str:
    """Runs a command of kws with the volume of a cluster as its data root, in a pod that is deleted at the end.

    The image needs the command kws, and for a Model Registry its client.

    Returns:
        What it printed.
    """
    with reader_pod(cluster, claim=claim, image=image, read_only=False) as volume:
        call = ["env", f"{CLAIM_VARIABLE}={claim}", "kws", command, f"--data-root={volume.mount_path}"]
        # Warnings about the registry are on standard error, which `run` does not return.
        return run(*volume.exec, "sh", "-c", 'exec "$@" 2>&1', "sh", *call, *arguments).strip()
