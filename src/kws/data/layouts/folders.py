"""Layouts in which the names of nested folders say the word, the speaker and the split."""

import re
from collections.abc import Sequence
from dataclasses import replace

from kws.config import SPEECH_COMMANDS_WORDS
from kws.data.layouts.rows import Row, UnclearLayout, listing_of, split_named
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import word_of
from kws.data.words import alike

LEVELS = ("split", "word", "speaker")
"""What a level of folders can say; a layout names its levels from the outermost inwards, as in speaker/word."""

_SPEAKER = re.compile(
    r"(speaker|spk|spkr|user|usr|subject|subj|participant|person|volunteer|voice|client|child|adult|male|female|"
    r"[sfmpu])[-_ ]?\d+|[0-9a-f]{6,}|\d{2,}",
    re.IGNORECASE,
)
"""Names that speakers have rather than words: speaker1, s01, 0a7c2a8d, 017."""


def is_pattern(layout: str) -> bool:
    """Tells whether a layout is named by the levels of its folders, such as split/word: one of each, and a word."""
    levels = layout.split("/")
    return "word" in levels and set(levels) <= set(LEVELS) and len(set(levels)) == len(levels)


def by_pattern(tree: Tree, pattern: str) -> Listing:
    """Lists recordings in folders whose levels mean what a pattern says; others are not read."""
    levels = pattern.split("/")
    rows = []
    for file in tree.recordings:
        folders = file.split("/")[:-1]
        names = dict(zip(levels, folders, strict=False)) if len(folders) == len(levels) else {}
        if names and not any(folder.startswith("_") for folder in folders):
            split = split_named(names.get("split", ""))
            rows.append(Row(file=file, word=word_of(names["word"]), speaker=names.get("speaker", ""), split=split))
    listing = listing_of(tree, pattern, rows, [])
    reason = f"it does not lie in folders {pattern}"
    return replace(listing, not_read=dict.fromkeys(listing.not_read, reason))


def nested_folders(tree: Tree) -> Listing | None:
    """Lists folders in folders, if their names tell what each level is.

    Raises:
        UnclearLayout: they do not.
    """
    depths = [folders for file in tree.recordings if (folders := _folders(file))]
    if not depths:
        return None
    outermost = sorted({folders[0] for folders in depths})
    if len(outermost) < 2:
        return None  # a folder around everything
    has_splits = all(split_named(name) for name in outermost) and any(
        split_named(name) == "train" for name in outermost
    )
    inner = [folders[1:] for folders in depths] if has_splits else depths
    depth = max(set(map(len, inner)), key=[len(folders) for folders in inner].count)
    if has_splits and depth == 0:
        raise UnclearLayout(
            f"recordings must lie in folders of words, or be in a list, got the folders {_some(outermost)}, which are "
            "splits by their names, and hold recordings of which nothing tells the word: add metadata.csv with the "
            "columns file_name and label (if they are words, use --layout word)"
        )
    if depth == 1:
        return by_pattern(tree, "split/word") if has_splits else None
    if depth != 2:
        return None
    if any(len(folders) == 1 for folders in inner) and not has_splits:
        return None  # word folders, in which there are some more folders
    prefix = "split/" if has_splits else ""
    outer, within = (sorted({folders[level] for folders in inner if len(folders) == 2}) for level in (0, 1))
    named = _which_are_words(outer, within)
    if named:
        return by_pattern(tree, prefix + named)
    raise UnclearLayout(
        f"one level of folders must be the words, got {_some(outer)} with {_some(within)} in them, of which nothing "
        f"tells which are speakers: use --layout {prefix}word/speaker or --layout {prefix}speaker/word"
    )


def _which_are_words(outer: Sequence[str], within: Sequence[str]) -> str:
    """Returns word/speaker or speaker/word for two levels of folders, or an empty text if it is not clear."""
    for are_speakers in (_named_like_speakers, _without_known_words):
        if are_speakers(outer) != are_speakers(within):
            return "speaker/word" if are_speakers(outer) else "word/speaker"
    return ""


def _named_like_speakers(names: Sequence[str]) -> bool:
    return all(map(_SPEAKER.fullmatch, names))


def _without_known_words(names: Sequence[str]) -> bool:
    return not any(alike(name) in SPEECH_COMMANDS_WORDS for name in names)


def _folders(file: str) -> list[str]:
    folders = file.split("/")[:-1]
    return [] if any(name.startswith("_") for name in folders) else folders


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
