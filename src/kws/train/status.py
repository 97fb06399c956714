"""Reports progress to Kubeflow Trainer, which shows it as the TrainJob's `status.trainerStatus` (its KEP 2779).

Since release 2.2, if its feature gate for that is on, the controller gives the pods of a TrainJob an address to post
to, a token and a certificate, and names them in environment variables.
"""

import contextlib
import http.client
import json
import logging
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

URL, CERTIFICATE, TOKEN = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN"))
"""Environment variables of the controller: the address, and the files with its certificate and the token."""

SECONDS = 5.0
"""Least time between two reports."""

ANSWER_SECONDS = 5.0
"""How long the controller may take to answer."""


class Reporter(threading.Thread):
    """Posts the latest state of a training every few seconds, in a thread of its own: training never waits for it."""

    def __init__(self, url: str, certificate: str, token: str) -> None:
        super().__init__(name="status of the TrainJob", daemon=True)
        self.url, self.certificate, self.token = url, certificate, token
        self.started = time.monotonic()
        self.begun: float | None = None
        """The share of the run that was done when this process began it or resumed it."""
        self.latest: dict[str, Any] = {}
        self.metrics: Mapping[str, float] = {}
        self.changed, self.ended = threading.Event(), threading.Event()
        self.warned = False

    def update(self, share: float, metrics: Mapping[str, float] | None = None) -> None:
        """Takes note of the share of the run that is done, 0 to 1, and of the figures of a new epoch by name."""
        self.begun = share if self.begun is None else self.begun
        self.metrics = self.metrics if metrics is None else metrics
        found: dict[str, Any] = {"progressPercentage": int(100 * share)}
        if share > self.begun:
            left = (time.monotonic() - self.started) * (1 - share) / (share - self.begun)
            found["estimatedRemainingSeconds"] = round(left)
        found["metrics"] = [{"name": name, "value": f"{value:.6g}"} for name, value in self.metrics.items()]
        self.latest = found
        self.changed.set()

    def run(self) -> None:
        """Posts what has changed until the block of `reporting` ends, and the last state."""
        while not self.ended.is_set():
            self.changed.wait()
            self.changed.clear()
            self._post()
            self.ended.wait(SECONDS)
        if self.changed.is_set():
            self._post()

    def close(self) -> None:
        """Has the last state posted, and waits for that as long as an answer may take."""
        self.ended.set()
        self.changed.set()
        self.join(ANSWER_SECONDS)

    def _post(self) -> None:
        """Posts the latest state; what fails is logged once, as it costs only the display."""
        if not self.latest:
            return
        try:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = json.dumps({"trainerStatus": self.latest | {"lastUpdatedTime": now}}).encode()
            token = Path(self.token).read_text(encoding="utf-8").strip()  # read anew, as the kubelet renews it
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
            request = urllib.request.Request(self.url, body, headers)
            trusted = ssl.create_default_context(cafile=self.certificate or None)
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS, context=trusted):
                pass
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not self.warned:
                log.warning("the status of the TrainJob does not show the progress of training: %s", error)
            self.warned = True


@contextlib.contextmanager
def reporting(environment: Mapping[str, str]) -> Iterator[Reporter | None]:
    """Reports to the controller that an environment names, for a block; gives None where it names none."""
    if not environment.get(URL):
        yield None
        return
    reporter = Reporter(environment[URL], environment.get(CERTIFICATE, ""), environment.get(TOKEN, ""))
    reporter.start()
    try:
        yield reporter
    finally:
        reporter.close()
