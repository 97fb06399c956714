"""The layout of Speech Commands: a folder of recordings for every word."""

import functools
import itertools
import logging
import mimetypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kws.config import BACKGROUND_NOISE, RUNNING_SPEECH
from kws.data.clip import Clip
from kws.data.index import Index
from kws.data.kinds import is_audio_file
from kws.data.listing import Listing, NotRead
from kws.data.names import is_passed_over, is_recording, is_utf8, speaker_of, split_named, word_of
from kws.data.pack import Pack
from kws.data.splits import read_list
from kws.data.words import merged
from kws.text import plain, printable, wrong_with

log = logging.getLogger(__name__)

LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
"""The split lists that may lie beside the word folders, by split; their case does not matter."""

RAW = (".pcm", ".raw", ".sln", ".vox", ".gsm", ".g722", ".npy", ".npz", ".h5", ".hdf5")
"""Suffixes of sounds that are not read, and of which the machine need not know the type."""


def word_folders(folder: Path) -> Listing:
    """Lists a folder of `<word>/<recording>`, as Speech Commands is laid out.

    A folder whose name begins with _ is not a word; `_background_noise_` holds long recordings of noise and
    `_running_speech_` recordings of people who talk (see `kws.data.speech`). The lists of validation and test clips may
    lie beside the folders. A speaker's name stands in the file's before `_nohash_`.
    """
    noise: list[str] = []
    lists: dict[str, Path] = {}
    not_read = NotRead()
    unreadable: dict[str, str] = {}

    def clips() -> Iterator[Clip]:
        for file in pack.names() if (pack := Pack.of(folder)) else ():
            if file.count("/") != 1:
                not_read.add(printable(file), "recordings must lie in the folder of their word")
            elif not (wrong := _wrong_with_word(file.split("/")[0])):
                yield clip_of(file)
            else:
                not_read.add(printable(file), wrong)
        for entry in _scan(folder):
            split = _split_of_list(entry)
            if entry.name == RUNNING_SPEECH:
                continue  # of any layout, see `kws.data.sources`
            if _is_folder(entry):
                others: dict[str, str] = {}
                recordings = _list_word(entry, others)
                if entry.name == BACKGROUND_NOISE:
                    noise.extend(sorted(recordings))
                elif (first := next(recordings, None)) is None:
                    sounds = [name for name in sorted(others) if _may_be_sound(name)]
                    unreadable.update(zip([entry.name], sounds, strict=False))
                elif wrong := _wrong_with_word(entry.name):
                    others = {f"{printable(entry.name)}/": wrong}
                else:
                    yield from map(clip_of, itertools.chain([first], recordings))
                for name, reason in sorted(others.items()):
                    not_read.add(name, reason)
            elif split:
                if split not in lists or entry.name.lower() == LISTS[split]:
                    lists[split] = Path(entry.path)
            elif is_recording(entry.name):
                not_read.add(printable(entry.name), "recordings must lie in the folder of their word")

    return Listing(
        folder=folder,
        clips=merged(Index.of(clips())),
        noise=noise,
        lists=lists,
        not_read=not_read,
        unreadable=unreadable,
    )


def clip_of(file: str) -> Clip:
    """Returns the clip of a recording `<word>/<speaker>_nohash_<n>.wav`."""
    folder, _, name = file.rpartition("/")
    return Clip(file=file, word=_word_of(folder), speaker=speaker_of(name))


@functools.lru_cache(maxsize=1 << 16)
def _word_of(folder: str) -> str:
    return plain(word_of(folder))


@functools.lru_cache(maxsize=1 << 16)
def _wrong_with_word(folder: str) -> str:
    return wrong_with(_word_of(folder))


def list_tree(folder: Path) -> list[Path]:
    """Returns all recordings below a folder, sorted; logs which files are not read."""
    found: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += (recordings := [path for path in paths if is_recording(path.name) and path.is_file()])
        others += set(paths) - set(recordings)
    if found and others:
        listed = ", ".join(printable(path) for path in sorted(others)[:3])
        log.warning(
            "%s: %d files not read, as they are no recordings by their names: %s%s",
            printable(folder),
            len(others),
            listed,
            " …" if len(others) > 3 else "",
        )
    return sorted(found)


def _list_word(folder: "os.DirEntry[str]", others: dict[str, str]) -> Iterator[str]:
    """Yields the recordings in a word folder; adds the other files with the reasons why they are not read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{folder.name}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if not is_recording(entry.name) and not (_is_file(entry) and is_audio_file(entry.path)):
                kind = "a folder in the folder of a word" if _is_folder(entry) else "no recording by its name"
                others[printable(name)] = f"it is {kind}"
            elif not is_utf8(entry.name):
                others[printable(name)] = "its name is not UTF-8 (rename it)"
            elif not _is_file(entry):
                others[name] = "it is no regular file"
            else:
                yield name


def _split_of_list(entry: "os.DirEntry[str]") -> str:
    """Returns the split of which a file is the list; empty if it is none."""
    if not _is_file(entry):
        return ""
    name = entry.name.lower()
    if known := next((split for split, known in LISTS.items() if known == name), ""):
        return known
    split = split_named(re.sub(r"[-_]list$", "", name.removesuffix(".txt"))) if name.endswith(".txt") else ""
    _, first = next(read_list(Path(entry.path)), (0, "")) if split in LISTS else (0, "")
    return split if "/" in first and Path(entry.path).parent.joinpath(first).is_file() else ""


def _may_be_sound(name: str) -> bool:
    return name.lower().endswith(RAW) or (mimetypes.guess_type(name)[0] or "").startswith(("audio/", "video/"))


def _scan(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_passed_over(entry.name)), key=lambda entry: entry.name)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a symbolic link to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
