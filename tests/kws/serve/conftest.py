"""Real servers, as processes of the command line, over small real models."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kws import files
from kws.model import onnx, versions
from kws.model.bundle import Recognizer


class Server:
    """A process of `kws serve`, its addresses and its log."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kws.cli", "serve", "--port", "0", "--grpc-port", "0", "--poll-seconds", "0.1",
             "--drain-seconds", "0.2", *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.log: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.url = self.wait_for(r"(http://127\.0\.0\.1:\d+)")
        self.grpc = self.wait_for(r"gRPC at (\S+)")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """Waits for a line of the log, and returns what the pattern's group found."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in list(self.log):
                if found := re.search(pattern, line):
                    return found[1] if found.groups() else found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern} in {''.join(self.log)}")

    def get(self, path: str) -> tuple[int, Any]:
        """Gets a page: its status and what its JSON says, or its text."""
        return self.send(urllib.request.Request(self.url + path))

    def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Posts JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(urllib.request.Request(
            self.url + path, data, {"content-type": "application/json"} | (headers or {})
        ))  # fmt: skip

    def infer(self, *inputs: dict[str, Any], **more: Any) -> tuple[int, Any]:
        """Posts a request for inference."""
        return self.post("/v2/models/kws/infer", {"inputs": list(inputs)} | more)

    @staticmethod
    def send(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode(errors="replace")

    def stop(self) -> int:
        """Sends SIGTERM and waits for the end."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._thread.join(5)
        return status


Start = Callable[..., Server]


@contextlib.contextmanager
def started() -> Iterator[Start]:
    """Gives a function that starts servers, which are ended."""
    servers: list[Server] = []

    def start(*arguments: object) -> Server:
        servers.append(Server(*map(str, arguments)))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def start() -> Iterator[Start]:
    with started() as start:
        yield start


@pytest.fixture(scope="session")
def expert_onnx(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that tells the tones apart, as a file. Read only."""
    path = tmp_path_factory.mktemp("expert") / "model.onnx"
    onnx.export(expert, path)
    return path


@pytest.fixture(scope="session")
def server(expert_onnx: Path) -> Iterator[Server]:
    """A server of that file, for tests that leave it as it is."""
    with started() as start:
        yield start("--model", expert_onnx)


def publish(data_root: Path, version: str, model: Path, champion: bool = True) -> Path:
    """Publishes a file as a version by hand, as `promote` does but for all else that it writes."""
    folder = data_root / "models" / version
    folder.mkdir(parents=True)
    (folder / versions.ONNX).write_bytes(model.read_bytes())
    files.write_json(folder / files.MANIFEST, {
        "schema": 2, "version": version, "files": {versions.ONNX: files.sha256_of(folder / versions.ONNX)},
    })  # fmt: skip
    if champion:
        versions.appoint(data_root, version, 1.0, by="a test", reason="")
    return folder
