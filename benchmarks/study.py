"""What each ingredient of the recipe is worth: `make study`.

Every row is a variant of a preset, trained with several seeds on one archive, judged on the validation split. The
test split is for the final rows only (`--final`), which are judged under worse conditions too. A study that is
stopped goes on where it was: each training is a run folder of its own, and a complete one is only read.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from kws import files
from kws.config import PRESETS, AugmentConfig, Preset

DEFAULT = PRESETS["default"]
BASELINE = dataclasses.replace(PRESETS["baseline"], split="speaker")


def change(preset: Preset, *, augment: dict[str, Any] | None = None, model: dict[str, Any] | None = None,
           features: dict[str, Any] | None = None, **train: Any) -> Preset:  # fmt: skip
    """Returns a preset with some fields changed."""
    changed = dataclasses.replace(preset.train.augment, **(augment or {}))
    return dataclasses.replace(
        preset,
        features=dataclasses.replace(preset.features, **(features or {})),
        model=dataclasses.replace(preset.model, **(model or {})),
        train=dataclasses.replace(preset.train, **({"augment": changed} | train)),
    )


VARIANTS: dict[str, Preset] = {
    "default": DEFAULT,
    "baseline": BASELINE,
    "baseline-log-mel": change(BASELINE, features={"log": True, "normalize": True}),
    "no-augmentation": dataclasses.replace(DEFAULT, train=dataclasses.replace(DEFAULT.train, augment=AugmentConfig())),
    "no-noise": change(DEFAULT, augment={"noise_probability": 0.0}),
    "no-warp": change(DEFAULT, augment={"time_stretch": 0.0, "frequency_warp": 0.0}),
    "no-masks": change(DEFAULT, augment={"num_time_masks": 0, "num_frequency_masks": 0}),
    "no-shift": change(DEFAULT, augment={"time_shift": 0}),
    "no-bandlimit": change(DEFAULT, augment={"bandlimit_probability": 0.0}),
    "mixup": change(DEFAULT, augment={"mixup": 0.2}),
    "no-positions": change(DEFAULT, model={"positions": False}),
    "no-convolution": change(DEFAULT, model={"conv_kernel": 0}),
    "linear-stem": change(DEFAULT, model={"stem": "linear"}),
    "one-frame-tokens": change(DEFAULT, model={"frames_per_token": 1}),
    "post-norm": change(DEFAULT, model={"norm_first": False}),
    "no-drop-path": change(DEFAULT, model={"drop_path": 0.0}),
    "no-averaging": change(DEFAULT, ema_decay=0.0),
    "no-label-smoothing": change(DEFAULT, label_smoothing=0.0),
    "htk-n-fft-1024": change(DEFAULT, features={"mel_scale": "htk", "n_fft": 1024, "f_min": 0.0}),
}


def run(name: str, seed: int, epochs: int, recordings: Path, folder: Path, final: bool) -> dict[str, Any]:
    """Trains and judges one variant with one seed, or reads what an earlier call found."""
    from kws import bundle, evaluate, robustness, trainer
    from kws.preprocess import preprocess
    from kws.tensors import Tensors

    preset = VARIANTS[name]
    cast("dict[str, Preset]", PRESETS)[name] = preset
    changes: dict[str, Any] = {"epochs": epochs, "min_clips": 0} if epochs else {}
    config = dataclasses.replace(preset.train, seed=seed, **changes)
    tensors = preprocess(recordings, folder, words="auto", preset=name, split="speaker")
    run_folder = trainer.train(tensors, name, config, runs_folder=folder / "runs", run_id=f"{name}-{epochs}-{seed}")
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    manifest = files.read_json(run_folder / files.MANIFEST)
    found = {
        "variant": name,
        "seed": seed,
        "epochs": manifest["epochs"],
        "num_parameters": manifest["num_parameters"],
        "seconds": round(manifest["epochs"] * manifest["num_clips"] / manifest["clips_per_second"]),
        "validation": manifest["validation_accuracy"],
        "validation_last": rows[-1]["validation_accuracy"],
    }
    cache = run_folder / "test.json"
    if final and not cache.is_file():
        recognizer, opened = bundle.load(run_folder / "best.pth"), Tensors(tensors)
        judgement = evaluate.judge_tensors(recognizer, opened)
        conditions = robustness.measure(recognizer, recordings, opened.split("test").clips)
        evaluate.save_confusion(judgement, run_folder)
        test = {"test": judgement.accuracy, "calibration_error": judgement.calibration_error}
        files.write_json(cache, test | {"conditions": conditions})
    return found | (files.read_json(cache) if final else {})


def show(results: Sequence[dict[str, Any]], final: bool) -> None:
    """Prints a column for every variant: mean and standard deviation over its seeds."""
    names = list(dict.fromkeys(result["variant"] for result in results))
    by_name = {name: [result for result in results if result["variant"] == name] for name in names}
    table = Table(title="accuracy in %, mean ± standard deviation over seeds")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for title in ("num_parameters", "epochs", "seconds"):
        table.add_row(title, *(f"{by_name[name][0][title]:,}" for name in names))
    table.add_row("seeds", *(str(len(by_name[name])) for name in names))
    table.add_row("validation", *(spread([result["validation"] for result in by_name[name]]) for name in names))
    if final:
        for title in ("test", "calibration_error"):
            table.add_row(title, *(spread([result[title] for result in by_name[name]]) for name in names))
        for title in list(results[0]["conditions"])[1:]:
            table.add_row(title, *(spread([one["conditions"][title] for one in by_name[name]]) for name in names))
    Console(width=max(100, 24 + 16 * len(names))).print(table)


def spread(values: Sequence[float]) -> str:
    """Writes shares as per cent: mean ± standard deviation."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def main() -> None:
    """Parses flags and runs the study."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--source", required=True, help="URL, archive or folder of recordings")
    parser.add_argument("--folder", type=Path, default=Path("var/study"), help="(default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME",
                        help=f"rows (default: all, {', '.join(VARIANTS)})")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[41, 42, 43], help="(default: 41 42 43)")
    parser.add_argument("--epochs", type=int, default=0, help="(default: as the preset says)")
    parser.add_argument("--final", action="store_true", help="judge on the test split too, under all conditions")
    options = parser.parse_args()
    from kws.download import download

    recordings = download(options.source, "", options.folder)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.variants:
            print(f"▶ {name}, seed {seed}", file=sys.stderr)
            results.append(run(name, seed, options.epochs, recordings, options.folder, options.final))
            files.write_json(options.folder / "results.json", results)
            show(results, options.final)


if __name__ == "__main__":
    main()
