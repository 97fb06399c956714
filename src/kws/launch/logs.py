"""Prints the log of a pod line by line while it runs, across restarts and broken connections."""

import collections
import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kws.launch.kubernetes_api import is_transient, retry

NUM_LAST_LINES = 10
"""Number of lines of a failed pod's log that the error quotes; the last is the trainer's own error."""

NUM_PRINTED = 2000
"""Number of lines that are remembered, to be skipped when they come again."""

AGAIN_SECONDS = 2.0
"""Seconds before a log that broke off is opened again."""


def text_of(line: str) -> str:
    """Returns a log line without the timestamp that the kubelet wrote before it."""
    return re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d) ?", "", line)


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Joins the chunks of a stream and yields each line as soon as it is complete."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


class LogFollower(threading.Thread):
    """Thread that prints the log of a pod line by line until the pod ends, across restarts and broken connections."""

    def __init__(self, core: Any, pod: Mapping[str, Any], container: str, node: int) -> None:
        about = pod["metadata"]
        super().__init__(name=f"log of {about['name']}", daemon=True)
        self.core, self.container, self.node = core, container, node
        self.pod, self.namespace, self.uid = about["name"], about["namespace"], about["uid"]
        self.last_lines: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)
        self.printed: collections.deque[str] = collections.deque(maxlen=NUM_PRINTED)
        self.read_at = 0.0
        self.again = False
        """Whether lines that were printed before may come again, as after a broken connection."""

    def run(self) -> None:
        """Prints until the pod has ended and its log has been read to the end."""
        while True:
            read_to_end = self._read()
            if self._ended() and read_to_end:
                return
            time.sleep(AGAIN_SECONDS)

    def _read(self) -> bool:
        """Prints new lines until the container ends; returns whether it read to the end."""
        from kubernetes.client import ApiException

        # The API can skip old lines by whole seconds only; _print skips the rest.
        since = {"since_seconds": int(time.monotonic() - self.read_at) + 5} if self.printed else {}
        self.again = bool(since)
        try:
            response = self.core.read_namespaced_pod_log(
                self.pod,
                self.namespace,
                container=self.container,
                follow=True,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(30, 300),
                **since,
            )
            # If a log is silent for 300 s, its connection may have died unnoticed, so it is opened again.
            with contextlib.closing(response):
                for line in split_lines(response.stream(amt=None, decode_content=False)):
                    self._print(line)
        except ApiException as error:
            return not is_transient(error)  # there is no log yet, or no longer
        except Exception as error:
            if not is_transient(error):
                raise
            return False
        return True

    def _print(self, line: str) -> None:
        self.read_at = time.monotonic()
        if self.again and line in self.printed:  # times tell less, as the clock of the node may go back
            return
        self.again = False
        self.printed.append(line)
        text = text_of(line)
        self.last_lines.append(text)
        # One write per line, as the threads of other pods write too.
        sys.stdout.write(f"[{self.node}] {text}\n")
        sys.stdout.flush()

    def _ended(self) -> bool:
        from kubernetes.client import ApiException

        try:
            pod = retry(lambda: self.core.read_namespaced_pod(self.pod, self.namespace, _request_timeout=60))
        except ApiException as error:
            if error.status == 404:
                return True
            raise
        return pod.metadata.uid != self.uid or pod.status.phase in ("Succeeded", "Failed")
