"""Requests that come at once are heard together.

As many batches run at a time as there are cores, each on one: that is a third faster than one batch on all of them, and
a request that finds a free core waits for nobody. Those that come while all cores are busy make up the next batch.
"""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.preprocess.audio import Waveform
from kws.serve.models import Served


class Busy(Exception):
    """More is waiting than the server takes on; try again later."""


@dataclass(frozen=True)
class _Waiting:
    served: Served
    waveforms: Waveform
    answer: "asyncio.Future[npt.NDArray[np.float32]]"


class Batcher:
    """Hears the clips of many requests, few runs of the model at a time. Lives in one event loop."""

    def __init__(self, *, num_threads: int, max_batch: int, max_waiting: int) -> None:
        """Takes its bounds.

        Args:
            num_threads: runs at a time.
            max_batch: clips of a run that are gathered from several requests; a single request may have more.
            max_waiting: clips that may wait; beyond it requests are turned away.
        """
        self.num_waiting = 0
        self.batch_sizes: Any = None
        """A histogram of prometheus_client that observes how many clips each run had, or None."""
        self._free = num_threads
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting] = deque()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="hear")

    async def hear(self, served: Served, waveforms: Waveform) -> npt.NDArray[np.float32]:
        """Turns float32 [clips, num_samples] into probabilities, float32 [clips, words], by one version of a model.

        Raises:
            Busy: too many clips are waiting.
        """
        if self.num_waiting and self.num_waiting + len(waveforms) > self._max_waiting:
            raise Busy(f"clips that wait must be at most {self._max_waiting}, got {self.num_waiting}; try again later")
        answer: asyncio.Future[npt.NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(served, waveforms, answer))
        self.num_waiting += len(waveforms)
        self._start()
        return await answer

    def _start(self) -> None:
        """Starts runs while there are free threads and waiting clips."""
        while self._free and self._queue:
            batch = [self._queue.popleft()]
            size = len(batch[0].waveforms)
            while (
                self._queue
                and self._queue[0].served is batch[0].served
                and size + len(self._queue[0].waveforms) <= self._max_batch
            ):
                batch.append(self._queue.popleft())
                size += len(batch[-1].waveforms)
            self.num_waiting -= size
            batch = [each for each in batch if not each.answer.done()]  # a client may have gone meanwhile
            if not batch:
                continue
            self._free -= 1
            waveforms = batch[0].waveforms if len(batch) == 1 else np.concatenate([each.waveforms for each in batch])
            if self.batch_sizes is not None:
                self.batch_sizes.observe(len(waveforms))
            run = asyncio.get_running_loop().run_in_executor(self._pool, batch[0].served.recognizer.hear, waveforms)
            run.add_done_callback(lambda done, batch=batch: self._finish(batch, done))  # type: ignore[misc]

    def _finish(self, batch: list[_Waiting], run: "asyncio.Future[npt.NDArray[np.float32]]") -> None:
        """Hands the answers of a run to those who wait for them, and starts the next."""
        self._free += 1
        first = 0
        error = run.exception()
        for each in batch:
            size = len(each.waveforms)
            if not each.answer.done():
                if error is not None:
                    each.answer.set_exception(error)
                else:
                    each.answer.set_result(run.result()[first : first + size])
            first += size
        self._start()

    def close(self) -> None:
        """Waits for the runs under way."""
        self._pool.shutdown()
