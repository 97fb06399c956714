"""From recordings made on the page to a champion that hears them: `pytest -s tests/e2e/test_page_to_champion.py`.

Needs Chromium, the champion of `make demo`, and people who say digits (tests/microphone.py).
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from microphone import CHROMIUM, DIGITS, browsing, say
from playwright.sync_api import Page, expect
from served import Server

from kws.model import versions

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "var" / "demo" / "data"
SPACING = 2
"""Seconds from one word to the next: more than a word and the second that the page cuts out."""

SPEAKER = "jackson"
WORDS = ("nine", "seven")
OTHERS = ("one", "two", "three", "four", "five", "six", "eight", "zero")
TRAINING, NEW = range(30), range(30, 40)
"""Numbers of the recordings that the page is taught with, and of those that it has to hear afterwards."""

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not DIGITS.is_dir(), reason="needs the spoken digits of one person: KWS_E2E_DIGITS=FOLDER"),
]


def record(tab: Page, word: str) -> None:
    """Records a word as often as the page proposes."""
    tab.get_by_label("Word", exact=True).fill(word)
    times = tab.get_by_label("Times").input_value()
    tab.get_by_role("button", name="Record", exact=True).click()
    expect(tab.get_by_role("button", name=f"Delete recording {times}")).to_be_visible(timeout=300_000)


def test_words_recorded_on_the_page_are_heard_by_the_champion_that_its_command_trains(tmp_path: Path) -> None:
    def clips(numbers: Sequence[int], *words: str) -> list[Path]:
        return [DIGITS / word / f"{SPEAKER}_nohash_{number}.wav" for number in numbers for word in words]

    assert CHROMIUM is not None, "needs Chromium"
    assert (DEMO / "models" / versions.CHAMPION).is_file(), "needs the champion of make demo"
    data_root, collected = tmp_path / "data", tmp_path / "my words"
    shutil.copytree(DEMO / "models", data_root / "models")
    before = versions.champion(data_root)
    server = Server("--data-root", str(data_root), "--collect", str(collected))
    try:
        for word, sources in (*((word, clips(TRAINING, word)) for word in WORDS), ("other", clips(range(4), *OTHERS))):
            with browsing(say(tmp_path / f"{word}.wav", sources, SPACING), tmp_path / "profile", server.url) as tab:
                record(tab, word)
        with browsing(say(tmp_path / "room.wav", [], SPACING, seconds=32), tmp_path / "profile", server.url) as tab:
            tab.get_by_role("button", name="Record the room").click()
            expect(tab.locator("#cue")).to_have_text("✓ kept", timeout=60_000)
        speakers = {path.name.partition("_")[0] for path in collected.rglob("*.wav")}
        assert len(speakers) == 1
        assert {folder.name: len(list(folder.iterdir())) for folder in collected.iterdir()} == {
            "nine": 20,
            "seven": 20,
            "other": 20,
            "_background_noise_": 1,
        }

        heard = say(tmp_path / "new.wav", clips(NEW, *WORDS), SPACING)
        with browsing(heard, tmp_path / "profile", server.url) as tab:
            expect(tab.locator("#next")).to_contain_text("That is enough")
            expect(tab.locator("#next")).not_to_contain_text("Without")
            command = tab.locator("#next code").first.inner_text()
            assert shlex.split(command)[:4] == ["python", "-m", "pipeline", "run"]
            environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
            done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            champion = versions.champion(data_root)
            assert champion is not None
            assert champion != before, done.stdout[-2000:]
            # The page was open all the time, and is not loaded again.
            expect(tab.locator("#model")).to_have_text(f"Model {champion}, 2 words", timeout=60_000)
            tab.locator("#start").click()
            tab.wait_for_timeout(SPACING * 1000 * len(clips(NEW, *WORDS)))
            tab.locator("#start").click()
            rows = tab.locator("#log td:nth-child(2)").all_inner_texts()
            print(json.dumps({"heard": rows[::-1], "took": f"{before} to {champion}"}))
            for word in WORDS:
                assert rows.count(word) in range(7, 13), rows  # of ten
            tab.set_input_files("#file", say(tmp_path / "others.wav", clips(range(10, 12), *OTHERS), SPACING))
            expect(tab.locator("#status")).to_contain_text("detected", timeout=60_000)
            mistaken = tab.locator("#log td:nth-child(2)").count() - len(rows)
            print(f"{mistaken} of 16 other words taken for one of the two")
            assert mistaken < 8
    finally:
        server.stop()
