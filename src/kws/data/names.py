"""Names of files: which are recordings, and how they are shown."""

import unicodedata
from pathlib import Path

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".opus", ".mp3")
"""File name suffixes of recordings, in upper or lower case; libsndfile reads these formats."""


def is_recording(name: str) -> bool:
    """Tells by its name whether a file is a recording."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_utf8(name: str) -> bool:
    """Tells whether the name of a file is UTF-8."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def printable(path: Path | str) -> str:
    r"""Returns a path as a line that can be written anywhere; bytes that are not UTF-8 become \udc…"""
    return one_line(str(path).encode("utf-8", "backslashreplace").decode())


def one_line(text: str) -> str:
    r"""Returns a text with its control characters escaped, such as \n and those that would command a terminal."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) == "Cc" else char for char in text
    )
