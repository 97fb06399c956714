"""A real server, as a process of the command line."""

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
from typing import Any


class Server:
    """A process of `kws serve`, its addresses and its log."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kws.cli",
                "serve",
                "--port",
                "0",
                "--grpc-port",
                "0",
                "--poll-seconds",
                "0.1",
                "--drain-seconds",
                "0.2",
                *arguments,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
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
        return self.send(
            urllib.request.Request(self.url + path, data, {"content-type": "application/json"} | (headers or {}))
        )

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
