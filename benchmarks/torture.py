"""Kills the local pipeline, fills its disk, damages its input and repeats it: `python -m benchmarks.torture`.

Every trial starts a step of the pipeline in a separate process on a copy of what the steps before it left, disturbs it,
and starts it again, undisturbed. A trial has survived when the second start leaves the same files as an undisturbed
step, nothing incomplete beside them, and no traceback was printed. Prints a table of trials, survived and lost, and
writes var/torture/result.json; started again, it resumes with the trials that are missing (--fresh starts over).

  kill      SIGKILL at moments spread over the time of each step
  renames   SIGKILL just before each rename of each step
  disk      a disk that is full after a share of the bytes that each step writes
  repeat    all steps again and again in one process: memory, open files, threads, processes, temporary files
  fuzz      damaged input for each reader of files and of HTTP answers, for some seconds
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import torture_fuzz
from kws import files
from kws.command import as_command
from kws.download.step import download
from kws.evaluate.step import evaluate
from kws.model import bundle
from kws.model import versions as published
from kws.preprocess.step import preprocess
from kws.processes import children
from kws.promote.step import promote
from kws.recipe import RECIPES, make_recipe
from kws.train import process, runs

PARTS = ("kill", "renames", "disk", "repeat", "fuzz")
WORDS = ("yes", "no", "stop")
NUM_SPEAKERS = 24
SETTINGS = {"epochs": 3, "batch_size": 8}
PAGE = 4096


# The steps, on a data root with the results of the steps before.


def _download(root: Path, corpus: Path) -> None:
    download(str(corpus), "", root)


def _preprocess(root: Path, corpus: Path) -> None:
    preprocess(_only(root / "datasets"), root, words="auto", num_threads=1)


def _train(root: Path, corpus: Path) -> None:
    recipe = make_recipe(**SETTINGS)
    process.train(_only(root / "tensors"), recipe, runs_folder=root / "runs", run_id="torture")


def _evaluate(root: Path, corpus: Path) -> None:
    output = root / "artifacts"
    found = evaluate(_only(root / "runs") / runs.BEST, _only(root / "tensors"), output / "report.html")
    files.write_json(output / "evaluation.json", found.summary())


def _promote(root: Path, corpus: Path) -> None:
    output = root / "artifacts"
    promote(
        _only(root / "runs") / runs.BEST,
        _only(root / "tensors"),
        output / "evaluation.json",
        output / "report.html",
        root,
        0.0,
    )


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "download": _download,
    "preprocess": _preprocess,
    "train": _train,
    "evaluate": _evaluate,
    "promote": _promote,
}


def _make_corpus(folder: Path) -> None:
    """Writes a small corpus of tones: words do not matter here."""
    random = np.random.default_rng(0)
    seconds = np.arange(16_000) / 16_000
    for index, word in enumerate(WORDS):
        (folder / word).mkdir(parents=True, exist_ok=True)
        for speaker in range(NUM_SPEAKERS):
            tone = 0.3 * np.sin(2 * np.pi * 400 * 2**index * random.uniform(0.9, 1.1) * seconds)
            name = hashlib.sha256(str(speaker).encode()).hexdigest()[:8]
            soundfile.write(folder / word / f"{name}_nohash_0.wav", tone, 16_000)


def _only(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return found


def _outcome(root: Path) -> dict[str, str]:
    """Returns a digest of everything that a data root must have, by name without the timestamps of runs."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = "/".join(part for part in path.relative_to(root).parts if not part.endswith("-torture"))
        if path.is_dir() or path.name.endswith(".lock") or path.name in (".owner", runs.STARTER):
            continue
        if path.suffix == ".npy" or path.name.endswith(".wav") or path.name == "index.npz":
            found[name] = files.sha256_of(path)
        elif path.name in (runs.BEST, published.MODEL):
            weights = bundle.load(path).model.state_dict()
            content = b"".join(value.numpy().tobytes() for value in weights.values())
            found[name] = hashlib.sha256(content).hexdigest()
        elif path.name == "evaluation.json":
            found[name] = str(files.read_json(path)["accuracy"])
        elif path.name.startswith(".") or ".partial-" in str(path):
            found[name] = "half made"
        elif path.suffix == ".json":
            files.read_json(path)
            found[name] = "there"
        elif path.parent.name != "checkpoints" and not path.name.startswith("events"):
            found[name] = "there"
    return found


# One start of a step, in a separate process.


@dataclass(frozen=True, kw_only=True)
class End:
    """How a start ended."""

    status: int
    """Exit status, or minus the signal."""
    seconds: float
    num_renames: int
    said: str


def _start(step: str, root: Path, corpus: Path, seconds: float = 0.0, rename: int = 0) -> End:
    """Starts a step, and kills it after some seconds or before its n-th rename, if these are not 0."""
    with tempfile.TemporaryDirectory(prefix="kws-torture-") as folder:
        log, count = Path(folder) / "log", Path(folder) / "renames"
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _be(step, root, corpus, log, count, rename)
        timer = threading.Timer(seconds, os.killpg, (child, signal.SIGKILL)) if seconds else None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(child, child)
        if timer:
            timer.start()
        _, status = os.waitpid(child, 0)
        if timer:
            timer.cancel()
            timer.join()
        took = time.monotonic() - started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        renames = len(count.read_text()) if count.exists() else 0
        said = log.read_text(errors="replace") if log.exists() else ""
        return End(status=os.waitstatus_to_exitcode(status), seconds=took, num_renames=renames, said=said)


