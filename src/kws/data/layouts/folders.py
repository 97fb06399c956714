"""Layouts in which the names of nested folders say the word, the speaker and the split."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from kws.config import SPEECH_COMMANDS_WORDS
from kws.data.layouts.columns import columns_of
from kws.data.layouts.rows import Row, UnclearLayout, listing_of
from kws.data.layouts.tree import Tree
from kws.data.listing import Listing
from kws.data.names import is_container, speaker_of, split_in, split_named, word_of
from kws.data.words import alike, is_known, merged

log = logging.getLogger(__name__)

LEVELS = ("split", "word", "speaker")
"""What a level of folders can say; a layout names its levels from the outermost inwards, as in speaker/word."""

ANY = "*"
"""A level that says nothing."""

IN_NAME = ".wav"
"""Follows the last level of a layout if the name of the file says it, as in speaker/word.wav, whatever its format."""

_SAYS_NOTHING = re.compile(
    r"(fold|part|batch|chunk|shard|session|take|round|day|week|set|snr)[-_ ]?(-?\d+(db)?|[a-d])|(fe)?males?|"
    r"(wo)?m[ae]n|boys?|girls?|adults?|child(ren)?|\d+[-_+]\d*|(19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d|"
    r"\d\d?(000|050|100|([.]\d+)?k(hz)?)|wav|flac|mp3|ogg|clean|noisy|quiet|loud|raw|processed|"
    r"original|augmented",
    re.IGNORECASE,
)
"""Names of folders that divide recordings, but say neither a word nor a speaker nor a split."""

_SPEAKER = re.compile(
    r"(speaker|spk|spkr|user|usr|subject|subj|participant|person|volunteer|voice|actor|client|child|adult|male|female|"
    r"[sfmpu])[-_ ]?\d+|[0-9a-f]{6,}|\d{2,}",
    re.IGNORECASE,
)
"""Names that speakers have rather than words: speaker1, s01, 0a7c2a8d, 017."""


_NAMED = re.compile(r"([^-_]+)[-_]((?!\d+\.)[^-_]+)(?:[-_]\d+)?\.\w+")
"""A word and a speaker, or a speaker and a word, and perhaps a number."""

_NUMBERED = re.compile(r"([^\d]*?)[-_. ]*(?:\d+|\(\d+\))?\.\w+")
"""A word, and a number unless it is the first: yes, yes_01, yes (3)."""

_NUMBER_BEFORE = re.compile(r"\d+[-_. ]+(\D.*)")

_KIND_BEFORE = re.compile(r"(?:class|label|word|keyword|command|category)[-_=](.+)", re.IGNORECASE)

MOST_WORDS = 1000
"""Names of files with more different parts than this are not words and speakers."""


def is_pattern(layout: str) -> bool:
    """Tells whether a layout is named by its levels, such as split/word and speaker/word.wav: one is the word."""
    levels = layout.removesuffix(IN_NAME).split("/")
    said = [level for level in levels if level != ANY]
    return "word" in said and set(said) <= set(LEVELS) and len(set(said)) == len(said)


def by_pattern(tree: Tree, pattern: str, outermost: Collection[str] = ()) -> Listing:
    """Lists recordings in folders whose levels mean what a pattern says; others are not read.

    A speaker in the name of a recording counts more than the folder.

    Args:
        tree: the folder.
        pattern: the levels, from the outermost inwards.
        outermost: if given, the names of the outermost folders that are read.
    """
    levels = pattern.removesuffix(IN_NAME).split("/")

    def rows() -> Iterator[Row]:
        for file in tree.recordings:
            *folders, name = file.split("/")
            said = [*folders, _base(name)] if pattern.endswith(IN_NAME) else folders
            names = dict(zip(levels, said, strict=False)) if len(said) == len(levels) else {}
            is_read = not outermost or (len(folders) > 0 and folders[0] in outermost)
            if names and is_read and not any(folder.startswith("_") for folder in folders):
                yield Row(
                    file=file,
                    word=word_of(names["word"]),
                    speaker=speaker_of(name) or names.get("speaker", "").rpartition("=")[2],
                    split=split_in(names.get("split", "")),
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
    splits = {name: split for name in outermost if (split := split_in(name))}
    in_splits = sum(number for path, number in depths.items() if path[0] in splits and len(path) > 1)
    if len(splits) < len(outermost) and len(set(splits.values())) > 1 and in_splits > sum(depths.values()) / 2:
        depths = {path: number for path, number in depths.items() if path[0] in splits}
        outermost = list(splits)
    has_splits = "train" in splits.values() and len(splits) == len(outermost)
    counts = Counter[int]()
    for path, number in depths.items():
        if not has_splits or splits[path[0]] == "train":  # other splits may have no words
            counts[len(path)] += number
    depth = counts.most_common(1)[0][0]
    if depth == 2 and counts[1] and not has_splits:
        return None  # word folders, in which there are some more folders
    of_depth = sorted(path for path in depths if len(path) == depth)
    names = [sorted(set(level)) for level in zip(*of_depth, strict=True)]
    said = [level for level in range(has_splits, depth) if len(names[level]) > 1]
    said = [level for level in said if not all(map(_SAYS_NOTHING.fullmatch, names[level]))] or said
    levels = ["split" if has_splits and level == 0 and len(names[0]) > 1 else ANY for level in range(depth)]
    for level in said if "split" not in levels else ():
        if all(map(split_named, names[level])) and "train" in map(split_named, names[level]):
            levels[level] = "split"
            said = [other for other in said if other != level] or said
            break
    for level in said:  # as Hive's partitions: word=yes
        begins = {name.partition("=")[0] for name in names[level] if "=" in name}
        stated = columns_of(begins).keys() & set(LEVELS) if all("=" in name for name in names[level]) else set()
        levels[level] = stated.pop() if len(begins) == len(stated) == 1 else levels[level]
    if "word" in levels and levels != ["word"]:
        return by_pattern(tree, "/".join(levels), outermost if has_splits else ())
    if has_splits and not said:
        if depth == 1 or is_container(names[-1][0]):
            raise UnclearLayout(
                f"recordings must lie in folders of words, or be in a list, got the folders {_some(outermost)}, which "
                "are splits by their names, and hold recordings of which nothing tells the word: add metadata.csv with "
                "the columns file_name and label, or move them to folders such as train/yes (if they are words, use "
                "--layout word)"
            )
        said = [depth - 1]  # of one word
    if len(said) == 1:
        (level,) = said
        levels[level] = "word"
        if depth == 1 and (listing := _files_named_for_words(tree)) is not None:
            return listing
        if named_like_speakers(names[level]) or (level < depth - 1 and _without_known_words(names[level])):
            raise UnclearLayout(
                f"the folders must be words, got {_some(names[level])}, which may be speakers by their names: name the "
                "word of each recording in a list (file, word, speaker), or use "
                f"--layout {'/'.join(levels)} if they are words"
            )
        return None if levels == ["word"] else by_pattern(tree, "/".join(levels), outermost if has_splits else ())
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
        pairs = {(path[outer], path[within]) for path in of_depth}
        if named == "speaker/word" and len(names[outer]) < len(names[within]) == len(pairs):
            patterns[named] = _pattern(levels, within, -1)  # speakers would share words: these are kinds of words
        return by_pattern(tree, patterns[named], outermost if has_splits else ())
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


def require_all(tree: Tree, listing: Listing) -> None:
    """Checks that recordings in folders of words are not the smaller part, nor beside others of these words in splits.

    Raises:
        UnclearLayout: they are.
    """
    files = tree.recordings
    deeper = files[(np.strings.count(files, "/") > 1) & ~np.strings.startswith(files, "_")] if len(files) else files
    if len(deeper) > len(listing.clips) and len({file.split("/")[0] for file in files.tolist() if "/" in file}) > 1:
        raise UnclearLayout(
            f"recordings must lie in folders of words, got {len(deeper):,} of {len(files):,} in folders in folders, "
            f"such as {deeper[0]}: give the folder above those of words, or say what each level is, such as --layout "
            "*/word"
        )
    words = set(listing.words)
    within = {tuple(file.split("/")[:2]) for file in deeper.tolist()}
    if both := sorted({outer for outer, inner in within if inner in words and split_named(outer)}):
        raise UnclearLayout(
            f"a split must hold folders of words beside other splits, got {', '.join(both)} beside the words "
            f"{_some(listing.words)}: move these to a folder train, or use --layout word to leave out {both[0]}"
        )
    if len(files) > 1 and not np.strings.count(files, "/").any():
        raise UnclearLayout(
            f"recordings must lie in folders of words, or be in a list, got only files such as {_some(files.tolist())}:"
            f" add a list (list.csv with the columns file and word), or use --layout word{IN_NAME} if their names are "
            "words and numbers"
        )


def numbered_or_prefixed(listing: Listing) -> Listing:
    """Returns a listing in which words lose what only numbers their folders, or is before all: 01_yes, label=yes."""
    for pattern in (_NUMBER_BEFORE, _KIND_BEFORE):
        named = {word: match[1] for word in listing.words if (match := pattern.fullmatch(word))}
        begins = {word[: -len(name)].casefold() for word, name in named.items()}
        is_one_each = len(begins) == (1 if pattern is _KIND_BEFORE else len(named))
        if 1 < len(named) == len(listing.words) == len(set(map(alike, named.values()))) and is_one_each:
            log.info("the words %s are called %s", _some(list(named)), _some(list(named.values())))
            return replace(listing, clips=merged(listing.clips.spelled(named)))
    return listing


def named_files(tree: Tree) -> Listing | None:
    """Lists recordings that are named for their word: <word>_<speaker>_<number>, or <word> and a number.

    The former, as in AudioMNIST and the Free Spoken Digit Dataset, lie in one folder, or in folders named for the
    speaker; the latter are such as `yes (3).wav`, and folders of them count as speakers. Folders that are named for
    splits are splits. Which part is the word follows from known words.
    """
    for names in (_NAMED, _NUMBERED):
        parts = _parts_of_names(tree, names)
        known = [group for group, some in parts.items() if all(map(is_known, some))]
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


def _files_named_for_words(tree: Tree) -> Listing | None:
    """Lists folders of speakers with a file for each word, such as anna/yes.wav, or yes_2.wav.

    Folders of words with a file for each speaker look the same: which are the words follows from known words.

    Raises:
        UnclearLayout: none of them is known.
    """
    folders: dict[str, set[str]] = {}
    counts = Counter[str]()
    for file in tree.recordings:
        folder, _, name = file.rpartition("/")
        if not folder or "/" in folder or folder.startswith("_") or speaker_of(name) or len(counts) > 2 * MOST_WORDS:
            return None
        if (base := _base(name).lower()) not in folders.setdefault(folder, set()):
            folders[folder].add(base)
            counts[base] += 1
    names = [name for name, count in counts.items() if count > 1]
    if len(folders) < 2 or not 2 <= len(names) <= MOST_WORDS or any(map(_says_no_word, names)):
        return None
    shared = sum(counts[name] for name in names)
    if shared < 0.8 * counts.total() or shared < len(names) * len(folders) / 2:
        return None  # few files are named like one in other folders
    are_words = [sum(map(is_known, some)) > len(some) / 2 for some in (list(folders), names)]
    if are_words[0]:
        return None
    pattern = f"speaker/word{IN_NAME}"
    if not are_words[1] and not named_like_speakers(list(folders)):
        raise UnclearLayout(
            f"folders or files must be named for words, got the folders {_some(sorted(folders))} with files named "
            f"{_some(sorted(names))}: use --layout word if the folders are words, or --layout {pattern}"
        )
    return by_pattern(tree, pattern)


def _says_no_word(name: str) -> bool:
    return not re.search(r"[^\W\d_]", name) or is_container(name) or _SPEAKER.fullmatch(name) is not None


def _base(name: str) -> str:
    """Returns the name of a file without its suffix and a number at its end, such as yes for yes_2.wav."""
    return re.sub(r"(?<=[^\W\d_])[-_. ]*(?:\d+|\(\d+\))$", "", name.rpartition(".")[0] or name)


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
    for are_speakers in (named_like_speakers, _without_known_words):
        if are_speakers(outer) != are_speakers(within):
            return "speaker/word" if are_speakers(outer) else "word/speaker"
    return ""


def named_like_speakers(names: Sequence[str]) -> bool:
    """Tells whether all folders are named as speakers are, such as speaker1, s01, 0a7c2a8d and 017."""
    return all(map(_SPEAKER.fullmatch, names))


def _pattern(levels: Sequence[str], word: int, speaker: int) -> str:
    """Returns a pattern of levels of which two are known."""
    return "/".join({word: "word", speaker: "speaker"}.get(level, said) for level, said in enumerate(levels))


def _without_known_words(names: Sequence[str]) -> bool:
    return not any(alike(name) in SPEECH_COMMANDS_WORDS for name in names)


def _folders(parent: str) -> list[str]:
    folders = parent.split("/") if parent else []
    return [] if any(name.startswith("_") for name in folders) else folders


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
