"""The command line of a training process.

python -m kws.train --tensors DIR --runs DIR
torchrun --nproc-per-node=2 -m kws.train --tensors DIR --runs DIR
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from kws.command import quiet_threads, settle_user, unfailing
from kws.processes import die_with_parent
from kws.settings import require
from kws.train import runs
from kws.train.process import train
from kws.train.trainer import StopTraining

log = logging.getLogger(__name__)


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the command line says; exits with 143 after SIGTERM and 130 after Ctrl-C."""
    settle_user()
    quiet_threads()
    sys.stderr = unfailing(sys.stderr)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # otherwise the processes of a killed torchrun would go on training
    parser = argparse.ArgumentParser(
        prog="python -m kws.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs.add_arguments(parser)
    run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> Path:
    """Trains with the settings of parsed flags, and returns the run folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of fonts, in the log that the run keeps
    if options.run_folder is not None:
        tensors, recipe = runs.read_config(options.run_folder)
    else:
        require(options.tensors is not None, "tensors", "be a folder of kws preprocess", options.tensors)
        tensors, recipe = options.tensors, runs.recipe_of(options)
    try:
        return train(tensors, recipe, runs_folder=options.runs, run_id=options.run_id, run=options.run_folder)
    except StopTraining as stop:
        log.info("stopped, with a checkpoint; run the same command again to resume")
        sys.exit(stop.status)


if __name__ == "__main__":
    main()
