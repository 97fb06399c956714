"""Running speech: who says what, and where words of a model may be in it."""

from pathlib import Path

import pytest

from kws.data.sources import list_recordings
from kws.data.speech import Talk, list_speech


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_texts_and_speakers_are_found_as_libri_speech_a_table_and_text_files_tell_them(tmp_path: Path) -> None:
    speech = tmp_path / "_running_speech_"
    make(speech, "1089/134686/1089-134686-0000.flac", "a.wav", "b/c.opus", "spk1_nohash_0.wav", ".hidden.wav", "x.pdf")
    (speech / "1089/134686/1089-134686.trans.txt").write_text("1089-134686-0000 HE HOPED THERE WOULD BE STEW\n")
    (speech / "a.txt").write_text("\ufeffHello\nthere\n", encoding="utf-8")
    (speech / "index.tsv").write_text('file\tspeaker\ttext\nb/c.opus\tmaria\tshe said "stop\n')
    found = {talk.file: talk for talk in list_speech(tmp_path, speech)}
    assert found == {
        "_running_speech_/1089/134686/1089-134686-0000.flac": Talk(
            file="_running_speech_/1089/134686/1089-134686-0000.flac",
            speaker="1089",
            text="HE HOPED THERE WOULD BE STEW",
        ),
        "_running_speech_/a.wav": Talk(file="_running_speech_/a.wav", text="Hello there"),
        "_running_speech_/b/c.opus": Talk(file="_running_speech_/b/c.opus", speaker="maria", text='she said "stop'),
        "_running_speech_/spk1_nohash_0.wav": Talk(file="_running_speech_/spk1_nohash_0.wav", speaker="spk1"),
    }


def test_folder_of_running_speech_is_no_word(tmp_path: Path) -> None:
    make(tmp_path, "yes/a.wav", "no/b.wav", "_running_speech_/deep/c.wav")
    (tmp_path / "_running_speech_/deep/c.txt").write_text("said")
    listing = list_recordings(tmp_path)
    assert listing.words == ["no", "yes"]
    assert [talk.file for talk in listing.speech] == ["_running_speech_/deep/c.wav"]
    assert not listing.not_read
    assert listing.files_of(listing.clips[:0]).tolist() == [
        "_running_speech_/deep/c.wav",
        "_running_speech_/deep/c.txt",
    ]


def test_running_speech_beside_words_in_a_folder_below_is_no_word_and_no_list(tmp_path: Path) -> None:
    make(tmp_path, "clips/yes/a.wav", "clips/no/b.wav", "clips/_running_speech_/c.wav")
    (tmp_path / "clips/_running_speech_/index.tsv").write_text("file\tspeaker\ttext\nc.wav\tmaria\tstop\n")
    (tmp_path / "list.csv").write_text("file,word\nclips/yes/a.wav,yes\nclips/no/b.wav,no\n")
    listing = list_recordings(tmp_path)
    assert listing.words == ["no", "yes"]
    assert listing.speech == [Talk(file="clips/_running_speech_/c.wav", speaker="maria", text="stop")]


def test_a_speaker_is_in_one_split() -> None:
    splits = {name: Talk(file=f"{name}.wav", speaker=str(name)).split for name in range(300)}
    assert {Talk(file="other.wav", speaker="7").split} == {splits[7]}
    counts = [list(splits.values()).count(split) for split in ("train", "validation", "test")]
    assert counts[0] > 200
    assert min(counts) > 10


def test_words_and_what_sounds_like_them_are_found_in_a_text_but_not_parts_of_words() -> None:
    talk = Talk(file="a.wav", text="I KNOW, he can't go upon it; go!")
    places = talk.places_of(["no", "go", "on", "up"])
    assert len(places) == 3
    assert places == sorted(places)
    assert places[0] == pytest.approx(4 / 32)
    assert not talk.places_of(["stop"])
    assert Talk(file="a.wav", text="bitte stopp").places_of(["stopp"])
    (begin, end), *_ = talk.stretches_of(["no"], 2.0, 12.0)
    assert (begin, end) == pytest.approx((2 + 10 * 4 / 32 - 0.8, 2 + 10 * 4 / 32 + 0.8))
