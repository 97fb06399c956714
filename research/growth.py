"""Time and memory of every step over the number of clips or of words: `python -m research.growth`.

Makes data sets from real clips, sped up or slowed down by up to 12 % and mixed with noise, as Parquet files that hold
recordings (ADPCM in WAV, 8 kHz, 4 kB a clip), runs the whole pipeline on each, and adds what its steps used to
growth.json. It prints a table and draws growth-clips.png or growth-words.png. What a clip costs is the difference
between two sizes, so that what a step costs without clips (imports, figures) does not count.

  python -m research.growth --recordings var/real16 --output var/growth --clips 10000 100000 1000000
  python -m research.growth --recordings var/real16 --output var/growth --clips 20000 --words 10 100 1000
"""

import argparse
import io
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from kws import files
from kws.command import as_command
from kws.data.sources import list_recordings
from kws.progress import progress

ROWS = 10_000
"""Clips of a Parquet file."""

CLIPS_OF_SPEAKER = 20

Row = dict[str, Any]

STEPS = ("download", "preprocess", "train", "evaluate", "promote")

SETTINGS = ("--preset", "small", "--set", "features.num_mels=32", "--epochs", "1", "--min-accuracy", "0")
"""The smaller of the two networks and a quarter of the features, so that a million clips fit on a disk."""


def varied(recordings: Path, num_clips: int, seed: int = 41) -> Iterator[bytes]:
    """Yields the bytes of WAV files, each of them different, made of the clips of a folder in turn."""
    random = np.random.default_rng(seed)
    paths = [recordings / clip.file for clip in list_recordings(recordings).clips]
    sounds = [soundfile.read(path, dtype="float32")[0][::2] for path in paths[::2]]
    for sound in itertools.islice(itertools.cycle(sounds), num_clips):
        places = np.arange(8_000) * random.uniform(0.88, 1.12)
        noise = 10 ** random.uniform(-4, -2) * random.standard_normal(8_000, np.float32)
        stream = io.BytesIO()
        changed = random.uniform(0.3, 1) * np.interp(places, np.arange(len(sound)), sound) + noise
        soundfile.write(stream, changed, 8_000, format="WAV", subtype="IMA_ADPCM")
        yield stream.getvalue()


def make(recordings: Path, folder: Path, num_clips: int, num_words: int) -> None:
    """Writes a data set as Parquet files with the columns audio, label and speaker_id."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    sounds = varied(recordings, num_clips)
    with progress(num_clips, "clips", f"make {num_clips:,} clips") as bar:
        for first in range(0, num_clips, ROWS):
            numbers = range(first, min(first + ROWS, num_clips))
            audio = [{"bytes": next(sounds), "path": f"{number}.wav"} for number in numbers]
            labels = [f"word{number % num_words:04d}" for number in numbers]
            speakers = [f"speaker{number // CLIPS_OF_SPEAKER:06d}" for number in numbers]
            table = pyarrow.table({"audio": audio, "label": labels, "speaker_id": speakers})
            pyarrow.parquet.write_table(table, folder / f"part-{first // ROWS:05d}.parquet", row_group_size=1_000)
            bar.update(len(numbers))


def measure(source: Path, data_root: Path) -> dict[str, dict[str, float]]:
    """Runs the pipeline on a data set; returns by step what it used (see `kws.steps.used`)."""
    summary = data_root.with_suffix(".json")
    run = [sys.executable, "-m", "pipeline", "run", "--json", str(summary), "--words", "auto", *SETTINGS]
    subprocess.run([*run, "--source", str(source), "--data-root", str(data_root)], check=True)
    return {step["name"]: step for step in files.read_object(summary)["steps"]}


def times_of(rows: Sequence[Row], step: str, over: str) -> list[float]:
    """Returns milliseconds of processor time for a clip; over clips, for one that the size before did not have."""
    if over == "words":
        return [1000 * row["steps"][step]["cpu_seconds"] / row["clips"] for row in rows]
    sizes = [0, *(row["clips"] for row in rows)]
    times = [0.0, *(row["steps"][step]["cpu_seconds"] for row in rows)]
    pairs = zip(itertools.pairwise(sizes), itertools.pairwise(times), strict=True)
    return [1000 * (time - time_before) / (size - size_before) for (size_before, size), (time_before, time) in pairs]


def memory(rows: Sequence[Row], step: str) -> list[float]:
    """Returns megabytes of the largest process of a step."""
    return [row["steps"][step]["peak_memory_mb"] for row in rows]


def table(rows: Sequence[Row], over: str) -> str:
    """Returns the table of some sizes in Markdown."""
    lines = [f"| {over} | " + " | ".join(STEPS) + " |", "|---|" + "---|" * len(STEPS)]
    cells = [
        [
            f"{time:.2f} ms, {used:,.0f} MB"
            for time, used in zip(times_of(rows, step, over), memory(rows, step), strict=True)
        ]
        for step in STEPS
    ]
    lines += [
        f"| {row[over]:,} | " + " | ".join(own) + " |" for row, own in zip(rows, zip(*cells, strict=True), strict=True)
    ]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], over: str, path: Path) -> None:
    """Draws time and memory of every step over the sizes."""
    from matplotlib.figure import Figure

    from kws import plots

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for step in STEPS:
        left.plot([row[over] for row in rows], times_of(rows, step, over), marker="o", label=step)
        right.plot([row[over] for row in rows], memory(rows, step), marker="o", label=step)
    left.set(xscale="log", xlabel=over, ylabel="processor time of a clip in ms", ylim=0)
    right.set(xscale="log", xlabel=over, ylabel="memory of the largest process in MB", ylim=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    with files.atomic_write(path) as file:
        file.write(plots.png(figure))


@as_command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the sizes that are named and not yet measured."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m research.growth",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recordings", type=Path, required=True, help="real clips, laid out as word/file")
    parser.add_argument("--output", type=Path, required=True, help="the folder for data sets and results")
    parser.add_argument("--clips", type=int, nargs="+", required=True, help="numbers of clips")
    parser.add_argument("--words", type=int, nargs="+", default=[20], help="numbers of words (default: 20)")
    options = parser.parse_args(arguments)

    found = options.output / "growth.json"
    rows = files.read_json(found) if found.is_file() else []
    for clips, words in itertools.product(sorted(options.clips), sorted(options.words)):
        if any((row["clips"], row["words"]) == (clips, words) for row in rows):
            continue
        source, data_root = options.output / f"source-{clips}-{words}", options.output / f"data-{clips}-{words}"
        if not source.is_dir():
            make(options.recordings, source, clips, words)
        rows.append({"clips": clips, "words": words, "steps": measure(source, data_root)})
        files.write_json(found, rows)
        shutil.rmtree(source)
        shutil.rmtree(data_root)
    over = "words" if len(options.words) > 1 else "clips"
    asked = [row for row in rows if row["clips"] in options.clips and row["words"] in options.words]
    asked.sort(key=lambda row: row[over])
    print(table(asked, over), end="")
    draw(asked, over, options.output / f"growth-{over}.png")


if __name__ == "__main__":
    main()
