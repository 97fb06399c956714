"""Listening without a server: to a file, to standard input, to the microphone of this machine."""

import logging
import queue
import sys
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kws.model.detector import Detection, Detector, Thresholds
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, read_waveform, require_sound

log = logging.getLogger(__name__)

PIECE = 1600
"""Samples that are read at a time: a tenth of a second."""

LONGEST_QUEUE = 50
"""Pieces from the microphone that may wait: 5 s. What comes on top is dropped, and counted."""


def listen(recognizer: AnyRecognizer, thresholds: Thresholds, source: Iterable[Waveform]) -> Iterator[Detection]:
    """Yields what is heard in a stream, as soon as it is.

    Args:
        recognizer: the model.
        thresholds: when a word counts.
        source: pieces of the stream, float32 [any] in -1 to 1 at the model's rate.
    """
    detector = Detector(recognizer, thresholds)
    for piece in source:
        yield from (heard.detection for heard in detector.feed(piece) if heard.detection)
    yield from (heard.detection for heard in detector.finish() if heard.detection)


def open_file(path: Path, sample_rate: int) -> Iterator[Waveform]:
    """Yields a recording piece by piece; one of another rate is read and resampled whole.

    Raises:
        ValueError: it cannot be read, or is empty.
        FileNotFoundError: there is no such file.
    """
    import soundfile

    if not path.is_file():
        raise FileNotFoundError(f"the recording must be a file, got {str(path)!r}, which is none")
    try:
        about = soundfile.info(path)
        if about.samplerate != sample_rate or about.frames < 1:
            yield from pieces(read_waveform(path, sample_rate))
            return
        for block in soundfile.blocks(path, PIECE, dtype="float32", always_2d=True):
            waveform = block.mean(axis=1)
            require_sound(waveform)
            yield waveform
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"the recording must be a WAV, FLAC, OGG, Opus or MP3 file, got {error.error_string} in {path}"
        ) from error


def pieces(waveform: Waveform) -> Iterator[Waveform]:
    """Cuts float32 [samples] into pieces."""
    for first in range(0, waveform.size, PIECE):
        yield waveform[first : first + PIECE]


def standard_input(sample_rate: int, file: BinaryIO | None = None) -> Iterator[Waveform]:
    """Yields what comes through a pipe: a WAV, as `arecord` writes it, or bare 16-bit samples, little-endian, mono.

    Args:
        sample_rate: what it must have.
        file: read instead.

    Raises:
        ValueError: the WAV has another rate or width.
    """
    file = file or sys.stdin.buffer
    head = file.read(4)
    channels = 1
    if head == b"RIFF":
        channels = _read_wav_header(file, sample_rate)
        head = b""
    rest = head
    while data := file.read1(2 * channels * PIECE) if hasattr(file, "read1") else file.read(2 * channels * PIECE):
        rest += data
        whole = len(rest) // (2 * channels) * 2 * channels
        samples = np.frombuffer(rest[:whole], "<i2").reshape(-1, channels)
        rest = rest[whole:]
        yield samples.mean(axis=1, dtype=np.float32) / np.float32(32768)


def _read_wav_header(file: BinaryIO, sample_rate: int) -> int:
    """Reads to the first sample, and returns the number of channels. A pipe tells no length that can be relied on."""
    file.read(8)
    form = b""
    while (name := file.read(4)) != b"data":
        size = int.from_bytes(file.read(4), "little")
        if len(name) < 4 or size > 1 << 20:
            raise ValueError("standard input must be a WAV with samples, got one without")
        content = file.read(size + size % 2)
        form = content if name == b"fmt " else form
    file.read(4)
    kind, channels = (int.from_bytes(form[first : first + 2], "little") for first in (0, 2))
    rate, bits = int.from_bytes(form[4:8], "little"), int.from_bytes(form[14:16], "little")
    if (rate, bits) != (sample_rate, 16) or channels < 1 or kind not in (wave.WAVE_FORMAT_PCM, 0xFFFE):
        raise ValueError(
            f"standard input must be WAV of {sample_rate} Hz and 16 bit (arecord -f S16_LE -r {sample_rate}), got "
            f"{rate} Hz and {bits} bit; a file of any kind is read by its name"
        )
    return channels


def microphone(sample_rate: int) -> Iterator[Waveform]:
    """Yields what the microphone of this machine hears, until the process is interrupted.

    Raises:
        ValueError: there is no PortAudio, or no microphone that gives this rate.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, the library PortAudio is not
        raise ValueError(
            "the microphone must be reachable through PortAudio, got none; install it (apt install libportaudio2) and "
            "the package (pip install 'kws[microphone]')"
        ) from error
    waiting: queue.Queue[Waveform] = queue.Queue(LONGEST_QUEUE)
    num_dropped = 0

    def receive(samples: Any, num_samples: int, time: Any, status: Any) -> None:
        nonlocal num_dropped
        try:
            if status.input_overflow:
                num_dropped += 1
            waiting.put_nowait(samples[:, 0].copy())
        except queue.Full:
            num_dropped += 1

    try:
        stream = sounddevice.InputStream(sample_rate, PIECE, channels=1, dtype="float32", callback=receive)
        stream.start()
    except Exception as error:  # PortAudioError, and what its parts raise where there is no device
        raise ValueError(f"the microphone must give {sample_rate} Hz mono, got {error}") from error
    log.info("listening; Ctrl-C ends it")
    shown, silent = 0, 0
    with stream:
        while True:
            piece = waiting.get()
            if num_dropped > shown:
                shown = num_dropped
                log.warning("this machine is too slow: %d tenths of a second were not heard", num_dropped)
            silent = 0 if piece.any() else silent + 1
            if silent == 20:
                log.warning("the microphone gives digital silence: is it muted?")
            yield piece
