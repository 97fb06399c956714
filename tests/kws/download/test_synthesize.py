import os
import subprocess
import sys
import time
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kws import files
from kws.cli import main
from kws.config import SPEECH_COMMANDS_WORDS
from kws.data.sources import list_recordings
from kws.download import synthesize as synthesis
from kws.download.step import download
from kws.download.synthesize import synthesize
from kws.download.voices import PITCHES, VARIANTS, Speaker
from kws.preprocess.audio import read_waveform

CLIPS_PER_WORD = 10
SMALL = {"words": ("yes", "no", "stop"), "clips_per_word": 6}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthesized") / "corpus"
    synthesize(folder, clips_per_word=CLIPS_PER_WORD)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != files.MANIFEST)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def samples(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768


def test_layout_is_that_of_the_published_archive_with_all_35_words(corpus: Path) -> None:
    assert sorted(path.name for path in corpus.iterdir()) == sorted(
        [
            *SPEECH_COMMANDS_WORDS,
            "_background_noise_",
            "_running_speech_",
            "manifest.json",
            "testing_list.txt",
            "validation_list.txt",
        ]
    )
    for word in SPEECH_COMMANDS_WORDS:
        names = [path.name for path in (corpus / word).iterdir()]
        assert len(names) == CLIPS_PER_WORD
        assert all(len(name) == len("00000000_nohash_0.wav") and int(name[:8], 16) >= 0 for name in names)
    assert files.read_json(corpus / files.MANIFEST)["num_clips"] == 35 * CLIPS_PER_WORD


def test_lists_name_clips_of_a_tenth_of_the_speakers_each_and_none_twice(corpus: Path) -> None:
    everyone = {path.name[:8] for path in (corpus / "yes").iterdir()}
    held_out = {}
    for name in ("validation_list.txt", "testing_list.txt"):
        lines = (corpus / name).read_text().split()
        assert all((corpus / line).is_file() for line in lines)
        held_out[name] = {Path(line).name[:8] for line in lines}
        assert len(held_out[name]) == CLIPS_PER_WORD // 10
        assert Counter(Path(line).parent.name for line in lines) == dict.fromkeys(
            SPEECH_COMMANDS_WORDS, CLIPS_PER_WORD // 10
        )
    assert len(everyone) == CLIPS_PER_WORD
    assert held_out["validation_list.txt"].isdisjoint(held_out["testing_list.txt"])


def test_every_clip_is_one_second_of_16_khz_mono_and_none_is_silent_or_clipped(corpus: Path) -> None:
    for path in corpus.glob("[a-z]*/*.wav"):
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
            assert file.getnframes() == 16_000
        sound = samples(path)
        assert 0.08 < np.abs(sound).max() < 0.99, path
        loud = np.flatnonzero(np.abs(sound) > 0.3 * np.abs(sound).max())  # above the noise of the faintest clip
        assert 0.05 < (loud[-1] - loud[0]) / 16_000 < 0.96, path


def test_words_lie_at_various_places_and_levels(corpus: Path) -> None:
    sounds = [samples(path) for path in (corpus / "yes").iterdir()]
    assert np.ptp([20 * np.log10(np.abs(sound).max()) for sound in sounds]) > 6
    assert np.ptp([np.abs(sound).argmax() / 16_000 for sound in sounds]) > 0.1


def test_noises_are_15_s_long_and_pink_noise_has_more_low_frequencies_than_white(corpus: Path) -> None:
    noises = {path.stem: samples(path) for path in (corpus / "_background_noise_").iterdir()}
    assert set(noises) == {"white_noise", "pink_noise", "mains_hum"}
    assert {len(noise) for noise in noises.values()} == {15 * 16_000}
    power = {name: np.abs(np.fft.rfft(noise)) ** 2 for name, noise in noises.items()}
    low = {name: spectrum[: len(spectrum) // 8].sum() / spectrum.sum() for name, spectrum in power.items()}
    assert low["white_noise"] == pytest.approx(1 / 8, abs=0.02)
    assert low["pink_noise"] > 0.5


def test_same_seed_gives_the_same_bytes_a_second_later_and_another_seed_others(tmp_path: Path) -> None:
    synthesize(tmp_path / "first", **SMALL, seed=1)
    time.sleep(1)  # espeak-ng seeds itself with the clock's seconds, which must not show
    synthesize(tmp_path / "second", **SMALL, seed=1)
    synthesize(tmp_path / "other", **SMALL, seed=2)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert set(contents(tmp_path / "first")) != set(contents(tmp_path / "other"))


def test_second_call_does_nothing_and_other_settings_replace_the_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    synthesize(folder, **SMALL)
    before = (folder / files.MANIFEST).stat().st_mtime_ns
    synthesize(folder, **SMALL)
    assert (folder / files.MANIFEST).stat().st_mtime_ns == before
    synthesize(folder, words=("up", "down"), clips_per_word=3)
    assert files.read_json(folder / files.MANIFEST)["words"] == {"down": 3, "up": 3}
    assert not (folder / "yes").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".corpus.lock", "corpus"]


def test_more_clips_than_voices_are_further_takes_by_the_same_speakers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kws.download.synthesize.ACCENTS", ("en-us",))
    monkeypatch.setattr("kws.download.synthesize.VARIANTS", ("f1", "m3"))
    monkeypatch.setattr("kws.download.synthesize.PITCHES", (40, 60))
    synthesize(tmp_path / "corpus", words=("yes", "no"), clips_per_word=6)
    takes = Counter(path.name[:8] for path in (tmp_path / "corpus" / "yes").iterdir())
    assert sorted(takes.values()) == [1, 1, 2, 2]


def test_download_takes_a_snapshot_of_a_synthetic_corpus(corpus: Path, tmp_path: Path) -> None:
    folder = download(str(corpus), "", tmp_path)
    assert files.read_json(folder / files.MANIFEST)["num_clips"] == 35 * CLIPS_PER_WORD
    assert (folder / "testing_list.txt").read_text() == (corpus / "testing_list.txt").read_text()


def test_killed_synthesis_ends_its_processes_and_starts_again(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kws.download.synthesize import synthesize\n"
        "if __name__ == '__main__': synthesize(Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "corpus")], start_new_session=True)
    end = time.monotonic() + 30
    while not list(tmp_path.glob(".corpus.partial-*/*/*.wav")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    while _session_lives(process.pid):
        assert time.monotonic() < end, "its processes must end when it is killed"
        time.sleep(0.05)
    synthesize(tmp_path / "corpus", **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".corpus.lock", "corpus"]


def _session_lives(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def test_folder_with_other_things_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"folder must be new, empty or a synthetic corpus .*, got"):
        synthesize(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_word_too_long_for_a_second_is_refused_by_name(tmp_path: Path) -> None:
    word = "llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"
    with pytest.raises(ValueError, match=f"a word must be short enough for one second of speech, got '{word}'"):
        synthesize(tmp_path / "corpus", words=("yes", word), clips_per_word=3)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": ("yes", "no"), "clips_per_word": 2}, "clips_per_word must be at least 3"),
        ({"words": ("yes", "no"), "seed": -1}, "seed must be at least 0"),
        ({"words": ("yes",)}, "words must name at least two words"),
        ({"words": ("auto",)}, "words must be all or a list separated by commas"),
        ({"words": ("yes", "_no")}, "a word must not begin with _"),
    ],
)
def test_setting_out_of_range_is_refused_by_name(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "corpus", **settings)  # type: ignore[arg-type]


def test_any_words_are_said_and_an_underscore_stands_between_two(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["synthesize", str(tmp_path / "corpus"), "--words", "music,lights_on", "--clips-per-word", "3"])
    assert ended.value.code == 0
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir() if path.is_dir()) == [
        "_background_noise_",
        "_running_speech_",
        "lights_on",
        "music",
    ]
    assert len(list((tmp_path / "corpus" / "lights_on").iterdir())) == 3


@pytest.mark.parametrize(
    ("language", "words"), [("de", ["ja", "nein", "Straße"]), ("ja", ["はい", "いいえ"]), ("en", ["yes", "no/yes"])]
)
def test_words_of_other_languages_are_spoken_by_their_voices(tmp_path: Path, language: str, words: list[str]) -> None:
    synthesize(tmp_path / "corpus", words=words, language=language, clips_per_word=3)
    listing = list_recordings(tmp_path / "corpus")
    assert set(listing.words) == set(words)
    sounds = {
        word: read_waveform(tmp_path / "corpus" / listing.clips.of_words([word])[0].file, 16_000) for word in words
    }
    assert all(np.ptp(sound) > 0.05 for sound in sounds.values())
    synthesize(tmp_path / "corpus", words=words, language=language, clips_per_word=3)  # it has it already


@pytest.mark.parametrize(
    ("language", "words"), [("hi", ["हाँ", "नहीं"]), ("ar", ["نعم", "لا"]), ("cmn", ["停止", "向前走"])]
)
def test_voices_of_further_languages_say_words_in_their_scripts(language: str, words: list[str]) -> None:
    synthesis.require_speakable(words, language)
    voice, random = Speaker(language, VARIANTS[0], PITCHES[0]), np.random.default_rng(0)
    assert all(np.ptp(synthesis._record(word, voice, random)) > 0.05 for word in words)


@pytest.mark.parametrize(
    ("language", "words", "message"),
    [
        ("en", ["停止", "开始"], "that the voice en can say, got '停止': name its language with --language"),
        ("en", ["yes", "привет"], "that the voice en can say, got 'привет'"),
        ("de", ["ja", "привет"], "that the voice de can say, got 'привет'"),
        ("de", ["ja", "停止"], "that the voice de can say, got '停止'"),
        ("es", ["sí", "は"], "that the voice es can say, got 'は'"),
        ("hi", ["हाँ", "是"], "that the voice hi can say, got '是'"),
        ("ja", ["停止", "はい"], "that the voice ja can say, got '停止'.* ja reads kana only"),
        ("en", ["two", "too", "one"], "words must sound different, got two that are pronounced tuː, got 'two,too'"),
        ("xx", ["ja", "nein"], "language must be one that espeak-ng speaks, such as en, de, .*, got 'xx'"),
    ],
)
def test_words_that_the_voice_cannot_say_or_tell_apart_are_refused(
    tmp_path: Path, language: str, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "corpus", words=words, language=language, clips_per_word=3)
    assert not (tmp_path / "corpus").exists()
