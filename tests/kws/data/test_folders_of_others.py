"""Folders as people have them whose names mislead: they are read as what they are, or refused with a remedy."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_layouts import counts, place, real

from kws.data.layouts.rows import UnclearLayout
from kws.data.listing import Listing
from kws.data.sources import list_recordings, unwrapped
from kws.data.splits import by_speaker, read_lists
from kws.download.step import download
from kws.preprocess.audio import read_waveform


def laid_out(folder: Path, *names: str) -> Path:
    """Places a real clip under each of some names."""
    clips = [*real("yes"), *real("left")]
    for number, name in enumerate(names):
        place(folder / name, clips[number % len(clips)])
    return folder


def each(*parts: Sequence[str], suffix: str = ".wav") -> list[str]:
    """Returns paths of all combinations, such as train/yes/0.wav."""
    found = [""]
    for part in parts:
        found = [f"{path}/{one}" if path else one for path in found for one in part]
    return [path + suffix for path in found]


def speakers(listing: Listing) -> set[str]:
    return set(listing.clips.counts("speaker")) - {""}


@pytest.mark.parametrize("extra", ["noise/street.wav", "examples/demo.wav", "background_noise/street/x.wav"])
def test_folder_beside_splits_hides_none_of_them(tmp_path: Path, extra: str, caplog: pytest.LogCaptureFixture) -> None:
    laid_out(tmp_path, *each(["train", "test"], ["yes", "left"], "0123"), extra)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 8, "yes": 8}
    assert listing.clips.counts("split") == {"test": 8, "train": 8}
    listing.report()
    assert f"1 not read, as it does not lie in folders split/word: {extra}" in caplog.text


@pytest.mark.parametrize(
    "names", [("01_train", "02_test"), ("train-clean-100", "test-clean"), ("train", "validation", "test_unseen")]
)
def test_folder_whose_name_contains_that_of_a_split_is_one(tmp_path: Path, names: Sequence[str]) -> None:
    laid_out(tmp_path, *each(names, ["yes", "left"], "01"))
    listing = list_recordings(tmp_path)
    assert (counts(listing), speakers(listing)) == ({"left": 2 * len(names), "yes": 2 * len(names)}, set())
    assert len(listing.clips.counts("split").keys() - {""}) == len(names)


@pytest.mark.parametrize("names", [("fold1", "fold2", "fold3"), ("male", "female"), ("session 1", "session 2")])
def test_folders_that_only_divide_recordings_are_no_speakers(tmp_path: Path, names: Sequence[str]) -> None:
    laid_out(tmp_path, *each(names, ["yes", "left"], "01"))
    listing = list_recordings(tmp_path)
    assert (counts(listing), speakers(listing)) == ({"left": 2 * len(names), "yes": 2 * len(names)}, set())


@pytest.mark.parametrize("folders", [("anna", "ben", "clara"), ("s01", "s02", "s03")])
@pytest.mark.parametrize("ending", ["", "_1", " (2)"])
def test_folders_with_a_file_for_each_word_are_speakers(tmp_path: Path, folders: Sequence[str], ending: str) -> None:
    laid_out(tmp_path, *each(folders, [word + ending for word in ("yes", "left", "stop")]))
    listing = list_recordings(tmp_path)
    assert (counts(listing), speakers(listing)) == ({"left": 3, "stop": 3, "yes": 3}, set(folders))
    assert list_recordings(tmp_path, listing.layout).clips.ids.tolist() == listing.clips.ids.tolist()


def test_folders_and_files_of_which_either_may_be_words_are_refused(tmp_path: Path) -> None:
    laid_out(tmp_path, *each(["anna", "ben", "clara"], ["licht_0", "licht_1", "heizung_0", "aus_0"]))
    with pytest.raises(UnclearLayout, match=r"--layout word if .*, or --layout speaker/word\.wav"):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "speaker/word.wav")) == {"aus": 3, "heizung": 3, "licht": 6}
    assert counts(list_recordings(tmp_path, "word")) == {"anna": 4, "ben": 4, "clara": 4}


@pytest.mark.parametrize("names", ["012", ("audio1", "audio2"), ("s1", "s2"), ("anna_1", "ben_1")])
def test_words_stay_words_whatever_their_files_are_called(tmp_path: Path, names: Sequence[str]) -> None:
    laid_out(tmp_path, *each(["yes", "left"], names))
    assert counts(list_recordings(tmp_path)) == {"left": len(names), "yes": len(names)}


def beside(folder: Path, text: Callable[[Path], str], suffix: str = ".txt") -> None:
    for path in list(folder.rglob("*.wav")):
        path.with_suffix(suffix).write_text(text(path))


@pytest.mark.parametrize("text", ["male", "recorded in the kitchen with the window open"])
def test_notes_beside_recordings_in_folders_of_words_are_not_the_words(tmp_path: Path, text: str) -> None:
    beside(laid_out(tmp_path, *each(["yes", "left"], "0123")), lambda path: "female" if path.stem == "1" else text)
    assert counts(list_recordings(tmp_path)) == {"left": 4, "yes": 4}


def test_notes_that_may_be_the_words_are_refused(tmp_path: Path) -> None:
    beside(laid_out(tmp_path, *each(["ja", "nein", "licht"], "0123")), lambda path: "wm"[int(path.stem) % 2])
    with pytest.raises(UnclearLayout, match=r"--layout word or --layout sidecars"):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "sidecars")) == {"m": 6, "w": 6}


@pytest.mark.parametrize("suffix", [".lab", ".TXT"])
def test_words_beside_recordings_of_speakers_are_read(tmp_path: Path, suffix: str) -> None:
    laid_out(tmp_path, *each(["anna", "ben"], "0123"))
    beside(tmp_path, lambda path: ("yes", "left")[int(path.stem) % 2], suffix)
    assert counts(list_recordings(tmp_path)) == {"left": 4, "yes": 4}


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

0 2 <exists> 2
"IntervalTier" "words" 0 2 4
0 0.5 "sil" 0.5 1 "left" 1 1.5 "<eps>" 1.5 2 "yes"
"TextTier" "clicks" 0 2 1
1.2 "click"
"""


