"""What all steps of the pipeline have in common: logging, and passing folders to later steps.

Large data stays on the volume. What is passed between steps is a small manifest, with the path of a complete folder,
the digest of the folder's own manifest.json, and a few figures for users.
"""

import contextlib
import logging
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kws import files, outcomes
from kws.command import settle_user
from kws.volume import use


def start(step: str) -> None:
    """Sends log messages of `kws` to the log of the step, and has it noted how the step ends if somebody is told."""
    settle_user()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    outcomes.begin(step)


def used() -> dict[str, float]:
    """Returns what this process and its finished children have used: CPU seconds, peak memory and data moved, in MB.

    A MB is 10^6 bytes: Kubeflow's UI shows figures as they are, and bytes would have nine digits. Peak memory is that
    of the largest process. Data is that of a disk or of a network's file system: what the page cache had is not
    counted, and nothing is where /proc does not tell.
    """
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in usages), 1),
        "peak_memory_mb": round(max(one.ru_maxrss for one in usages) * unit / 1e6, 1),
    }
    with contextlib.suppress(OSError):
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        found |= {"read_mb": round(float(counts["read_bytes"]) / 1e6, 1)}
        found |= {"written_mb": round(float(counts["write_bytes"]) / 1e6, 1)}
    return found


def log_metrics(metrics: Any, figures: Mapping[str, float], usage: Mapping[str, float] | None = None) -> None:
    """Makes figures and what a step used its metrics: the metadata, which Kubeflow's UI shows, and a file for previews.

    `metrics` is an output of kfp's type Metrics; without `usage` it is what `used` returns.
    """
    shown = {**figures, **(usage or used())}
    metrics.metadata.update(shown)
    files.write_json(Path(metrics.path), shown)


def storable(value: Any) -> Any:
    """Returns JSON with its texts as Kubeflow's database takes them.

    Its MySQL connection has the character set utf8, of three bytes a character: others, such as emoji and rare Chinese
    characters, are written U+1F44D.
    """
    if isinstance(value, str):
        return "".join(char if ord(char) <= 0xFFFF else f"U+{ord(char):X}" for char in value)
    if isinstance(value, dict):
        return {storable(name): storable(one) for name, one in value.items()}
    return [storable(one) for one in value] if isinstance(value, list) else value


def hand_over(folder: Path, artifact: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Writes a manifest that refers to a folder, as the artifact of a step.

    Returns:
        The content of the manifest as the metadata of the artifact.
    """
    use(folder.parents[1], folder)
    manifest = {"path": str(folder), "sha256": files.sha256_of(folder / files.MANIFEST)} | figures
    files.write_json(Path(artifact), manifest)
    return {str(name): storable(value) for name, value in manifest.items()}


def receive(artifact: str) -> Path:
    """Returns the folder to which a manifest of `hand_over` refers.

    Raises:
        ValueError: the folder does not exist, is not complete, or has changed.
    """
    manifest = files.read_object(Path(artifact), path=str, sha256=str)
    folder = Path(manifest["path"])
    if not use(folder.parents[1], folder):
        raise ValueError(
            f"the folder of {artifact} must be on the volume, got {folder}, which is missing or incomplete; run the "
            "step before again"
        )
    if files.sha256_of(folder / files.MANIFEST) != manifest["sha256"]:
        raise ValueError(
            f"{folder} must be as the step before left it, got another {files.MANIFEST}; run the step before again"
        )
    return folder
