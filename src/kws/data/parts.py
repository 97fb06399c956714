"""Several sources as one data set: a folder that names the data sets of which it consists, and copies nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kws import files
from kws.config import SPLITS
from kws.data import splits
from kws.data.clip import Clip
from kws.data.listing import Listing
from kws.data.speech import Talk

PARTS = "parts.json"
"""The file in a folder of parts: their folders beside it, and the digests of their manifests."""


def write_parts(folder: Path, parts: Sequence[Path]) -> None:
    """Makes a folder one of parts.

    Args:
        folder: the folder, which is to lie beside the parts.
        parts: complete data sets.
    """
    content = [{"folder": part.name, "manifest": files.sha256_of(part / files.MANIFEST)} for part in parts]
    files.write_json(folder / PARTS, {"parts": content})


def is_of_parts(folder: Path) -> bool:
    """Tells whether a folder is one of parts."""
    return (folder / PARTS).is_file()


def list_parts(folder: Path, list_part: Callable[[Path], Listing]) -> Listing:
    """Lists the clips of all parts, each divided as it would be alone.

    A speaker whom several parts name is in one split: as the first part states it that states splits, or else as by
    its name.

    Args:
        folder: a folder of parts.
        list_part: lists the clips of one.

    Raises:
        ValueError: a part is missing or has changed.
    """
    found: list[list[Clip]] = []
    noise: list[str] = []
    speech: list[Talk] = []
    not_read: dict[str, str] = {}
    stated: dict[str, tuple[int, str]] = {}  # of a speaker, the part that states a split, and the split
    for number, part in enumerate(files.read_object(folder / PARTS, parts=list)["parts"]):
        path = folder.parent / part["folder"]
        if not files.is_complete(path) or files.sha256_of(path / files.MANIFEST) != part["manifest"]:
            raise ValueError(
                f"{path} must be as it was downloaded, as {folder} consists of it: download its source again"
            )
        listing, prefix = list_part(path), f"../{part['folder']}/"
        clips = listing.clips_of(listing.words)
        lists = splits.read_lists(listing.lists, clips)
        divided = splits.by_speaker(clips, lists)
        found.append([replace(clip, file=prefix + clip.file) for split in SPLITS for clip in divided[split]])
        if lists.figures or any(clip.split for clip in clips):
            for clip in found[-1]:
                if clip.speaker and stated.get(clip.speaker, (number,))[0] == number:
                    stated[clip.speaker] = (number, clip.split)
        noise += [prefix + file for file in listing.noise]
        speech += [replace(talk, file=prefix + talk.file) for talk in listing.speech]
        not_read |= {prefix + name: reason for name, reason in listing.not_read.items()}
    by_word: dict[str, list[Clip]] = {}
    for number, clips in enumerate(found):
        for clip in clips:
            owner, split = stated.get(clip.speaker, (number, clip.split))
            by_word.setdefault(clip.word, []).append(clip if owner == number else replace(clip, split=split))
    return Listing(
        folder=folder,
        layout="parts",
        clips={word: sorted(by_word[word], key=lambda clip: clip.id) for word in sorted(by_word)},
        noise=noise,
        speech=speech,
        lists={},
        tables=(PARTS,),
        not_read=not_read,
    )
