"""Measures what each ingredient of the recipe is worth: `python -m research.study`.

Every row is a variant of a preset, trained with several seeds on one archive and evaluated on the validation split.
"Robustness" is the mean accuracy over the conditions of `kws.evaluate.robustness`, clean clips among them. The test
split is for the final rows only (`--final`), which are evaluated under each condition. A study that is stopped resumes
where it was: each training has its own run folder, and a complete one is only read.

  python -m research.study --source ARCHIVE --epochs 15 --jobs 2               all variants
  python -m research.study --source ARCHIVE --variants default baseline --final
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from kws import files
from kws.command import as_command
from kws.cores import num_cores
from kws.processes import end_with_parent, handle_signals
from kws.recipe import NO_AUGMENTATION, RECIPES, Recipe

DEFAULT = RECIPES["default"]
PLAIN = dataclasses.replace(DEFAULT, augment=NO_AUGMENTATION)
"""The only variant to compare raw power with, as augmentation works on log-mel features alone."""

BASELINE = dataclasses.replace(RECIPES["baseline"], split="speaker")

Result = dict[str, Any]


def change(
    recipe: Recipe,
    *,
    augment: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    features: dict[str, Any] | None = None,
    **train: Any,
) -> Recipe:
    """Returns a recipe with some fields changed."""
    return dataclasses.replace(
        recipe,
        features=dataclasses.replace(recipe.features, **(features or {})),
        model=dataclasses.replace(recipe.model, **(model or {})),
        augment=dataclasses.replace(recipe.augment, **(augment or {})),
        train=dataclasses.replace(recipe.train, **train),
    )


VARIANTS: dict[str, Recipe] = {
    "default": DEFAULT,
    "adamw": change(DEFAULT, optimizer="adamw"),
    "adamw-1e-3": change(DEFAULT, optimizer="adamw", learning_rate=1e-3),
    "half-learning-rate": change(DEFAULT, learning_rate=1.5e-3),
    "no-weight-decay": change(DEFAULT, weight_decay=0.0),
    "step-schedule": change(DEFAULT, schedule="step"),
    "two-frames-a-token": change(DEFAULT, model={"frames_per_token": 2}),
    "no-positions": change(DEFAULT, model={"positions": False}),
    "post-norm": change(DEFAULT, model={"norm_first": False}),
    "no-drop-path": change(DEFAULT, model={"drop_path": 0.0}),
    "dropout": change(DEFAULT, model={"dropout": 0.1}),
    "no-averaging": change(DEFAULT, ema_decay=0.0),
    "no-label-smoothing": change(DEFAULT, label_smoothing=0.0),
    "no-augmentation": PLAIN,
    "no-augmentation-raw-power": change(PLAIN, features={"log": False}),
    "no-noise": change(DEFAULT, augment={"noise_probability": 0.0}),
    "no-warp": change(DEFAULT, augment={"time_stretch": 0.0, "frequency_warp": 0.0}),
    "no-masks": change(DEFAULT, augment={"num_time_masks": 0, "num_frequency_masks": 0}),
    "no-shift": change(DEFAULT, augment={"time_shift": 0}),
    "no-gain": change(DEFAULT, augment={"gain_db": (0.0, 0.0)}),
    "no-bandlimit": change(DEFAULT, augment={"bandlimit_probability": 0.0}),
    "no-normalization": change(DEFAULT, features={"normalize": False}),
    "window-40-ms": change(DEFAULT, features={"win_length": 640, "n_fft": 1024}),
    "htk-n-fft-1024": change(DEFAULT, features={"mel_scale": "htk", "n_fft": 1024, "f_min": 0.0}),
    "baseline": BASELINE,
    "baseline-log-mel": change(BASELINE, features={"log": True, "normalize": True}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One training of the study."""

    variant: str
    seed: int
    epochs: int
    """0: as the preset says."""
    words: str
    unknown_words: str
    recordings: Path
    folder: Path
    final: bool


def run(task: Task) -> Result:
    """Trains and evaluates one variant with one seed, or reads the results of an earlier call."""
    from kws.preprocess.step import preprocess
    from kws.train import process

    variant = VARIANTS[task.variant]
    changes: dict[str, Any] = {"epochs": task.epochs, "min_clips": 0} if task.epochs else {}
    train = dataclasses.replace(variant.train, seed=task.seed, **changes)
    recipe = dataclasses.replace(variant, name=task.variant, split="speaker", train=train)
    tensors = preprocess(
        task.recordings, task.folder, recipe, words=task.words, unknown_words=task.unknown_words, num_threads=1
    )
    run_id = f"{task.variant}-{task.epochs}-{task.seed}-{tensors.name[:6]}"
    run_folder = process.train(tensors, recipe, runs_folder=task.folder / "runs", run_id=run_id)
    curve = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    manifest = files.read_json(run_folder / files.MANIFEST)
    found = {
        "variant": task.variant,
        "seed": task.seed,
        "epochs": manifest["epochs"],
        "num_parameters": manifest["num_parameters"],
        "seconds": round(manifest["epochs"] * manifest["num_clips"] / manifest["clips_per_second"]),
        "curve": [row["validation_accuracy"] for row in curve],
        "validation": manifest["validation_accuracy"],
        "validation_loss": next(row["validation_loss"] for row in curve if row["epoch"] == manifest["best_epoch"]),
    }

    def once(name: str, evaluate: Callable[[Path, Path, Path], Result]) -> Result:
        if not (run_folder / name).is_file():
            files.write_json(run_folder / name, evaluate(run_folder / "best.pth", tensors, task.recordings))
        return cast("Result", files.read_json(run_folder / name))

    found["worse"] = statistics.mean(once("robustness.json", evaluate_robustness).values())
    if task.final:
        found |= once("test.json", evaluate_test)
    return found


