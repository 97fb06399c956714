"""Names of files: which are recordings."""

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".opus", ".mp3")
"""File name suffixes of recordings, in upper or lower case; libsndfile reads these formats."""


def is_recording(name: str) -> bool:
    """Tells by its name whether a file is a recording."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_utf8(name: str) -> bool:
    """Tells whether the name of a file is UTF-8."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name