def test_textgrid_in_a_folder_of_its_own_has_words_and_neither_pauses_nor_points(tmp_path: Path) -> None:
    sound = np.concatenate([soundfile.read(path)[0] for path in (*real("yes")[:1], *real("left")[:1])])
    for name in ("anna", "ben"):
        (tmp_path / "audio").mkdir(exist_ok=True)
        (tmp_path / "aligned").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"{name}.wav", sound, 16_000)
        (tmp_path / "aligned" / f"{name}.TextGrid").write_text(TEXTGRID)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 2, "yes": 2}
    assert {clip.stretch for clip in listing.clips} == {(0.5, 1.0), (1.5, 2.0)}


def test_track_of_two_recordings_names_both(tmp_path: Path) -> None:
    laid_out(tmp_path, "one.wav", "one.flac")
    (tmp_path / "one.txt").write_text("0.1\t0.6\tyes\n")
    with pytest.raises(UnclearLayout, match=r"beside one\.flac and one\.wav: keep one of them"):
        list_recordings(tmp_path)


@pytest.mark.parametrize(
    "names", [("test.txt", "val.txt"), ("test_list.txt", "dev_list.txt"), ("testing.txt", "valid.txt")]
)
def test_lists_of_splits_have_other_names_too(tmp_path: Path, names: tuple[str, str]) -> None:
    laid_out(tmp_path, *each(["yes", "left"], "0123"))
    for name, number in zip(names, "01", strict=True):
        (tmp_path / name).write_text(f"yes/{number}.wav\nleft/{number}.wav\n")
    listing = list_recordings(tmp_path)
    divided = by_speaker(listing.clips, read_lists(listing.lists, listing.clips))
    assert {split: sorted(some.files) for split, some in divided.items() if split != "train"} == {
        "test": ["left/0.wav", "yes/0.wav"],
        "validation": ["left/1.wav", "yes/1.wav"],
    }
    (tmp_path / names[0]).write_text("some notes on the test\n")
    assert list(list_recordings(tmp_path).lists) == ["validation"]


def test_links_neither_repeat_recordings_nor_lead_in_circles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    laid_out(tmp_path / "v1", *each(["s01", "s02"], ["yes", "left"], "01"))
    (tmp_path / "latest").symlink_to("v1")
    for number in range(6):
        (tmp_path / "v1" / f"l{number}").symlink_to(".")
    assert unwrapped(tmp_path) == tmp_path / "v1"
    listing = list_recordings(tmp_path / "v1")
    assert (counts(listing), speakers(listing)) == ({"left": 4, "yes": 4}, {"s01", "s02"})
    assert f"{tmp_path}/v1/l0 is not listed, as it leads to a folder that is listed already" in caplog.text


def test_word_with_sounds_in_a_format_that_is_not_read_is_refused(tmp_path: Path) -> None:
    laid_out(tmp_path, *each(["yes", "stop"], "01"))
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "0.pcm").write_bytes(real("left")[0].read_bytes()[44:])
    with pytest.raises(ValueError, match=r"got left with only files like left/0\.pcm: convert them"):
        list_recordings(tmp_path).require_readable_words()


