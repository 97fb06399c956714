"""Makes a small corpus without a download: espeak-ng speaks the words in many synthetic voices.

The corpus is laid out like the published Speech Commands archive, so that the same code reads both. A voice (accent,
variant and pitch) counts as a speaker, and each speaker is in only one of the three splits.
"""

import concurrent.futures
import contextlib
import itertools
import logging
import multiprocessing
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kws import files
from kws.config import BACKGROUND_NOISE, RUNNING_SPEECH, SPEECH_COMMANDS_WORDS, SynthesizeConfig, join_words
from kws.data.names import folder_of
from kws.download.sentences import speak_sentences
from kws.download.voices import ACCENTS, ENGINE_RATE, PITCHES, VARIANTS, Speaker, engine
from kws.processes import end_with_parent
from kws.progress import progress
from kws.settings import require

log = logging.getLogger(__name__)

ENGLISH = "en"
CHINESE = ("cmn", "yue", "hak")
"""Languages whose voices pause within a text without blanks; for other scripts they change to English."""

SAMPLE_RATE = 16_000
LONGEST = int(0.95 * ENGINE_RATE)
"""Longest word in samples at ENGINE_RATE, so that it fits into a clip of one second."""

NUM_PROCESSES = 2
"""Number of worker processes. It is constant, as the output of espeak-ng depends on what it has spoken before: the same
seed gives the same corpus only if each process speaks the same words in the same order."""

NUM_TALKERS = 40
"""Voices that read sentences."""

SENTENCES_PER_TALKER = 4

VERSION = 2
"""Version of the corpus that this module writes; a corpus of another version is replaced."""


def synthesize(
    folder: Path,
    *,
    words: Sequence[str] = SPEECH_COMMANDS_WORDS,
    language: str = ENGLISH,
    clips_per_word: int = SynthesizeConfig.clips_per_word,
    seed: int = SynthesizeConfig.seed,
) -> None:
    """Writes a corpus of synthetic speech; does nothing if the folder has this very corpus already.

    The folder holds <word>/<speaker>_nohash_<take>.wav (16 kHz, mono, 16-bit, 1 s), validation_list.txt and
    testing_list.txt (a tenth of the speakers each), recordings of noise, and a manifest.json.

    Args:
        folder: where to write. A synthetic corpus with other settings is replaced.
        words: the words to speak.
        language: the language in which to speak them; see `SynthesizeConfig`.
        clips_per_word: recordings per word, each by a different speaker as long as there are enough.
        seed: random seed of speakers, splits, speeds, levels and noise.

    Raises:
        ValueError: a setting is out of range, a word cannot be spoken in the language or within a second, two words
            sound the same, or the folder holds other files.
    """
    SynthesizeConfig(words=join_words(words), language=language, clips_per_word=clips_per_word, seed=seed)
    settings: dict[str, Any] = {
        "version": VERSION,
        "words": list(words),
        "clips_per_word": clips_per_word,
        "seed": seed,
    }
    if language != ENGLISH:
        settings["language"] = language
    folder = folder.absolute()
    present = files.read_json(folder / files.MANIFEST).get("synthesized") if files.is_complete(folder) else None
    if present == settings:
        log.info("%s has the synthetic corpus already", folder)
        return
    require(
        present is not None or not folder.exists() or not any(folder.iterdir()),
        "folder",
        "be new, empty or a synthetic corpus (delete it or name another)",
        str(folder),
    )
    require_speakable(words, language)
    if present is not None:
        folder.rename(folder.with_name(f".{folder.name}.partial-{os.getpid()}"))  # build_folder deletes it
    files.build_folder(folder, lambda staging: _build(staging, folder.name, settings))
    log.info("synthesized %d clips of %d words into %s", clips_per_word * len(words), len(words), folder)


def require_speakable(words: Sequence[str], language: str) -> None:
    """Checks that the voices of a language can say some words, and that no two of them sound the same.

    Raises:
        ValueError: they cannot, or there is no such language.
    """
    said: dict[str, str] = {}
    for word in words:
        phonemes = engine().phonemes(word, language)
        if "(" in phonemes or not phonemes or _is_spelled_out(word, language):
            raise ValueError(
                f"a word must be one that the voice {language} can say, got {word!r}: name its language with "
                "--language (de, fr, hi, ar, cmn, …; ja reads kana only)"
            )
        other = said.setdefault(phonemes, word)
        require(other == word, "words", f"sound different, got two that are pronounced {phonemes}", f"{other},{word}")


