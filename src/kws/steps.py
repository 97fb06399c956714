"""What all steps of the pipeline have in common: logging, and passing folders to later steps.

Large data stays on the volume. What is passed between steps is a small manifest, with the path of a complete folder,
the digest of the folder's own manifest.json, and a few figures for users.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from kws import files
from kws.command import settle_user
from kws.volume import use


def start() -> None:
    """Sends log messages of `kws` to the log of the step."""
    settle_user()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)


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

    Args:
        folder: a complete folder.
        artifact: path of the artifact.
        figures: counts and settings to show.

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
