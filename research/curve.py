"""How accuracy grows with clips, with speakers, and what lossy copies cost.

Each point is a data set of its own, made by leaving out training clips of one archive (or by coding them as Opus and
back); validation and test clips stay as they are. The curve is fitted with error = a · clips^-b over clips a word.
A study that is stopped goes on where it was.

  python -m research.curve --source ARCHIVE --points 50 100 200 400 800 --jobs 2
  python -m research.curve --source ARCHIVE --points quarter-of-clips quarter-of-speakers
  python -m research.curve --source ARCHIVE --points exact opus
"""

import argparse
import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np

from kws import files
from kws.command import as_command
from kws.config import BACKGROUND_NOISE
from kws.data import splits
from kws.data.clip import Clip
from kws.data.sources import list_recordings
from kws.preprocess.audio import read_waveform
from research import study

OPUS_LEVEL = 0.9
"""Compression level of libsndfile that gives 35 kbit/s of one channel at 16 kHz, as the copies of real21 have."""


def _order(name: str) -> bytes:
    """Orders clips or speakers at random, the same everywhere, so that the smaller of two choices is in the larger."""
    return hashlib.sha256(name.encode()).digest()


def fewer_clips(clips: Sequence[Clip], most: int) -> list[Clip]:
    """Keeps so many clips of each word."""
    by_word: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: _order(clip.id)):
        by_word.setdefault(clip.word, []).append(clip)
    return [clip for some in by_word.values() for clip in some[:most]]


def fewer_speakers(clips: Sequence[Clip], share: float) -> list[Clip]:
    """Keeps all clips of as few speakers, chosen at random, as make a share of the clips."""
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.group, []).append(clip)
    kept: list[Clip] = []
    for speaker in sorted(by_speaker, key=_order):
        kept += by_speaker[speaker]
        if len(kept) >= share * len(clips):
            break
    return kept


def as_opus(recording: Path) -> bytes:
    """Returns a recording as a FLAC file of what Opus leaves of it."""
    import soundfile

    rate = 16_000
    coded, plain = io.BytesIO(), io.BytesIO()
    soundfile.write(
        coded, read_waveform(recording, rate), rate, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL
    )
    coded.seek(0)
    samples, _ = soundfile.read(coded, dtype="float32")
    soundfile.write(plain, samples, rate, format="FLAC", subtype="PCM_16")
    return plain.getvalue()


def choose(point: str, clips: Sequence[Clip]) -> tuple[list[Clip], Callable[[Path], bytes] | None]:
    """Returns the training clips of a point, and what is done to each."""
    if point == "quarter-of-clips":
        return sorted(clips, key=lambda clip: _order(clip.id))[: len(clips) // 4], None
    if point == "quarter-of-speakers":
        return fewer_speakers(clips, 0.25), None
    if point in ("exact", "opus"):
        return list(clips), as_opus if point == "opus" else None
    return fewer_clips(clips, int(point)), None


def make(point: str, recordings: Path, folder: Path) -> tuple[Path, int, int]:
    """Makes the data set of a point, out of links to the recordings.

    Returns:
        Its folder, and how many clips and speakers train.
    """
    listing = list_recordings(recordings)
    divided = splits.by_speaker(listing.clips, splits.read_lists(listing.lists, listing.clips))
    kept, change = choose(point, divided["train"])

    def build(staging: Path) -> None:
        for clip in (*kept, *divided["validation"], *divided["test"]):
            path = staging / clip.file
            path.parent.mkdir(exist_ok=True)
            if change is not None and clip in chosen:
                path.with_suffix(".flac").write_bytes(change(recordings / clip.file))
            else:
                os.link(recordings / clip.file, path)
        for path in listing.lists.values():
            shutil.copy(path, staging)
        if (recordings / BACKGROUND_NOISE).is_dir():
            shutil.copytree(recordings / BACKGROUND_NOISE, staging / BACKGROUND_NOISE, copy_function=os.link)
        files.write_json(staging / files.MANIFEST, {"point": point, "from": recordings.name})

    chosen = set(kept)
    files.build_folder(folder / point / "recordings", build)
    return folder / point / "recordings", len(kept), len({clip.group for clip in kept})


def run(point: str, seed: int, epochs: int, recordings: Path, folder: Path) -> study.Result:
    """Trains and evaluates one point, or reads what an earlier call found."""
    made, num_clips, num_speakers = make(point, recordings, folder)
    task = study.Task(
        variant="default",
        seed=seed,
        epochs=epochs,
        words="auto",
        unknown_words="",
        recordings=made,
        folder=folder / point,
        final=True,
    )
    return study.run(task) | {"point": point, "num_clips": num_clips, "num_speakers": num_speakers}


def fit(clips: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Returns a and b of error = a · clips^-b, by least squares of the logarithms."""
    slope, start = np.polyfit(np.log(clips), np.log(errors), 1)
    return math.exp(start), -float(slope)


def show(results: Sequence[Mapping[str, float]], num_words: int) -> None:
    """Prints a row for every point, and the fit where the points are numbers of clips."""
    print("| training clips | clips | speakers | seed | epochs | validation | test | 10 dB | 8 kHz |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in results:
        conditions = row["conditions"]
        figures = [row["validation"], row["test"], conditions["noise at 10 dB"], conditions["8 kHz"]]  # type: ignore[index]
        cells = [row["point"], row["num_clips"], row["num_speakers"], row["seed"], row["epochs"]]
        print(f"| {' | '.join(map(str, cells))} | {' | '.join(f'{100 * figure:.1f}' for figure in figures)} |")
    counted = [row for row in results if str(row["point"]).isdigit()]
    if len({row["point"] for row in counted}) > 1:
        for split in ("validation", "test"):
            a, b = fit([row["num_clips"] / num_words for row in counted], [1 - row[split] for row in counted])
            print(
                f"{split}: error = {100 * a:.1f} % · (clips a word)^-{b:.3f}; "
                + ", ".join(f"{clips:,} a word: {100 * (1 - a * clips**-b):.1f} %" for clips in (800, 2100, 2400))
            )


@as_command()
def main() -> None:
    """Parses flags, makes the data sets, trains, and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m research.curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="URL, archive or folder of recordings")
    parser.add_argument("--folder", type=Path, default=Path("var/curve"), help="(default: %(default)s)")
    parser.add_argument(
        "--points",
        nargs="+",
        default=["50", "100", "200", "400", "800"],
        help="clips a word, or quarter-of-clips, quarter-of-speakers, exact, opus (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        nargs="+",
        default=["0"],
        metavar="N|POINT=N",
        help="of all or of one, as in: 30 50=80 (default: 0, as the preset says)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[41], help="(default: 41)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores (default: 1)")
    options = parser.parse_args()
    from kws.download.step import download

    recordings = download(options.source, "", options.folder)
    epochs = study.parse_epochs(options.epochs)
    results: list[study.Result] = []
    with study.pool(options.jobs) as workers:
        waiting = [
            workers.submit(run, point, seed, epochs.get(point, epochs[""]), recordings, options.folder)
            for seed in options.seeds
            for point in options.points
        ]
        for future in as_completed(waiting):
            results.append(future.result())
            files.write_json(options.folder / "curve.json", results)
    results.sort(key=lambda row: (options.points.index(row["point"]), row["seed"]))
    show(results, len(list_recordings(recordings).words))


if __name__ == "__main__":
    main()
