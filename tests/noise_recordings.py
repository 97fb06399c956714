"""Recordings of noise, as a folder and as an archive."""

import random
import tarfile
import wave
from pathlib import Path


def make_recordings(folder: Path, seed: int = 0, clips: int = 6) -> Path:
    """Writes two words of noise, which compresses badly, so that half an archive is half its recordings."""
    drawn = random.Random(seed)
    for word in ("yes", "no"):
        (folder / word).mkdir(parents=True)
        for i in range(clips):
            with wave.open(str(folder / word / f"{i:08x}_nohash_0.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(drawn.randbytes(32_000))
    return folder


def pack(recordings: Path, archive: Path, wrapping: str = ".") -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as file:
        file.add(recordings, wrapping)
    return archive
