"""The page in a Chromium whose microphone is a file.

People speak in it from the folder KWS_E2E_DIGITS, which has fifty recordings each of ten digits by several persons, as
<digit>/<speaker>_nohash_<n>.wav: those of the Free Spoken Digit Dataset
(github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0), renamed.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Page, expect, sync_playwright

from kws.preprocess.audio import read_waveform

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT = Path(__file__).resolve().parents[1]
DIGITS = Path(os.environ.get("KWS_E2E_DIGITS", ROOT.parent / "shared" / "data" / "spoken-digits"))
RATE = 16_000


def say(path: Path, clips: Sequence[Path], spacing: float, seconds: float = 0) -> Path:
    """Writes clips, one after the other, over the hiss of a quiet room.

    Args:
        path: the file to write.
        clips: recordings, of which at most a second is taken.
        spacing: seconds from one to the next.
        seconds: shortest length of the file.
    """
    random = np.random.default_rng(0)
    length = max((len(clips) + 1) * spacing, seconds)
    heard = 5e-4 * random.standard_normal(round(length * RATE)).astype(np.float32)
    for number, clip in enumerate(clips):
        samples = read_waveform(clip, RATE)[:RATE]
        begin = round((number + 0.5) * spacing * RATE)
        heard[begin : begin + samples.size] += 0.5 * samples / np.abs(samples).max()
    soundfile.write(path, heard, RATE)
    return path


@contextlib.contextmanager
def browsing(microphone: Path, profile: Path, url: str, height: int = 720) -> Iterator[Page]:
    """Opens the page in a Chromium that hears a file, over and over, and remembers who is speaking."""
    assert CHROMIUM is not None, "needs Chromium"
    with sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            viewport={"width": 1000, "height": height},
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}",
            ],
        )
        tab = context.new_page()
        tab.goto(url)
        expect(tab.locator("#start")).to_be_enabled(timeout=60_000)
        yield tab
        context.close()
