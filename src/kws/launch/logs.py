"""Shows the log of a pod line by line while it runs, through restarts and cut connections."""

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
"""Lines of a failed pod's log that the error quotes; the last is the trainer's own error."""

AGAIN_SECONDS = 2.0
"""Before a log that broke off is opened again."""


def split_timestamp(line: str) -> tuple[str, str]:
    """Splits a line of a log into its time, written so that later times sort behind, and its text.

    The kubelet leaves out zeros at the end of the fraction of a second.
    """
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|[+-]\d\d:\d\d) ?", line)
    if match is None:
        return "", line
    seconds, fraction = match.groups()
    return f"{seconds}.{(fraction or '').ljust(9, '0')}", line[match.end() :]


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Splits a stream into lines, wherever it was cut, and gives each as soon as it is whole."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


class LogFollower(threading.Thread):
    """Prints the log of one pod line by line until the pod has ended, through restarts and cut connections."""

    def __init__(self, core: Any, pod: Mapping[str, Any], container: str, node: int) -> None:
        about = pod["metadata"]
        super().__init__(name=f"log of {about['name']}", daemon=True)
        self.core, self.container, self.node = core, container, node
        self.pod, self.namespace, self.uid = about["name"], about["namespace"], about["uid"]
        self.last_lines: collections.deque[str] = collections.deque(maxlen=NUM_LAST_LINES)
        self.last_time = ""
        self.read_at = 0.0

    def run(self) -> None:
        """Prints until the pod has ended and all was read."""
        while True:
            read_to_end = self._read()
            if self._ended() and read_to_end:
                return
            time.sleep(AGAIN_SECONDS)

    def _read(self) -> bool:
        """Prints what is new, waiting for more until the container ends; returns whether it read to the end."""
        from kubernetes.client import ApiException

        # The API can skip what is old by whole seconds only; the rest is skipped by the times of the lines.
        since = {"since_seconds": int(time.monotonic() - self.read_at) + 5} if self.last_time else {}
        try:
            response = self.core.read_namespaced_pod_log(
                self.pod, self.namespace, container=self.container, follow=True, timestamps=True,
                _preload_content=False, _request_timeout=(30, 300), **since,
            )  # fmt: skip
            # A log that is silent for 300 s may be a connection that died unnoticed: it is opened again.
            with contextlib.closing(response):
                for line in split_lines(response.stream(amt=None, decode_content=False)):
                    self._print(line)
        except ApiException as error:
            return not is_transient(error)  # has no log yet, or none any more
        except Exception as error:
            if not is_transient(error):
                raise
            return False
        return True

    def _print(self, line: str) -> None:
        when, text = split_timestamp(line)
        self.read_at = time.monotonic()
        if when and when <= self.last_time:
            return
        self.last_time = when or self.last_time
        self.last_lines.append(text)
        # One write for a line: the threads of other pods write too.
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
