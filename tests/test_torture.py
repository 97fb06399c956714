"""A small part of `python -m benchmarks.torture`."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_killed_steps_and_fuzzed_readers_survive_and_a_second_start_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.torture",
        "--only",
        "kill",
        "renames",
        "fuzz",
        "--steps",
        "download",
        "preprocess",
        "--moments",
        "2",
        "--seconds",
        "0.5",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads((tmp_path / "result.json").read_text())
    assert {name.split("/")[0] for name in trials} == {"kill", "renames", "fuzz"}
    assert {name.split("/")[1] for name in trials if name.startswith("renames")} == {"download", "preprocess"}
    assert set(trials.values()) == {""}
