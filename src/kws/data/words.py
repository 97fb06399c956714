"""How a word is written: which texts are the same word, and which are more than one."""

import logging
import re
import unicodedata
from collections.abc import Iterable

from kws.config import SPEECH_COMMANDS_WORDS
from kws.data.index import Index
from kws.text import plain

log = logging.getLogger(__name__)

WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts that put no spaces between words, as the names of their characters in Unicode begin."""

LONGEST_WITHOUT_SPACES = 5
"""A sentence in one of these scripts is taken for one word up to this number of characters."""


def alike(word: str) -> str:
    """Returns what two spellings of the same word have in common: they may differ in case and Unicode normal form.

    Not by `casefold`, to which Maße (measures) and Masse (mass) are the same.
    """
    return unicodedata.normalize("NFC", plain(word).lower())


def is_known(word: str) -> bool:
    """Tells whether a text is one of the words that are known to be such: those of Speech Commands, and digits."""
    return alike(word) in SPEECH_COMMANDS_WORDS or re.fullmatch(r"\d", word) is not None


def only_word(sentence: str) -> str:
    """Returns the word of a sentence of one word, without punctuation; an empty text if there are more or none."""
    text = " ".join(sentence.split())
    while text and unicodedata.category(text[-1])[0] in "PZC":
        text = text[:-1]
    while text and unicodedata.category(text[0])[0] in "PZC":
        text = text[1:]
    text = plain(text)
    unspaced = any(unicodedata.name(char, "").startswith(WITHOUT_SPACES) for char in text)
    return "" if " " in text or (unspaced and len(text) > LONGEST_WITHOUT_SPACES) else text


def merged(clips: Index) -> Index:
    """Returns clips in the order of their ids. Of spellings that differ only in case, the most frequent is kept."""
    spellings: dict[str, dict[str, int]] = {}
    for word, count in clips.counts().items():
        spellings.setdefault(alike(word), {})[word] = count
    kept = {word: min(counts, key=lambda one: (-counts[one], one)) for counts in spellings.values() for word in counts}
    for counts in spellings.values():
        if len(counts) > 1:
            taken = kept[next(iter(counts))]
            log.warning("%s are taken for one word, %s, as they differ only in case", " and ".join(counts), taken)
    return clips.spelled(kept).sorted()


def spelled_as(wanted: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """Returns, for every word that is wanted and there, how it is spelled there; case makes no difference."""
    spellings = {alike(word): word for word in there}
    return {word: spellings[alike(word)] for word in wanted if alike(word) in spellings}