def evaluate_robustness(model: Path, tensors_folder: Path, recordings: Path) -> Result:
    """Evaluates a model on the validation split under every condition, clean clips among them."""
    from kws.evaluate import robustness
    from kws.model import bundle
    from kws.preprocess.tensors import Tensors

    clips = Tensors(tensors_folder).split("validation").clips
    return dict(robustness.measure(bundle.load(model), recordings, clips))


def evaluate_test(model: Path, tensors_folder: Path, recordings: Path) -> Result:
    """Evaluates a model on the test split: on clean clips, under the other conditions, and in 8 bits."""
    from kws.evaluate import accuracy, robustness
    from kws.model import bundle, onnx
    from kws.preprocess.tensors import Tensors

    recognizer, tensors = bundle.load(model), Tensors(tensors_folder)
    evaluation = accuracy.evaluate_tensors(recognizer, tensors)
    part = tensors.split("test")
    conditions = dict(robustness.measure(recognizer, recordings, part.clips))
    conditions.pop("clean")
    small = model.with_name("int8.onnx")
    onnx.export(recognizer, small, int8=True)
    truth = [tensors.words[label] for label in part.labels.tolist()]
    heard = accuracy.predict_clips(onnx.load(small), recordings, part.clips, {})
    return {
        "test": evaluation.accuracy,
        "calibration_error": evaluation.calibration_error,
        "int8": accuracy.compare(recognizer.words, heard, truth, part.clips).accuracy,
        "words": evaluation.words,
        "matrix": evaluation.matrix.tolist(),
        "conditions": conditions,
    }


def rows(results: Sequence[Result], final: bool) -> tuple[list[str], list[list[str]]]:
    """Returns titles and rows of the table, a row per variant: mean ± standard deviation over seeds, in per cent."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result["variant"], []).append(result)
    titles = ["variant", "parameters", "epochs", "seconds", "seeds", "validation", "robustness", "loss"]
    conditions = list(results[0]["conditions"]) if final else []
    titles += ["test", "calibration error", "int8", *conditions] if final else []
    table = []
    for name, some in by_name.items():
        losses = [result["validation_loss"] for result in some]
        row = [
            name,
            f"{some[0]['num_parameters']:,}",
            str(some[0]["epochs"]),
            str(round(statistics.median(result["seconds"] for result in some))),
            str(len(some)),
            *(spread([result[title] for result in some]) for title in ("validation", "worse")),
            f"{statistics.mean(losses):.3f}",
        ]
        if final:
            row += [spread([result[title] for result in some]) for title in ("test", "calibration_error", "int8")]
            row += [spread([result["conditions"][title] for result in some]) for title in conditions]
        table.append(row)
    return titles, table


def spread(values: Sequence[float]) -> str:
    """Formats fractions in per cent: mean ± standard deviation."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def show(titles: Sequence[str], table: Sequence[Sequence[str]]) -> None:
    """Prints the table with a column for every variant."""
    shown = Table(title="accuracy in %, mean ± standard deviation over seeds")
    for number in range(len(table) + 1):
        shown.add_column("" if number == 0 else table[number - 1][0], justify="right" if number else "left")
    for title, *cells in list(zip(titles, *table, strict=True))[1:]:
        shown.add_row(title, *cells)
    Console(width=max(100, 24 + 16 * len(table))).print(shown)


def write(folder: Path, results: Sequence[Result], final: bool) -> None:
    """Writes results.json, table.md, and for final rows the pictures."""
    titles, table = rows(results, final)
    show(titles, table)
    files.write_json(folder / "results.json", results)
    lines = [titles, ["---"] * len(titles), *table]
    first = titles.index("int8") + 1 if final else len(titles)
    parts = [lines] if not final else [[line[:first] for line in lines], [[line[0], *line[first:]] for line in lines]]
    with files.atomic_write(folder / "table.md", "w") as file:
        file.write("\n".join("".join(f"| {' | '.join(line)} |\n" for line in part) for part in parts))
    if final:
        draw(folder, results)


