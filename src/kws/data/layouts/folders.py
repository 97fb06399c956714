"""Layouts in which the names of nested folders say the word, the speaker and the split."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from kws.config import SPEECH_COMMANDS_WORDS
from kws.data.layouts.rows import Row, UnclearLayout, listing_of, split_named
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import is_container, speaker_of, word_of
from kws.data.words import alike

LEVELS = ("split", "word", "speaker")
"""What a level of folders can say; a layout names its levels from the outermost inwards, as in speaker/word."""

ANY = "*"
"""A level that says nothing."""

_SPEAKER = re.compile(
    r"(speaker|spk|spkr|user|usr|subject|subj|participant|person|volunteer|voice|actor|client|child|adult|male|female|"
    r"[sfmpu])[-_ ]?\d+|[0-9a-f]{6,}|\d{2,}",
    re.IGNORECASE,
)
"""Names that speakers have rather than words: speaker1, s01, 0a7c2a8d, 017."""


_NAMED = re.compile(r"([^_]+)_([^_]+)_\d+\.\w+")
"""A word and a speaker, or a speaker and a word, and a number."""

_NUMBERED = re.compile(r"([^\d]*?)[-_. ]?(?:\d+|\(\d+\))\.\w+")
"""A word and a number: yes_01, yes (3)."""

MOST_WORDS = 1000
"""Names of files with more different parts than this are not words and speakers."""


def is_pattern(layout: str) -> bool:
    """Tells whether a layout is named by the levels of its folders, such as split/word or word/*: one is the word."""
    levels = layout.split("/")
    said = [level for level in levels if level != ANY]
    return "word" in said and set(said) <= set(LEVELS) and len(set(said)) == len(said)


def by_pattern(tree: Tree, pattern: str) -> Listing:
    """Lists recordings in folders whose levels mean what a pattern says; others are not read.

    A speaker in the name of a recording counts more than the folder.
    """
    levels = pattern.split("/")

    def rows() -> Iterator[Row]:
        for file in tree.recordings:
            *folders, name = file.split("/")
            names = dict(zip(levels, folders, strict=False)) if len(folders) == len(levels) else {}
            if names and not any(folder.startswith("_") for folder in folders):
                yield Row(
                    file=file,
                    word=word_of(names["word"]),
                    speaker=speaker_of(name) or names.get("speaker", ""),
                    split=split_named(names.get("split", "")),
                )

    return listing_of(tree, pattern, rows(), [], not_named=f"it does not lie in folders {pattern}")


def nested_folders(tree: Tree) -> Listing | None:
    """Lists folders in folders, if their names tell what each level is.

    A level at which all folders have the same name says nothing, such as `audio` in train/audio/<word>.

    Raises:
        UnclearLayout: they do not.
    """
    parents = Counter(file.rpartition("/")[0] for file in tree.recordings)
    depths = {tuple(folders): number for parent, number in parents.items() if (folders := _folders(parent))}
    outermost = sorted({folders[0] for folders in depths})
    if len(outermost) < 2:
        return None  # no folders, or one around everything
    splits = {split_named(name) for name in outermost}
    has_splits = "train" in splits and "" not in splits
    counts = Counter[int]()
    for path, number in depths.items():
        if not has_splits or split_named(path[0]) == "train":  # other splits may have no words
            counts[len(path)] += number
    depth = counts.most_common(1)[0][0]
    if depth == 2 and counts[1] and not has_splits:
        return None  # word folders, in which there are some more folders
    of_depth = sorted(path for path in depths if len(path) == depth)
    names = [sorted(set(level)) for level in zip(*of_depth, strict=True)]
    said = [level for level in range(has_splits, depth) if len(names[level]) > 1]
    levels = ["split" if has_splits and level == 0 and len(names[0]) > 1 else ANY for level in range(depth)]
    if has_splits and not said:
        if depth == 1 or is_container(names[-1][0]):
            raise UnclearLayout(
                f"recordings must lie in folders of words, or be in a list, got the folders {_some(outermost)}, which "
                "are splits by their names, and hold recordings of which nothing tells the word: add metadata.csv with "
                "the columns file_name and label (if they are words, use --layout word)"
            )
        said = [depth - 1]  # of one word
    if len(said) == 1:
        (level,) = said
        levels[level] = "word"
        if _named_like_speakers(names[level]) or (level < depth - 1 and _without_known_words(names[level])):
            raise UnclearLayout(
                f"the folders must be words, got {_some(names[level])}, which may be speakers by their names: name the "
                "word of each recording in a list (file, word, speaker), or use "
                f"--layout {'/'.join(levels)} if they are words"
            )
        return None if levels == ["word"] else by_pattern(tree, "/".join(levels))
    if len(said) == 2:
        outer, within = said
        patterns = {"word/speaker": _pattern(levels, outer, within), "speaker/word": _pattern(levels, within, outer)}
        named = _which_are_words(names[outer], names[within])
        if not named:
            raise UnclearLayout(
                f"one level of folders must be the words, got {_some(names[outer])} with {_some(names[within])} in "
                "them, of which nothing tells which are speakers: use --layout "
                f"{' or --layout '.join(patterns.values())}"
            )
        return by_pattern(tree, patterns[named])
    raise UnclearLayout(
        f"one level of folders must be the words, got {depth} levels, such as {'/'.join(of_depth[0])}: say "
        "what each is, such as --layout speaker/*/word, where * is a level that says nothing"
    )


