"""Sentences by synthetic voices: running speech where nobody has recorded any."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kws.data.speech import Talk
from kws.download.voices import ACCENTS, ENGINE_RATE, PITCHES, VARIANTS, Speaker, engine
from kws.settings import require

SENTENCES = (
    "The weather will be cloudy with some rain towards the evening.",
    "Please remember to water the plants before the weekend.",
    "My sister bought a second hand bicycle at the market.",
    "We could have dinner together after the concert.",
    "The train to the airport leaves every twenty minutes.",
    "Her grandmother tells the most wonderful stories.",
    "Nobody knew where the keys of the cellar were.",
    "The committee has published its yearly report.",
    "A glass of cold water is all that I want.",
    "They painted the kitchen yellow and the hall blue.",
    "Scientists measured the temperature of the lake.",
    "Have you seen the new film about the mountains?",
    "The baker opens his shop at seven in the morning.",
    "Children were playing football behind the school.",
    "It takes about an hour to walk around the island.",
    "The orchestra rehearses in the old theatre.",
    "He writes letters to his cousin in Canada.",
    "Prices have risen since the beginning of summer.",
    "The cat was asleep under the kitchen table.",
    "Could somebody answer the telephone, please?",
    "This recipe needs butter, sugar and three lemons.",
    "The museum shows paintings from five centuries.",
    "A strong wind came from the sea that night.",
    "I have been learning Spanish for several months.",
    "The doctor will see you in a few moments.",
    "Most visitors arrive by bus or by car.",
    "She repaired the radio with a small screwdriver.",
    "There is a letter for your neighbour on the table.",
    "The river was frozen for the whole of January.",
    "Let us meet at the library around noon.",
)
"""What is said."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence that was spoken."""

    text: str
    speaker: Speaker
    sound: npt.NDArray[np.float32]
    """float32 [samples]."""


def speak_sentences(
    count: int, rate: int, seed: Sequence[int], without: Sequence[str] = (), speakers: Sequence[Speaker] = ()
) -> Iterator[Sentence]:
    """Yields sentences in turn, by random voices at random speeds and pitches.

    Args:
        count: how many.
        rate: samples per second.
        seed: random seed.
        without: words of a model, which none of the sentences may contain.
        speakers: the voices, in turn; none: any, at random.

    Raises:
        ValueError: every sentence contains one of the words.
    """
    random = np.random.default_rng(seed)
    allowed = [text for text in SENTENCES if not Talk(file="", text=text).places_of(without)]
    require(len(allowed) > 0, "words", "leave at least one sentence without them", ", ".join(without))
    voices = itertools.cycle(speakers)
    for number in range(count):
        pitch = int(random.choice(PITCHES))
        speaker = Speaker(str(random.choice(ACCENTS)), str(random.choice(VARIANTS)), pitch)
        if speakers:
            speaker = next(voices)
        sound = engine().say(
            allowed[number % len(allowed)],
            speaker,
            rate=int(random.integers(120, 200)),
            pitch=speaker.pitch,
            range_=int(random.integers(30, 80)),
        )
        # Whole seconds are resampled exactly by cutting their spectrum at the new Nyquist frequency.
        seconds = math.ceil(sound.size / ENGINE_RATE)
        spectrum = np.fft.rfft(sound, seconds * ENGINE_RATE)[: seconds * rate // 2 + 1]
        speech = np.fft.irfft(spectrum, seconds * rate) * (rate / ENGINE_RATE)
        samples = speech[: int(sound.size * rate / ENGINE_RATE)].astype(np.float32)
        yield Sentence(text=allowed[number % len(allowed)], speaker=speaker, sound=samples)