def draw(folder: Path, results: Sequence[Result]) -> None:
    """Draws curves.png, noise.png and confusion.png."""
    import numpy as np
    from matplotlib.figure import Figure

    from kws import plots

    def save(name: str, figure: Figure) -> None:
        with files.atomic_write(folder / name) as file:
            file.write(plots.png(figure))

    names = list(dict.fromkeys(result["variant"] for result in results))
    curves, noise = Figure(figsize=(6, 3.6), layout="constrained"), Figure(figsize=(6, 3.6), layout="constrained")
    over_time, over_noise = curves.add_subplot(), noise.add_subplot()
    for name in names:
        some = [result for result in results if result["variant"] == name]
        values = 100 * np.array([result["curve"] for result in some])
        minutes = np.linspace(0, statistics.median(result["seconds"] for result in some) / 60, values.shape[1] + 1)[1:]
        (line,) = over_time.plot(minutes, values.mean(axis=0), label=name)
        over_time.fill_between(minutes, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color())
        levels = [title for title in some[0]["conditions"] if title.startswith("noise")]
        heard = 100 * np.array([[result["conditions"][level] for level in levels] for result in some])
        places = [int(level.split()[2]) for level in levels]
        over_noise.errorbar(places, heard.mean(axis=0), heard.std(axis=0), marker="o", capsize=3, label=name)
    over_time.set(xlabel="minutes of training on one core", ylabel="validation accuracy in %", ylim=(0, 100))
    over_noise.set(xlabel="signal-to-noise ratio in dB", ylabel="test accuracy in %", ylim=(0, 100))
    over_noise.invert_xaxis()
    for axes in (over_time, over_noise):
        axes.grid(alpha=0.3)
        axes.legend()
    save("curves.png", curves)
    save("noise.png", noise)
    best = [result for result in results if result["variant"] == names[0]]
    save("confusion.png", plots.confusion(sum(np.array(result["matrix"]) for result in best), best[0]["words"]))


@contextlib.contextmanager
def pool(num_jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yields processes for so many trainings at a time, which share the cores; an error or Ctrl-C ends them."""
    threads = max(num_cores() // num_jobs, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, mp_context=context, initializer=start_worker, initargs=(threads,)) as executor:
        try:
            with handle_signals(signal.SIG_IGN, signal.SIGINT):  # which each child would answer with a traceback
                for _ in range(num_jobs):
                    executor.submit(int)  # starts a process
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def start_worker(num_threads: int) -> None:
    """Prepares a process for one training at a time, without progress bars that would overwrite each other."""
    os.environ["TQDM_DISABLE"] = "1"  # which tqdm reads when it is imported, by torch
    import torch

    end_with_parent()
    torch.set_num_threads(num_threads)
    logging.disable(logging.INFO)


@as_command()
def main() -> None:
    """Parses flags and runs the study."""
    parser = argparse.ArgumentParser(
        prog="python -m research.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="URL, archive or folder of recordings")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("var/study"),
        help="where to write results.json, table.md and pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=list(VARIANTS),
        metavar="NAME",
        help=f"variants to train, a row each (default: all: {', '.join(VARIANTS)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[41, 42, 43], help="(default: 41 42 43)")
    parser.add_argument(
        "--epochs",
        nargs="+",
        default=["0"],
        metavar="N|NAME=N",
        help="of all variants or one, as in: 0 baseline=9 (default: 0: as the preset)",
    )
    parser.add_argument("--words", default="auto", help="words to tell apart (default: auto)")
    parser.add_argument("--unknown-words", default="", help="words of the class _unknown_ (default: none)")
    parser.add_argument("--jobs", type=int, default=1, help="parallel trainings, which share the cores (default: 1)")
    parser.add_argument("--final", action="store_true", help="evaluate on the test split too, under all conditions")
    options = parser.parse_args()
    from kws.download.step import download

    recordings = download(options.source, "", options.folder)
    epochs = parse_epochs(options.epochs)
    tasks = [
        Task(
            variant=name,
            seed=seed,
            epochs=epochs.get(name, epochs[""]),
            words=options.words,
            unknown_words=options.unknown_words,
            recordings=recordings,
            folder=options.folder,
            final=options.final,
        )
        for seed in options.seeds
        for name in options.variants
    ]
    done: dict[int, Result] = {}
    with pool(options.jobs) as workers:
        numbers = {workers.submit(run, task): number for number, task in enumerate(tasks)}
        for future in as_completed(numbers):
            done[numbers[future]] = future.result()
            write(options.folder, [done[number] for number in sorted(done)], options.final)


def parse_epochs(values: Sequence[str]) -> Mapping[str, int]:
    """Reads `15 baseline=9` as {"": 15, "baseline": 9}."""
    found = {"": 0}
    for value in values:
        name, _, number = value.rpartition("=")
        found[name] = int(number)
    return found


if __name__ == "__main__":
    main()
