"""Which files in a folder count as recordings, and whether the folder was edited."""

import logging
import os
import shutil
from pathlib import Path

import pytest

from kws import files
from kws.data.clip import Clip
from kws.data.digest import content_digest, known_digest, listing_digest, read_manifest
from kws.data.folder import clip_of, list_tree
from kws.data.listing import Listing
from kws.data.names import folder_of, word_of
from kws.data.sources import list_recordings
from kws.text import printable


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")
    return folder


def files_of(listing: Listing) -> dict[str, list[str]]:
    return {word: listing.clips.of_words([word]).files.tolist() for word in listing.words}


@pytest.mark.parametrize(
    ("file", "word", "speaker", "group"),
    [
        ("yes/0a7c2a8d_nohash_12.wav", "yes", "0a7c2a8d", "0a7c2a8d"),
        ("yes/Anna_nohash_1.wav", "yes", "Anna", "Anna"),
        ("YES/0A7C2A8D_NOHASH_12.WAV", "YES", "0a7c2a8d", "0a7c2a8d"),
        ("yes/my_own_voice.wav", "yes", "", "my_own_voice.wav"),
        ("yes/my_own_voice.flac", "yes", "", "my_own_voice.wav"),  # a copy in another format
    ],
)
def test_word_and_speaker_of_a_clip_stand_in_its_path(file: str, word: str, speaker: str, group: str) -> None:
    clip = clip_of(file)
    assert (clip.id, clip.file, clip.word, clip.speaker, clip.group) == (file, file, word, speaker, group)


def test_every_spelling_of_a_suffix_and_every_format_is_seen(tmp_path: Path) -> None:
    names = ["a.wav", "b.WAV", "c.Wave", "d.flac", "e.FLAC", "f.ogg", "g.opus", "h.mp3", "i.Mp3"]
    make(tmp_path, *(f"yes/{name}" for name in names), "_background_noise_/hiss.FLAC", "no/a.Wav")
    listing = list_recordings(tmp_path)
    assert files_of(listing) == {"no": ["no/a.Wav"], "yes": [f"yes/{name}" for name in names]}
    assert listing.noise == ["_background_noise_/hiss.FLAC"]
    assert listing.not_read == {}


def test_what_is_there_and_not_read_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(
        tmp_path,
        "yes/a.wav",
        "yes/b.md",
        "yes/notes.txt",
        "yes/more/c.wav",
        "d.wav",
        "_own_/e.wav",
        "README.md",
        "yes/._a.wav",
        ".DS_Store",
        "yes/\udce4.wav",
        "j\udce4/a.wav",
    )
    os.mkfifo(tmp_path / "yes" / "pipe.wav")
    (tmp_path / "yes" / "gone.wav").symlink_to("nowhere.wav")
    (tmp_path / "yes" / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "yes" / "folder.wav").mkdir()
    listing = list_recordings(tmp_path)
    assert list(listing.clips) == [Clip(file="yes/a.wav", word="yes")]
    assert listing.not_read == {
        "_own_/": "the name of a word must not begin with _",
        "d.wav": "recordings must lie in the folder of their word",
        "j\\udce4/": "the name of a word must be of printable UTF-8",
        "yes/b.md": "it is no recording by its name",
        "yes/folder.wav": "it is no regular file",
        "yes/gone.wav": "it is no regular file",
        "yes/loop.wav": "it is no regular file",
        "yes/more": "it is a folder in the folder of a word",
        "yes/notes.txt": "it is no recording by its name",
        "yes/pipe.wav": "it is no regular file",
        "yes/\\udce4.wav": "its name is not UTF-8 (rename it)",
    }
    assert listing.figures()["num_files"] == 11
    listing.report()
    assert "2 not read, as it is no recording by its name: yes/b.md, yes/notes.txt" in caplog.text
    assert "4 not read, as it is no regular file: yes/folder.wav, yes/gone.wav, yes/loop.wav and 1 more" in caplog.text


def test_a_thousand_files_without_use_are_counted_and_the_first_named(tmp_path: Path) -> None:
    make(tmp_path, *(f"yes/{number}.md" for number in range(1000)))
    figures = list_recordings(tmp_path).figures()
    assert figures["num_files"] == 1000
    assert len(figures["first"]) == 20


