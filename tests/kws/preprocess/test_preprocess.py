"""From recordings to tensors: what is in them, what is left out, and what survives a kill."""

import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensor_folders import features_of

from kws import files
from kws.config import SPLITS
from kws.data import folder as layout
from kws.data.index import Index
from kws.download.step import download
from kws.preprocess.audio import read_clip
from kws.preprocess.features import MelSpectrogram
from kws.preprocess.step import noise_pieces, preprocess
from kws.recipe import RECIPES, Recipe, make_recipe

WORDS = ["left", "stop", "yes"]


@pytest.fixture
def corpus(tone_corpus: Path, tmp_path: Path) -> Path:
    """The tones, to be damaged."""
    return Path(shutil.copytree(tone_corpus, tmp_path / "recordings"))


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clips_of(folder: Path, split: str) -> Index:
    return Index.load(folder / "index.npz").of_split(split)


def start(recordings: Path, data_root: Path) -> ForkServerProcess:
    """Preprocesses in a process of its own, which has torch loaded already."""
    process = multiprocessing.get_context("forkserver").Process(
        target=preprocess, args=(recordings, data_root), kwargs={"words": "auto", "num_threads": 1}
    )
    process.start()
    return process


def wait_until(condition: Callable[[], object], is_alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert is_alive(), "ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module", params=["default", "baseline"])
def real_tensors(
    request: pytest.FixtureRequest, real_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    preset: str = request.param
    folder = tmp_path_factory.mktemp(preset)
    return preset, preprocess(real_corpus, folder, RECIPES[preset], words="auto", num_threads=2)


def test_real_recordings_become_arrays_of_every_split(real_tensors: tuple[str, Path]) -> None:
    preset, folder = real_tensors
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["words"] == WORDS
    assert manifest["split"] == RECIPES[preset].split
    assert manifest["features"] == json.loads(json.dumps(dataclasses.asdict(RECIPES[preset].features)))
    assert manifest["left_out"] == {}
    # Two of these real clips are the same sound: divided at random, they come into two splits, and one is left out.
    assert manifest["copies"]["num_clips"] == (0 if preset == "default" else 1)
    assert sum(manifest["counts"][name] for name in SPLITS) == 42 - manifest["copies"]["num_clips"]
    assert manifest["counts"]["noise"] > 10
    for name in SPLITS:
        count = manifest["counts"][name]
        assert features_of(folder, name).shape == (count, 128, 81)
        clips = clips_of(folder, name)
        assert [WORDS[label] for label in clips.labels(WORDS)] == [clip.word for clip in clips]
        assert len(clips) == count
    (part,) = manifest["parts"]
    array = np.load(folder.parents[1] / "features" / part / "features.npy", mmap_mode="r")
    assert array.dtype == RECIPES[preset].features.dtype
    assert len(array) == manifest["parts"][part] == 41  # two of the 42 recordings are the same file
    assert folder.name == manifest["fingerprint"]


def test_row_of_an_array_is_the_features_of_the_real_clip_of_that_row(
    real_tensors: tuple[str, Path], real_corpus: Path
) -> None:
    preset, folder = real_tensors
    features = RECIPES[preset].features
    for name in SPLITS:
        clips = clips_of(folder, name)
        array = features_of(folder, name)
        waveforms = np.stack([read_clip(real_corpus / clip.file, features) for clip in clips])
        expected = MelSpectrogram(features)(torch.from_numpy(waveforms)).numpy()
        tolerance = {"atol": 0.01} if features.log else {"rtol": 1e-3, "atol": 1e-3}  # float16, float32
        np.testing.assert_allclose(array, expected, **tolerance)


def test_real_speakers_are_in_one_split_only_and_the_lists_are_kept(
    real_tensors: tuple[str, Path], real_corpus: Path
) -> None:
    preset, folder = real_tensors
    clips = {name: clips_of(folder, name) for name in SPLITS}
    assert len({clip.id for some in clips.values() for clip in some}) == (42 if preset == "default" else 41)
    if preset == "default":
        speakers = [{clip.speaker for clip in clips[name]} for name in SPLITS]
        assert sum(map(len, speakers)) == len(set.union(*speakers))
        listed = (real_corpus / "testing_list.txt").read_text().split()
        assert [clip.id for clip in clips["test"]] == sorted(file for file in listed if file.split("/")[0] in WORDS)
    else:
        assert [len(clips[name]) for name in SPLITS] == [35, 3, 3]


def test_normalization_is_that_of_the_training_split_alone(real_tensors: tuple[str, Path]) -> None:
    _, folder = real_tensors
    normalization = files.read_json(folder / files.MANIFEST)["normalization"]
    train = features_of(folder, "train").astype(np.float64)
    np.testing.assert_allclose(normalization["mean"], train.mean(axis=(0, 2)), atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(normalization["std"], train.std(axis=(0, 2)), atol=1e-3, rtol=1e-4)
    everything = np.concatenate([features_of(folder, name) for name in SPLITS]).astype(np.float64)
    assert np.abs(np.array(normalization["mean"]) - everything.mean(axis=(0, 2))).max() > 1e-2


def test_real_digits_at_8_khz_are_preprocessed_by_random_split(real_digits: Path, tmp_path: Path) -> None:
    folder = preprocess(real_digits, tmp_path, Recipe(split="random"), words="auto", num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["words"] == ["five", "one"]
    assert manifest["counts"] == {"train": 16, "validation": 2, "test": 2, "noise": 0}
    assert not (folder / "noise.features.npy").exists()


def test_two_threads_give_what_one_gives(tone_corpus: Path, tone_tensors: Path, tmp_path: Path) -> None:
    folder = preprocess(tone_corpus, tmp_path, words="auto", num_threads=2)
    assert read(folder) == read(tone_tensors)


def test_rows_beyond_one_task_stay_in_order(
    tone_corpus: Path, tone_tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kws.preprocess.store.CLIPS_PER_TASK", 7)
    folder = preprocess(tone_corpus, tmp_path, words="auto", num_threads=1)
    np.testing.assert_array_equal(features_of(folder, "train"), features_of(tone_tensors, "train"))


def test_noise_for_training_leaves_the_end_of_every_recording_unheard(tone_corpus: Path, tone_tensors: Path) -> None:
    features = RECIPES["default"].features
    path = tone_corpus / "_background_noise_" / "hiss.wav"
    heard, held_out = (noise_pieces(path, features, held_out=part) for part in (False, True))
    assert (len(heard), len(held_out)) == (4, 1)
    expected = MelSpectrogram(features)(torch.from_numpy(np.stack(heard))).numpy()
    np.testing.assert_allclose(np.load(tone_tensors / "noise.features.npy"), expected, atol=0.01)


def test_second_call_does_nothing_and_says_so(
    tone_corpus: Path, tone_tensors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = preprocess(tone_corpus, tmp_path, words="auto", num_threads=1)
    times = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert preprocess(tone_corpus, tmp_path, words="auto", num_threads=1) == first
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == times
    said = [record.getMessage() for record in caplog.records if not record.getMessage().startswith("found layout")]
    assert said == [f"preprocessed 120 clips of 3 words to {first}", f"{first} is complete: nothing to do"]
    assert first.name == tone_tensors.name  # the same recordings and settings on another volume


def test_fingerprint_covers_recordings_features_split_words_and_code(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [path for word in ("no", "stop", "yes") for path in sorted((corpus / word).iterdir())[:9]]
    for path in set(corpus.glob("[a-z]*/*.wav")) - set(kept):
        path.unlink()
    for index, name in enumerate(layout.LISTS.values()):
        lines = [f"{path.parent.name}/{path.name}\n" for path in kept[index::9]]
        (corpus / name).write_text("".join(lines))

    def fingerprint(recipe: Recipe = RECIPES["default"], words: str = "auto") -> str:
        return preprocess(corpus, tmp_path, recipe, num_threads=1, words=words).name

    names = [
        fingerprint(),
        fingerprint(make_recipe("baseline", split="speaker")),
        fingerprint(Recipe(split="random")),
        fingerprint(words="yes,no"),
        fingerprint(words="no,yes"),
    ]
    clip = sorted((corpus / "yes").iterdir())[3]
    content = bytearray(clip.read_bytes())
    content[-1] ^= 1
    clip.write_bytes(content)
    names.append(fingerprint())
    clip.rename(clip.with_name("ffffffff_nohash_9.wav"))
    names.append(fingerprint())
    (corpus / layout.LISTS["test"]).write_text("".join(lines[1:]))
    names.append(fingerprint())
    with monkeypatch.context() as patch:
        patch.setattr("kws.preprocess.step.VERSION", 99)
        names.append(fingerprint())
    assert len(set(names)) == len(names)


def test_digest_of_a_download_stands_for_its_recordings_until_they_are_edited(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = download(str(corpus), "", tmp_path)
    first = preprocess(folder, tmp_path, words="auto", num_threads=1)
    digest = files.read_json(first / files.MANIFEST)["recordings"]["fingerprint"]
    assert digest == files.read_json(folder / files.MANIFEST)["content"]
    clip = min((folder / "yes").iterdir())
    content = clip.read_bytes()
    os.utime(clip)
    assert preprocess(folder, tmp_path, words="auto", num_threads=1) == first  # touched, and the same
    clip.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert preprocess(folder, tmp_path, words="auto", num_threads=1) != first
    assert "was edited (or copied) after its download" in caplog.text


def test_foreign_manifest_in_a_folder_of_recordings_is_no_obstacle(
    corpus: Path, tone_tensors: Path, tmp_path: Path
) -> None:
    (corpus / files.MANIFEST).write_text('{"audio_filepath": "yes/a.wav"}\n{"audio_filepath": "yes/b.wav"}\n')
    assert preprocess(corpus, tmp_path, words="auto", num_threads=1).name == tone_tensors.name


def test_manifest_without_a_digest_does_not_stand_for_the_recordings(
    corpus: Path, tone_tensors: Path, tmp_path: Path
) -> None:
    files.write_json(corpus / files.MANIFEST, {"source": "my microphone"})
    assert preprocess(corpus, tmp_path, words="auto", num_threads=1).name == tone_tensors.name


def test_words_of_a_list_are_classes_in_the_order_of_the_list(corpus: Path, tmp_path: Path) -> None:
    folder = preprocess(corpus, tmp_path, words="yes,no", num_threads=1)
    assert files.read_json(folder / files.MANIFEST)["words"] == ["yes", "no"]
    clips = clips_of(folder, "train")
    labels = clips.labels(["yes", "no"]).tolist()
    assert {(clip.word, label) for clip, label in zip(clips, labels, strict=True)} == {("yes", 0), ("no", 1)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": "yes,maybe,perhaps"}, r"got none for maybe, perhaps; there are no, stop, yes \(--words auto"),
        ({"words": "all"}, "got none for backward, bed, .*; there are no, stop, yes"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must be between 0 and 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(
    tone_corpus: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(tone_corpus, tmp_path, **({"words": "auto"} | settings))
    assert not (tmp_path / "tensors").exists()


def test_folder_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recordings must be a folder of <word>/\*.wav, got '.*absent'"):
        preprocess(tmp_path / "absent", tmp_path, words="auto")
    (tmp_path / "here" / "yes").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"hold at least two folders <word>/\*.wav or be in .*, got .*here. with yes, read as"
    ):
        preprocess(tmp_path / "here", tmp_path, words="auto")


def test_too_few_speakers_are_refused_with_the_remedy(corpus: Path, tmp_path: Path) -> None:
    for word in ("no", "stop", "yes"):
        for path in sorted((corpus / word).iterdir()):
            path.rename(path.with_name(f"anna_nohash_{path.name[:8]}.wav"))
    with pytest.raises(ValueError, match=r"split must leave clips .* with few speakers use --split random\), got"):
        preprocess(corpus, tmp_path, words="auto")
    assert preprocess(corpus, tmp_path, Recipe(split="random"), words="auto", num_threads=1).is_dir()
    for word in ("no", "stop", "yes"):
        for path in sorted((corpus / word).iterdir())[2:]:
            path.unlink()
    with pytest.raises(ValueError, match=r"split must leave clips .* at least 3 clips of a word are needed\)"):
        preprocess(corpus, tmp_path, Recipe(split="random"), words="auto")


def spoil(corpus: Path, num_clips: int) -> list[str]:
    spoilt = sorted(str(path.relative_to(corpus)) for path in corpus.glob("[a-z]*/*.wav"))[::7][:num_clips]
    for index, clip in enumerate(spoilt):
        (corpus / clip).write_bytes(b"" if index % 2 else b"<html>not found</html>")
    return spoilt


def test_unreadable_clips_are_listed_and_left_out_and_all_others_stay_in_place(
    corpus: Path, tone_tensors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = spoil(corpus, 5)
    folder = preprocess(corpus, tmp_path, words="auto", max_bad_fraction=0.05, num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert sorted(manifest["left_out"]) == spoilt
    assert all("must be an audio file, got" in reason for reason in manifest["left_out"].values())
    page, empty = (record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert page.startswith("3 clips are left out: the recording must be an audio file, got a web page (download the")
    assert all(clip in page for clip in spoilt[::2])
    assert empty.startswith("2 clips are left out: the recording must be an audio file, got an empty file (record")
    assert sum(manifest["counts"][name] for name in SPLITS) == 115
    kept = []
    for name in SPLITS:
        clips, before = list(clips_of(folder, name)), list(clips_of(tone_tensors, name))
        assert clips == [clip for clip in before if clip.id not in spoilt]
        rows = [before.index(clip) for clip in clips]
        now, whole = (features_of(each, name) for each in (folder, tone_tensors))
        np.testing.assert_array_equal(now, whole[rows])
        kept.append(now.astype(np.float64))
    np.testing.assert_allclose(manifest["normalization"]["mean"], kept[0].mean(axis=(0, 2)), atol=1e-3)


def test_too_many_unreadable_clips_fail_with_a_line_for_every_reason(corpus: Path, tmp_path: Path) -> None:
    spoilt = spoil(corpus, 12)
    with pytest.raises(ValueError, match=r"at most 5.00% of the clips may be unreadable, got 12 of 120") as caught:
        preprocess(corpus, tmp_path, words="auto", max_bad_fraction=0.05, num_threads=1)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 2
    assert all("6 clips are left out: the recording must be an audio file, got" in line for line in lines)
    assert all(sum(clip in line for clip in spoilt) == 3 and line.endswith(" and 3 more") for line in lines)
    assert [path for path in (tmp_path / "tensors").iterdir() if path.suffix != ".lock"] == []


def test_stored_tensors_with_more_left_out_than_now_allowed_fail_too(corpus: Path, tmp_path: Path) -> None:
    spoil(corpus, 3)
    preprocess(corpus, tmp_path, words="auto", max_bad_fraction=0.1, num_threads=1)
    with pytest.raises(ValueError, match=r"at most 1.00% of the clips may be unreadable, got 3 of 120"):
        preprocess(corpus, tmp_path, words="auto", max_bad_fraction=0.01, num_threads=1)


def test_unreadable_noise_is_listed_and_left_out(corpus: Path, tmp_path: Path) -> None:
    (corpus / "_background_noise_" / "broken.wav").write_bytes(b"nothing")
    folder = preprocess(corpus, tmp_path, words="auto", max_bad_fraction=0, num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["left_out"] == {}
    assert list(manifest["noise_left_out"]) == ["_background_noise_/broken.wav"]
    assert manifest["counts"]["noise"] == 4


class _KillAt(logging.Handler):
    """Ends this process, as SIGKILL does, when a message is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        if "broken.wav is left out" in record.getMessage():
            os.kill(os.getpid(), signal.SIGKILL)


def _preprocess_until_the_noise(recordings: Path, data_root: Path) -> None:
    logging.getLogger("kws").addHandler(_KillAt())
    preprocess(recordings, data_root, words="auto", num_threads=1)


def test_killed_before_the_manifest_it_starts_again_and_gives_the_same(
    corpus: Path, tone_tensors: Path, tmp_path: Path
) -> None:
    # The arrays are written, then the noise is read.
    (corpus / "_background_noise_" / "broken.wav").write_bytes(b"nothing")
    tensors = tmp_path / "tensors"
    process = multiprocessing.get_context("forkserver").Process(
        target=_preprocess_until_the_noise, args=(corpus, tmp_path)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tensors.glob(".*.partial-*/index.npz"))) == 1
    assert list(tensors.glob("[0-9a-f]*")) == []

    folder = preprocess(corpus, tmp_path, words="auto", num_threads=1)
    again, expected = read(folder), read(tone_tensors)
    del again[files.MANIFEST], expected[files.MANIFEST]  # it names another folder of recordings
    assert again == expected
    assert [path.name for path in tensors.iterdir() if path.suffix != ".lock"] == [folder.name]


def test_ctrl_c_at_work_ends_it_at_once_with_one_line_and_leaves_nothing_half_done(
    corpus: Path, tmp_path: Path
) -> None:
    one = min((corpus / "yes").iterdir()).read_bytes()
    for number in range(8_000):  # more than are done before the signal
        sound = one[:1644] + number.to_bytes(4, "little")  # with a header that promises more, and other last samples
        (corpus / "yes" / f"{number:08x}_nohash_1.wav").write_bytes(sound)
    options = ["--recordings", str(corpus), "--data-root", str(tmp_path), "--words", "auto", "--num-threads", "2"]
    command = [sys.executable, "-m", "kws", "preprocess", *options]
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the background of a script
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, ignored)
    arrays = tmp_path / "tensors"
    parts = tmp_path / "features"
    wait_until(lambda: list(parts.glob("*/.*.partial-*/features.npy")), lambda: process.poll() is None)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in said
    assert list(arrays.glob("[0-9a-f]*/manifest.json")) == list(parts.glob("*/[0-9a-f]*")) == []


def test_torch_has_its_threads_back_afterwards(corpus: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        preprocess(corpus, tmp_path, words="auto", num_threads=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_second_of_two_concurrent_calls_finds_tensors(tone_corpus: Path, tone_tensors: Path, tmp_path: Path) -> None:
    both = [start(tone_corpus, tmp_path) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert [path.name for path in (tmp_path / "tensors").iterdir() if path.suffix != ".lock"] == [tone_tensors.name]
    assert read(tmp_path / "tensors" / tone_tensors.name) == read(tone_tensors)


def test_samples_far_beyond_full_scale_reach_no_statistics(corpus: Path, tone_tensors: Path, tmp_path: Path) -> None:
    clip = clips_of(tone_tensors, "train")[0].file
    samples, _ = soundfile.read(corpus / clip)
    samples[7] = 1e25
    soundfile.write(corpus / clip, samples, 16_000, subtype="FLOAT")
    folder = preprocess(corpus, tmp_path, words="auto", num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert "at most 16 times full scale, got 1e+25" in manifest["left_out"][clip]
    assert np.isfinite([*manifest["normalization"]["mean"], *manifest["normalization"]["std"]]).all()
    assert np.isfinite(features_of(folder, "train")).all()


def test_recordings_of_every_spelling_and_format_become_the_same_clips(
    corpus: Path, tone_tensors: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(corpus.glob("*/*.wav"))):
        if number % 3 == 0:
            path.rename(path.with_suffix(".WAV"))
        elif number % 3 == 1:
            samples, rate = soundfile.read(path, dtype="int16")
            soundfile.write(path.with_suffix(".flac"), samples, rate)
            path.unlink()
    (corpus / "yes" / "a.txt").write_bytes(b"nothing")
    (corpus / "yes" / "\udce4.wav").write_bytes(b"nothing")
    folder = preprocess(corpus, tmp_path, words="auto", num_threads=1)
    assert files.read_json(folder / files.MANIFEST)["not_read"] == {
        "num_files": 2,
        "first": {
            "yes/a.txt": "it is no recording by its name",
            "yes/\\udce4.wav": "its name is not UTF-8 (rename it)",
        },
    }
    for name in SPLITS:
        np.testing.assert_array_equal(features_of(folder, name), features_of(tone_tensors, name))
    assert (folder / "noise.features.npy").read_bytes() == (tone_tensors / "noise.features.npy").read_bytes()


def test_lists_that_name_nothing_are_the_reason_and_not_few_speakers(corpus: Path, tmp_path: Path) -> None:
    (corpus / "testing_list.txt").write_text("yes/none.wav\n")
    (corpus / "validation_list.txt").write_text("maybe/none.wav\n")
    with pytest.raises(
        ValueError, match=r"the lists name: validation_list.txt 0, testing_list.txt 0; provide two lists"
    ):
        preprocess(corpus, tmp_path, words="auto")


def test_speakers_of_the_lists_who_train_too_are_reported(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = sorted(path.name for path in (corpus / "yes").iterdir())
    (corpus / "validation_list.txt").write_bytes("".join(f"yes\\{clip}\r\n" for clip in clips[:3]).encode("utf-16"))
    (corpus / "testing_list.txt").write_text("".join(f"yes/{clip}\n" for clip in clips[3:5]), encoding="utf-8-sig")
    folder = preprocess(corpus, tmp_path, words="auto", num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert (manifest["counts"]["validation"], manifest["counts"]["test"]) == (3, 2)
    assert manifest["speakers_in_two_splits"] == {"speakers": 5, "clips": 5}
    assert [manifest["lists"][name]["matched"] for name in layout.LISTS.values()] == [3, 2]
    assert "5 speakers of training clips are also in validation or test, with 5 clips" in caplog.text


def test_copies_of_test_clips_under_other_names_and_in_other_formats_do_not_train(
    corpus: Path, tone_tensors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = list(clips_of(tone_tensors, "test"))
    for number, clip in enumerate(test):
        path = corpus / clip.word / f"copy{number}.flac"
        soundfile.write(path, *soundfile.read(corpus / clip.file, dtype="int16"))
    folder = preprocess(corpus, tmp_path, words="auto", num_threads=2)
    assert set(test) <= set(clips_of(folder, "test"))
    kept = {name: {clip.file: clip for clip in clips_of(folder, name)} for name in SPLITS}
    copies = {f"{clip.word}/copy{number}.flac" for number, clip in enumerate(test)}
    assert not copies & (kept["train"].keys() | kept["validation"].keys())
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["left_out"] == {}
    assert manifest["copies"]["num_clips"] == len(copies - kept["test"].keys()) > 0
    assert "clips of train are left out, as they are copies of clips of another split: " in caplog.text
    expected = files.read_json(tone_tensors / files.MANIFEST)["normalization"]
    normalization = files.read_json(folder / files.MANIFEST)["normalization"]
    np.testing.assert_allclose(normalization["mean"], expected["mean"], atol=1e-3)
    np.testing.assert_allclose(normalization["std"], expected["std"], atol=1e-3)


def test_the_same_sound_in_two_words_is_left_out_of_both_and_counts_as_unreadable(corpus: Path, tmp_path: Path) -> None:
    clip = min((corpus / "yes").iterdir())
    shutil.copy(clip, corpus / "no" / "copy.wav")
    with pytest.raises(ValueError, match=r"got 2 of 121 .*\n.*must be of one word, got a copy of .*, which is of yes"):
        preprocess(corpus, tmp_path, words="auto", num_threads=1)
    folder = preprocess(corpus, tmp_path, words="auto", max_bad_fraction=0.05, num_threads=1)
    assert set(files.read_json(folder / files.MANIFEST)["left_out"]) == {"no/copy.wav", f"yes/{clip.name}"}


def test_clips_without_any_sound_are_left_out(corpus: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((corpus / "yes").iterdir())[:4]):
        soundfile.write(path, np.full(16_000, 0.1 * (number % 2)), 16_000)
    with pytest.raises(ValueError, match=r"got 4 of 120 .*\n.*must have sound, got silence: all samples are the same"):
        preprocess(corpus, tmp_path, words="auto", num_threads=1)


def test_word_of_which_no_clip_can_be_read_is_refused_whatever_may_be_left_out(corpus: Path, tmp_path: Path) -> None:
    for path in (corpus / "yes").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"every word must have a clip that can be read, got none of yes \(the first: yes/"
    ):
        preprocess(corpus, tmp_path, words="auto", max_bad_fraction=1, num_threads=1)


def test_word_without_a_clip_to_train_on_is_warned_of(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in sorted((corpus / "yes").iterdir()):
        path.rename(path.with_name("anna_nohash_" + path.name[:8] + ".wav"))
    for split, some in (
        ("test", list((corpus / "yes").iterdir())),
        ("validation", list((corpus / "no").iterdir())[:4]),
    ):
        (corpus / layout.LISTS[split]).write_text("".join(f"{path.parent.name}/{path.name}\n" for path in some))
    preprocess(corpus, tmp_path, Recipe(split="speaker"), words="auto", num_threads=1)
    assert "no clip is left to train yes on: its speakers are all in validation or test" in caplog.text
