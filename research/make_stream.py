"""Writes a stream with its truth, as the evaluation of streams composes it: stream.wav and truth.json.

See `research.score_events` for what to do with them.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile

from kws import files
from kws.command import as_command
from kws.evaluate.script import Script
from kws.model.predict import load


@as_command()
def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the two files")
    parser.add_argument("--model", type=Path, required=True, help="determines the words")
    parser.add_argument("--recordings", type=Path, required=True, help="folder of <word>/<recording>")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--snr", type=float, default=10, help="signal-to-noise ratio in dB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--after", default="", help="word of a gate, after which half of the words are spoken")
    parser.add_argument("--after-seconds", type=float, default=3, help="seconds for which the gate is open")
    options = parser.parse_args()
    recognizer = load(options.model)
    script = Script(
        options.recordings,
        recognizer,
        options.split,
        options.hours,
        options.seed,
        after=options.after,
        after_seconds=options.after_seconds,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    rate = recognizer.features.sample_rate
    with soundfile.SoundFile(options.output / "stream.wav", "w", rate, 1, "PCM_16") as file:
        for piece in script.render(options.snr):
            file.write(np.asarray(piece))
    spoken = [[one.begin, one.end, one.kind, one.word, one.source] for one in script.spoken]
    unclear = [list(stretch) for one in script.spoken for stretch in one.unclear]
    truth = {"seconds": script.seconds, "snr_db": options.snr, "spoken": spoken, "unclear": unclear}
    files.write_json(options.output / "truth.json", truth)


if __name__ == "__main__":
    main()