def test_recordings_anywhere_below_a_folder_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.WAV", "deep/er/b.opus", "deep/notes.txt", ".hidden/c.wav", "deep/._b.wav", "deep/\udce4.wav")
    found = list_tree(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.WAV", "deep/er/b.opus", "deep/\udce4.wav"]
    assert "1 files not read" in caplog.text
    assert printable(found[-1]).endswith("deep/\\udce4.wav")


def test_a_name_is_shown_on_one_line_and_commands_no_terminal(tmp_path: Path) -> None:
    make(tmp_path, "yes/a.wav", "yes/\x1b[31mred\n.txt", "yes/b\n.wav")
    listing = list_recordings(tmp_path)
    assert files_of(listing)["yes"] == ["yes/a.wav", "yes/b\n.wav"]
    assert list(listing.not_read) == ["yes/\\x1b[31mred\\n.txt"]
    assert printable("é\t\u200d") == "é\\t\u200d"


def test_lists_are_found_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, "yes/a.wav", "Testing_List.TXT")
    assert list_recordings(tmp_path).lists == {"test": tmp_path / "Testing_List.TXT"}


def downloaded(folder: Path) -> Path:
    make(folder, "yes/a.wav", "no/a.wav", "testing_list.txt")
    listing = list_recordings(folder)
    files.write_json(
        folder / files.MANIFEST,
        {
            "name": "x",
            "source": "x.tar",
            "sha256": "ab" * 32,
            "words": {"no": 1, "yes": 1},
            "content": content_digest(listing),
            "listing": listing_digest(listing),
        },
    )
    return folder


def test_untouched_download_is_known_by_its_manifest(tmp_path: Path) -> None:
    listing = list_recordings(downloaded(tmp_path))
    assert known_digest(listing) == content_digest(listing)


@pytest.mark.parametrize("edit", ["content", "added", "removed", "list", "renamed"])
def test_edited_download_is_not_taken_for_what_it_was(
    tmp_path: Path, edit: str, caplog: pytest.LogCaptureFixture
) -> None:
    downloaded(tmp_path)
    before = os.stat(tmp_path / "yes" / "a.wav")
    if edit == "content":  # of the same size
        (tmp_path / "yes" / "a.wav").write_bytes(b"voice")
        os.utime(tmp_path / "yes" / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif edit == "added":
        make(tmp_path, "yes/b.FLAC")
    elif edit == "removed":
        (tmp_path / "no" / "a.wav").unlink()
    elif edit == "list":
        (tmp_path / "testing_list.txt").write_text("yes/a.wav")
    else:
        (tmp_path / "yes" / "a.wav").rename(tmp_path / "yes" / "b.wav")
    assert known_digest(list_recordings(tmp_path)) is None
    assert "was edited (or copied) after its download" in caplog.text


def test_copy_of_a_download_has_the_same_content_though_it_must_be_read(tmp_path: Path) -> None:
    first = downloaded(tmp_path / "first")
    copy = Path(shutil.copytree(first, tmp_path / "copy", copy_function=shutil.copyfile))
    assert known_digest(list_recordings(copy)) is None
    assert content_digest(list_recordings(copy)) == files.read_json(first / files.MANIFEST)["content"]


@pytest.mark.parametrize(
    "content",
    [b'{"audio_filepath": "a.wav"}\n{"audio_filepath": "b.wav"}\n', b"[1, 2]", b"\xff\xfe\x00", b"", b'{"sha256": 1}'],
    ids=["NeMo's", "a list", "binary", "empty", "another's"],
)
def test_foreign_manifest_is_not_taken_for_ours(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make(tmp_path, "yes/a.wav")
    (tmp_path / files.MANIFEST).write_bytes(content)
    assert read_manifest(tmp_path) is None
    assert known_digest(list_recordings(tmp_path)) is None
    assert "is not of kws download" in caplog.text


@pytest.mark.parametrize(
    ("word", "folder"),
    [
        ("yes", "yes"),
        ("Dr. No", "Dr. No"),
        ("50%", "50%"),
        ("ja/nein", "ja%2Fnein"),
        ("..", "%2E%2E"),
        (".net", "%2Enet"),
        ("so...", "so..%2E"),
        ("what?", "what%3F"),
        ("con", "%63on"),
        ("Aux.x", "%41ux.x"),
        ("control", "control"),
        ("%41", "%2541"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("はい", "はい"),
    ],
)
def test_every_word_has_a_folder_on_every_system_and_is_read_from_it(tmp_path: Path, word: str, folder: str) -> None:
    assert folder_of(word) == folder
    make(tmp_path, f"{folder}/a.wav")
    assert list_recordings(tmp_path).words == [word]


@pytest.mark.parametrize("folder", ["%41", "%FF", "%63ontrol", "100%", "con", "%2f"])
def test_folder_that_no_word_was_written_to_has_the_name_that_it_has(folder: str) -> None:
    assert word_of(folder) == folder


def test_words_that_only_look_alike_to_a_computer_stay_two(tmp_path: Path) -> None:
    make(tmp_path, "Maße/a.wav", "Masse/b.wav", "JA/c.wav", "ja/d.wav", "ja/e.wav")
    assert list_recordings(tmp_path).clips.counts() == {"Masse": 1, "Maße": 1, "ja": 3}
