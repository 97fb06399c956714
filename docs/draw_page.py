"""Draws docs/pictures/page.png, page-light.png and page-phone.png: the page in Chromium, with recordings as microphone.

python docs/draw_page.py [--data-root DIR] [--recordings DIR] [--output DIR]
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from playwright.sync_api import sync_playwright

from kws.model import versions
from kws.model.detector import reported
from kws.preprocess.audio import read_waveform

RATE = 16_000
SPACING = 1.8
"""Seconds from one word to the next."""

DETECTIONS = 8
"""Number of detections after which the picture is taken."""

PICTURES: dict[str, dict[str, Any]] = {
    "page.png": {"color_scheme": "dark", "viewport": {"width": 1000, "height": 960}},
    "page-light.png": {"color_scheme": "light", "viewport": {"width": 1000, "height": 1045}},
    "page-phone.png": {"color_scheme": "light", "viewport": {"width": 390, "height": 1045}, "is_mobile": True},
}


def say(path: Path, words: list[str], recordings: Path) -> Path:
    """Writes a recording of each word, of the test split where there are lists, one after the other."""
    lists = recordings / "testing_list.txt"
    listed = {line.rpartition(".")[0] for line in lists.read_text().split()} if lists.is_file() else set()
    random = np.random.default_rng(1)
    parts = []
    for word in words:
        there = sorted((recordings / word).iterdir())
        found = [clip for clip in there if f"{word}/{clip.stem}" in listed] or there
        clip = found[random.integers(len(found))]
        part = 3e-4 * random.standard_normal(round(SPACING * RATE)).astype(np.float32)
        samples = read_waveform(clip, RATE)[: part.size]
        part[: samples.size] += 0.5 * samples / np.abs(samples).max()
        parts.append(part)
    soundfile.write(path, np.concatenate(parts), RATE)
    return path


def main() -> None:
    """Starts a server, opens the page once for every picture, and waits for detections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path("var/demo/data"),
        metavar="DIR",
        help="whose champion listens (default: %(default)s)",
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        default=Path("var/demo/corpus"),
        metavar="DIR",
        help="a folder of <word>/<recording> (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/pictures"), metavar="DIR", help="where to draw (default: %(default)s)"
    )
    options = parser.parse_args()
    champion = versions.champion(options.data_root)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if champion is None or chromium is None:
        sys.exit("a champion and Chromium must be there: make demo trains a champion, and apt install chromium")
    manifest = versions.read_manifest(versions.version_folder(options.data_root, champion))
    words = [word for word in reported(manifest["words"]) if (options.recordings / word).is_dir()]
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as started:
        sound = say(Path(scratch) / "words.wav", (words * 4)[:40], options.recordings)
        server = subprocess.Popen(
            [
                Path(sys.executable).parent / "kws",
                "serve",
                "--data-root",
                options.data_root,
                "--collect",
                Path(scratch) / "my-words",
                "--port",
                "0",
                "--grpc-port",
                "0",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
            for name, look in PICTURES.items():
                browser = started.chromium.launch(
                    executable_path=chromium,
                    args=[
                        "--no-sandbox",
                        "--use-fake-device-for-media-stream",
                        "--use-fake-ui-for-media-stream",
                        f"--use-file-for-fake-audio-capture={sound}",
                    ],
                )
                tab = browser.new_page(**look)
                tab.goto(address)
                tab.locator("#start:enabled").click(timeout=60_000)
                tab.locator("#log tbody tr").nth(DETECTIONS - 1).wait_for(timeout=180_000)
                tab.screenshot(path=options.output / name)
                print(options.output / name)
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
