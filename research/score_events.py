"""Scores the events of `kws listen --json` against the truth of a stream, by code of its own.

It shares no code with `kws.evaluate`, so that one can be checked by the other:

    python -m research.make_stream --model model.onnx --recordings DIR --hours 2 stream/   # stream.wav and truth.json
    kws listen --model model.onnx --json stream/stream.wav > stream/events.jsonl
    python -m research.score_events stream/truth.json stream/events.jsonl

An event belongs to an utterance if it lies within it or at most 0.25 s outside. The first event with the right word for
a word that was spoken is a hit. Events where the text of a sentence has a word of the model count neither way; all
others are false alarms.

In a stream with a gate, rows of kind gate are its word, and those of kind closed are words that were spoken without it
and must not be heard, except where the gate was still open: there nothing counts.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from kws.command import as_command

TOLERANCE = 0.25


def score(truth: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures.

    Args:
        truth: `seconds`, `spoken` (rows of begin, end, kind, word, source) and `unclear` (rows of begin, end).
        events: objects with `time` in seconds and `word`.
    """
    hits: set[int] = set()
    alarms: Counter[str] = Counter()
    where: Counter[str] = Counter()
    for event in sorted(events, key=lambda event: event["time"]):
        time, word = event["time"], event["word"]
        near = [
            number
            for number, (begin, end, *_) in enumerate(truth["spoken"])
            if begin - TOLERANCE <= time <= end + TOLERANCE
        ]
        same = [truth["spoken"][number][2] for number in near if truth["spoken"][number][3] == word]
        right = [
            number for number in near if truth["spoken"][number][3] == word and truth["spoken"][number][2] != "closed"
        ]
        if fresh := [number for number in right if number not in hits]:
            hits.add(fresh[0])
        elif not any(begin <= time <= end for begin, end in truth["unclear"]):
            alarms[word] += 1
            kind = "again" if right else "closed" if same else truth["spoken"][near[0]][2] if near else "noise"
            where["word" if kind in ("gate", "closed") and not same else kind] += 1
    gates = [number for number, row in enumerate(truth["spoken"]) if row[2] == "gate"]
    gate: dict[str, float] = {}
    if gates:
        # The word after a gate that was heard, or that was heard itself as the gate was still open.
        after = [number + 1 for number in gates if truth["spoken"][number + 1 : number + 2]]
        after = [number for number in after if truth["spoken"][number][2] == "word"]
        reached = [number for number in after if number - 1 in hits or number in hits]
        gate = {
            "gate_missed": 1 - len(hits & {*gates}) / len(gates),
            "missed_after_gate": 1 - len(hits & {*after}) / max(len(reached), 1),
        }
    counted = [row for row in truth["spoken"] if row[3] and row[2] != "closed"]
    words = Counter(row[3] for row in counted)
    found = Counter(truth["spoken"][number][3] for number in hits)
    number_words = sum(row[2] == "word" for row in counted)
    return {
        **gate,
        "hours": truth["seconds"] / 3600,
        "spoken": words.total(),
        "missed": 1 - sum(truth["spoken"][number][2] == "word" for number in hits) / max(number_words, 1),
        "false_alarms": alarms.total(),
        "false_alarms_per_hour": alarms.total() / (truth["seconds"] / 3600),
        "false_alarms_by_cause": dict(where),
        "missed_by_word": {word: 1 - found[word] / count for word, count in sorted(words.items())},
    }


@as_command()
def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("events", type=Path)
    options = parser.parse_args()
    events = [json.loads(line) for line in options.events.read_text().splitlines() if line.strip()]
    json.dump(score(json.loads(options.truth.read_text()), events), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
