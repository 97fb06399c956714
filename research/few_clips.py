"""How many clips of new words buy which accuracy, from random weights and from a model of other words.

A model learns the words of an archive except the new ones. Then the new words are learned from a few clips of each,
chosen anew for every seed, with `--init` and without, and tested on the test split of the archive. The same with 20
clips of each word in synthetic voices, and, given a folder with many recordings of few speakers (--voices), with 20
clips of each word by one speaker, tested on the other clips of that speaker. For validation a word has a fifth as many
clips as for training, at least two. A study that is stopped resumes: complete run folders are only read.

  python -m research.few_clips --source ARCHIVE --words bed,cat,happy,four,zero
"""

import argparse
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kws import files
from kws.command import as_command
from kws.config import SPLITS
from kws.data.clip import Clip
from kws.data.folder import clip_of
from kws.download.step import download
from kws.download.synthesize import synthesize
from kws.evaluate.accuracy import evaluate_tensors
from kws.model import bundle
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import make_recipe
from kws.train import process, runs
from research.study import spread

Placed = tuple[Path, Clip]
"""A folder of recordings, and a clip in it."""

NUM_CLIPS = (5, 10, 20, 50, 100)
"""Training clips per word by many speakers."""

FEW = 20
"""Training clips per word in synthetic voices, or by one speaker."""


class Lesson(NamedTuple):
    """The clips that new words are learned from and tested on."""

    teacher: str
    num_clips: int
    seed: int
    train: Sequence[Placed]
    validation: Sequence[Placed]
    test: Sequence[Placed]


def divide(recordings: Path, words: str, folder: Path) -> Mapping[str, list[Placed]]:
    """Divides the clips of some words into splits by speaker, as the pipeline does."""
    tensors = Tensors(preprocess(recordings, folder, words=words))
    return {name: [(recordings, clip) for clip in tensors.split(name).clips] for name in SPLITS}


def choose(clips: Sequence[Placed], first: int, last: int | None, seed: int) -> list[Placed]:
    """Returns a slice of the clips of every word, in the order of a hash of seed and id."""
    by_word: dict[str, list[Placed]] = {}
    for clip in sorted(clips, key=lambda clip: hashlib.sha256(f"{seed}/{clip[1].id}".encode()).digest()):
        by_word.setdefault(clip[1].word, []).append(clip)
    return [clip for some in by_word.values() for clip in some[first:last]]


def lessons(options: argparse.Namespace, recordings: Path) -> Iterator[Lesson]:
    """Yields all lessons, seed by seed."""
    real = divide(recordings, options.words, options.folder)
    synthesize(options.folder / "synthetic", words=options.words.split(","), clips_per_word=2 * FEW)
    synthetic = divide(options.folder / "synthetic", options.words, options.folder)
    by_speaker: dict[str, list[Placed]] = {}
    for word in options.voices_words.split(",") if options.voices else []:
        for path in sorted((options.voices / word).iterdir()):
            clip = clip_of(f"{word}/{path.name}")
            by_speaker.setdefault(clip.group, []).append((options.voices, clip))
    for seed in options.seeds:
        for teacher, source, number in [
            *(("many speakers", real, number) for number in NUM_CLIPS),
            ("synthetic voices", synthetic, FEW),
        ]:
            yield Lesson(
                teacher,
                number,
                seed,
                choose(source["train"], 0, number, seed),
                choose(source["validation"], 0, max(2, number // 5), seed),
                real["test"],
            )
        for speaker, clips in by_speaker.items():
            last = FEW + FEW // 5
            yield Lesson(
                f"one speaker {speaker}",
                FEW,
                seed,
                choose(clips, 0, FEW, seed),
                choose(clips, FEW, last, seed),
                choose(clips, last, None, seed),
            )


def learn(lesson: Lesson, init: str, folder: Path, **changes: Any) -> float:
    """Trains on a lesson, from a model or from random weights, and returns the accuracy on its test clips."""
    name = "-".join(map(str, lesson[:3])).replace(" ", "-")
    corpus = folder / "corpora" / name
    for recordings, clip in (*lesson.train, *lesson.validation, *lesson.test):
        (corpus / clip.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recordings / clip.file, corpus / clip.file)
    for file, clips in (("validation_list.txt", lesson.validation), ("testing_list.txt", lesson.test)):
        (corpus / file).write_text("".join(f"{clip.file}\n" for _, clip in clips))
    tensors = preprocess(corpus, folder, words="auto", num_threads=1)
    recipe = make_recipe(seed=lesson.seed, init=init)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))
    run_id = f"{name}-{recipe.train.min_clips}-{'from-model' if init else 'from-nothing'}"
    run = process.train(tensors, recipe, runs_folder=folder / "runs", run_id=run_id)
    return evaluate_tensors(bundle.load(run / runs.BEST), Tensors(tensors)).accuracy


@as_command()
def main() -> None:
    """Parses flags, trains on all lessons, and writes table.md after each."""
    parser = argparse.ArgumentParser(
        prog="python -m research.few_clips", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="URL, archive or folder of recordings")
    parser.add_argument("--words", required=True, help="the new words, separated by commas")
    parser.add_argument("--voices", type=Path, help="a folder of <word>/<speaker>_nohash_<n>.wav, many by each speaker")
    parser.add_argument("--voices-words", default="", help="its words to learn, which the model does not learn either")
    parser.add_argument("--seeds", nargs="+", type=int, default=[41, 42, 43], help="(default: 41 42 43)")
    parser.add_argument(
        "--from-nothing", type=int, metavar="N", help="min_clips without a model (default: the preset's)"
    )
    parser.add_argument("--folder", type=Path, default=Path("var/few-clips"), help="(default: %(default)s)")
    options = parser.parse_args()
    recordings = download(options.source, "", options.folder)
    new = {"", *options.words.split(","), *options.voices_words.split(",")}
    old = sorted(path.name for path in recordings.glob("[!_]*/") if path.name not in new)
    tensors = preprocess(recordings, options.folder, words=",".join(old))
    recipe = make_recipe(epochs=8)
    start = process.train(tensors, recipe, runs_folder=options.folder / "runs", run_id="start") / runs.BEST
    changes = {} if options.from_nothing is None else {"min_clips": options.from_nothing}
    found: dict[str, tuple[list[float], list[float]]] = {}
    for lesson in lessons(options, recordings):
        teacher = "one speaker" if lesson.teacher.startswith("one speaker") else lesson.teacher
        nothing, model = found.setdefault(f"{teacher} | {lesson.num_clips}", ([], []))
        model.append(learn(lesson, str(start.resolve()), options.folder))
        nothing.append(learn(lesson, "", options.folder, **changes))
        rows = [f"| {row} | {spread(one)} | {spread(two)} |\n" for row, (one, two) in found.items()]
        with files.atomic_write(options.folder / "table.md", "w") as file:
            file.write("| clips by | a word | random weights | from the model |\n|---|---|---|---|\n" + "".join(rows))
        print(rows[-1], end="", flush=True)


if __name__ == "__main__":
    main()
