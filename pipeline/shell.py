"""Runs external programs: Docker, kubectl, kind, git."""

import os
import re
import subprocess
from pathlib import Path

from kws.command import CommandFailed
from kws.kube.log_lines import LineSorter

ROOT = Path(__file__).resolve().parent.parent
"""The root of the repository."""


class ClusterError(CommandFailed):
    """Something outside this program is not as required; the message says what, and names the remedy."""


_AWAY = re.compile(r"The connection to the server .* was refused|Unable to connect to the server")


def docker() -> str:
    """Returns the Docker client: the one that the environment variable DOCKER names, or docker."""
    return os.environ.get("DOCKER") or "docker"


def run(*command: str, remedy: str = "", stdin: str | None = None, timeout: float | None = None) -> str:
    """Runs a program in the root of the repository and returns what it printed.

    Raises:
        ClusterError: the program is not installed, did not end in time or failed; the message has its own output.
    """
    hint = f"; {remedy}" if remedy else ""
    try:
        done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} must be installed and on PATH, got none{hint}") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(command[:3])} must answer within {timeout:g} s, got nothing{hint}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        # kubectl logs each attempt at a connection, and warns.
        lines = [each for each in LineSorter().own(lines) if not each.startswith("Warning:")] or lines
        if command[0] == "kubectl" and _AWAY.match(lines[-1]):
            raise ClusterError(
                f"a cluster must answer, got: {lines[-1]}; make kind-up creates one here, KUBECONFIG "
                f"names an existing one{hint}"
            )
        # The reason comes first or last: kubectl shows the difference of an object that it may not change behind it.
        said = " ".join(lines if len(lines) <= 3 else [lines[0], "…", *lines[-2:]])
        raise ClusterError(f"{' '.join(command[:3])} must succeed, got status {done.returncode}: {said}{hint}")
    return done.stdout


def stream(*command: str, remedy: str = "", env: dict[str, str] | None = None) -> None:
    """Runs a program that shows its own progress, in the root of the repository.

    Raises:
        ClusterError: the program is not installed, or failed.
    """
    hint = f"; {remedy}" if remedy else ""
    try:
        status = subprocess.run(command, cwd=ROOT, env=os.environ | (env or {})).returncode
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} must be installed and on PATH, got none{hint}") from None
    if status:
        raise ClusterError(f"{' '.join(command[:3])} must succeed, got status {status} (see above){hint}")
