"""Time and memory of a clip from the listing to the index, among a million: all of preprocessing but the sounds."""

import io
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Effort, Row
from kws.command import as_command
from kws.data import pack
from kws.data.digest import Digests, fingerprint
from kws.data.index import Index
from kws.data.sources import list_recordings
from kws.data.splits import by_speaker, read_lists

FEW, MANY = 100_000, 1_000_000

WORDS, CLIPS_OF_SPEAKER = 100, 20


def growth(_: Effort) -> Row:
    """Time of a clip among a million against one among a hundred thousand."""
    times = {name: _measured(number)[0] for name, number in (("ours", MANY), ("other", FEW))}
    return Row(row="clips_time_growth", goal=1.1, at_most=True, unit="µs/clip", **times)


def memory(_: Effort) -> Row:
    """Highest memory of a clip among a million, without that of the libraries, against 0.8 kB as Python objects."""
    return Row(row="clips_memory", goal=0.4, at_most=True, unit="bytes/clip", ours=_measured(MANY)[1], other=800)


def _measured(num_clips: int) -> tuple[float, float]:
    """Returns µs of processor time and bytes of memory for a clip, of a process of its own."""
    with tempfile.TemporaryDirectory(dir=measure.FOLDER) as folder:
        command = [sys.executable, "-m", "benchmarks.clips", folder, str(num_clips)]
        for doing in ("pack", "prepare"):
            done = subprocess.run([*command, doing], check=True, stdout=subprocess.PIPE, text=True)
        found, size = map(float, done.stdout.split())
        return found, size


def _pack(folder: Path, num_clips: int) -> None:
    packer = pack.Packer(folder)
    for number in range(num_clips):
        speaker = number // CLIPS_OF_SPEAKER * 2654435761 % 2**32
        name = f"word{number % WORDS}/{speaker:08x}_nohash_{number}.wav"
        if packer.takes(name):
            packer.add(name, io.BytesIO(number.to_bytes(8, "little")), 8)
    packer.close()


def _prepare(folder: Path) -> int:
    listing = list_recordings(folder)
    digests = Digests(folder)
    fingerprint(listing, listing.clips, digests)
    divided = by_speaker(listing.clips, read_lists(listing.lists, listing.clips))
    clips = Index.joined(list(divided.values()))
    digests.keys(clips)
    clips.save(folder / "index.npz")
    return len(Index.load(folder / "index.npz"))


@as_command()
def _main(folder: Path, num_clips: int, doing: str) -> None:
    """Prints the time and memory of a clip."""
    pack.MANY = 0
    started, before = time.process_time(), _peak()
    if doing == "pack":
        _pack(folder, num_clips)
    else:
        assert _prepare(folder) == num_clips
    print(1e6 * (time.process_time() - started) / num_clips, (_peak() - before) / num_clips)


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
