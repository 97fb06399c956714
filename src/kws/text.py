"""Text that comes from elsewhere, as one line that can be written anywhere."""

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
