"""How rows are measured: two ways alternately, on one corpus, comparing their medians."""

import contextlib
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kws import files
from kws.config import SPEECH_COMMANDS_WORDS
from kws.cores import num_cores
from kws.download.step import download
from kws.download.synthesize import synthesize
from kws.preprocess.step import preprocess
from kws.train.update import wants_bf16

FOLDER = Path("var/bench")
REAL16 = (Path("var/real16"), Path("../shared/data/speech_commands_real16.tar.gz"))
"""Where real16 may be: as research.cut_archive makes it, and as an archive."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    row: str
    ours: float
    other: float
    unit: str
    goal: float
    at_most: bool = False
    """The goal is an upper limit."""

    @property
    def ratio(self) -> float:
        """Our figure over the other's."""
        return self.ours / self.other

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure."""

    repeats: int
    """Turns of each of the two ways, of which the medians are compared."""
    steps: int
    """Training steps per turn."""


QUICK = Effort(repeats=5, steps=1)
SERIOUS = Effort(repeats=7, steps=4)


def in_turns(ours: Callable[[], float], other: Callable[[], float], repeats: int) -> dict[str, float]:
    """Measures two ways alternately, so that both see the same load of the machine, and returns the medians.

    Each is called once before that, to warm up.
    """
    ours(), other()
    measured = [(ours(), other()) for _ in range(repeats)]
    first, second = zip(*measured, strict=True)
    return {"ours": statistics.median(first), "other": statistics.median(second)}


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Sets the number of torch's threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recordings() -> Path:
    """Returns real clips where they are available, otherwise synthetic ones; made once."""
    for source in REAL16:
        if source.exists():
            return download(str(source), "", FOLDER)
    folder = FOLDER / "synthetic"
    synthesize(folder, words=SPEECH_COMMANDS_WORDS[:16], clips_per_word=250)
    return folder


def many_recordings(num_clips: int = 20_000) -> Path:
    """Returns as many clips: real ones, each copy with a last sample of its own, so that it is another recording."""
    source = recordings()
    folder = FOLDER / f"{source.name}-{num_clips}"

    def build(staging: Path) -> None:
        clips = sorted(source.glob("[a-z]*/*.wav"))
        for number in range(num_clips):
            copy, row = divmod(number, len(clips))
            target = staging / clips[row].parent.name / f"{copy}{clips[row].name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(clips[row].read_bytes()[:-2] + copy.to_bytes(2, "little"))
        files.write_json(staging / files.MANIFEST, {"num_clips": num_clips})

    files.build_folder(folder, build)
    return folder


def tensors() -> Path:
    """Returns the tensors of the recordings; made once."""
    return preprocess(recordings(), FOLDER, words="auto")


def machine() -> dict[str, Any]:
    """Describes the machine that was measured on."""
    return {
        "processor": _processor(),
        "arithmetic": arithmetic(),
        "cores": num_cores(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def arithmetic() -> str:
    """Names what training computes in, and the vector instructions of the processor: a factor of two hangs on them."""
    precision = "bfloat16" if wants_bf16("auto", torch.device("cpu")) else "float32"
    return f"{precision}, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