def test_pointers_of_git_lfs_are_refused_before_they_are_a_data_set(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 32044\n"
    for name in each(["yes", "left"], "0123"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(pointer)
    with pytest.raises(ValueError, match=r"0\.wav is a pointer of Git LFS.*run `git lfs pull`"):
        download(str(tmp_path / "clone"), "", tmp_path / "data")


@pytest.mark.parametrize("name", ["words.zip.001", "words.z01", "words.part1.rar"])
def test_part_of_an_archive_is_refused_with_how_to_join_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4" + bytes(1000))
    with pytest.raises(ValueError, match=rf"got the part {name}: join the parts"):
        download(str(tmp_path / name), "", tmp_path / "data")


def test_recording_of_a_recorder_that_was_killed_is_read_to_its_end(tmp_path: Path) -> None:
    pytest.importorskip("av")
    whole = real("yes")[0]
    data = bytearray(shutil.copyfile(whole, tmp_path / "killed.wav").read_bytes())
    data[4:8] = data[40:44] = bytes(4)
    (tmp_path / "killed.wav").write_bytes(data)
    np.testing.assert_allclose(read_waveform(tmp_path / "killed.wav", 16_000), read_waveform(whole, 16_000), atol=1e-4)


@pytest.mark.parametrize(
    "names",
    [
        ("001_yes", "002_left"), ("class_yes", "class_left"), ("label=yes", "label=left"),
    ],
)  # fmt: skip
def test_numbers_and_kinds_before_the_words_of_folders_are_none_of_them(tmp_path: Path, names: Sequence[str]) -> None:
    laid_out(tmp_path, *each(names, "012"))
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 3, "yes": 3}
    assert list_recordings(tmp_path, listing.layout).clips.ids.tolist() == listing.clips.ids.tolist()


def test_words_that_only_some_numbers_precede_stay(tmp_path: Path) -> None:
    laid_out(tmp_path, *each(["1_yes", "left", "label=on"], "012"))
    assert counts(list_recordings(tmp_path)) == {"1_yes": 3, "label=on": 3, "left": 3}


def test_partitions_of_hive_say_what_they_are(tmp_path: Path) -> None:
    laid_out(
        tmp_path, *each(["speaker=ann", "speaker=ben"], ["split=train", "split=test"], ["word=an", "word=aus"], "01")
    )
    listing = list_recordings(tmp_path)
    assert (counts(listing), speakers(listing)) == ({"an": 8, "aus": 8}, {"ann", "ben"})
    assert listing.clips.counts("split") == {"test": 8, "train": 8}


@pytest.mark.parametrize(
    ("levels", "layout"),
    [
        ((["yes", "left"], ["train", "test"]), "word/split"),
        ((["yes", "left"], ["train", "test"], ["s01", "s02"]), "word/split/speaker"),
        ((["entrenamiento", "prueba"], ["yes", "left"]), "split/word"),
        ((["Trainingsdaten", "Testdaten"], ["yes", "left"]), "split/word"),
        ((["trainset", "testset"], ["yes", "left"]), "split/word"),
        ((["训练集", "测试集"], ["yes", "left"]), "split/word"),
    ],
)
def test_splits_are_found_at_any_level_and_in_other_languages(
    tmp_path: Path, levels: Sequence[Sequence[str]], layout: str
) -> None:
    laid_out(tmp_path, *each(*levels, "01"))
    listing = list_recordings(tmp_path)
    num = len(listing.clips) // 2
    assert (listing.layout, counts(listing)) == (layout, {"left": num, "yes": num})
    assert listing.clips.counts("split") == {"test": num, "train": num}


@pytest.mark.parametrize(
    "names",
    [("2023-01-01", "2023-01-02"), ("clean", "noisy"), ("16000", "44.1k"), ("20-29", "30-39"), ("set_a", "set_b")],
)
def test_dates_rates_and_conditions_are_no_speakers(tmp_path: Path, names: Sequence[str]) -> None:
    laid_out(tmp_path, *each(names, ["yes", "left"], "01"))
    listing = list_recordings(tmp_path)
    assert (listing.layout, counts(listing), speakers(listing)) == ("*/word", {"left": 4, "yes": 4}, set())


def test_folders_with_other_words_each_are_kinds_of_words_not_speakers(tmp_path: Path) -> None:
    laid_out(tmp_path, *each(["de"], ["ja", "nein"], "01"), *each(["en"], ["yes", "no"], "01"))
    listing = list_recordings(tmp_path)
    assert (listing.layout, len(listing.words), speakers(listing)) == ("*/word", 4, set())


@pytest.mark.parametrize("pattern", ["{word}_{speaker}", "{speaker}_{word}", "{speaker}-{word}-1"])
def test_names_of_files_need_no_number(tmp_path: Path, pattern: str) -> None:
    laid_out(tmp_path, *(f"{pattern.format(word=w, speaker=s)}.wav" for w in ("yes", "left") for s in ("ann", "ben")))
    listing = list_recordings(tmp_path)
    assert (counts(listing), speakers(listing)) == ({"left": 2, "yes": 2}, {"ann", "ben"})


def test_first_recording_of_a_word_has_no_number(tmp_path: Path) -> None:
    laid_out(tmp_path, *(f"{word}{number}.wav" for word in ("Yes", "Left") for number in ("", " 2", " 3")))
    assert counts(list_recordings(tmp_path)) == {"Left": 3, "Yes": 3}


def test_files_in_one_folder_are_refused_with_the_flag_for_their_names(tmp_path: Path) -> None:
    laid_out(tmp_path, *each([f"{word}_{number}" for word in ("ja", "nein") for number in range(3)]))
    with pytest.raises(
        UnclearLayout, match=r"got only files such as ja_0\.wav.* use --layout word\.wav if their names"
    ):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "word.wav")) == {"ja": 3, "nein": 3}


