"""Progress of long work, with rate and remaining time: a bar on a terminal, a line every 10 s in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm


class _Lines:
    """A stream that turns tqdm's redrawn bar into separate lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        text = text.strip("\r\n ")
        return self.stream.write(text + "\n") if text else 0

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def progress(total: int, unit: str, title: str, scale: bool = False, done: int = 0) -> Iterator["tqdm[Any]"]:
    """Shows progress; yields a bar whose `update(n)` adds n units.

    `scale` writes numbers as 1.2M, for bytes. `done` units were completed by an earlier process: rate and remaining
    time do not include them.
    """
    terminal = sys.stderr.isatty()
    stream: Any = sys.stderr if terminal else _Lines(sys.stderr)
    with tqdm(
        total=total,
        initial=done,
        unit=f" {unit}",
        desc=title,
        unit_scale=scale,
        file=stream,
        miniters=1,
        dynamic_ncols=terminal,
        mininterval=0.1 if terminal else 10,
        maxinterval=0.1 if terminal else 10,
        ascii=not terminal,
        bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left",
    ) as bar:
        # tqdm's own clock may jump, which would stop the lines or make their rates absurd.
        setattr(bar, "_time", time.monotonic)  # noqa: B010
        bar.start_t = bar.last_print_t = time.monotonic()
        yield bar
