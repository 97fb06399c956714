"""Several sources as one data set: a folder that names the data sets of which it consists, and copies nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kws import files
from kws.config import SPLITS
from kws.data import splits
from kws.data.index import Index
from kws.data.listing import Listing, NotRead
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
    found: list[Index] = []
    noise: list[str] = []
    speech: list[Talk] = []
    not_read = NotRead()
    stated: dict[str, tuple[int, str]] = {}  # of a speaker, the part that states a split, and the split
    for number, part in enumerate(files.read_object(folder / PARTS, parts=list)["parts"]):
        path = folder.parent / part["folder"]
        if not files.is_complete(path) or files.sha256_of(path / files.MANIFEST) != part["manifest"]:
            raise ValueError(
                f"{path} must be as it was downloaded, as {folder} consists of it: download its source again"
            )
        listing, prefix = list_part(path), f"../{part['folder']}/"
        lists = splits.read_lists(listing.lists, listing.clips)
        divided = splits.by_speaker(listing.clips, lists)
        found.append(Index.joined([divided[split] for split in SPLITS]).below(prefix))
        if lists.figures or listing.clips.counts("split").keys() - {""}:
            for split in SPLITS:
                for speaker in divided[split].counts("speaker").keys() - {""}:
                    if stated.get(speaker, (number,))[0] == number:
                        stated[speaker] = (number, split)
        noise += [prefix + file for file in listing.noise]
        speech += [replace(talk, file=prefix + talk.file) for talk in listing.speech]
        not_read.add_all(listing.not_read, prefix)
    for number, clips in enumerate(found):
        speakers = list(clips.counts("speaker"))
        owners = [stated.get(speaker, (number, "")) for speaker in speakers]
        new = np.array([-1 if owner == number else SPLITS.index(split) for owner, split in owners] or [-1])
        new = new[clips.numbered("speaker", speakers)]
        found[number] = clips.with_splits(np.where(new < 0, clips.numbered("split", SPLITS), new))
    return Listing(
        folder=folder,
        layout="parts",
        clips=Index.joined(found).sorted(),
        noise=noise,
        speech=speech,
        lists={},
        tables=(PARTS,),
        not_read=not_read,
    )
