"""Runs the steps in containers on this machine, for `--runner docker` of `pipeline.local`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kws import outcomes
from kws.config import PipelineConfig, is_path, split_sources
from kws.download.credentials import variables
from pipeline.kind.docker_images import inspect

if TYPE_CHECKING:
    from kfp.local import DockerRunner


def local_runner(config: PipelineConfig, outputs: Path, image: str) -> "DockerRunner":
    """Prepares containers that run the steps on this machine as a cluster would: not as root, with only /tmp and the
    data root writable.

    The data root and a local source have the same path inside the containers as outside.

    Raises:
        ClusterError: the image is not there.
        ValueError: the data root cannot be written by the user of the containers.
    """
    from docker.types import Mount
    from kfp.local import DockerRunner

    inspect([image])
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        user = group = 1000  # the user of the images
        for folder in (Path(config.data_root), outputs.parent, outputs):
            os.chown(folder, user, group)
    for folder in (Path(config.data_root), *Path(config.data_root).iterdir()):
        if folder.stat().st_uid != user:
            raise ValueError(
                f"data_root must belong to user {user}, who runs the containers, got {folder} of user "
                f"{folder.stat().st_uid}; choose another folder, or sudo chown -R {user} it"
            )
    mounts = [Mount(config.data_root, config.data_root, type="bind")]
    sources = split_sources(config.source)
    for source in filter(is_path, sources):
        found = Path(source).stat()
        if found.st_uid != user and not found.st_mode & 0o004:
            raise ValueError(
                f"source must be readable for user {user}, who runs the containers, got one that only "
                f"user {found.st_uid} can read; chmod -R o+rX {source}"
            )
        mounts.append(Mount(source, source, type="bind", read_only=True))
    here = any(urlsplit(source).hostname in ("127.0.0.1", "localhost") for source in sources)
    return DockerRunner(
        user=f"{user}:{group}",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        mounts=mounts,
        environment=variables(os.environ)
        | {name: os.environ.get(name, "") for source in sources if (name := source.removeprefix("env:")) != source}
        | {outcomes.RUN: outputs.name, outcomes.ADDRESS: os.environ.get(outcomes.ADDRESS, "")},
        shm_size="1g",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        network_mode="host" if here else "bridge",
    )
