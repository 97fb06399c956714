"""Listens without a server: to a file, to standard input, or to the microphone of this machine."""

import logging
import queue
import sys
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kws.data.kinds import kind_by_magic
from kws.model.detector import Detection, Detector, Thresholds
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import Waveform, mono, read_waveform, require_sound

log = logging.getLogger(__name__)

PIECE = 1600
"""Number of samples that are read at a time: a tenth of a second."""

HEAD = 12
"""Number of first bytes that tell a WAV and other audio files, which would sound like noise if they were taken for raw
samples."""

LONGEST_QUEUE = 50
"""Largest number of pieces from the microphone that wait: 5 s. Further pieces are dropped, and counted."""


def listen(recognizer: AnyRecognizer, thresholds: Thresholds, source: Iterable[Waveform]) -> Iterator[Detection]:
    """Yields the words in a stream as soon as they are detected.

    The source gives pieces of the stream, float32 [any] in -1 to 1 at the model's sample rate.
    """
    detector = Detector(recognizer, thresholds)
    for piece in source:
        yield from (heard.detection for heard in detector.feed(piece) if heard.detection)
    yield from (heard.detection for heard in detector.finish() if heard.detection)


def open_file(path: Path, sample_rate: int) -> Iterator[Waveform]:
    """Yields a recording piece by piece; one with another sample rate or of FFmpeg's formats is read as a whole.

    Raises:
        ValueError: the file cannot be read, or is empty.
        FileNotFoundError: there is no such file.
    """
    import soundfile

    if not path.is_file():
        raise FileNotFoundError(f"the recording must be a file, got {str(path)!r}, which is not")
    try:
        about = soundfile.info(path)
        as_it_is = about.samplerate == sample_rate and about.frames > 0
    except soundfile.LibsndfileError:  # another decoder may read it
        as_it_is = False
    if not as_it_is:
        yield from pieces(read_waveform(path, sample_rate))
        return
    try:
        for block in soundfile.blocks(path, PIECE, dtype="float32", always_2d=True):
            waveform = mono(block)
            require_sound(waveform)
            yield waveform
    except soundfile.LibsndfileError as error:
        raise ValueError(f"the recording must be whole, got {error.error_string} in {path}") from error


def pieces(waveform: Waveform) -> Iterator[Waveform]:
    """Cuts float32 [samples] into pieces."""
    for first in range(0, waveform.size, PIECE):
        yield waveform[first : first + PIECE]


def standard_input(sample_rate: int, file: BinaryIO | None = None) -> Iterator[Waveform]:
    """Yields samples from standard input: a WAV, as `arecord` writes it, or raw 16-bit samples, little-endian, mono.

    `file` is read instead of standard input.

    Raises:
        ValueError: the WAV has another sample rate or sample width, or no samples; or it is another kind of file.
    """
    file = file or sys.stdin.buffer
    head = file.read(HEAD)
    channels = 1
    if (kind := kind_by_magic(head)) is not None and kind.is_audio and head[:4] != b"RIFF":
        raise ValueError(
            f"standard input must be WAV or raw 16-bit samples, got {kind.name}; give the name of the file instead, "
            "which may have any format"
        )
    if head[:4] == b"RIFF":
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
    """Reads on to the first sample, and returns the number of channels; ignores the length, unknown in a pipe."""
    form = b""
    while (name := file.read(4)) != b"data":
        size = int.from_bytes(file.read(4), "little")
        if len(name) < 4 or size > 1 << 20:
            raise ValueError("standard input must be a WAV with samples, got none")
        content = file.read(size + size % 2)
        form = content if name == b"fmt " else form
    file.read(4)
    kind, channels = (int.from_bytes(form[first : first + 2], "little") for first in (0, 2))
    rate, bits = int.from_bytes(form[4:8], "little"), int.from_bytes(form[14:16], "little")
    if (rate, bits) != (sample_rate, 16) or channels < 1 or kind not in (wave.WAVE_FORMAT_PCM, 0xFFFE):
        raise ValueError(
            f"standard input must be WAV with {sample_rate} Hz and 16 bit (arecord -f S16_LE -r {sample_rate}), got "
            f"{rate} Hz and {bits} bit; give the name of the file instead, which may have any format"
        )
    return channels


def microphone(sample_rate: int) -> Iterator[Waveform]:
    """Yields sound from the microphone of this machine, until the process is interrupted.

    Raises:
        ValueError: PortAudio is missing, or no microphone supports this sample rate.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is installed, but not the library PortAudio
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
    except Exception as error:  # PortAudioError, and other errors if there is no device
        raise ValueError(f"the microphone must give {sample_rate} Hz mono, got {error}") from error
    log.info("listening; Ctrl-C ends it")
    shown, silent = 0, 0
    with stream:
        while True:
            piece = waiting.get()
            if num_dropped > shown:
                shown = num_dropped
                log.warning("this machine is too slow: %d tenths of a second were dropped", num_dropped)
            silent = 0 if piece.any() else silent + 1
            if silent == 20:
                log.warning("the microphone gives digital silence: is it muted?")
            yield piece
