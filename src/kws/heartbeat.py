"""A heartbeat on the volume: a file that one process changes every so often, by which others know that it lives.

Clocks of different machines are never compared: a watcher measures by its own clock how long the content has not
changed. Once that is too long, it copies the content to a second file, `<name>-ended`, so that a watcher which starts
later knows at once.

The train step keeps one, its lease, and the pods of its job watch it, so that a job does not outlive its step. A step
that was killed cannot delete its job. The pods go on training until the lease expires, so that a retry of the step
finds its job running and adopts it; after that they end with a checkpoint. It is on the volume so that it is renewed
even while the Kubernetes API is unavailable.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from pathlib import Path

from kws import files

log = logging.getLogger(__name__)

LEASE = ".lease"
"""The heartbeat of a train step, in the run folder."""

BEAT_SECONDS = 30.0


class Heartbeat:
    """Context manager that changes a file in a thread, and deletes it at the end of the block."""

    def __init__(self, path: Path, every: float = BEAT_SECONDS) -> None:
        self.path, self.every = path, every
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._keep, name=f"heartbeat {path}", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat()  # an error ends this process, before anyone watches
        self.thread.start()
        return self

    def _beat(self) -> None:
        # In place, so that a full volume does not end the heartbeat.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, uuid.uuid4().hex.encode())
        finally:
            os.close(descriptor)

    def _keep(self) -> None:
        while not self.done.wait(self.every):
            try:
                self._beat()
            except OSError as error:
                log.warning("%s could not be renewed, trying again: %s", self.path, error)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        for path in (self.path, _ended(self.path)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class Watch:
    """Watches the heartbeat of another process, on this machine or another."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.seen = b""
        self.since = time.monotonic()

    def has_ended(self) -> bool:
        """Tells whether the heartbeat has not changed for `seconds`; false if there is none."""
        try:
            content, ended = _content(self.path), _content(_ended(self.path))
        except OSError:  # the volume is unavailable, which counts as no change
            content, ended = self.seen, None
        if content is None:  # a job that was started by hand has no lease
            self.since = time.monotonic()
            return False
        if content == ended:
            return True
        if content != self.seen:
            self.seen, self.since = content, time.monotonic()
        if time.monotonic() - self.since <= self.seconds:
            return False
        with contextlib.suppress(OSError):
            files.write(_ended(self.path), self.seen)
        return True


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _ended(path: Path) -> Path:
    return path.with_name(f"{path.name}-ended")
