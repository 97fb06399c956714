"""A run of the whole pipeline that is killed, on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kws import files
from kws.download.synthesize import synthesize

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_killed_while_training_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    synthesize(corpus, words=["yes", "no", "stop"], clips_per_word=30)
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        "--source",
        corpus,
        "--data-root",
        tmp_path,
        "--words",
        "auto",
        "--batch-size",
        "16",
        "--epochs",
        "4",
    ]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        end = time.monotonic() + 100
        while not list(tmp_path.glob("runs/*/checkpoints/step-*.pth")):
            assert time.monotonic() < end, "waited too long"
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    (run,) = tmp_path.glob("runs/*")
    assert not files.is_complete(run)
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
    assert list(tmp_path.glob("runs/*")) == [run]
    assert files.read_json(run / files.MANIFEST)["epochs"] == 4
