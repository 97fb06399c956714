"""Every command of kws when nobody reads its output, or the disk behind it is full."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""Unbuffered, argparse itself hides that its help could not be written."""


def ends(command: str) -> tuple[str, list[int], str]:
    """Prints the help of a command into a closed pipe, and onto a full disk; returns the statuses and what was said."""
    statuses, said = [], ""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, os.fdopen(writer, "wb") as closed:
        for output in (closed, full):
            done = subprocess.run([sys.executable, "-m", "kws.cli", *command.split(), "--help"], cwd=ROOT,
                                  env=ENVIRONMENT, stdout=output, stderr=subprocess.PIPE, text=True)  # fmt: skip
            statuses.append(done.returncode)
            said += done.stderr
    return command, statuses, said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_every_command_ends_with_141_at_a_closed_pipe_and_with_one_line_at_a_full_disk() -> None:
    text = subprocess.run([sys.executable, "-m", "kws.cli", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    commands = re.findall(r"^    ([a-z][a-z0-9-]+)(?:\s|$)", text, re.MULTILINE)
    assert len(commands) >= 10
    with ThreadPoolExecutor(2) as pool:
        for name, statuses, said in pool.map(ends, ["", *commands]):
            full = "error: [Errno 28] No space left on device; free some space and start again: what is done is kept\n"
            assert (statuses, said) == ([141, 2], full), name
