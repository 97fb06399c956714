"""A version in the shadow hears what the champion hears, answers nobody, and is compared."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve.conftest import Start, publish
from served import Server
from websockets.sync.client import connect

from kws import files
from kws.config import ServeConfig
from kws.model import onnx, versions
from kws.model.bundle import Recognizer
from kws.model.detector import THRESHOLDS, Detector, Thresholds
from kws.preprocess.audio import read_clip
from kws.serve import shadow as shadow_module
from kws.serve.models import Models, Served, load_file
from kws.serve.server import open_models, open_shadow
from kws.serve.service import Service

RATE = 16_000
WORDS = ["no", "stop", "yes"]


@pytest.fixture(scope="module")
def swapped_onnx(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that tells the tones apart, but calls no "yes" and yes "no"."""
    path = tmp_path_factory.mktemp("swapped") / "model.onnx"
    onnx.export(dataclasses.replace(expert, words=["yes", "stop", "no"]), path)
    return path


@pytest.fixture(scope="module")
def clips(tone_corpus: Path, expert: Recognizer) -> np.ndarray:
    """One clip of every word, float32 [3, 16000]."""
    return np.stack([read_clip(min((tone_corpus / word).iterdir()), expert.features) for word in WORDS])


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shadow of this process does not rest, which would take long on a busy machine."""
    monkeypatch.setattr(shadow_module, "REST", 0.0)


def test_work_that_waited_for_a_core_is_followed_by_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "REST", 9.0)

    def work() -> bool:
        time.sleep(0.05)
        return True

    heard, rest = shadow_module._timed(work)
    assert heard
    assert 0.45 <= rest <= shadow_module.LONGEST_REST


def propose(data_root: Path, version: str, model: Path) -> None:
    """Publishes a candidate as `promote` does."""
    publish(data_root, version, model, champion=False)
    versions.propose(data_root, version, 1.0, "", [])


def listed(text: str | bytes) -> dict[str, float]:
    """Returns the metrics of the shadow as `name word shadow_word source`."""
    found = {}
    for family in text_string_to_metric_families(text if isinstance(text, str) else text.decode()):
        for one in family.samples:
            if one.name.startswith("kws_shadow") and one.value and not one.name.endswith("_created"):
                names = [one.labels.get(name) for name in ("source", "word", "shadow_word", "reason")]
                found[" ".join([one.name, *(name for name in names if name is not None)])] = one.value
    return found


def wait_for(server: Server, holds: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    for _ in range(1200):
        found = listed(server.get("/metrics")[1])
        if holds(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{found}, log: {''.join(server.log)}")


def ask(server: Server, clips: np.ndarray) -> Any:
    status, answer = server.infer(
        {"name": "waveforms", "datatype": "FP32", "shape": list(clips.shape), "data": clips.tolist()}
    )
    assert status == 200
    (found,) = (one["data"] for one in answer["outputs"] if one["name"] == "words")
    return answer["model_version"], found


def test_candidate_is_compared_with_the_champion_that_answers(
    start: Start, expert_onnx: Path, swapped_onnx: Path, clips: np.ndarray, tmp_path: Path
) -> None:
    data_root, collected = tmp_path / "data", tmp_path / "collected"
    publish(data_root, "one", expert_onnx)
    propose(data_root, "two", swapped_onnx)
    server = start("--data-root", data_root, "--shadow", "candidate", "--collect", collected, "--keep-heard")
    assert ask(server, clips) == ("one", WORDS)
    found = wait_for(server, lambda found: found.get("kws_shadow_heard_seconds_total") == 3.0)
    found = wait_for(server, lambda found: len(found) == 5)
    assert found == {
        "kws_shadow_agreements_total request stop": 1.0,
        "kws_shadow_differences_total request no yes": 1.0,
        "kws_shadow_differences_total request yes no": 1.0,
        "kws_shadow_heard_seconds_total": 3.0,
        "kws_shadow_info": 1.0,
    }
    text = server.get("/metrics")[1]
    assert 'kws_words_total{model="kws",version="one",word="no"} 1.0' in text
    assert 'version="two",word=' not in text  # it answered nobody
    sounds = {sound["word"]: sound for sound in server.get("/heard")[1]["sounds"]}
    assert {(one["kind"], one["word"], one["shadow_word"], one["shadow"]) for one in sounds.values()} == {
        ("differs", "no", "yes", "two"),
        ("differs", "yes", "no", "two"),
    }
    kept = np.frombuffer((collected / ".heard" / f"{sounds['yes']['name']}.wav").read_bytes()[44:], "<i2")
    np.testing.assert_allclose(kept[RATE // 2 : -RATE // 2] / 32767, clips[2], atol=1e-4)


def test_shadow_follows_the_candidate_and_ends_when_it_is_approved_or_rejected(
    start: Start, expert_onnx: Path, swapped_onnx: Path, clips: np.ndarray, tmp_path: Path
) -> None:
    publish(tmp_path, "one", expert_onnx)
    server = start("--data-root", tmp_path, "--shadow", "candidate")
    server.wait_for("in the shadow: no version yet")
    assert ask(server, clips) == ("one", WORDS)
    propose(tmp_path, "two", swapped_onnx)
    server.wait_for(r"in the shadow: version two \(before: none\)")
    propose(tmp_path, "three", expert_onnx)
    server.wait_for(r"in the shadow: version three \(before: two\)")
    ask(server, clips)
    wait_for(server, lambda found: found.get("kws_shadow_agreements_total request yes") == 1.0)
    versions.decide(tmp_path, False)
    server.wait_for(r"in the shadow: no version \(before: three\)")
    ask(server, clips)
    propose(tmp_path, "four", expert_onnx)
    server.wait_for(r"in the shadow: version four")
    versions.decide(tmp_path, True)
    server.wait_for(r"in the shadow: no version \(before: four\)")
    server.wait_for(r"serving version four \(before: one\)")
    assert ask(server, clips) == ("four", WORDS)
    found = listed(server.get("/metrics")[1])
    assert (found["kws_shadow_heard_seconds_total"], found.get("kws_shadow_info")) == (3.0, None)
    assert sum("in the shadow" in line for line in server.log) == 6


def test_damaged_candidate_is_refused_and_the_champion_serves(
    start: Start, expert_onnx: Path, clips: np.ndarray, tmp_path: Path
) -> None:
    publish(tmp_path, "one", expert_onnx)
    propose(tmp_path, "two", expert_onnx)
    (tmp_path / "models" / "two" / versions.ONNX).write_bytes(b"")
    server = start("--data-root", tmp_path, "--shadow", "candidate")
    server.wait_for("the shadow was refused, there is no model yet: .* it is damaged")
    assert ask(server, clips) == ("one", WORDS)
    (tmp_path / "models" / versions.CANDIDATES).write_text("{")
    server.wait_for("the shadow was refused, .*candidates.json must be a JSON file")
    assert ask(server, clips) == ("one", WORDS)


def test_named_version_is_in_the_shadow_until_it_is_champion(expert_onnx: Path, tmp_path: Path) -> None:
    publish(tmp_path, "one", expert_onnx)
    publish(tmp_path, "two", expert_onnx, champion=False)
    follower = open_shadow(tmp_path, ServeConfig(shadow="two"))
    assert follower is not None
    assert follower.current is not None
    assert follower.current.version == "two"
    versions.appoint(tmp_path, "two", 1.0, by="a test", reason="")
    for _ in range(2):
        follower.look()
        assert follower.current is None
    versions.appoint(tmp_path, "one", 1.0, by="a test", reason="")
    follower.look()
    assert follower.current.version == "two"
    for name, said in (("../two", "version must be the name of a folder"), ("six", "version six must be complete")):
        none = open_shadow(tmp_path, ServeConfig(shadow=name))
        assert none is not None
        assert (none.current, none.num_refused) == (None, 1)
        assert said in none.refusal
    assert open_shadow(tmp_path, ServeConfig()) is None
    with pytest.raises(ValueError, match="shadow must be a version beside the champion of --data-root, got 'two'"):
        open_shadow(None, ServeConfig(shadow="two"))


def test_canary_serves_the_candidate_while_one_waits_otherwise_the_champion(expert_onnx: Path, tmp_path: Path) -> None:
    publish(tmp_path, "one", expert_onnx)
    canary, champion = (open_models(None, tmp_path, ServeConfig(candidate=candidate)) for candidate in (True, False))

    def serve() -> list[str]:
        for follower in (canary, champion):
            follower.look()
        return [follower.current.version for follower in (canary, champion) if follower.current]

    assert serve() == ["one", "one"]
    propose(tmp_path, "two", expert_onnx)
    assert serve() == ["two", "one"]
    versions.decide(tmp_path, False)
    assert serve() == ["one", "one"]
    propose(tmp_path, "three", expert_onnx)
    assert serve() == ["three", "one"]
    versions.decide(tmp_path, True)
    assert serve() == ["three", "three"]
    with pytest.raises(ValueError, match="candidate must be given with --data-root, got True"):
        open_models(expert_onnx, None, ServeConfig(candidate=True))


def in_shadow(served: Served, other: Served) -> Service:
    return Service(Models(current=served), ServeConfig(), Models(current=other))


async def settled(service: Service) -> dict[str, float]:
    """Waits until nothing waits for the shadow."""
    assert service.shadow is not None
    if service.shadow._work is not None:
        await service.shadow._work
    return listed(service.metrics())


def test_what_waits_is_bounded_and_what_is_dropped_is_counted(expert_onnx: Path, clips: np.ndarray) -> None:
    served = load_file(expert_onnx)

    async def main() -> tuple[list[Any], dict[str, float]]:
        service = in_shadow(served, dataclasses.replace(served, version="two"))
        assert service.shadow is not None
        service.batcher._free, free = 0, service.batcher._free  # every core is at work
        for _ in range(50):
            service.shadow.clips(served, clips, np.eye(3, dtype=np.float32))
        await asyncio.sleep(0.05)
        busy = listed(service.metrics())
        service.batcher._free = free
        answers = await asyncio.gather(*(service.batcher.predict(served, clips) for _ in range(5)))
        found = await settled(service)
        service.close()
        return [answers, busy], found

    (answers, busy), found = asyncio.run(main())
    assert all(WORDS[int(each[2].argmax())] == "yes" for each in answers)
    assert busy == {"kws_shadow_dropped_seconds_total busy": 30.0, "kws_shadow_info": 1.0}
    assert found["kws_shadow_heard_seconds_total"] == 120.0
    assert found["kws_shadow_agreements_total request stop"] == 40.0


def test_failure_and_other_sample_rate_of_the_shadow_are_counted_and_harm_nobody(
    expert_onnx: Path, clips: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    served = load_file(expert_onnx)
    features = served.recognizer.features
    other = load_file(expert_onnx)
    object.__setattr__(other.recognizer, "features", dataclasses.replace(features, sample_rate=32_000))

    async def main() -> dict[str, float]:
        service = in_shadow(served, served)
        assert service.shadow is not None
        answer = np.eye(3, dtype=np.float32)
        service.shadow.clips(served, clips.astype(np.float64), answer)  # which the model does not take
        service.shadow.clips(served, clips.astype(np.float64), answer)
        service.shadow.clips(served, clips, answer)
        await settled(service)
        service.shadow.models.current = other
        service.shadow.clips(served, clips, answer)
        found = await settled(service)
        service.close()
        return found

    found = asyncio.run(main())
    assert found["kws_shadow_dropped_seconds_total failed"] == 6.0
    assert found["kws_shadow_dropped_seconds_total rate"] == 3.0
    assert found["kws_shadow_agreements_total request yes"] == 1.0
    assert sum("what was heard is dropped" in one.message for one in caplog.records) == 1


def thresholds(served: Served, **values: float) -> Served:
    return dataclasses.replace(served, thresholds=Thresholds(thresholds={"no": 0.6, "stop": 0.6, "yes": 0.6} | values))


@pytest.fixture(scope="module")
def spoken(clips: np.ndarray) -> np.ndarray:
    """No, stop and yes, half a second each, two seconds apart, int16."""
    silence = np.zeros(2 * RATE, np.float32)
    parts = [silence, *(part for clip in clips for part in (clip[:8000], silence))]
    return (np.concatenate(parts) * 32767).astype(np.int16)


def hear(served: Served, other: Served, *pieces: np.ndarray, busy: range = range(0)) -> dict[str, float]:
    """Has both hear a stream, while in some of its pieces every core is at work."""

    async def main() -> dict[str, float]:
        service = in_shadow(served, other)
        detector = Detector(served.recognizer, served.thresholds)
        watchers = service.watch(served, detector, "0" * 8)
        free = service.batcher._free
        for number, piece in enumerate(pieces):
            service.batcher._free = 0 if number in busy else free
            windows = detector.feed(piece.astype(np.float32) / np.float32(32768))
            for watcher in watchers:
                watcher.hear(piece, windows)
            if number not in busy:
                await settled(service)
        last = detector.finish()
        for watcher in watchers:
            watcher.finish(last)
        found = await settled(service)
        service.close()
        return {name: value for name, value in found.items() if "agreements" in name or "differences" in name}

    return asyncio.run(main())


@pytest.mark.parametrize("size", [4000, 10 * RATE])
def test_detections_in_a_stream_are_compared_by_word_and_time(
    expert_onnx: Path, swapped_onnx: Path, spoken: np.ndarray, size: int
) -> None:
    served, swapped = thresholds(load_file(expert_onnx)), thresholds(load_file(swapped_onnx))
    pieces = [spoken[first : first + size] for first in range(0, spoken.size, size)]
    agreed = "kws_shadow_agreements_total stream"
    differed = "kws_shadow_differences_total stream"
    assert hear(served, served, *pieces) == {f"{agreed} no": 1, f"{agreed} stop": 1, f"{agreed} yes": 1}
    assert hear(served, swapped, *pieces) == {f"{differed} no yes": 1, f"{agreed} stop": 1, f"{differed} yes no": 1}
    deaf = thresholds(served, yes=2.0)
    assert hear(served, deaf, *pieces) == {f"{agreed} no": 1, f"{agreed} stop": 1, f"{differed} yes ": 1}
    assert hear(deaf, served, *pieces) == {f"{agreed} no": 1, f"{agreed} stop": 1, f"{differed}  yes": 1}


def test_stream_of_which_a_part_is_dropped_is_compared_again_after_the_gap(
    expert_onnx: Path, spoken: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "MOST_SECONDS", 2.0)
    monkeypatch.setattr(shadow_module, "LEFT_OUT_SECONDS", 1.0)
    served = thresholds(load_file(expert_onnx))
    pieces = [spoken[first : first + 1600] for first in range(0, spoken.size, 1600)]
    # Two seconds wait, with "no" in them; of "stop", from 4.5 s on, the shadow hears nothing.
    found = hear(served, served, *pieces, busy=range(20, 50))
    assert found == {"kws_shadow_agreements_total stream no": 1.0, "kws_shadow_agreements_total stream yes": 1.0}


def test_page_streams_are_heard_in_the_shadow_with_its_own_thresholds_and_its_sound_is_reviewed(
    start: Start, expert_onnx: Path, spoken: np.ndarray, tmp_path: Path
) -> None:
    data_root = tmp_path / "data"
    for version, never in (("one", 0.6), ("two", 2.0)):
        folder = publish(data_root, version, expert_onnx, champion=version == "one")
        files.write_json(folder / THRESHOLDS, Thresholds(thresholds={"no": 0.6, "stop": 0.6, "yes": never}).as_json())
        manifest = files.read_json(folder / files.MANIFEST)
        manifest["files"][THRESHOLDS] = files.sha256_of(folder / THRESHOLDS)
        files.write_json(folder / files.MANIFEST, manifest)
    server = start("--data-root", data_root, "--shadow", "two", "--collect", tmp_path / "collected", "--keep-heard")
    with connect(f"ws{server.url[4:]}/listen") as client:
        client.send(json.dumps({"rate": RATE}))
        client.send(json.dumps({"thresholds": {"no": 2.0, "stop": 2.0, "yes": 0.5}}))  # a listener's own
        for first in range(0, spoken.size, 4000):
            client.send(spoken[first : first + 4000].tobytes())
        client.send(json.dumps({"finish": True}))
        said: list[dict[str, Any]] = []
        while not said or said[-1]["type"] != "finished":
            said.append(json.loads(client.recv(timeout=60)))
    assert [one["word"] for one in said if one["type"] == "detection"] == ["yes"]
    agreed, differed = "kws_shadow_agreements_total stream", "kws_shadow_differences_total stream"
    found = wait_for(server, lambda found: f"{differed} yes " in found)
    assert (found[f"{agreed} no"], found[f"{agreed} stop"]) == (1.0, 1.0)
    (sound,) = (one for one in server.get("/heard")[1]["sounds"] if one["kind"] == "differs")
    assert (sound["word"], sound["shadow_word"], sound["shadow"], sound["version"]) == ("yes", "", "two", "one")
    kept = np.frombuffer((tmp_path / "collected" / ".heard" / f"{sound['name']}.wav").read_bytes()[44:], "<i2")
    assert np.abs(kept[RATE // 2 : -RATE // 2]).max() > 3000 > np.abs(kept[: RATE // 8]).max()
