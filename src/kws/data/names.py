"""Names of files: which are recordings."""

SUFFIXES = (
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3",
    ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph",
    ".m4a", ".m4b", ".mp4", ".mov", ".aac", ".3gp", ".3gpp", ".3g2", ".amr", ".awb", ".webm", ".weba", ".mka", ".mkv",
    ".wma", ".asf", ".spx", ".wv", ".ape", ".mp2", ".ac3",
)  # fmt: skip
"""File name suffixes of recordings, in upper or lower case. What a file really is, its first bytes say: see `kinds`."""


THEIR_MANIFEST = "source-manifest.json"
"""What a file that has the name of our own manifest is called in a data set; NeMo's list of recordings has it."""


def speaker_of(name: str) -> str:
    """Returns the speaker that the name of a recording names before `_nohash_`, or an empty text."""
    if "_nohash_" not in name and "_nohash_" in name.lower():
        name = name.lower()  # old file systems make it 0A7C2A8D_NOHASH_0.WAV
    speaker, named, _ = name.partition("_nohash_")
    return speaker if named else ""


def is_recording(name: str) -> bool:
    """Tells by its name whether a file is a recording."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_utf8(name: str) -> bool:
    """Tells whether the name of a file is UTF-8."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name