def test_folders_without_recordings_and_those_of_programs_hide_no_words(tmp_path: Path) -> None:
    laid_out(tmp_path, *each(["yes", "left", "$RECYCLE.BIN", "@eaDir"], "01"))
    assert counts(list_recordings(tmp_path)) == {"left": 2, "yes": 2}
    laid_out(tmp_path / "clone", *each(["data"], ["yes", "left"], "01"))
    for name in ("src/main.py", "docs/index.md", "__MACOSX/data/yes/._0.wav"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True)
        (tmp_path / "clone" / name).write_text("text")
    assert unwrapped(tmp_path / "clone") == tmp_path / "clone" / "data"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [*each(["data"], ["yes", "left"], "01"), "demo/hello.wav"],
            r"got 4 of 5 in folders in folders, such as data/",
        ),
        (
            [*each(["yes", "left"], "012"), *each(["test"], ["yes", "left"], "01")],
            r"got test beside the words left, yes",
        ),
    ],
)
def test_words_of_which_more_lie_deeper_or_in_a_split_are_refused(
    tmp_path: Path, names: Sequence[str], message: str
) -> None:
    laid_out(tmp_path, *names)
    with pytest.raises(UnclearLayout, match=message):
        list_recordings(tmp_path)


def test_transcripts_of_which_one_is_the_name_of_its_folder_are_notes(tmp_path: Path) -> None:
    heard = ["Ja.", "Yeah.", "Nine."]
    beside(laid_out(tmp_path, *each(["ja", "nein", "licht"], "012")), lambda path: heard[int(path.stem)])
    assert counts(list_recordings(tmp_path)) == {"ja": 3, "licht": 3, "nein": 3}


@pytest.mark.parametrize("name", ["{}.Table.1.selections.txt", "{}.txt", "{}.csv"])
@pytest.mark.parametrize("column", ["Annotation", "Species"])
def test_selections_of_raven_beside_recordings_cut_them(tmp_path: Path, name: str, column: str) -> None:
    laid_out(tmp_path, "one.wav", "two.wav")
    head = ["Selection", "View", "Begin Time (s)", "End Time (s)", column]
    rows = [head, ["1", "Spectrogram 1", "0.1", "0.4", "yes"], ["2", "Spectrogram 1", "0.5", "0.9", "left"]]
    for stem in ("one", "two"):
        (tmp_path / name.format(stem)).write_text("".join("\t".join(row) + "\n" for row in rows))
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 2, "yes": 2}
    assert {clip.stretch for clip in listing.clips} == {(0.1, 0.4), (0.5, 0.9)}


def test_aligned_tiers_of_speakers_belong_to_recordings_in_folders_of_the_same_names(tmp_path: Path) -> None:
    laid_out(tmp_path, *each(["corpus"], ["ann", "ben"], "01"))
    for path in list(tmp_path.rglob("*.wav")):
        track = tmp_path / "aligned" / path.parent.name / f"{path.stem}.TextGrid"
        track.parent.mkdir(parents=True, exist_ok=True)
        track.write_text(TEXTGRID)
    assert counts(list_recordings(tmp_path)) == {"left": 4, "yes": 4}