def _is_spelled_out(word: str, language: str) -> bool:
    """Tells whether a voice names the letters of a word one by one ("Chinese letter"), as it cannot read their script.

    Most voices change to the English one for that, which `Engine.phonemes` shows; others have such names themselves.
    """
    foreign = [char for char in word if char.isalpha() and not unicodedata.name(char, "").startswith("LATIN")]
    if not foreign or language.split("-")[0] in CHINESE:
        return False
    if language.split("-")[0] == ENGLISH:
        return True
    # A letter alone may have a name in its own script, too; one beside another is named only by a foreign voice.
    pieces = [piece if len(piece) > 1 else 2 * piece for piece in word.replace("_", " ").split()]
    return any(" " in engine().phonemes(piece, language) for piece in pieces if not piece.isascii())


def _build(staging: Path, name: str, settings: dict[str, Any]) -> None:
    words, clips_per_word, seed = settings["words"], settings["clips_per_word"], settings["seed"]
    random = np.random.default_rng(seed)
    language = settings.get("language", ENGLISH)
    accents = ACCENTS if language == ENGLISH else (language,)
    voices = [Speaker(*voice) for voice in itertools.product(accents, VARIANTS, PITCHES)]
    speakers = [voices[i] for i in random.permutation(len(voices))[:clips_per_word]]
    takes = [len(range(i, clips_per_word, len(speakers))) for i in range(len(speakers))]
    for word in words:
        (staging / folder_of(word)).mkdir()

    num_bytes = 0
    with contextlib.ExitStack() as stack, progress(clips_per_word * len(words), "clips", "synthesize") as bar:
        pools = [stack.enter_context(_new_process()) for _ in range(NUM_PROCESSES)]
        said = []
        for i, (speaker, num_takes) in enumerate(zip(speakers, takes, strict=True)):
            said.append(pools[i % NUM_PROCESSES].submit(_speak, staging, speaker, words, num_takes, [seed, i]))
        try:
            for future in concurrent.futures.as_completed(said):
                sizes = future.result()
                num_bytes += sum(sizes)
                bar.update(len(sizes))
        except BaseException:
            for future in said:
                future.cancel()
            raise

    _write_noises(staging / BACKGROUND_NOISE, random)
    others = [voices[i] for i in np.random.default_rng([seed, 1]).permutation(len(voices))]
    talkers = [voice for voice in others if voice not in speakers][:NUM_TALKERS]
    with _new_process() as pool:
        pool.submit(_write_speech, staging / RUNNING_SPEECH, talkers, seed).result()
    # The order of the speakers is random, so any tenth of them is a random sample.
    num_held_out = max(1, round(len(speakers) / 10))
    for i, list_name in enumerate(("testing_list.txt", "validation_list.txt")):
        chosen = range(i * num_held_out, (i + 1) * num_held_out)
        lines = sorted(
            f"{folder_of(word)}/{speakers[k].id}_nohash_{take}.wav"
            for k in chosen
            for word in words
            for take in range(takes[k])
        )
        (staging / list_name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files.write_json(
        staging / files.MANIFEST,
        {
            "schema": 1,
            "name": name,
            "source": "espeak-ng",
            "num_clips": sum(takes) * len(words),
            "num_bytes": num_bytes,
            "num_speakers": len(speakers),
            "words": dict.fromkeys(sorted(words), sum(takes)),
            "synthesized": settings,
        },
    )


def _speak(folder: Path, speaker: Speaker, words: Sequence[str], num_takes: int, seed: Sequence[int]) -> list[int]:
    """Records words by a speaker to files, and returns the file sizes in bytes."""
    import soundfile

    random = np.random.default_rng(seed)
    sizes = []
    for word, take in itertools.product(words, range(num_takes)):
        path = folder / folder_of(word) / f"{speaker.id}_nohash_{take}.wav"
        soundfile.write(path, _record(word, speaker, random), SAMPLE_RATE, subtype="PCM_16")
        sizes.append(path.stat().st_size)
    return sizes


def _record(word: str, speaker: Speaker, random: np.random.Generator) -> NDArray[np.float64]:
    """Returns one second with a word at a random position and level over faint noise, float64 [SAMPLE_RATE]."""
    rate, pitch = int(random.integers(110, 190)), speaker.pitch + int(random.integers(-6, 7))
    range_ = int(random.integers(30, 80))
    for faster in (rate, 250, 450):
        sound = engine().say(word, speaker, rate=faster, pitch=pitch, range_=range_)
        if len(sound) <= LONGEST:
            break
    else:
        raise ValueError(f"a word must be short enough for one second of speech, got {word!r}: leave it out")
    second = np.zeros(ENGINE_RATE)
    start = round((ENGINE_RATE - len(sound)) * random.uniform(0.2, 0.8))
    second[start : start + len(sound)] = sound
    # A whole second is resampled exactly by cutting its spectrum at the new Nyquist frequency.
    spectrum = np.fft.rfft(second)[: SAMPLE_RATE // 2 + 1]
    clip = np.fft.irfft(spectrum, SAMPLE_RATE) * (SAMPLE_RATE / ENGINE_RATE)
    clip *= _amplitude(random.uniform(-20, -3)) / np.abs(clip).max()
    clip += _coloured(random, 1, exponent=random.uniform(0, 1)) * _amplitude(random.uniform(-70, -45))
    return clip


def _new_process() -> concurrent.futures.ProcessPoolExecutor:
    """Starts a process whose engine has not spoken yet."""
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def _write_speech(folder: Path, speakers: Sequence[Speaker], seed: int) -> None:
    """Writes sentences by voices that speak none of the clips, and what is said in them."""
    import soundfile

    folder.mkdir()
    takes = [0] * len(speakers)
    count = SENTENCES_PER_TALKER * len(speakers)
    with progress(count, "sentences", "synthesize running speech") as bar:
        for one in speak_sentences(count, SAMPLE_RATE, [seed], speakers=speakers):
            number = speakers.index(one.speaker)
            path = folder / f"{one.speaker.id}_nohash_{takes[number]}.wav"
            takes[number] += 1
            soundfile.write(path, 0.3 * one.sound / np.abs(one.sound).max(), SAMPLE_RATE, subtype="PCM_16")
            path.with_suffix(".txt").write_text(one.text + "\n", encoding="utf-8")
            bar.update()


def _amplitude(decibels: float) -> float:
    """Converts a level in dB to an amplitude; 0 dB is full scale."""
    return float(10 ** (decibels / 20))


def _coloured(random: np.random.Generator, seconds: int, exponent: float) -> NDArray[np.float64]:
    """Returns noise with power ∝ 1/frequency**exponent (0: white, 1: pink), float64 [samples] with mean square 1."""
    spectrum = np.fft.rfft(random.standard_normal(seconds * SAMPLE_RATE))
    spectrum *= np.maximum(np.arange(len(spectrum)), 20 * seconds) ** (-exponent / 2)  # flat below 20 Hz
    noise = np.fft.irfft(spectrum)
    noise /= np.sqrt(np.mean(noise**2))
    return noise


def _write_noises(folder: Path, random: np.random.Generator, seconds: int = 15) -> None:
    """Writes long recordings of noise, as the published archive has in _background_noise_."""
    import soundfile

    time = np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE
    hum = 0.1 * _coloured(random, seconds, exponent=0.5)
    for k in range(1, 12):
        hum += np.sin(2 * np.pi * 50 * k * time + random.uniform(0, 2 * np.pi)) / k
    folder.mkdir()
    for name, noise in (
        ("white_noise", _coloured(random, seconds, exponent=0)),
        ("pink_noise", _coloured(random, seconds, exponent=1)),
        ("mains_hum", hum),
    ):
        noise = 0.5 * noise / np.abs(noise).max()
        soundfile.write(folder / f"{name}.wav", noise, SAMPLE_RATE, subtype="PCM_16")
