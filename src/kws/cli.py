"""kws: train and use a recognizer of spoken command words, without Kubeflow.

The steps of the pipeline, in the order in which data flows through them:

  kws synthesize corpus                                        a small synthetic corpus to play with (--words …)
  kws download --source speech_commands_v0.02.tar.gz --data-root var
  kws preprocess --recordings var/datasets/NAME --data-root var
  kws train --tensors var/tensors/FINGERPRINT --runs var/runs
  kws evaluate --model var/runs/RUN/best.pth --recordings FOLDER
  kws predict --model var/runs/RUN/best.pth hello.wav
  kws listen --model var/runs/RUN/best.pth --microphone
  kws export --model var/runs/RUN/best.pth --int8 model.onnx   # for machines without torch
  kws serve --data-root var                                    # the champion, at http://127.0.0.1:8080
"""

import argparse
import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kws import files
from kws.command import as_command
from kws.config import FORMATS, CleanConfig, PipelineConfig, ServeConfig, SynthesizeConfig, parse_words
from kws.parser import CommandParser
from kws.settings import add_flag, add_registry, field_docs, read_flags, require

if TYPE_CHECKING:
    from rich.table import Table

Add = Callable[..., argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and runs a subcommand; a user's error ends it with one line and status 2."""
    with as_command():
        _run(argv)


def _run(argv: Sequence[str] | None) -> NoReturn:
    parser: argparse.ArgumentParser = CommandParser(
        prog="kws", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
        command.set_defaults(call=call)
        return command

    _add_synthesize(add)
    _add_download(add)
    _add_preprocess(add)
    _add_train(add)
    _add_evaluate(add)
    _add_predict(add)
    _add_listen(add)
    _add_export(add)
    _add_serve(add)
    _add_decisions(add)
    _add_clean(add)
    options = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names that are not UTF-8 are printed unchanged
        sys.stdout.reconfigure(errors="surrogateescape")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        sys.exit(options.call(options))
    except KeyboardInterrupt:
        if options.command in RESUMABLE:
            raise
        print("stopped", file=sys.stderr)
        sys.exit(130)


RESUMABLE = ("download", "preprocess", "train")
"""Commands that go on where they were stopped when they are run again."""


def _add_synthesize(add: Add) -> None:
    command = add(
        "synthesize", _synthesize, "speak words with synthetic voices, in folders laid out like Speech Commands"
    )
    command.add_argument("folder", type=Path, help="the folder to create")
    for name in field_docs(SynthesizeConfig):
        add_flag(command, SynthesizeConfig, name)


def _synthesize(options: argparse.Namespace) -> int:
    from kws.download.synthesize import synthesize

    config = read_flags(SynthesizeConfig, options)
    words = parse_words(config.words)
    assert words is not None
    synthesize(
        options.folder, words=words, language=config.language, clips_per_word=config.clips_per_word, seed=config.seed
    )
    print(options.folder)
    return 0


def _add_download(add: Add) -> None:
    command = add(
        "download", _download, "copy or download recordings to datasets/ under the data root, and print their folder"
    )
    for name in ("source", "layout", "sha256"):
        add_flag(command, PipelineConfig, name)
    command.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="where to make datasets/NAME")


def _download(options: argparse.Namespace) -> int:
    from kws.download.step import download

    print(download(options.source, options.sha256, options.data_root, options.layout))
    return 0


def _add_preprocess(add: Add) -> None:
    command = add("preprocess", _preprocess, "compute the mel spectrograms of all recordings, and print their folder")
    command.add_argument("--recordings", type=Path, required=True, metavar="DIR", help="a folder of recordings")
    command.add_argument(
        "--data-root", type=Path, required=True, metavar="DIR", help="where to make tensors/FINGERPRINT"
    )
    for name in ("layout", "words", "unknown_words", "preset", "set", "split", "max_bad_fraction"):
        add_flag(command, PipelineConfig, name)
    command.add_argument(
        "--num-threads", type=int, default=0, metavar="N", help="worker threads (default: one for every core)"
    )
    command.add_argument(
        "--shard",
        metavar="K/N",
        help="only compute the features of the K-th of N shares of the clips, from 0 on, and print their number; "
        "any number of machines with the same data root may do so before one preprocesses",
    )


def _preprocess(options: argparse.Namespace) -> int:
    from kws.data.sources import unwrapped
    from kws.preprocess.step import compute_shard, preprocess
    from kws.recipe import make_recipe

    recipe = make_recipe(options.preset, options.set.split(), split=options.split)
    clips: dict[str, Any] = {
        name: getattr(options, name) for name in ("words", "unknown_words", "num_threads", "layout")
    }
    recordings, root = unwrapped(options.recordings.resolve(), options.layout), options.data_root
    if options.shard is None:
        print(preprocess(recordings, root, recipe, max_bad_fraction=options.max_bad_fraction, **clips))
        return 0
    shard, _, number = options.shard.partition("/")
    require(shard.isdigit() and number.isdigit(), "shard", "be two numbers such as 0/4", options.shard)
    of: dict[str, Any] = {"shard": int(shard), "num_shards": int(number), "clips_per_shard": 1}
    print(compute_shard(recordings, root, recipe, **of, **clips))
    return 0


def _add_train(add: Add) -> None:
    from kws.train.runs import add_arguments

    command = add("train", _train, "train a model in this process, or in several, and print the run folder")
    command.add_argument(
        "--processes-per-node",
        type=int,
        metavar="N",
        help="training processes on this machine, under torchrun if there are several (default: one for every GPU or "
        "CPU core, as far as that is faster)",
    )
    add_arguments(command)


def _train(options: argparse.Namespace) -> int:
    from kws.launch.torchrun import TorchrunLauncher
    from kws.train.runs import recipe_of
    from kws.train.step import default_processes, train

    launcher, processes = TorchrunLauncher(), options.processes_per_node
    if processes is None:
        can_ask = options.tensors is not None and files.is_complete(options.tensors)
        processes = default_processes(recipe_of(options), options.tensors, launcher) if can_ask else 1
    require(processes > 0, "processes_per_node", "be positive", processes)
    if processes == 1:
        from kws.train.__main__ import run
        from kws.train.runs import delete_checkpoints

        folder = run(options)
        delete_checkpoints(folder)
        print(folder)
        return 0
    require(
        options.runs is not None and options.tensors is not None,
        "tensors and runs",
        "be given if processes_per_node is not 1",
        "--run-folder",
    )
    from kws.launch.job import LaunchError

    try:
        folder = train(
            options.tensors,
            options.runs,
            recipe=recipe_of(options),
            run_id=options.run_id,
            processes_per_node=processes,
            launcher=launcher,
        )
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _add_gate(command: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    for name in ("after", "after_seconds"):
        add_flag(command, ServeConfig, name)


def _add_evaluate(add: Add) -> None:
    command = add("evaluate", _evaluate, "evaluate a model on a folder of <word>/*.wav, on the words that it knows")
    command.add_argument("--model", type=Path, required=True, metavar="FILE", help="a .pth or .onnx file")
    command.add_argument("--recordings", type=Path, required=True, metavar="DIR", help="a folder of recordings")
    add_flag(command, PipelineConfig, "layout")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="where to write report, confusion matrix and metrics (default: %(default)s)",
    )
    command.add_argument("--json", action="store_true", help="print the metrics as JSON instead of a table")
    streams = command.add_argument_group("long streams instead of clips")
    streams.add_argument(
        "--stream",
        action="store_true",
        help="build streams with known content (words at random gaps, other words, sentences, held-out noise at 20, 10 "
        "and 5 dB), choose thresholds on those of the validation split, and count misses and false alarms on those of "
        "the test split",
    )
    streams.add_argument(
        "--hours",
        type=float,
        default=1.0,
        metavar="H",
        help="hours of stream for each noise level and split (default: 1)",
    )
    streams.add_argument(
        "--false-alarms-per-hour",
        type=float,
        default=1.0,
        metavar="N",
        help="choose thresholds for at most this many, over all words (default: 1)",
    )
    streams.add_argument(
        "--room",
        type=Path,
        metavar="FILE",
        help="a long recording without any of the words; the limit must hold there too",
    )
    streams.add_argument("--thresholds", type=Path, metavar="FILE", help="evaluate these instead of choosing new ones")
    _add_gate(streams)


def _evaluate_streams(options: argparse.Namespace) -> int:
    from kws.evaluate.report import write_stream_report
    from kws.evaluate.streams import evaluate_streams
    from kws.model.detector import THRESHOLDS, Thresholds
    from kws.model.predict import load
    from kws.text import printable

    recognizer = load(options.model, num_threads=1)  # one window at a time is too little work for several threads
    given = Thresholds.read(options.thresholds, recognizer.words) if options.thresholds else None
    thresholds, reports = evaluate_streams(
        recognizer,
        options.recordings,
        hours=options.hours,
        false_alarms_per_hour=options.false_alarms_per_hour,
        thresholds=given,
        room=options.room,
        after=options.after,
        after_seconds=options.after_seconds,
    )
    rows = write_stream_report(options.output, recognizer, thresholds, reports, f"recordings in {options.recordings}")
    if options.json:
        print(json.dumps({"thresholds": thresholds.as_json(), "streams": rows}, indent=2))
        return 0

    from rich.console import Console

    gate = ("gate missed", "words after it") if thresholds.after else ()
    rates = ("missed (95 %)", "alarms/h (95 %)")
    table = _table("SNR", "hours", "words", *gate, *rates, "missed at 1/h", "false alarms in", left="false alarms in")
    for row in rows:
        causes = ", ".join(f"{cause} {count}" for cause, count in row["false_alarms_by_cause"].items())
        table.add_row(
            f"{row['snr_db']:g} dB",
            f"{row['hours']:.2f}",
            str(row["spoken"]),
            *([f"{row['gate_missed']:.1%}", f"{row['missed_after_gate']:.1%}"] if gate else []),
            *_with_intervals(row, row, digits=2),
            f"{row['missed_at_one_an_hour']:.1%}",
            causes,
        )
    by_word = _table("dB", "word", "threshold", "spoken", *rates, left="word")
    for row in rows:
        for word, one in row["words"].items():
            threshold = thresholds.thresholds[word]
            by_word.add_row(
                f"{row['snr_db']:g}",
                printable(word),
                "never" if threshold > 1 else f"{threshold:.3f}",
                str(one["spoken"]),
                *_with_intervals(one, row, digits=1),
            )
        by_word.add_section()
    console = Console()
    console.print(table)
    console.print(by_word)
    console.print(
        f"report {options.output}/streams.html; thresholds for kws listen and the server in {THRESHOLDS}",
        highlight=False,
    )
    return 0


def _table(*titles: str, left: str) -> "Table":
    """Returns an empty table of numbers, with one column of texts."""
    from rich.table import Column, Table

    return Table(*(Column(title, justify="left" if title == left else "right") for title in titles))


def _with_intervals(row: Mapping[str, Any], stream: Mapping[str, Any], digits: int) -> tuple[str, str]:
    """Returns miss rate and false alarms per hour, each with its 95 % interval, of a stream or of a word in it."""
    (low, high), (least, most) = row["missed_95"], row["false_alarms_per_hour_95"]
    return (
        f"{row['missed']:.1%} ({100 * low:.0f} to {100 * high:.0f})",
        f"{row['false_alarms'] / stream['hours']:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})",
    )


def _evaluate(options: argparse.Namespace) -> int:
    from kws.data.sources import unwrapped

    options.recordings = unwrapped(options.recordings, options.layout)
    if options.stream:
        return _evaluate_streams(options)
    from kws import files
    from kws.evaluate.accuracy import evaluate_recordings, save_confusion
    from kws.evaluate.report import write_report
    from kws.model.predict import load
    from kws.text import printable

    recognizer = load(options.model)
    evaluation, unreadable = evaluate_recordings(recognizer, options.recordings, options.layout)
    for clip, reason in unreadable.items():
        print(f"left out {printable(clip)}: {reason}", file=sys.stderr)
    summary = evaluation.summary() | {"unreadable": unreadable}
    files.delete_unfinished(options.output)
    save_confusion(evaluation, options.output)
    files.write_json(options.output / "evaluation.json", summary)
    report = options.output / "report.html"
    write_report(report, recognizer, evaluation, f"recordings in {printable(options.recordings)}", options.recordings)
    if options.json:
        print(json.dumps(summary, indent=2))
        return 0

    from rich.console import Console

    table = _table("word", "clips", "precision", "recall", "F1", left="word")
    for row in evaluation.word_scores:
        table.add_row(row.word, str(row.num_clips), f"{row.precision:.1%}", f"{row.recall:.1%}", f"{row.f1:.3f}")
    console = Console()
    console.print(table)
    figures = f"macro F1 {evaluation.macro_f1:.3f}, calibration error {evaluation.calibration_error:.1%}"
    console.print(f"accuracy {evaluation.accuracy:.2%} on {evaluation.num_clips} clips, {figures}", highlight=False)
    console.print(f"report {report}, confusion matrix {options.output}/confusion.png and .csv", highlight=False)
    return 0


def _add_predict(add: Add) -> None:
    command = add("predict", _predict, "recognize the word in each recording, and print file<TAB>word<TAB>probability")
    command.add_argument("--model", type=Path, required=True, metavar="FILE", help="a .pth file, or one of kws export")
    command.add_argument("--top", type=int, default=1, metavar="K", help="print the K most probable words (default: 1)")
    command.add_argument("--json", action="store_true", help="print JSON instead of lines")
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recordings, or folders of them")


def _predict(options: argparse.Namespace) -> int:
    from kws.model.predict import expand, load, predict
    from kws.text import one_line

    require(options.top > 0, "top", "be positive", options.top)
    recognizer = load(options.model)
    found: list[dict[str, Any]] = []
    failed = False
    for path in expand(options.files):
        try:
            predictions = predict(recognizer, path, options.top)
        except (ValueError, OSError) as error:
            print(one_line(f"error: {path}: {error}"), file=sys.stderr)
            failed = True
            continue
        if options.json:
            found.append({"file": str(path), "predictions": [asdict(prediction) for prediction in predictions]})
        else:
            for prediction in predictions:
                print(f"{one_line(str(path))}\t{prediction.word}\t{prediction.probability:.4f}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))
    return 1 if failed else 0


def _add_listen(add: Add) -> None:
    command = add("listen", _listen, "detect words in a stream, and print seconds<TAB>word<TAB>probability for each")
    command.add_argument("--model", type=Path, required=True, metavar="FILE", help="a .pth or .onnx file")
    command.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="thresholds.json of kws evaluate --stream (default: the one beside the model, or 0.8 for every word)",
    )
    _add_gate(command)
    command.add_argument("--microphone", action="store_true", help="listen to this machine's microphone until Ctrl-C")
    command.add_argument("--json", action="store_true", help="print a line of JSON for each word, with its position")
    command.add_argument(
        "source",
        nargs="?",
        metavar="FILE",
        help="a recording, or - for standard input: WAV, or raw 16-bit samples, mono, at the model's sample rate",
    )


def _listen(options: argparse.Namespace) -> int:
    from kws.model.detector import Thresholds
    from kws.model.predict import load
    from kws.serve.listen import listen, microphone, open_file, standard_input

    if options.microphone == (options.source is not None):
        raise ValueError(
            "kws listen must be given one of FILE, - and --microphone, got "
            + (f"--microphone and {options.source}" if options.source else "none")
        )
    recognizer = load(options.model, num_threads=1)
    words, rate = recognizer.words, recognizer.features.sample_rate
    if options.thresholds:
        thresholds = Thresholds.read(options.thresholds, words)
    else:
        thresholds = Thresholds.beside(options.model, words, recognizer.margin is not None)
    thresholds = thresholds.behind(options.after, options.after_seconds)
    if options.microphone:
        source = microphone(rate)
    else:
        source = standard_input(rate) if options.source == "-" else open_file(Path(options.source), rate)
    for found in listen(recognizer, thresholds, source):
        if options.json:
            print(json.dumps(asdict(found)), flush=True)
        else:
            print(f"{found.time:.2f}\t{found.word}\t{found.probability:.4f}", flush=True)
    return 0


def _add_export(add: Add) -> None:
    command = add("export", _export, "write a model in a form that runs elsewhere, from waveforms to probabilities")
    command.add_argument("--model", type=Path, required=True, metavar="FILE", help="a .pth file")
    command.add_argument(
        "--int8", action="store_true", help="quantize matrices to 8 bits: smaller and faster; check with kws evaluate"
    )
    endings = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    command.add_argument(
        "output", type=Path, metavar="OUTPUT", help=f"what to write; its ending says as what: {endings}"
    )


def _export(options: argparse.Namespace) -> int:
    from kws.model import bundle, formats

    figures = formats.of_file(options.output).export(
        bundle.load(options.model), options.output, options.int8, options.model.parent
    )
    print(options.output, *(f"{name} {value:,}" for name, value in figures.items()), sep="\n")
    return 0


def _add_serve(add: Add) -> None:
    command = add("serve", _serve, "serve one model, or the current champion, over REST, gRPC and a web page")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, metavar="FILE", help="an .onnx file")
    which.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="serve the champion of models/ in this folder; waits until there is one",
    )
    for name in field_docs(ServeConfig):
        add_flag(command, ServeConfig, name)


