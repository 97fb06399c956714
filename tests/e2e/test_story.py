"""What a champion mishears becomes the next champion: `KUBECONFIG=… pytest -s tests/e2e/test_story.py`.

The story that docs/loop.md tells, on a cluster with the images, Kubeflow Pipelines and the volume as a folder of this
machine (KWS_E2E_VOLUME), with people who say digits (tests/microphone.py). It takes the place of the server, of the
champion and of what was collected there, and puts back the latter two. Into KWS_E2E_PICTURES go pictures of the pages.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from live_cluster import cluster, forwarded, kubectl, needs_cluster, pipeline, require_pipelines, volume, wait_for
from microphone import DIGITS, RATE, browsing, say
from playwright.sync_api import Page, expect
from websockets.sync.client import connect

from kws import files
from kws.data.splits import split_of_speaker
from kws.model import onnx, versions
from kws.model.detector import THRESHOLDS, Detector, Thresholds
from kws.preprocess.audio import read_waveform
from kws.serve.page.heard import Pcm
from pipeline.cluster import runs

KNOWN, NEW_SPEAKERS = ("george", "jackson"), ("lucas", "nicolas")
WORDS = ("one", "three", "five", "seven", "nine")
RECIPE = ["--words", ",".join(WORDS), "--unknown-words", "auto", "--min-accuracy", "0", "--batch-size", "16"]
SPACING = 4
"""Seconds from one word to the next: time to see what the page heard, and to mark it."""

MARKED, MARKED_ELSEWHERE, NEW = range(4), range(4, 36), range(40, 46)
"""Numbers of the recordings that are marked on the page, that others mark, and that are to be heard in the end."""

pytestmark = [
    *needs_cluster,
    pytest.mark.skipif(not DIGITS.is_dir(), reason="needs people who say digits: KWS_E2E_DIGITS=FOLDER"),
]


class Said(NamedTuple):
    """A word as somebody says it."""

    speaker: str
    word: str

    def recordings(self, numbers: Sequence[int]) -> list[Path]:
        """Returns recordings of it by their numbers."""
        return [DIGITS / self.word / f"{self.speaker}_nohash_{number}.wav" for number in numbers]


def misheard_most(root: Path, scratch: Path) -> Said:
    """Returns which word of which new speaker the champion hears least often."""
    champion = versions.champion(root)
    assert champion is not None
    folder = versions.version_folder(root, champion)
    recognizer = onnx.load(folder / versions.ONNX, 1)
    thresholds = Thresholds.from_json(files.read_json(folder / THRESHOLDS), recognizer.words)

    def heard(said: Said) -> int:
        detector = Detector(recognizer, thresholds)
        stream = read_waveform(say(scratch / "stream.wav", said.recordings(NEW), SPACING), RATE)
        windows = [*detector.feed(stream), *detector.finish()]
        return sum(one.detection is not None and one.detection.word == said.word for one in windows)

    counts = {said: heard(said) for said in (Said(*both) for both in itertools.product(NEW_SPEAKERS, WORDS))}
    print(f"of {len(NEW)} {champion} hears", {" of ".join(reversed(said)): count for said, count in counts.items()})
    return min(counts, key=lambda said: counts[said])


@pytest.fixture
def root() -> Iterator[Path]:
    """The volume, on which nothing was collected yet; as it was once the test has ended."""
    require_pipelines()
    found = volume()
    if found is None:
        pytest.skip("needs the volume as a folder of this machine: kind, or KWS_E2E_VOLUME")
    before, collected = versions.champion(found), found / "collected"
    undeploy()
    aside = found / f"collected-{uuid.uuid4().hex[:6]}"
    if collected.exists():
        collected.rename(aside)
    yield found
    undeploy()
    shutil.rmtree(collected, ignore_errors=True)
    if aside.exists():
        aside.rename(collected)
    if before:
        pipeline("rollback", "--version", before, "--reason", "it was champion before a test")


def undeploy() -> None:
    kinds = "deployment,service,networkpolicy,poddisruptionbudget,horizontalpodautoscaler"
    kubectl("delete", kinds, "kws-serving", "--ignore-not-found", "--cascade=foreground")


@pytest.fixture
def source(root: Path) -> Iterator[str]:
    """Recordings of the digits by the speakers who are known, as the cluster sees them; every file is in some split."""
    folder = root / f"story-{uuid.uuid4().hex[:6]}"
    for word in sorted(path.name for path in DIGITS.iterdir() if path.is_dir()):
        (folder / word).mkdir(parents=True)
        for speaker in KNOWN:
            for number, path in enumerate(Said(speaker, word).recordings(range(16))):
                shutil.copy(path, folder / word / f"{speaker}-{number}.wav")  # not _nohash_: each its own speaker
    (folder / "_background_noise_").mkdir()
    say(folder / "_background_noise_" / "room.wav", [], SPACING, seconds=30)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    yield f"/data/{folder.name}"
    shutil.rmtree(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("KWS_E2E_PICTURES", tmp_path / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def page(tmp_path: Path, said: Said, numbers: Sequence[int]) -> Iterator[tuple[Page, str]]:
    """Opens the page of the cluster's server, to which somebody says a word again and again."""
    heard = say(tmp_path / f"{said.word}-{numbers[0]}.wav", said.recordings(numbers), SPACING)
    with forwarded("kws-serving") as address, browsing(heard, tmp_path / "profile", address, height=760) as tab:
        yield tab, address


