"""Synthetic voices, by espeak-ng."""

import ctypes
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kws.settings import require

ACCENTS = ("en", "en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
_PEOPLE = (
    "Alex Andrea Andy Annie Denis Gene Lee Mario Michael Mike adam belinda benjamin boris david ed edward f1 f2 "
    "f3 f4 f5 grandma grandpa john linda m1 m2 m3 m4 m5 m6 m7 max michel norbert paul pedro quincy rob robert "
    "sandro travis victor"
)
VARIANTS = _PEOPLE.split()
"""The variants of espeak-ng that sound like people: no whisper, croak, robot or monster."""
PITCHES = (30, 40, 50, 60, 70)
"""Pitches on espeak-ng's scale of 0 to 99, where 50 is the variant's own pitch."""

ENGINE_RATE = 22_050
"""Samples per second of espeak-ng's output."""

_IPA = 2  # the phonemes of espeak_TextToPhonemes in the International Phonetic Alphabet
_SYNCHRONOUS, _RATE, _VOLUME, _PITCH, _RANGE, _UTF8 = 2, 1, 2, 3, 4, 1  # constants of espeak-ng's speak_lib.h
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker(NamedTuple):
    """A synthetic voice."""

    accent: str
    variant: str
    pitch: int

    @property
    def id(self) -> str:
        """Eight hexadecimal digits, like the speaker ids in the file names of Speech Commands."""
        return hashlib.sha256(f"{self.accent}+{self.variant}+{self.pitch}".encode()).hexdigest()[:8]


class Engine:
    """The C library of espeak-ng, of which a process can have only one instance."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.pieces: list[NDArray[np.int16]] = []
        data = espeakng_loader.get_data_path().encode()
        rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        assert rate == ENGINE_RATE, f"espeak-ng started with {rate} Hz"
        self.library.espeak_ng_SetRandSeed(
            ctypes.c_long(1)
        )  # otherwise the breath noise of some voices is seeded by the clock

        def receive(samples: Any, num_samples: int, _events: Any) -> int:
            if num_samples:
                self.pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
            return 0

        self.callback = _CALLBACK(receive)  # kept alive, as the library goes on calling it
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def phonemes(self, word: str, language: str) -> str:
        """Returns how a word is pronounced, in the International Phonetic Alphabet, without stress.

        Where espeak-ng changes to the voice of another language, the code of that stands in brackets.

        Raises:
            ValueError: there is no voice of the language.
        """
        status = self.library.espeak_SetVoiceByName(language.encode())
        require(
            status == 0, "language", "be one that espeak-ng speaks, such as en, de, fr, hi, ar, ja or cmn", language
        )
        rest = ctypes.c_char_p(word.replace("_", " ").encode())
        clauses: list[bytes] = []
        while rest.value is not None:
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA) or b"")
        return " ".join(clause.decode() for clause in clauses).translate(dict.fromkeys(map(ord, "ˈˌ"))).strip()

    def say(self, word: str, speaker: Speaker, *, rate: int, pitch: int, range_: int) -> NDArray[np.float64]:
        """Speaks a word.

        Args:
            word: the word; underscores are spoken as pauses.
            speaker: the voice.
            rate: words per minute, 80 to 450.
            pitch: pitch, 0 to 99.
            range_: pitch range, 0 to 99.

        Returns:
            The sound without leading and trailing silence, float64 [samples] in -1 to 1 at ENGINE_RATE.

        Raises:
            ValueError: espeak-ng gives no sound for the word.
        """
        self.pieces.clear()
        voice = f"{speaker.accent}+{speaker.variant}"
        status = self.library.espeak_SetVoiceByName(voice.encode())
        assert status == 0, f"espeak-ng has no voice {voice}"
        for parameter, value in ((_RATE, rate), (_VOLUME, 70), (_PITCH, pitch), (_RANGE, range_)):
            self.library.espeak_SetParameter(parameter, value, 0)
        text = word.replace("_", " ").encode()
        status = self.library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
        assert status == 0, f"espeak-ng could not say {word}"
        sound = np.concatenate([np.zeros(1, np.int16), *self.pieces]) / 32768
        loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
        require(loud.size > 0, "a word", f"be pronounceable by the voice {speaker.accent}", word)
        return sound[loud[0] : loud[-1] + 1]


engine = functools.cache(Engine)
