"""Whether anybody still waits for a training: a lease on the volume, which the step renews and the pods watch.

A step that was killed cannot delete its job. The pods train on for as long as the lease lasts, so that a step that is
tried again finds its job at work and adopts it; then they end with a checkpoint. A lease is a file whose content
changes. Nobody compares clocks: a pod counts by its own how long it has seen no change, and leaves what it saw last in
a second file, so that a pod that is started again after that ends at once.
"""

import contextlib
import logging
import threading
import time
import uuid
from pathlib import Path

from kws import files

log = logging.getLogger(__name__)

LEASE, ENDED = ".lease", ".lease-ended"
RENEW_SECONDS = 30.0


class LeaseKeeper:
    """Renews the lease of a run for as long as a block lasts, in a thread of its own, and gives it up at its end.

    The API may be away for minutes: the lease, which is on the volume, is renewed all the same.
    """

    def __init__(self, run: Path, every: float = RENEW_SECONDS) -> None:
        self.run, self.every = run, every
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._keep, name=f"lease of {run.name}", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        files.write_json(self.run / LEASE, uuid.uuid4().hex)  # before the job is there; an error is the step's
        self.thread.start()
        return self

    def _keep(self) -> None:
        while not self.done.wait(self.every):
            try:
                files.write_json(self.run / LEASE, uuid.uuid4().hex)
            except OSError as error:
                log.warning("the lease of the training job could not be renewed, trying again: %s", error)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        with contextlib.suppress(OSError):
            give_up(self.run)


def give_up(run: Path) -> None:
    """Ends a lease with its job: what trains there later has none, or one of its own."""
    for name in (LEASE, ENDED):
        (run / name).unlink(missing_ok=True)


class LeaseWatch:
    """Tells when a lease was not renewed for too long."""

    def __init__(self, run: Path, seconds: float) -> None:
        self.run, self.seconds = run, seconds
        self.seen = ""
        self.since = time.monotonic()

    def has_ended(self) -> bool:
        """Tells whether nobody renewed the lease for as long as it lasts; never where there is none."""
        try:
            content = (self.run / LEASE).read_text()
        except FileNotFoundError:  # started by hand
            self.since = time.monotonic()
            return False
        except OSError:  # the volume is away: nobody is seen to renew
            content = self.seen
        with contextlib.suppress(OSError):
            if content and (self.run / ENDED).read_text() == content:
                return True
        if content != self.seen:
            self.seen, self.since = content, time.monotonic()
        if time.monotonic() - self.since <= self.seconds:
            return False
        with contextlib.suppress(OSError), files.atomic_write(self.run / ENDED, "w") as file:
            file.write(self.seen)
        return True
