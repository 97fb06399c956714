"""Cuts the clips of a list out of the published archive of Speech Commands, laid out as it is.

So the data sets of docs/accuracy.md can be made anywhere. A list (research/lists/) has a heading for each split, such
as [train], and below it the clips, a line each. The output has their recordings as published, a validation_list.txt,
a testing_list.txt, and the background noises that the list names.

The training and validation clips of real21 were available here only as copies in Opus, at about 34 kbit/s; --opus makes
such copies, by libsndfile. Of real16 every clip is as published, but five of its six background noises were not.

  python -m research.cut_archive --list research/lists/real16.txt --archive speech_commands_v0.02.tar.gz var/real16
  python -m research.cut_archive --list research/lists/real21.txt --archive speech_commands_v0.02.tar.gz var/real21 \
    --opus train validation
"""

import argparse
import io
import tarfile
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kws.command import as_command
from kws.config import SPLITS
from kws.settings import require

OPUS_LEVEL = 0.9
"""Compression level of libsndfile that gives some 34 kbit/s of one channel at 16 kHz."""


def read_list(path: Path) -> dict[str, list[str]]:
    """Returns the clips of a list by split, and as "noise" the background noises, all with their suffix.

    Raises:
        ValueError: a heading is unknown, or a clip stands before the first.
    """
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            require(line[1:-1] in (*SPLITS, "noise"), "a heading of the list", f"be [noise] or one of {SPLITS}", line)
            clips = found.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            require(bool(found), "a list", "begin with the heading of a split, such as [train]", line)
            clips.append(f"{line}.wav")
    return found


def as_opus(recording: bytes) -> bytes:
    """Codes a recording as Ogg Opus."""
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(recording), dtype="float32")
    coded = io.BytesIO()
    soundfile.write(coded, samples, rate, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
    return coded.getvalue()


def cut(clips: Mapping[str, Sequence[str]], archive: Path, output: Path, opus: Collection[str] = ()) -> None:
    """Writes the listed clips of an archive to a folder, which must not be there yet.

    Args:
        clips: clips by split, of `read_list`.
        archive: the published archive.
        output: the folder to make.
        opus: splits whose clips become .opus files.

    Raises:
        ValueError: the folder is there, or the archive lacks listed clips.
    """
    require(not output.exists(), "output", "be a folder that is not there yet", str(output))
    split_of = {clip: split for split, some in clips.items() for clip in some}
    missing = set(split_of)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder,
        tarfile.open(archive) as opened,
    ):
        staging = Path(folder) / output.name
        staging.mkdir()
        for member in opened:
            name = member.name.removeprefix("./")
            content = opened.extractfile(member) if name in missing else None
            if content is None:
                continue
            missing.remove(name)
            path, recording = staging / name, content.read()
            path.parent.mkdir(exist_ok=True)
            if split_of[name] in opus:
                path.with_suffix(".opus").write_bytes(as_opus(recording))
            else:
                path.write_bytes(recording)
        require(not missing, "archive", "have every clip of the list", f"none named {', '.join(sorted(missing)[:3])}")
        for split, file in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
            (staging / file).write_text("".join(f"{clip}\n" for clip in clips.get(split, ())))
        staging.rename(output)


@as_command()
def main() -> None:
    """Parses flags and cuts an archive."""
    parser = argparse.ArgumentParser(
        prog="python -m research.cut_archive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", type=Path, required=True, metavar="FILE", help="one of research/lists")
    parser.add_argument("--archive", type=Path, required=True, metavar="FILE", help="speech_commands_v0.02.tar.gz")
    parser.add_argument("--opus", nargs="+", choices=SPLITS, default=(), help="splits to code as Opus (default: none)")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to make")
    options = parser.parse_args()
    clips = read_list(options.list)
    cut(clips, options.archive, options.output, options.opus)
    counts = ", ".join(f"{split} {len(some):,}" for split, some in clips.items())
    print(f"{options.output}: {counts}; next: --source {options.output}")


if __name__ == "__main__":
    main()
