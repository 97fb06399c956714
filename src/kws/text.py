"""Text that comes from elsewhere: as one line that can be written anywhere, and as the name of a word."""

import unicodedata
from pathlib import Path


def printable(path: Path | str) -> str:
    r"""Returns a path as a line that can be written anywhere; bytes that are not UTF-8 become \udc…"""
    return one_line(str(path).encode("utf-8", "backslashreplace").decode())


def one_line(text: str) -> str:
    r"""Returns a text with its control characters escaped, such as \n and those that would command a terminal."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) == "Cc" else char for char in text
    )


UNSEEN = dict.fromkeys(map(ord, "\u00ad\u061c\u200b\u200e\u200f\u2060\ufeff"))
"""Characters that cannot be seen and change no word, such as marks of the direction."""


def plain(text: str) -> str:
    """Returns a word as it is kept.

    That is in Unicode normal form C (Macs write names in form D), with plain blanks, none around it, and without
    characters of UNSEEN. Those that join letters or keep them apart (ZWJ and ZWNJ, as in Persian and Hindi) stay.
    """
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in text.translate(UNSEEN))
    return unicodedata.normalize("NFC", spaced).strip()


def wrong_with(word: str) -> str:
    """Returns why a text cannot be a word, to be continued in "it is not read, as …"; empty if it can."""
    if not word:
        return "the name of a word must not be empty"
    # Of the characters that format a text, those that turn its direction could make it look like another.
    turned = any(unicodedata.bidirectional(char) in TURNING for char in word)
    shown = all(char.isprintable() or unicodedata.category(char) == "Cf" for char in word)
    if turned or not shown or word != word.encode("utf-8", "replace").decode():
        return "the name of a word must be of printable UTF-8"
    return "the name of a word must not begin with _" if word.startswith("_") else ""


TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Kinds of characters of Unicode's bidirectional algorithm that set the direction of what follows."""
