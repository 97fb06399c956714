"""Columns of a list of recordings: what they are called, and what their cells say."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from kws.data.names import split_named

NAMES: Mapping[str, Sequence[str]] = {
    "file": (
        "file_name", "filename", "audio_filepath", "audio_file", "audio_path", "wav_filename", "wav_path", "wav",
        "slice_file_name", "path", "filepath", "file_path", "file", "fname", "link", "clip", "recording", "audio",
    ),
    "word": (
        "word", "keyword", "command", "label_name", "class_name", "label", "labels", "category", "class", "choice",
        "target", "annotation", "keyword_id",
    ),
    "sentence": (
        "sentence", "text", "transcript", "transcription", "utterance", "normalized_text", "words", "txt",
    ),
    "speaker": (
        "client_id", "speaker_id", "speaker", "speakerid", "speaker_name", "spk_id", "spk", "talker", "user_id", "user",
        "worker_id", "participant_id", "participant", "subject_id", "subject", "contributor",
    ),
    "split": ("set", "split", "subset", "partition"),
    "start": ("start", "begin", "onset", "start_time", "begin_time", "offset", "xmin"),
    "end": ("end", "stop", "end_time", "xmax", "offset"),
    "duration": ("duration",),
    "valid": ("valid",),
    "folder": ("folder", "fold", "directory", "dir", "subfolder"),
    "channel": ("channel",),
}  # fmt: skip
"""What the columns are called, in any case; of several that are there the first counts."""

TIMES = ("start", "end", "duration")
"""Columns whose names may end in their unit, seconds, milliseconds or samples."""

NOT_KNOWN = ("", "na", "n/a", "nan", "none", "null", "unknown", "?", "-")
"""What stands, in any case, where nobody knows the speaker or the time."""

_UNIT = re.compile(
    r"[_(\[]+((?P<seconds>s|secs?|seconds?)|(?P<milliseconds>ms|msecs?|millis|milliseconds?)|(?P<samples>samples?))[)\]]?$"
)

_FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def keys(row: Iterable[object]) -> dict[str, str]:
    """Returns the names of columns by how they are compared: file_name for "File Name"."""
    return {str(name).strip().casefold().replace(" ", "_").replace("-", "_"): str(name) for name in row}


def columns_of(row: Iterable[object]) -> dict[str, str]:
    """Returns the columns of a row by what they say; is_test and the like are columns of flags, by the split."""
    there = keys(row)
    timed = {_UNIT.sub("", key): name for key, name in there.items()} | there
    found: dict[str, str] = {}
    for what, names in NAMES.items():
        columns = timed if what in TIMES else there
        taken = set(found.values())
        chosen = [columns[name] for name in names if name in columns and columns[name] not in taken]
        if "onset" in columns and what == "start":
            chosen = [columns["onset"]]
        if "onset" not in columns and what == "end":
            chosen = [name for name in chosen if name != columns.get("offset")]
        if chosen:
            found[what] = chosen[0]
    for key, name in there.items():
        if key.startswith("is_") and (split := split_named(key.removeprefix("is_"))):
            found.setdefault(f"is_{split}", name)
        elif key.startswith("is_") and key.endswith("word"):  # is_hotword
            found.setdefault("word", name)
    if "file" in found and found["file"] == there.get("slice_file_name"):  # it is cut already, as UrbanSound8K is
        found = {what: name for what, name in found.items() if what not in TIMES}
    return found


def text(value: object) -> str:
    """Returns the text of a cell; that of a list if it has one entry."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, dict):
        return text(value.get("path", value.get("file")))
    if isinstance(value, list):
        return text(value[0]) if len(value) == 1 else ""
    return str(value).strip()


def number(cell: str) -> float | None:
    """Returns the number that a text is, or None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def unit_of(column: str) -> str:
    """Returns the unit that the name of a column ends in: seconds, milliseconds, samples; empty if in none."""
    found = _UNIT.search(next(iter(keys([column]))))
    return next((unit for unit, said in found.groupdict().items() if said), "") if found else ""


def time(cell: str) -> float | None:
    """Returns a time such as 1.5, 1,5 or 00:01:02.5, in the unit of its column, or None if there is none.

    Raises:
        ValueError: it is no time.
    """
    if cell.casefold() in NOT_KNOWN:
        return None
    parts = [number(part) for part in cell.replace(",", ".").split(":")]
    value = 0.0
    for part in parts:
        if part is None or len(parts) > 3:
            raise ValueError(f"a time must be in seconds, such as 1.5 or 00:00:01.5, got {cell!r}")
        value = value * 60 + part
    return value


def flag(cell: str) -> bool | None:
    """Returns whether a text is true; None if it is neither true nor false."""
    return _FLAGS.get(cell.casefold())
