"""Where clips come from. Another layout of recordings is another function in LAYOUTS."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from kws.config import RUNNING_SPEECH
from kws.data import shards
from kws.data.digest import read_manifest
from kws.data.folder import word_folders
from kws.data.layouts import folders, tables, toolkits
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import SUFFIXES, is_passed_over
from kws.data.parts import is_of_parts, list_parts
from kws.data.speech import list_speech, texts_of

Layout = Callable[[Tree], Listing | None]
"""Lists the clips of a folder, or returns None if the folder is laid out otherwise."""

AUTO = "auto"

WORD = "word"
"""The name of the layout of Speech Commands: a folder for every word."""

PAUSES = "pauses"
"""Folders of words with recordings in which the word is repeated; preprocessing cuts them at their pauses."""

LAYOUTS: dict[str, Layout] = {
    "kaldi": toolkits.kaldi,
    "edge-impulse": toolkits.edge_impulse,
    "teachable-machine": toolkits.teachable_machine,
    "label-tracks": toolkits.label_tracks,
    "sidecars": toolkits.sidecars,
    "list": tables.lists,
    "names": folders.named_files,
    "folders": folders.nested_folders,
}
"""In the order in which they are tried before the folder is taken for one of words."""


def list_recordings(folder: Path, layout: str = AUTO) -> Listing:
    """Lists the clips of a recordings folder.

    Args:
        folder: the folder.
        layout: a name of LAYOUTS; WORD, PAUSES, or other levels of folders, such as speaker/word; or AUTO, by which a
            download has the layout by which it was read then, and any other folder the first one that fits.

    Raises:
        ValueError: there is no such folder or layout, the folder is not laid out like this, or its lists contradict
            themselves.
        UnclearLayout: the folder can be read in more than one way.
    """
    if not folder.is_dir():
        raise ValueError(f"recordings must be a folder of <word>/*.wav, got {str(folder)!r}")
    if is_of_parts(folder):
        return list_parts(folder, list_recordings)
    listing = _list_clips(folder, layout)
    speech, tables = list(listing.speech), list(listing.tables)
    for path in (folder / RUNNING_SPEECH, *sorted(folder.glob(f"*/{RUNNING_SPEECH}"))):
        if path.is_dir():
            speech += list_speech(folder, path)
            tables += texts_of(folder, path)
    return dataclasses.replace(listing, speech=speech, tables=tables)


def unwrapped(folder: Path, layout: str = AUTO) -> Path:
    """Returns the innermost of the folders, one in another, that wrap around the recordings, or else the folder itself.

    Raises:
        ValueError: as `list_recordings` does.
    """
    inner = folder
    while inner.is_dir():
        there = [path for path in inner.iterdir() if path.is_dir() and not is_passed_over(path.name)]
        there = [path for path in there if path.name.startswith("_") or _holds_data(path)] or there
        there.sort(key=Path.is_symlink, reverse=True)  # a folder counts, not a link to it
        folders = [*{path.resolve(): path for path in there}.values()]
        if len(folders) != 1 or folders[0].name.startswith("_") or list_recordings(inner, layout).words:
            break
        (inner,) = folders
    return inner if inner != folder and list_recordings(inner, layout).words else folder


def _holds_data(folder: Path) -> bool:
    suffixes = (*SUFFIXES, *shards.SUFFIXES)
    return any(name.lower().endswith(suffixes) for _, _, names in os.walk(folder) for name in names)


def _list_clips(folder: Path, layout: str) -> Listing:
    if layout == AUTO:
        layout = str((read_manifest(folder) or {}).get("layout", AUTO))
    if layout in (WORD, PAUSES):
        return dataclasses.replace(folders.numbered_or_prefixed(word_folders(folder)), layout=layout)
    tree = Tree.of(folder)
    if layout == AUTO:
        found = next((listing for one in LAYOUTS.values() if (listing := one(tree)) is not None), None)
        if found is not None and found.layout == "list":
            tables.require_most(tree, found)
        if found is not None and found.layout == "sidecars" and toolkits.are_only_notes(found):
            found = None
        elif found is None:
            found = word_folders(folder)
            if len(found.words) < 2:
                tables.require_no_other(tree, found.words)
                folders.require_named_for_word(found)
            folders.require_all(tree, found)
        found = found or word_folders(folder)
        return folders.numbered_or_prefixed(found) if not found.tables else found
    if folders.is_pattern(layout):
        return folders.numbered_or_prefixed(folders.by_pattern(tree, layout))
    if layout not in LAYOUTS:
        names = ", ".join([AUTO, WORD, PAUSES, *LAYOUTS])
        raise ValueError(f"layout must be {names}, or levels of folders such as speaker/word, got {layout!r}")
    listing = LAYOUTS[layout](tree)
    if listing is None:
        raise ValueError(f"recordings must be laid out as {layout}, got {str(folder)!r}, which is not")
    return listing