def _serve(options: argparse.Namespace) -> int:
    from kws.serve.server import run

    run(options.model, options.data_root, read_flags(ServeConfig, options))
    return 0


def _add_decisions(add: Add) -> None:
    from kws.promote.by_hand import COMMANDS, add_flags

    command = add("candidates", _candidates, "show the candidate that waits for approval, and what became of others")
    command.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="the folder that holds models/")
    for name, help_ in COMMANDS.items():
        command = add(name, _decide, f"{help_}, and record who and why")
        command.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="the folder with models/")
        add_flags(command, name)


def _candidates(options: argparse.Namespace) -> int:
    from kws.model import versions

    for one in versions.proposals(options.data_root):
        print(f"{one['version']}\t{one['state']}\t{one['since']}\t{one['reason']}")
    found = versions.waiting(versions.proposals(options.data_root))
    print(f"\n{'word':<20} {'clips':>6} {'candidate':>10} {'champion':>10}   ({found['version']}, {found['against']})")
    for row in found["words"]:
        print(f"{row['word']:<20} {row['num_clips']:>6} " + " ".join(f"{recall:>10.1%}" for recall in row["recall"]))
    print(f"\nside by side, with sounds: {options.data_root / versions.MODELS / versions.COMPARISON}")
    return 0


def _decide(options: argparse.Namespace) -> int:
    from kws.promote.by_hand import carry_out

    print(carry_out(options.data_root, options.command, options))
    return 0


def _add_clean(add: Add) -> None:
    command = add("clean", _clean, "delete runs, versions, tensors, features and data sets that nothing needs any more")
    command.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="the folder that holds runs/")
    for name in field_docs(CleanConfig):
        add_flag(command, CleanConfig, name)
    add_registry(command, "whose live entries keep their versions")


def _clean(options: argparse.Namespace) -> int:
    from kws.promote.clean import clean

    config = read_flags(CleanConfig, options)
    clean(options.data_root, config, model_registry=options.model_registry, say=print)
    return 0


if __name__ == "__main__":
    main()
