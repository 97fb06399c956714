"""`kws serve` against a bare loop of onnxruntime: the server on one core, its clients on the others."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.latency import FEATURES, untrained
from benchmarks.measure import Effort, Row
from kws.model import onnx

CLIP = np.random.default_rng(0).normal(0, 0.1, (1, FEATURES.num_samples)).astype(np.float32)
HEAD = json.dumps(
    {
        "inputs": [
            {
                "name": "waveforms",
                "datatype": "FP32",
                "shape": [1, FEATURES.num_samples],
                "parameters": {"binary_data_size": CLIP.nbytes},
            }
        ]
    }
).encode()
HEADERS = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(HEAD))}
CONNECTIONS = 8


def throughput(effort: Effort) -> Row:
    """Clips per second over 8 connections with one clip per request, against clips per second of the loop."""
    with _server() as (port, model):
        rates = measure.in_turns(lambda: _asked(port, effort), lambda: _bare(model, effort), effort.repeats)
    return Row(row="serving_vs_bare", goal=0.8, unit="clips/s", **rates)


def tail(effort: Effort) -> Row:
    """The 99th percentile of latency in ms at half the throughput of the loop, against the loop's time for a clip."""
    with _server() as (port, model):
        rate = _bare(model, effort)
        latencies = _paced(port, rate / 2, 2.0 * effort.steps)
        ours, other = 1000 * float(np.percentile(latencies, 99)), 1000 / rate
    return Row(row="serving_p99_vs_bare", goal=5, at_most=True, unit="ms", ours=ours, other=other)


@contextlib.contextmanager
def _server() -> Iterator[tuple[int, Path]]:
    """Runs the server on one core and leaves the others to this process."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        onnx.export(untrained(), model)
        process = subprocess.Popen(
            [
                "taskset",
                "-c",
                str(cores[0]),
                sys.executable,
                "-m",
                "kws.cli",
                "serve",
                "--model",
                model,
                "--port",
                "0",
                "--grpc-port",
                "-1",
                "--drain-seconds",
                "0",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    break
            os.sched_setaffinity(0, cores[1:] or cores)
            yield int(found[1]), model  # type: ignore[index]
        finally:
            os.sched_setaffinity(0, cores)
            process.terminate()
            process.wait()


def _bare(model: Path, effort: Effort) -> float:
    """Clips per second of a loop that only runs the model, on one core."""
    recognizer = onnx.load(model, num_threads=1)
    recognizer.predict(CLIP)
    started, times = time.perf_counter(), 25 * effort.steps
    for _ in range(times):
        recognizer.predict(CLIP)
    return times / (time.perf_counter() - started)


def _ask(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/v2/models/kws/infer", HEAD + CLIP.tobytes(), HEADERS)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content


def _asked(port: int, effort: Effort) -> float:
    """Clips per second over connections that send a request as soon as they have an answer."""
    counts = [0] * CONNECTIONS
    ends = time.perf_counter() + 0.5 * effort.steps

    def run(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < ends:
            _ask(connection)
            counts[index] += 1

    started = time.perf_counter()
    _together(run)
    return sum(counts) / (time.perf_counter() - started)


def _paced(port: int, rate: float, seconds: float) -> list[float]:
    """Latency of each request in seconds, counted from when it was due, at a rate of requests per second."""
    found: list[float] = []
    begin = time.perf_counter() + 0.2

    def run(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for number in range(index, int(rate * seconds), CONNECTIONS):
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            _ask(connection)
            found.append(time.perf_counter() - due)

    _together(run)
    return found


def _together(run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(index,)) for index in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