def _be(step: str, root: Path, corpus: Path, log: Path, count: Path, rename: int) -> None:
    """Runs a step in the forked process; does not return."""
    status = 70
    try:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        counter = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        seen = 0

        def hook(event: str, arguments: object) -> None:
            nonlocal seen
            if event == "os.rename":
                seen += 1
                os.write(counter, b".")
                if seen == rename:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        with as_command():
            STEPS[step](root, corpus)
            status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


# The trials.


class Torture:
    """The trials in a folder: what they start from, and their results."""

    def __init__(self, folder: Path, steps: Sequence[str]) -> None:
        self.folder = folder
        last = max(list(STEPS).index(step) for step in steps)
        self.steps = list(STEPS)[: last + 1]
        self.corpus = folder / "corpus"
        self.result = folder / "result.json"
        self.trials: dict[str, str] = files.read_json(self.result) if self.result.exists() else {}
        self.before: dict[str, Path] = {}
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.renames: dict[str, int] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Runs the steps once, up to the last that is needed, and keeps what each starts from and leaves."""
        _make_corpus(self.corpus)
        root = self.folder / "whole"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for step in self.steps:
            self.before[step] = self.folder / f"before-{step}"
            shutil.rmtree(self.before[step], ignore_errors=True)
            shutil.copytree(root, self.before[step])
            end = _start(step, root, self.corpus)
            if end.status != 0:
                raise RuntimeError(f"{step} must succeed undisturbed, got status {end.status}: {end.said}")
            self.seconds[step], self.renames[step] = end.seconds, end.num_renames
            self.expected[step] = _outcome(root)

    def try_(self, name: str, trial: Callable[..., str], *arguments: object) -> None:
        """Runs a trial unless it was run before, and records why it was lost, or an empty text."""
        if name in self.trials:
            return
        try:
            self.trials[name] = trial(*arguments)
        except Exception as error:
            self.trials[name] = f"{type(error).__name__}: {error}"
        files.write_json(self.result, self.trials)
        if self.trials[name]:
            print(f"lost: {name}: {self.trials[name]}", file=sys.stderr, flush=True)

    def judge(self, step: str, root: Path, ends: Sequence[End]) -> str:
        """Starts a step again after its disturbance, and returns what is wrong with the result, or an empty text."""
        again = _start(step, root, self.corpus)
        if again.status != 0:
            return f"the second start ended with {again.status}: {again.said[-800:]}"
        for end in (*ends, again):
            if "Traceback" in end.said:
                return f"a traceback: {end.said[-800:]}"
        found, expected = _outcome(root), self.expected[step]
        if found != expected:
            odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            return f"left other files than an undisturbed run: {', '.join(odd[:5])}"
        return ""

    def kill(self, step: str, seconds: float = 0.0, rename: int = 0) -> str:
        """Kills a step, and starts it again."""
        root = self.folder / "trial"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.before[step], root)
        return self.judge(step, root, [_start(step, root, self.corpus, seconds, rename)])

    def fill(self, step: str, share: float) -> str:
        """Runs a step on a disk that has room for a share of what it writes, and starts it again with more room."""
        root = self.folder / "disk"
        root.mkdir(exist_ok=True)
        used, needed = (_used(path) for path in (self.before[step], self._after(step)))
        room = used + int(share * (needed - used)) // PAGE * PAGE + PAGE
        _mount("-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(root))
        try:
            shutil.copytree(self.before[step], root, dirs_exist_ok=True)
            end = _start(step, root, self.corpus)
            _mount("-o", "remount,size=2g", str(root))
            if end.status not in (0, 1, 2):
                return f"a full disk ended it with {end.status}: {end.said[-800:]}"
            return self.judge(step, root, [end])
        finally:
            subprocess.run(["umount", str(root)], check=True)

    def _after(self, step: str) -> Path:
        following = self.steps[self.steps.index(step) + 1 :]
        return self.before[following[0]] if following else self.folder / "whole"

    def repeat(self, times: int, minutes: float) -> str:
        """Runs all steps again and again in one process, and returns what it leaked, or an empty text."""
        root = self.folder / "trial"
        report = self.folder / "repeat.json"
        child = os.fork()
        if child == 0:
            try:
                logging.disable(logging.CRITICAL)
                # A folder of its own for temporary files, as other programs leave theirs in the usual one.
                temporary = self.folder / "temporary"
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
                report.write_text(json.dumps(list(self._repeated(root, times, minutes))))
                os._exit(0)
            except BaseException as error:
                report.write_text(json.dumps(repr(error)))
                os._exit(1)
        _, status = os.waitpid(child, 0)
        rows = json.loads(report.read_text())
        if status:
            return str(rows)
        first, last = rows[len(rows) // 3], rows[-1]
        leaks = [
            f"{name} {first[name]} → {last[name]}"
            for name in ("files", "threads", "processes", "temporary")
            if last[name] > first[name]
        ]
        if last["megabytes"] > first["megabytes"] * 1.1 + 20:
            leaks.append(f"memory {first['megabytes']} → {last['megabytes']} MB")
        memory = f"memory {first['megabytes']} MB after a third and {last['megabytes']} MB at the end"
        print(f"repeat: {len(rows)} runs, {memory}, {last['files']} open files, {last['threads']} threads", flush=True)
        return "; ".join(leaks)

    def _repeated(self, root: Path, times: int, minutes: float) -> Iterator[dict[str, int]]:
        end = time.monotonic() + 60 * minutes
        for _ in range(times):
            if time.monotonic() > end:
                return
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            for step in self.steps:
                STEPS[step](root, self.corpus)
            status = Path("/proc/self/status").read_text()
            yield {
                "files": len(os.listdir("/proc/self/fd")),
                "threads": int(status.split("Threads:")[1].split()[0]),
                "processes": len(children()),
                "temporary": len(os.listdir(tempfile.gettempdir())),
                "megabytes": int(status.split("VmRSS:")[1].split()[0]) // 1000,
            }


def _used(folder: Path) -> int:
    """Returns the bytes that a folder takes of a tmpfs."""
    return sum(PAGE if path.is_dir() else -(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*"))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory(prefix="kws-torture-") as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def _warm_up() -> None:
    """Imports once what would take every process of a trial seconds."""
    import matplotlib.pyplot
    import torch.utils.tensorboard

    from kws import plots
    from kws.preprocess.features import mel_spectrogram

    features = RECIPES["default"].features
    mel_spectrogram(features)(torch.zeros(1, features.num_samples))
    plots.png(plots.confusion(np.eye(2), ["no", "yes"]))
    matplotlib.pyplot.close("all")
    assert torch.utils.tensorboard is not None
    torch.nn.Linear(1, 1)(torch.zeros(1)).backward()
    torch.optim.AdamW([torch.zeros(1)])


@as_command()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="(default: all)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help="(default: all)")
    parser.add_argument("--moments", type=int, default=20, help="moments of a kill, and sizes of a disk (default: 20)")
    parser.add_argument("--runs", type=int, default=200, help="runs in a row (default: 200)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="limit of the runs in a row (default: no)")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of fuzzing for each reader (default: 60)")
    parser.add_argument("--folder", type=Path, default=Path("var/torture"), help="(default: var/torture)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier trials")
    options = parser.parse_args(argv)
    if "disk" in options.only and not _can_mount() and "KWS_TORTURE" not in os.environ:
        # Any user may mount a tmpfs in a user namespace.
        os.environ["KWS_TORTURE"] = "again"
        arguments = sys.argv[1:] if argv is None else list(argv)
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "benchmarks.torture", *arguments])
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # so that this process has no threads when it forks
    logging.basicConfig(level=logging.WARNING)
    _warm_up()
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    torture = Torture(options.folder.resolve(), options.steps)
    for step in options.steps:
        for moment in range(options.moments if "kill" in options.only else 0):
            seconds = torture.seconds[step] * (moment + 0.5) / options.moments
            torture.try_(f"kill/{step}/{moment + 1} of {options.moments}", torture.kill, step, seconds)
        for rename in range(torture.renames[step] if "renames" in options.only else 0):
            torture.try_(f"renames/{step}/{rename + 1}", torture.kill, step, 0.0, rename + 1)
        for size in range(options.moments if "disk" in options.only else 0):
            torture.try_(f"disk/{step}/{size} of {options.moments}", torture.fill, step, size / options.moments)
    if "repeat" in options.only:
        limit = f"{options.runs} runs" if options.minutes == float("inf") else f"{options.minutes:g} min"
        torture.try_(f"repeat/all/{limit}", torture.repeat, options.runs, options.minutes)
    if "fuzz" in options.only:
        for name in torture_fuzz.READERS:
            torture.try_(f"fuzz/{name}/{options.seconds:g} s", torture_fuzz.run, name, options.seconds, torture.folder)
    lost = show(torture.trials)
    sys.exit(1 if lost else 0)


def show(trials: dict[str, str]) -> int:
    """Prints the table, and returns how many trials were lost."""
    table = Table(title="torture")
    for title in ("what", "where", "tried", "survived", "lost"):
        table.add_column(title, justify="left" if title[0] == "w" else "right")
    counts: dict[tuple[str, str], list[int]] = {}
    for name, wrong in trials.items():
        part, where, _ = name.split("/", 2)
        count = counts.setdefault((part, where), [0, 0])
        count[bool(wrong)] += 1
    for (part, where), (survived, lost) in counts.items():
        table.add_row(part, where, str(survived + lost), str(survived), str(lost))
    total = sum(map(bool, trials.values()))
    table.add_section()
    table.add_row("all", "", str(len(trials)), str(len(trials) - total), str(total))
    Console().print(table)
    return total


if __name__ == "__main__":
    main()
