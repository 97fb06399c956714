"""The log of a container, line by line, across restarts and broken connections."""

import collections
import math
import re
import time
from collections.abc import Iterable, Iterator

from kws.kube.client import PODS, Api

NUM_SEEN = 2000
"""Number of lines that are remembered, to be skipped when they come again."""

SILENT_SECONDS = 300
"""Seconds without a line after which a connection may have died unnoticed, and is opened anew."""

_STAMPED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)


class PodLog:
    """The log of a container of a pod, which every call reads on from where the one before ended."""

    def __init__(self, api: Api, namespace: str, pod: str, container: str) -> None:
        self.api, self.container = api, container
        self.path = f"{PODS.path(namespace, pod)}/log"
        self.seen: collections.deque[str] = collections.deque(maxlen=NUM_SEEN)
        self.read_at = 0.0

    def read(self, follow: bool = False) -> Iterator[str]:
        """Yields the new lines; with `follow`, waits for more until the container ends.

        Raises:
            KubeError: there is no log yet, or no longer, or no answer.
        """
        query: dict[str, object] = {"container": self.container, "timestamps": True}
        if follow:
            query["follow"] = True
        # The API can leave out old lines by whole seconds only; those that come again are skipped below. The times of
        # the lines tell less, as the clock of a node may go back.
        if skipping := bool(self.seen):
            query["sinceSeconds"] = math.ceil(time.monotonic() - self.read_at) + 5
        with self.api.stream(self.path, SILENT_SECONDS if follow else 20, **query) as pieces:
            for line in split_lines(pieces):
                self.read_at = time.monotonic()
                # The kubelet stamps the lines of a container; its own complaints have no time.
                if (stamped := _STAMPED.fullmatch(line)) is None or (skipping and line in self.seen):
                    continue
                skipping = False
                self.seen.append(line)
                yield stamped[1]


def split_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Joins the pieces of a stream and yields each line as soon as it is complete."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
