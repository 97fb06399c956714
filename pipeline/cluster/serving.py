"""Deploys the champion on a cluster, lists the published versions, and rolls back."""

from collections.abc import Sequence

import yaml
from rich.table import Column, Table

from kws import files
from kws.launch.settings import CLAIM_VARIABLE
from kws.model import versions
from pipeline.cluster.follow import out
from pipeline.cluster.pull import Volume, reader_pod
from pipeline.shell import run

DEPLOYMENT = "kws-serving"
MANIFESTS = "manifests/serving"
READY_SECONDS = 300


def deploy(kubectl: Sequence[str], *, namespace: str, image: str, claim: str) -> None:
    """Applies manifests/serving with an image, and waits until its pods are ready.

    Args:
        kubectl: the command with its flags for the cluster.
        namespace: where the server runs; the claim must exist there.
        image: the image of the server.
        claim: the PersistentVolumeClaim with models/.

    Raises:
        ClusterError: the cluster refuses, or the pods do not become ready; the message says why.
    """
    run(
        *kubectl,
        "get",
        "persistentvolumeclaim",
        claim,
        "--namespace",
        namespace,
        remedy="the server mounts the volume of the pipeline: docs/cluster.md tells how to create it",
    )
    text = rendered(run("kubectl", "kustomize", MANIFESTS), namespace=namespace, image=image, claim=claim)
    run(*kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    out.print(f"waiting for {DEPLOYMENT} in {namespace}, {image}: up to {READY_SECONDS} s")
    run(
        *kubectl,
        "rollout",
        "status",
        f"deployment/{DEPLOYMENT}",
        "--namespace",
        namespace,
        f"--timeout={READY_SECONDS}s",
        timeout=READY_SECONDS + 30,
        remedy=f"kubectl -n {namespace} describe pods -l app.kubernetes.io/name={DEPLOYMENT} tells why; a server "
        "without a champion is not ready until there is one",
    )
    out.print(
        f"next: kubectl -n {namespace} port-forward service/{DEPLOYMENT} 8080:80, then http://localhost:8080",
        soft_wrap=True,
    )


def rendered(text: str, *, namespace: str, image: str, claim: str) -> str:
    """Puts namespace, image and claim into what kustomize rendered."""
    objects = list(yaml.safe_load_all(text))
    for thing in objects:
        thing["metadata"]["namespace"] = namespace
        if thing["kind"] == "Deployment":
            spec = thing["spec"]["template"]["spec"]
            spec["containers"][0]["image"] = image
            spec["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim
    return yaml.safe_dump_all(objects)


def table_of_models(volume: Volume) -> Table:
    """Lists the versions on a volume, the latest first, with their metrics and which is champion."""
    record: dict[str, object] = {}
    try:
        with volume.open(f"{versions.MODELS}/{versions.CHAMPION}") as file:
            record = versions.parse_champion(file.read(), versions.CHAMPION)
    except FileNotFoundError:
        pass
    except ValueError as error:
        out.print(f"[red]{error}[/]")
    whole = Column("version", overflow="fold")  # over two lines if need be, as rollback takes it
    short = [Column(name, no_wrap=True) for name in ("accuracy", "words", "preset")]
    table = Table(Column("", no_wrap=True), whole, *short, "files", box=None)
    for version in sorted(volume.names(versions.MODELS), reverse=True):
        if version.startswith(".") or version == versions.CHAMPION:
            continue
        try:
            with volume.open(f"{versions.MODELS}/{version}/{files.MANIFEST}") as file:
                manifest = versions.parse_manifest(file.read(), version)
        except FileNotFoundError:  # it is being published
            continue
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


def rollback(
    kubectl: list[str], *, image: str, claim: str, version: str, reason: str, by: str, model_registry: str = ""
) -> str:
    """Makes an earlier version champion on the volume of a cluster, in a pod that is deleted at the end.

    Args:
        kubectl: the command with its flags for cluster and namespace.
        image: an image with the command kws.
        claim: the PersistentVolumeClaim.
        version: the version; empty: the previous champion.
        reason: why.
        by: who decides.
        model_registry: address of a Model Registry in which to mark the champion; empty: none. The image must have
            the client.

    Returns:
        What `kws rollback` printed.
    """
    with reader_pod(kubectl, claim=claim, image=image, read_only=False) as volume:
        arguments = [f"--version={version}", f"--reason={reason}", f"--by={by}", f"--model-registry={model_registry}"]
        command = ["env", f"{CLAIM_VARIABLE}={claim}", "kws", "rollback", f"--data-root={volume.mount_path}"]
        # Warnings about the registry are on standard error, which `run` does not return.
        return run(*volume.exec, "sh", "-c", 'exec "$@" 2>&1', "sh", *command, *arguments).strip()
