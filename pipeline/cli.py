"""Compile the pipeline, run it on this machine, or submit it to Kubeflow."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kws import files
from kws.command import as_command
from kws.config import PipelineConfig
from kws.parser import CommandParser
from pipeline.flags import add_parameters, read_parameters

DEMO = Path("var/demo")

ONLY_NEW = "train nothing if data and recipe are those of a version that there is, as scheduled runs do"

EPILOG = """examples:
  python -m pipeline compile -o speech-commands.yaml
  python -m pipeline run --source speech_commands_v0.02.tar.gz --data-root var/data
  python -m pipeline run --source my-recordings/ --data-root var/data --words auto --epochs 50
  python -m pipeline run --source https://example.org/words.tar.gz --data-root var/data --runner docker
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and runs a command; errors of the user end with one line and status 2."""
    with as_command():
        _call(argv)


def _call(argv: Sequence[str] | None) -> None:
    parser: argparse.ArgumentParser = CommandParser(
        prog="python -m pipeline", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="compile the pipeline and run it on this machine, without a cluster")
    run.add_argument(
        "--runner",
        choices=("subprocess", "docker"),
        default="subprocess",
        help="where the steps run: in processes or in containers (default: %(default)s)",
    )
    run.add_argument("--only-new", action="store_true", help=ONLY_NEW)
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the summary to this file, as JSON")
    add_parameters(run, required=("data_root",))
    run.set_defaults(call=_run)

    demo = commands.add_parser("demo", help="synthesize a small spoken corpus and run the pipeline on it")
    demo.add_argument("--folder", type=Path, default=DEMO, metavar="DIR", help="(default: %(default)s)")
    demo.set_defaults(call=_demo)

    from pipeline.cluster.commands import add_cluster_commands

    add_cluster_commands(commands)

    options = parser.parse_args(argv)
    options.call(options)


def _run(options: argparse.Namespace) -> None:
    from pipeline.local import run, show

    summary = run(read_parameters(options), options.runner, options.only_new)
    show(summary)
    if options.json:
        files.write_json(options.json, summary)


def _demo(options: argparse.Namespace) -> None:
    from kws.download.synthesize import synthesize
    from pipeline.local import run, show

    corpus, data_root = options.folder / "corpus", options.folder / "data"
    synthesize(corpus)
    parameters = PipelineConfig(source=str(corpus), data_root=str(data_root), epochs=30)
    summary = run(parameters, "subprocess")
    files.write_json(options.folder / "summary.json", summary)
    show(summary)
    word = summary["words"][0]
    print(f"""
Try next:
  {Path(sys.executable).parent}/kws predict --model {summary["model"]} {corpus}/{word}/*.wav
  make serve                                                                       # a page that listens to you
  {Path(sys.executable).parent}/tensorboard --logdir {data_root}/runs
  python -m pipeline run --source ARCHIVE_OR_FOLDER --data-root DIR --words auto   # your own recordings
  make help                                                                        # everything else""")
