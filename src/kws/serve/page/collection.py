"""Stores recordings that people make on the page, if the server was started with a folder for them.

<folder>/<word>/<speaker>_nohash_<n>.wav, mono, 16 bit, with the model's sample rate and clip length; longer recordings
of the room without speech are in <folder>/_background_noise_. The folder can be the `--source` of a run.
"""

import contextlib
import io
import os
import re
import shlex
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kws.config import BACKGROUND_NOISE, join_words
from kws.data.names import folder_of, word_of
from kws.recipe import FeatureConfig
from kws.settings import require
from kws.text import one_line, plain, wrong_with

FEW_SPEAKERS = 10
"""Below this number of speakers, a split by speaker may leave a split without clips."""

OTHER = "other"
"""The word under which speech is recorded that the model is to ignore."""

ROOM_SECONDS = (10, 30)
"""Shortest and longest recording of a room; of shorter ones a tenth would be too short for a clip of silence."""

MOST_CLIPS = 20_000
"""Largest number of recordings in a folder: 640 MB."""

LONGEST_WORD = 60
"""Largest number of characters of a word."""

NAME = re.compile(r"[0-9a-f]{8}_nohash_[0-9]{1,5}\.wav")
SPEAKER = re.compile(r"[0-9a-f]{8}")


class Collection:
    """A folder of recordings."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, and creates it if necessary.

        Raises:
            OSError: the folder cannot be created.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, word: str, speaker: str, content: bytes, features: FeatureConfig) -> str:
        """Stores a recording, and returns its clip id.

        The word may be `_background_noise_`, for the sound of the room; the speaker is eight hexadecimal digits; the
        content is a WAV file with the sample rate and length of the features.

        Raises:
            ValueError: word or speaker are not valid, the recording has another format, or the folder is full.
        """
        place = self._place(word)
        _check(SPEAKER, speaker, "speaker", "be 8 hexadecimal digits")
        form, length = _form(content)
        wanted = (1, 2, features.sample_rate)
        require(
            form == wanted, "the recording", f"be WAV, with channels, bytes per sample and sample rate {wanted}", form
        )
        low, high = (features.num_samples,) * 2
        if word == BACKGROUND_NOISE:
            low, high = (seconds * features.sample_rate for seconds in ROOM_SECONDS)
        require(
            low <= length <= high,
            "the recording",
            f"have {low} to {high} samples" if low < high else f"have {low} samples",
            length,
        )
        rule = f"hold fewer than {MOST_CLIPS} recordings (delete some, or start the server with another --collect)"
        total = sum(self.counts().values())
        require(total < MOST_CLIPS, "the folder", rule, total)
        place.mkdir(exist_ok=True)
        partial = place / f".{speaker}.{os.urandom(4).hex()}"
        try:
            partial.write_bytes(content)
            for number in range(MOST_CLIPS):
                path = place / f"{speaker}_nohash_{number}.wav"
                with contextlib.suppress(FileExistsError):
                    os.link(partial, path)  # unlike a rename, never over the recording of another request
                    return f"{place.name}/{path.name}"
        finally:
            partial.unlink(missing_ok=True)
        raise ValueError(f"speaker must have fewer recordings of {word}, got {MOST_CLIPS}")

    def path(self, word: str, name: str) -> Path:
        """Returns the path of a recording.

        Raises:
            ValueError: word or name are not valid.
            FileNotFoundError: there is no such recording.
        """
        place = self._place(word)
        _check(NAME, name, "name", "be <speaker>_nohash_<n>.wav")
        path = place / name
        if not path.is_file():
            raise FileNotFoundError(f"the recording must exist, got {word}/{name}, which does not")
        return path

    def delete(self, word: str, name: str) -> None:
        """Deletes a recording, and its folder if that is then empty.

        Raises:
            ValueError: word or name are not valid.
            FileNotFoundError: there is no such recording.
        """
        path = self.path(word, name)
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()

    def counts(self) -> dict[str, int]:
        """Returns the number of recordings of each word."""
        return {word: len(names) for word, names in self._list().items()}

    def command(self, data_root: Path | None, about: Mapping[str, Any]) -> str:
        """Returns the command that trains a model of the recorded words.

        Args:
            data_root: the folder whose champion is served: training starts from it, and the new champion takes its
                place. None: the server has another model, so that training starts from random weights in var/data.
            about: what the served model says of itself; its preset is kept.
        """
        found = self._list()
        found.pop(BACKGROUND_NOISE, None)
        speakers = {name.partition("_")[0] for names in found.values() for name in names}
        words = [word for word in found if word != OTHER]
        parts = ["python", "-m", "pipeline", "run", "--source", str(self.folder.resolve())]
        parts += ["--words", join_words(words), "--unknown-words", OTHER] if OTHER in found else ["--words", "auto"]
        if len(speakers) < FEW_SPEAKERS:
            parts += ["--split", "random"]
        if data_root is not None:
            if about.get("preset", "default") != "default":
                parts += ["--preset", str(about["preset"])]
            parts += ["--init", "champion"]
        return shlex.join([*parts, "--data-root", str(data_root.resolve() if data_root else "var/data")])

    def summary(self) -> dict[str, Any]:
        """Returns the folder and the names of the recordings by word, the newest last, for the page."""
        return {"folder": str(self.folder.resolve()), "words": self._list()}

    def _place(self, word: str) -> Path:
        """Returns the folder of a word."""
        if word == BACKGROUND_NOISE:
            return self.folder / word
        wrong = wrong_with(word) if word == plain(word) else "the name of a word must be without blanks around it"
        require(not wrong, "a word", wrong.removeprefix("the name of a word must "), one_line(word[:80]))
        require(len(word) <= LONGEST_WORD, "a word", f"have at most {LONGEST_WORD} characters", len(word))
        return self.folder / folder_of(word)

    def _list(self) -> dict[str, list[str]]:
        found = {}
        for place in sorted(self.folder.iterdir()):
            word = place.name if place.name == BACKGROUND_NOISE else plain(word_of(place.name))
            if place.is_dir() and (word == BACKGROUND_NOISE or not (place.name.startswith(".") or wrong_with(word))):
                names = [path for path in place.iterdir() if NAME.fullmatch(path.name)]
                if names:
                    found[word] = [path.name for path in sorted(names, key=lambda path: (_changed(path), path.name))]
        return found


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # deleted by another request meanwhile
        return 0.0


def _check(pattern: re.Pattern[str], value: str, name: str, rule: str) -> None:
    require(pattern.fullmatch(value) is not None, name, rule, value[:80])


def _form(content: bytes) -> tuple[tuple[int, int, int] | str, int]:
    """Returns channels, bytes per sample and sample rate of a WAV file, or what is wrong with it; number of samples."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            num_samples = len(file.readframes(file.getnframes())) // max(file.getsampwidth() * file.getnchannels(), 1)
            return (file.getnchannels(), file.getsampwidth(), file.getframerate()), num_samples
    except (wave.Error, EOFError) as error:
        return f"another kind of file ({error})", 0
