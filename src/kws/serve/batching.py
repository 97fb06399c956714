"""Batches concurrent requests.

Every core computes its own batch, which has a third more throughput than one batch at a time on all cores, and a
request that finds a free core need not wait. Requests that arrive while all cores are busy form the next batch.
"""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.preprocess.audio import Waveform
from kws.serve.models import Served
from kws.serve.protocol import Refused


@dataclass(frozen=True)
class _Waiting:
    served: Served
    waveforms: Waveform
    answer: "asyncio.Future[npt.NDArray[np.float32]]"


class Batcher:
    """Computes the clips of concurrent requests in batches. Must be used from one event loop."""

    def __init__(self, *, num_threads: int, max_batch: int, max_waiting: int) -> None:
        """Initializes the batcher, which computes `num_threads` batches at the same time.

        `max_batch` bounds the clips in a batch of several requests (a single request may have more), and `max_waiting`
        those that wait.
        """
        self.num_waiting = 0
        self.batch_sizes: Any = None
        """A histogram of prometheus_client that observes the number of clips in each batch, or None."""
        self._free = num_threads
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: deque[_Waiting] = deque()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="predict")

    async def predict(self, served: Served, waveforms: Waveform) -> npt.NDArray[np.float32]:
        """Computes the probabilities of clips, float32 [clips, num_samples] in -1 to 1, with a version of the model.

        Returns:
            Probabilities, float32 [clips, words].

        Raises:
            Refused: too many clips are waiting.
        """
        if self.num_waiting and self.num_waiting + len(waveforms) > self._max_waiting:
            raise Refused(
                f"waiting clips must be at most {self._max_waiting}, got {self.num_waiting}; try again later",
                HTTPStatus.TOO_MANY_REQUESTS,
            )
        answer: asyncio.Future[npt.NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(served, waveforms, answer))
        self.num_waiting += len(waveforms)
        self._start()
        return await answer

    @property
    def is_free(self) -> bool:
        """Whether another batch could be computed at once."""
        return self._free > 0

    def _start(self) -> None:
        """Starts batches while there are free threads and waiting clips."""
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
            batch = [each for each in batch if not each.answer.done()]  # a client may have disconnected meanwhile
            if not batch:
                continue
            self._free -= 1
            waveforms = batch[0].waveforms if len(batch) == 1 else np.concatenate([each.waveforms for each in batch])
            if self.batch_sizes is not None:
                self.batch_sizes.observe(len(waveforms))
            run = asyncio.get_running_loop().run_in_executor(self._pool, batch[0].served.recognizer.predict, waveforms)
            run.add_done_callback(lambda done, batch=batch: self._finish(batch, done))  # type: ignore[misc]

    def _finish(self, batch: list[_Waiting], run: "asyncio.Future[npt.NDArray[np.float32]]") -> None:
        """Distributes the results of a batch to its requests, and starts the next batch."""
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
        """Waits for the batches in progress."""
        self._pool.shutdown()