def require_named_for_word(listing: Listing) -> None:
    """Refuses a single folder whose name says what it holds rather than a word.

    Raises:
        UnclearLayout: it does.
    """
    if (words := listing.words) and len(words) == 1 and is_container(words[0]):
        others = sorted(path.name for path in listing.folder.iterdir() if path.is_file())[:3]
        raise UnclearLayout(
            f"recordings must lie in folders of words, or be in a list, got only a folder {words[0]}"
            f"{' beside ' + ', '.join(others) if others else ''}: add a list (list.csv with the columns file and "
            "word), or use --layout word if it is a word"
        )


def named_files(tree: Tree) -> Listing | None:
    """Lists recordings that are named for their word: <word>_<speaker>_<number>, or <word> and a number.

    The former, as in AudioMNIST and the Free Spoken Digit Dataset, lie in one folder, or in folders named for the
    speaker; the latter are such as `yes (3).wav`, and folders of them count as speakers. Folders that are named for
    splits are splits. Which part is the word follows from known words.
    """
    for names in (_NAMED, _NUMBERED):
        parts = _parts_of_names(tree, names)
        known = [group for group, some in parts.items() if all(map(_is_known, some))]
        if len(known) != 1 or (names is _NUMBERED and len(parts[1]) == 1):
            continue
        (word,) = known
        others = parts.keys() - {word}
        folders = {tuple(file.split("/")[:-1]) for file in tree.recordings}
        has_splits = len({path[:1] for path in folders}) > 1 and all(path and split_named(path[0]) for path in folders)
        inner = {path[-1] for path in folders if len(path) > has_splits}
        are_speakers = len(inner) > 1 and not any(is_container(name) or split_named(name) for name in inner)
        pairs = ((file, names.fullmatch(file.rpartition("/")[2])) for file in tree.recordings)
        rows = (
            Row(
                file=file,
                word=match[word],
                speaker=next((match[group] for group in others), file.split("/")[-2] if are_speakers else ""),
                split=split_named(file.split("/")[0]) if has_splits else "",
            )
            for file, match in pairs
            if match is not None
        )
        return listing_of(tree, "names", rows, [])
    return None


def _parts_of_names(tree: Tree, names: re.Pattern[str]) -> dict[int, set[str]]:
    """Returns the different texts of every group of a pattern that all recordings match; none if one does not."""
    parts: dict[int, set[str]] = {group: set() for group in range(1, names.groups + 1) if len(tree.recordings)}
    for file in tree.recordings:
        folder, name = f"/{file}".rpartition("/")[0].rpartition("/")[2], file.rpartition("/")[2]
        found = names.fullmatch(name)
        if found is None or folder in (found[1], *SPEECH_COMMANDS_WORDS):
            return {}  # the folder is the word
        for group, some in parts.items():
            some.add(found[group])
        if all(len(some) > MOST_WORDS for some in parts.values()):
            return {}
    return parts


def _which_are_words(outer: Sequence[str], within: Sequence[str]) -> str:
    """Returns word/speaker or speaker/word for two levels of folders, or an empty text if it is not clear."""
    for are_speakers in (_named_like_speakers, _without_known_words):
        if are_speakers(outer) != are_speakers(within):
            return "speaker/word" if are_speakers(outer) else "word/speaker"
    return ""


def _named_like_speakers(names: Sequence[str]) -> bool:
    return all(map(_SPEAKER.fullmatch, names))


def _pattern(levels: Sequence[str], word: int, speaker: int) -> str:
    """Returns a pattern of levels of which two are known."""
    return "/".join({word: "word", speaker: "speaker"}.get(level, said) for level, said in enumerate(levels))


def _is_known(word: str) -> bool:
    return alike(word) in SPEECH_COMMANDS_WORDS or re.fullmatch(r"\d", word) is not None


def _without_known_words(names: Sequence[str]) -> bool:
    return not any(alike(name) in SPEECH_COMMANDS_WORDS for name in names)


def _folders(parent: str) -> list[str]:
    folders = parent.split("/") if parent else []
    return [] if any(name.startswith("_") for name in folders) else folders


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
