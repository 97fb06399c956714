"""A lease on the volume, which the train step renews and the pods watch, so that a job does not outlive its step.

A step that was killed cannot delete its job. The pods go on training until the lease expires, so that a retry of the
step finds its job running and adopts it; after that they end with a checkpoint. A lease is a file whose content
changes with every renewal. Clocks of different machines are never compared: a pod measures by its own clock how long
the content has not changed. Once the lease has expired, the pod copies its content to a second file, so that a pod that
is restarted later ends at once.
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
    """Context manager that renews the lease of a run in a thread, and releases it at the end of the block.

    The lease is on the volume so that it is renewed even while the Kubernetes API is unavailable.
    """

    def __init__(self, run: Path, every: float = RENEW_SECONDS) -> None:
        self.run, self.every = run, every
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._keep, name=f"lease of {run.name}", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        files.write_json(self.run / LEASE, uuid.uuid4().hex)  # before the job exists; an error fails the step
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
    """Deletes the lease of a run, so that a later training has no lease or its own."""
    for name in (LEASE, ENDED):
        (run / name).unlink(missing_ok=True)


class LeaseWatch:
    """Watches the lease of a run from a pod."""

    def __init__(self, run: Path, seconds: float) -> None:
        self.run, self.seconds = run, seconds
        self.seen = ""
        self.since = time.monotonic()

    def has_ended(self) -> bool:
        """Tells whether the lease was not renewed for `seconds`; false if there is no lease."""
        try:
            content = (self.run / LEASE).read_text()
        except FileNotFoundError:  # a job that was started by hand has no lease
            self.since = time.monotonic()
            return False
        except OSError:  # the volume is unavailable, which counts as no renewal
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
