"""Progress in a log."""

import itertools
import re
import time

import pytest

from kws import progress


def test_a_clock_that_jumps_neither_stops_the_lines_nor_changes_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (86_400, -86_400):
        clock = itertools.count(1.7e9, step)
        monkeypatch.setattr("tqdm.std.time", lambda clock=clock: float(next(clock)))
        monkeypatch.setattr(time, "time", lambda clock=clock: float(next(clock)))
        with progress.progress(2000, "clips", "train") as bar:
            bar.mininterval = 0
            for _ in range(2):
                time.sleep(0.01)
                bar.update(1000)
        lines = capsys.readouterr().err.splitlines()
        shown = dict.fromkeys(line.split(",")[0] for line in lines)
        assert list(shown) == [f"train: {done}/2000  clips" for done in (0, 1000, 2000)]
        rates = [float(found[1]) for line in lines if (found := re.search(r"([\d.]+) clips/s", line))]
        assert len(rates) >= 2
        assert all(100 < rate <= 200_000 for rate in rates)
