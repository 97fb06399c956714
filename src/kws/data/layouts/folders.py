"""Layouts in which the names of nested folders say the word, the speaker and the split."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from kws.config import SPEECH_COMMANDS_WORDS
from kws.data.layouts.rows import Row, UnclearLayout, listing_of, split_named
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import word_of
from kws.data.words import alike

LEVELS = ("split", "word", "speaker")
"""What a level of folders can say; a layout names its levels from the outermost inwards, as in speaker/word."""

_SPEAKER = re.compile(
    r"(speaker|spk|spkr|user|usr|subject|subj|participant|person|volunteer|voice|actor|client|child|adult|male|female|"
    r"[sfmpu])[-_ ]?\d+|[0-9a-f]{6,}|\d{2,}",
    re.IGNORECASE,
)
"""Names that speakers have rather than words: speaker1, s01, 0a7c2a8d, 017."""


_NAMED = re.compile(r"([^_]+)_([^_]+)_\d+\.\w+")

MOST_WORDS = 1000
"""Names of files with more different parts than this are not words and speakers."""


def is_pattern(layout: str) -> bool:
    """Tells whether a layout is named by the levels of its folders, such as split/word: one of each, and a word."""
    levels = layout.split("/")
    return "word" in levels and set(levels) <= set(LEVELS) and len(set(levels)) == len(levels)


def by_pattern(tree: Tree, pattern: str) -> Listing:
    """Lists recordings in folders whose levels mean what a pattern says; others are not read."""
    levels = pattern.split("/")

    def rows() -> Iterator[Row]:
        for file in tree.recordings:
            folders = file.split("/")[:-1]
            names = dict(zip(levels, folders, strict=False)) if len(folders) == len(levels) else {}
            if names and not any(folder.startswith("_") for folder in folders):
                split = split_named(names.get("split", ""))
                yield Row(file=file, word=word_of(names["word"]), speaker=names.get("speaker", ""), split=split)

    return listing_of(tree, pattern, rows(), [], not_named=f"it does not lie in folders {pattern}")


def nested_folders(tree: Tree) -> Listing | None:
    """Lists folders in folders, if their names tell what each level is.

    Raises:
        UnclearLayout: they do not.
    """
    if (by_names := _by_names(tree)) is not None:
        return by_names
    parents = Counter(file.rpartition("/")[0] for file in tree.recordings)
    depths = {tuple(folders): number for parent, number in parents.items() if (folders := _folders(parent))}
    if not depths:
        return None
    outermost = sorted({folders[0] for folders in depths})
    if len(outermost) < 2:
        return None  # a folder around everything
    has_splits = all(split_named(name) for name in outermost) and any(
        split_named(name) == "train" for name in outermost
    )
    inner = {folders[1:] for folders in depths} if has_splits else depths.keys()
    counts = Counter[int]()
    for levels, number in depths.items():
        counts[len(levels) - has_splits] += number
    depth = counts.most_common(1)[0][0]
    if has_splits and depth == 0:
        raise UnclearLayout(
            f"recordings must lie in folders of words, or be in a list, got the folders {_some(outermost)}, which are "
            "splits by their names, and hold recordings of which nothing tells the word: add metadata.csv with the "
            "columns file_name and label (if they are words, use --layout word)"
        )
    if depth == 1 and not has_splits and _named_like_speakers(outermost):
        raise UnclearLayout(
            f"the folders must be words, got {_some(outermost)}, which are named like speakers: name the word of each "
            "recording in a list (file, word, speaker), or use --layout word if they are words"
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


def _by_names(tree: Tree) -> Listing | None:
    """Lists recordings named <word>_<speaker>_<number>, as in AudioMNIST and the Free Spoken Digit Dataset.

    They lie in one folder, or in folders named for the speaker. Which part is the word follows from known words.
    """
    if not len(tree.recordings):
        return None
    parts: list[set[str]] = [set(), set()]
    for file in tree.recordings:
        folder, name = f"/{file}".rpartition("/")[0].rpartition("/")[2], file.rpartition("/")[2]
        found = _NAMED.fullmatch(name)
        if found is None or folder in (found[1], *SPEECH_COMMANDS_WORDS):
            return None  # the folder is the word
        parts[0].add(found[1])
        parts[1].add(found[2])
        if len(parts[0]) > MOST_WORDS < len(parts[1]):
            return None
    are_words = [all(alike(one) in SPEECH_COMMANDS_WORDS or re.fullmatch(r"\d", one) for one in some) for some in parts]
    if are_words[0] == are_words[1]:
        return None
    word, speaker = (1, 2) if are_words[0] else (2, 1)

    def rows() -> Iterator[Row]:
        for file in tree.recordings:
            found = _NAMED.fullmatch(file.rpartition("/")[2])
            assert found is not None
            yield Row(file=file, word=found[word], speaker=found[speaker])

    return listing_of(tree, "names", rows(), [])


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


def _folders(parent: str) -> list[str]:
    folders = parent.split("/") if parent else []
    return [] if any(name.startswith("_") for name in folders) else folders


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
