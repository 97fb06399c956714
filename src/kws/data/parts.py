"""Several sources as one data set: a folder that names the data sets of which it consists, and copies nothing."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from kws import files
from kws.config import SPLITS
from kws.data import splits
from kws.data.clip import Clip
from kws.data.listing import Listing

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

    A speaker whom two parts name is in one split: that of the first part which has clips of theirs.

    Args:
        folder: a folder of parts.
        list_part: lists the clips of one.

    Raises:
        ValueError: a part is missing or has changed.
    """
    clips: dict[str, list[Clip]] = {}
    noise: list[str] = []
    not_read: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for part in files.read_object(folder / PARTS, parts=list)["parts"]:
        path = folder.parent / part["folder"]
        if not files.is_complete(path) or files.sha256_of(path / files.MANIFEST) != part["manifest"]:
            raise ValueError(
                f"{path} must be as it was downloaded, as {folder} consists of it: download its source again"
            )
        listing, prefix = list_part(path), f"../{part['folder']}/"
        some = listing.clips_of(listing.words)
        divided = splits.by_speaker(some, splits.read_lists(listing.lists, some))
        speakers = {clip.speaker: split for split in SPLITS for clip in divided[split] if clip.speaker}
        split_of = speakers | split_of
        for split in SPLITS:
            for clip in divided[split]:
                found = split_of.get(clip.speaker, split)
                clips.setdefault(clip.word, []).append(dataclasses.replace(clip, file=prefix + clip.file, split=found))
        noise += [prefix + file for file in listing.noise]
        not_read |= {prefix + name: reason for name, reason in listing.not_read.items()}
    return Listing(
        folder=folder,
        clips={word: sorted(clips[word], key=lambda clip: clip.id) for word in sorted(clips)},
        noise=noise,
        lists={"parts": folder / PARTS},
        not_read=not_read,
    )
