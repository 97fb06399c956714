"""Measures speed against alternatives: `make bench`.

Each row is a ratio: our code over another way of doing the same work, measured alternately. Prints a table and writes
var/bench.json.

rows:
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import clips, latency, measure, memory, preprocessing, serving, streams, training
from benchmarks.measure import Effort, Row
from kws import files
from kws.command import as_command

ROWS: dict[str, Callable[[Effort], Row]] = {
    "preprocess_vs_plain": preprocessing.versus_plain,
    "preprocess_added_vs_anew": preprocessing.of_added,
    "preprocess_time_growth": preprocessing.growth,
    "clips_time_growth": clips.growth,
    "clips_memory": clips.memory,
    "train_loop_vs_resident_batch": training.loop_versus_resident_batch,
    "train_vs_plain": training.versus_plain,
    "train_flops_vs_peak": training.flops_versus_peak,
    "ddp_two_vs_one": training.two_processes_versus_one,
    "train_beside_busy_vs_one_thread": training.beside_a_busy_process,
    "latency_vs_eager": latency.as_file,
    "latency_in_torch_vs_eager": latency.in_torch,
    "streams_per_core": streams.per_core,
    "small_streams_per_core": streams.of_small_per_core,
    "token_streams_per_core": streams.of_tokens_per_core,
    "serving_vs_bare": serving.throughput,
    "serving_p99_vs_bare": serving.tail,
    "memory_growth": memory.growth,
}
RESULT = Path("var/bench.json")


@as_command()
def main(argv: Sequence[str] | None = None) -> None:
    compared = "\n".join(f"  {name:<32} {str(row.__doc__).splitlines()[0]}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}{compared}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="(default: all)")
    parser.add_argument("--quick", action="store_true", help="shorter turns, for a first look: not to be quoted")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    effort = measure.QUICK if options.quick else measure.SERIOUS
    about = measure.machine()
    rows = []
    for name in options.rows:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        rows.append(ROWS[name](effort))
    files.write_json(
        RESULT,
        {
            "machine": about,
            "rows": [
                {
                    "row": row.row,
                    "ratio": round(row.ratio, 4),
                    "goal": row.goal,
                    "ours": round(row.ours, 2),
                    "other": round(row.other, 2),
                    "unit": row.unit,
                }
                for row in rows
            ],
        },
    )
    machine = f"{about['processor']} ({about['arithmetic']}), {about['cores']} cores"
    table = Table(title=f"{machine}, torch {about['torch']}, load {about['load']}")
    for title in ("row", "ratio", "goal", "ours", "other", "unit"):
        table.add_column(title, justify="left" if title in ("row", "unit") else "right")
    for row in rows:
        goal = f"{'≤' if row.at_most else '≥'} {row.goal:g}"
        colour = "green" if row.reached else "red"
        table.add_row(row.row, f"[{colour}]{row.ratio:.3g}", goal, f"{row.ours:,.5g}", f"{row.other:,.5g}", row.unit)
    Console().print(table)
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