def listen(tab: Page, word: str, times: int, *, mark: bool = False) -> int:
    """Listens until a word was said some times, marks on the page what is wrong, and returns how often it was heard."""
    rows, level, heard = tab.locator("#log td:nth-child(2)"), tab.get_by_label("Level").first, 0
    tab.locator("#start").click()
    for _ in range(times):
        seen = rows.count()
        while level.evaluate("meter => meter.value") < -30:
            tab.wait_for_timeout(50)
        tab.wait_for_timeout(2_000)  # a word is reported a good second after its middle
        new = rows.all_inner_texts()[: rows.count() - seen]
        heard += word in new
        if mark and not new:
            tab.get_by_role("button", name="It missed a word").click()
            expect(tab.locator("#status")).to_have_text("The last two seconds are kept for review.")
        elif mark and word not in new:
            tab.get_by_role("button", name=re.compile(f"^Mark {new[0]} at .* as wrong")).first.click()
            expect(tab.locator("#status")).to_contain_text("Marked as wrong")
    return heard


def others_mark(address: str, said: Said) -> None:
    """Has other listeners, each in a stream of its own, say that a word was missed.

    The random number of a stream decides whether its sound is trained on or tested with. So that neither is left to
    chance, every second is of the test split.
    """
    for number, path in zip(MARKED_ELSEWHERE, said.recordings(MARKED_ELSEWHERE), strict=True):
        samples = 5e-4 * np.random.default_rng(number).standard_normal(2 * RATE)
        clip = read_waveform(path, RATE)[:RATE]
        samples[RATE // 2 : RATE // 2 + clip.size] += 0.5 * clip / np.abs(clip).max()
        while not mark_missed(address, (32767 * samples).astype("<i2"), ("train", "test")[number % 2]):
            pass


def mark_missed(address: str, pcm: Pcm, split: str) -> bool:
    """Sends two seconds of sound and says that they missed a word, unless the stream turns out to be of another split.

    Args:
        address: of the server.
        pcm: the sound, int16 [samples].
        split: the one that is wanted.

    Returns:
        Whether it was of this split.
    """
    with connect(address.replace("http", "ws") + "/listen") as client:

        def missed() -> str:
            client.send(json.dumps({"missed": ""}))
            while (message := json.loads(client.recv(timeout=60)))["type"] != "kept":
                pass
            return str(message["name"])

        client.send(json.dumps({"rate": RATE}))
        silence = missed()
        sounds = {one["name"]: one for one in json.loads(read(f"{address}/heard"))["sounds"]}
        read(f"{address}/heard/{silence}", method="DELETE")
        if split_of_speaker(sounds[silence]["speaker"]) != split:
            return False
        for first in range(0, pcm.size, RATE):
            client.send(pcm[first : first + RATE].tobytes())
        missed()
        return True


def read(address: str, method: str = "GET") -> str:
    with urllib.request.urlopen(urllib.request.Request(address, method=method), timeout=60) as answer:
        return str(answer.read().decode())


def confirm(tab: Page, address: str, word: str, picture: Path) -> int:
    """Confirms on the review page all that listeners marked, as the word that was said, and returns their number."""
    confirmed = 0
    with tab.expect_response("**/heard") as answer:
        tab.goto(f"{address}/review")
    marked = [one["kind"] for one in answer.value.json()["sounds"]]
    for kind in ("wrong", "missed"):
        with tab.expect_response("**/heard"):
            tab.locator("#kind").select_option(kind)
        tab.wait_for_timeout(500)  # until the page shows it
        rows = tab.locator("#sounds tbody tr").filter(has_text=f"marked as {kind}")
        for left in range(marked.count(kind), 0, -1):
            expect(rows).to_have_count(left)
            rows.first.locator("input").fill(word)
            if left == 16:
                tab.screenshot(path=picture)
            rows.first.get_by_role("button", name="Confirm").click()
            confirmed += 1
        expect(rows).to_have_count(0)
    return confirmed


class Schedule:
    """A schedule whose runs begin every minute, one at a time."""

    def __init__(self, source: str) -> None:
        self.name = f"e2e-story-{uuid.uuid4().hex[:6]}"
        sources = ["--source", source, "--source", "/data/collected"]
        again = ["--init", "champion", "--epochs", "20", "--approval", "yes"]
        done = pipeline("schedule", "--name", self.name, "--cron", "* * * * *", *sources, *RECIPE, *again)
        assert "made schedule" in done.stdout
        self.followed: set[str] = set()

    def __enter__(self) -> "Schedule":
        return self

    def __exit__(self, *_: object) -> None:
        pipeline("unschedule", "--name", self.name)

    def next_run(self) -> str:
        """Follows the next run to its end, and returns what is said of it."""

        def found() -> Any:
            listed = reversed(runs.latest(cluster(), 20))
            mine = [one.run_id for one in listed if (one.display_name or "").startswith(self.name)]
            return next((one for one in mine if one not in self.followed), None)

        run = wait_for("a run of the schedule", found, 300)
        self.followed.add(run)
        return pipeline("follow", run, "--quiet").stdout


def test_what_it_misheard_is_heard_by_the_next_champion_and_a_rejected_candidate_changes_nothing(
    root: Path, source: str, pictures: Path, tmp_path: Path
) -> None:
    # A champion that was trained on other speakers is deployed, and keeps what it hears.
    first = run_version(pipeline("submit", "--quiet", "--source", source, *RECIPE, "--epochs", "30").stdout)
    if versions.champion(root) != first:
        pipeline("rollback", "--version", first, "--reason", "a story begins with it")
    assert "/review for what it heard" in pipeline("deploy", "--collect", "yes").stdout

    # It mishears a word of a new speaker. A listener marks that, others do, and all of it is confirmed.
    said = misheard_most(root, tmp_path)
    with page(tmp_path, said, MARKED) as (tab, address):
        expect(tab.locator("#model")).to_have_text(f"Model {first}, {len(WORDS)} words")
        heard = listen(tab, said.word, len(MARKED), mark=True)
        tab.screenshot(path=pictures / "1-misheard.png")
        tab.goto("about:blank")  # ends the stream
        others_mark(address, said)
        confirmed = confirm(tab, address, said.word, pictures / "2-review.png")
        assert confirmed >= len(MARKED_ELSEWHERE) + len(MARKED) - heard > len(MARKED_ELSEWHERE)
    assert len(list((root / "collected" / said.word).iterdir())) == confirmed
    print(f"{said.word} of {said.speaker}: {heard} of {len(MARKED)} were heard; {confirmed} were marked and confirmed")

    # The schedule trains on them, and its candidate waits.
    with Schedule(source) as schedule:
        printed = schedule.next_run()
    print(printed)
    assert "a candidate that waits" in printed
    second = run_version(printed)
    assert versions.states(root)[second] == "candidate"
    print(pipeline("candidates", "--to", tmp_path / "candidate.html").stdout)

    # It is heard beside the champion, and answers nobody.
    pipeline("deploy", "--collect", "yes", "--shadow", "candidate")
    with page(tmp_path, said, NEW) as (tab, address):
        expect(tab.locator("#model")).to_have_text(f"Model {first}, {len(WORDS)} words")
        heard_by_first = listen(tab, said.word, len(NEW))
        tab.locator("#start").click()
        found = wait_for("a difference", lambda: differences(read(f"{address}/metrics"), said.word), 300)
        print(found)
        tab.goto(f"{address}/review")
        tab.locator("#kind").select_option("differs")
        heard_by_one = tab.get_by_text(f"no word for the version that answers, {said.word} for the one in the shadow")
        expect(heard_by_one.first).to_be_visible()
        tab.screenshot(path=pictures / "3-shadow.png")
        tab.goto(f"file://{tmp_path / 'candidate.html'}")
        tab.screenshot(path=pictures / "4-candidate.png")

        # It is approved, serves on the page that is open, and hears the word.
        tab.goto(address)
        expect(tab.locator("#model")).to_have_text(f"Model {first}, {len(WORDS)} words")
        assert pipeline("approve", "--reason", "it hears the new speaker").stdout.startswith(f"{second}: champion")
        expect(tab.locator("#model")).to_have_text(f"Model {second}, {len(WORDS)} words", timeout=60_000)
        heard = listen(tab, said.word, len(NEW))
        tab.screenshot(path=pictures / "5-heard.png")
        print(f"of {len(NEW)}, {heard_by_first} were heard by the first champion, {heard} by the second")
        assert heard >= len(NEW) - 2
        assert heard > heard_by_first

        # The same again with another word, but the candidate is rejected: the champion serves on.
        tab.goto("about:blank")
        other = misheard_most(root, tmp_path)
        others_mark(address, other)
        confirm(tab, address, other.word, pictures / "6-review.png")
        with Schedule(source) as schedule:
            printed = schedule.next_run()
            print(printed)
            assert "a candidate that waits" in printed
            third = run_version(printed)
            assert pipeline("reject", "--reason", "not now").stdout.startswith(f"{third}: rejected")
            assert versions.champion(root) == second
            # What was rejected is neither trained nor proposed again, as nothing is new since.
            assert "nothing new: data and recipe are those of a version that there is" in schedule.next_run()
        states = versions.states(root)
        assert (states[second], states[third]) == ("champion", "rejected")
        assert "a candidate must wait, got none" in pipeline("candidates", check=False).stderr
        tab.goto(address)
        expect(tab.locator("#model")).to_have_text(f"Model {second}, {len(WORDS)} words")
        assert listen(tab, said.word, 3) > 0


def differences(metrics: str, word: str) -> list[str]:
    """Returns the lines of /metrics that say how often only the version in the shadow heard a word in a stream."""
    lines = [line for line in metrics.splitlines() if line.startswith("kws_shadow_differences_total{")]
    return [line for line in lines if f'shadow_word="{word}"' in line and 'source="stream"' in line]


def run_version(printed: str) -> str:
    """Returns the version that a run made, from what following it printed."""
    found = re.search(r"^version +(\S+)$", printed, flags=re.M)
    assert found, printed
    return found[1]
