"""Progress of long work, with rate and time left: a bar on a terminal, now and then a line in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm


class _Lines:
    """A stream on which tqdm's redrawn bar becomes one line after another."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        text = text.strip("\r\n ")
        return self.stream.write(text + "\n") if text else 0

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def progress(total: int, unit: str, title: str, scale: bool = False, done: int = 0) -> Iterator["tqdm[Any]"]:
    """Shows how far work is; call `.update(n)` on what it gives.

    Args:
        total: how many units there are.
        unit: their name, as in "clips".
        title: what is being done.
        scale: write numbers as 1.2M, for bytes.
        done: units that an earlier process did; rate and time left count only what this one does.
    """
    terminal = sys.stderr.isatty()
    stream: Any = sys.stderr if terminal else _Lines(sys.stderr)
    with tqdm(total=total, initial=done, unit=f" {unit}", desc=title, unit_scale=scale, file=stream,
              dynamic_ncols=terminal, mininterval=0.1 if terminal else 10, maxinterval=0.1 if terminal else 10,
              ascii=not terminal, bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}, "
              "{remaining} left") as bar:  # fmt: skip
        yield bar
