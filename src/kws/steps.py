"""What every step of the pipeline does besides its work: logging, and handing folders on.

The big things stay on the volume. What travels between steps is a small manifest: the path of a complete folder, the
digest of its own manifest.json, and a few figures for people.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from kws import files
from kws.command import settle_user


def start() -> None:
    """Makes messages of `kws` appear in the log of the step."""
    settle_user()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)


def hand_over(folder: Path, artifact: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest that stands for a folder.

    Args:
        folder: a complete folder.
        artifact: the file to write.
        figures: counts and settings to show.

    Returns:
        What was written, the metadata of the artifact.
    """
    manifest = {"path": str(folder), "sha256": files.sha256_of(folder / files.MANIFEST)} | figures
    files.write_json(Path(artifact), manifest)
    return manifest


def receive(artifact: str) -> Path:
    """Returns the folder that a manifest stands for.

    Raises:
        ValueError: the folder is gone, or is not the one that was handed over.
    """
    manifest = files.read_object(Path(artifact), path=str, sha256=str)
    folder = Path(manifest["path"])
    if not files.is_complete(folder):
        raise ValueError(f"the folder of {artifact} must be on the volume, got {folder}, which is not there (or half)")
    if files.sha256_of(folder / files.MANIFEST) != manifest["sha256"]:
        raise ValueError(f"{folder} must be as the step before left it, got another {files.MANIFEST}; run that again")
    return folder
