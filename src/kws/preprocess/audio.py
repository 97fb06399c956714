"""Reads recordings: converts files of any common format to mono waveforms of a given length and sample rate.

libsndfile decodes what it can (WAV, FLAC, Ogg, Opus, MP3, AIFF, AU, CAF, W64, …); FFmpeg, which the package `av`
carries, what is left: M4A, AAC, 3GP, AMR, WebM, WMA, MP4, and the Ogg Opus files that libsndfile 1.2.2 refuses as
malformed. What a file is follows from its bytes, not from its name.
"""

import contextlib
import functools
import importlib.util
import io
import json
import math
import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kws.data.clip import Clip
from kws.data.kinds import ACQUISITION, START, Kind, kind_of
from kws.data.shards import recording
from kws.recipe import FeatureConfig
from kws.settings import require

Waveform = npt.NDArray[np.float32]

LOUDEST = 16.0
"""Largest valid sample, as a multiple of full scale (+24 dB). Float recordings that an amplifier or mixer overdrove
exceed full scale a few times at most, and are usable; larger samples come from damaged files or integers saved as
floats."""

MOST_SAMPLES = 1 << 27
"""Longest recording: 2 h 20 min at 16 kHz, or half a gigabyte. A tiny file of compressed silence could fill the
memory."""

CODINGS_IN_WAV = ("mp3", "mp3float", "aac")
"""What FFmpeg may decode in a WAV file: one of another coding, if libsndfile refuses it, has a damaged header."""

BLOCK = 1 << 18
"""Number of samples that libsndfile decodes at a time."""

DEMUXERS = "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,caf,flac,matroska,mov,mp3,ogg,wav,w64,webm,wv"
"""What FFmpeg may take a file for. Others, such as playlists, would have it open further files and addresses."""

FLOOR_DB = 8.0
"""How far a sound must exceed the background to count as said."""

RANGE_DB = 25.0
"""How much of what exceeds that counts; otherwise a click would outweigh a word."""

SILENT_DB = -70.0
"""The lowest level of a background, in dB of full scale: below it there is no sound."""

CANCELLED = 1e-4
"""Channels cancel each other, as where one is wired in reverse, if their average has less than this part of the power
of the loudest one (-40 dB)."""

_LENGTH_0, _LENGTH_UNKNOWN = b"data\0\0\0\0", b"data\xff\xff\xff\xff"
"""In the header of a WAV: what a recorder leaves that was killed, and what a program writes that streams."""

_HEADER = struct.Struct("<4sI8sIHHIIHH4sI")
"""The 44-byte header of a canonical WAV file."""


def read(recordings: Path, clip: Clip, config: FeatureConfig) -> Waveform:
    """Reads a clip of a data set as float32 [num_samples].

    Args:
        recordings: the folder of the data set.
        clip: the clip; one that is cut out must lie within its recording.
        config: determines sample rate and length of the clip.

    Raises:
        ValueError: the file cannot be read, is empty, is too long, or has samples that `require_sound` refuses.
        FileNotFoundError: there is no such file.
    """
    source = recording(recordings, clip)
    if clip.stretch is not None:
        return fit_length(read_stretch(source, *clip.stretch, config.sample_rate), config)
    if clip.begin is None:
        return read_clip(source, config)
    part = read_waveform(source, config.sample_rate)[clip.begin :][: config.num_samples]
    return part * np.float32(10 ** (clip.gain / 20))


def read_clip(source: Path | bytes, config: FeatureConfig) -> Waveform:
    """Reads a recording as one clip.

    Args:
        source: an audio file of any sample rate, sample width and number of channels, or its content.
        config: determines sample rate and length of the clip.

    Returns:
        float32 [num_samples], in -1 to 1.

    Raises:
        ValueError: the file cannot be read, is empty, is too long, or has samples that `require_sound` refuses.
        FileNotFoundError: there is no such file.
    """
    return fit_length(read_waveform(source, config.sample_rate), config)


def read_waveform(source: Path | bytes, sample_rate: int) -> Waveform:
    """Reads a whole recording as float32 [samples] at `sample_rate` Hz; averages its channels.

    Raises:
        ValueError: the file cannot be read, is empty, is too long, or has samples that `require_sound` refuses.
        FileNotFoundError: there is no such file.
    """
    data = source if isinstance(source, bytes) else _read_bytes(source)
    pcm = _plain_pcm(data, sample_rate)
    if pcm is not None:
        return np.multiply(pcm, np.float32(1 / 32768))
    heard = _decode(source, data[:START], math.inf)
    require_sound(heard.waveform)
    return heard.waveform if heard.rate == sample_rate else resample(heard.waveform, heard.rate, sample_rate)


def read_bytes(data: bytes, sample_rate: int, max_seconds: float) -> Waveform:
    """Reads a recording that somebody sent, as `read_waveform` reads a file; without torch, for the server.

    Args:
        data: the content of an audio file.
        sample_rate: the rate of the result, float32 [samples], in Hz.
        max_seconds: how long it may be.

    Raises:
        TooLong: it is longer.
        ValueError: it cannot be read, is empty, ends before its own header says, as after a broken upload, or has
            samples that `require_sound` refuses.
    """
    heard = _decode(data, data[:START], max_seconds)
    # libsndfile shortens the length of a WAV to what is there, so its header is read here; a length of nearly 2 GiB and
    # more stands for "unknown", as programs write it that stream into a pipe.
    claimed = int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0
    if heard.waveform.size < heard.claimed or len(data) < claimed < 0x7F000000:
        raise ValueError("the recording must be whole, got one that is cut off; send it again")
    require_sound(heard.waveform)
    if heard.rate == sample_rate:
        return heard.waveform
    return resample_without_torch(heard.waveform, heard.rate, sample_rate)


def read_stretch(source: Path | bytes, start: float, end: float, sample_rate: int) -> Waveform:
    """Reads a stretch of a long recording as float32 [samples] at `sample_rate` Hz, without decoding what is before it.

    Args:
        source: the recording, or its content.
        start: where the stretch begins, in seconds.
        end: where it ends; it may be a little beyond the end of the recording.
        sample_rate: the rate of the result.

    Raises:
        ValueError: the file cannot be read, or the stretch lies beyond its end or has samples that `require_sound`
            refuses.
        FileNotFoundError: there is no such file.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fsencode(source)) as file:
            rate, length = int(file.samplerate), int(file.frames)
            first, last = round(start * rate), round(end * rate)
            within = 0 <= first < length and last - first <= MOST_SAMPLES
            waveform = mono(_read_at(file, first, last - first)) if within else np.empty(0, np.float32)
    except (soundfile.LibsndfileError, TypeError):  # another decoder may read it, though only from its beginning
        changed = 0 if isinstance(source, bytes) else source.stat().st_mtime_ns
        waveform, rate = _whole(source, changed, sample_rate), sample_rate
        waveform = waveform[round(start * rate) : round(end * rate)]
    if waveform.size == 0:
        raise ValueError(
            "the stretch that a list states must lie within the recording, got one beyond its end: take the columns of "
            "begin and end out of the list if they are of another recording"
        )
    require_sound(waveform)
    return waveform if rate == sample_rate else resample(waveform, rate, sample_rate)


def _read_at(file: Any, first: int, num_frames: int) -> Waveform:
    file.seek(first)
    return np.asarray(file.read(num_frames, dtype="float32", always_2d=True))


@functools.lru_cache(maxsize=2)
def _whole(source: Path | bytes, changed: int, sample_rate: int) -> Waveform:
    """Returns a whole recording, and keeps the last two: the words of a long recording are read one after the other."""
    return read_waveform(source, sample_rate)


def require_sound(waveform: Waveform) -> None:
    """Checks float32 [samples] of a recording.

    Raises:
        ValueError: there are no samples, or some are NaN, infinite or above LOUDEST.
    """
    if waveform.size == 0:
        raise ValueError("the recording must have samples, got none")
    highest, lowest = float(waveform.max()), float(waveform.min())
    if not (math.isfinite(highest) and math.isfinite(lowest)):
        raise ValueError("the recording must have finite samples, got NaN or infinity")
    if max(highest, -lowest) > LOUDEST:
        raise ValueError(
            f"the recording must have samples of at most {LOUDEST:g} times full scale, got "
            f"{max(highest, -lowest):.6g} (if they are integers that were saved as floats, divide them by 32768)"
        )


def require_varied(waveform: Waveform) -> None:
    """Checks that something is to be heard in float32 [samples].

    Raises:
        ValueError: all samples are the same.
    """
    if waveform.size and waveform.min() == waveform.max():
        raise ValueError("the recording must have sound, got silence: all samples are the same")


def _read_bytes(path: Path) -> bytes:
    """Reads a file in one call, as most are small (twice as fast as `Path.read_bytes`), or the start of a huge file."""
    most = 1 << 16
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.read(descriptor, most)
        if len(data) == most and os.fstat(descriptor).st_size <= _HEADER.size + 2 * MOST_SAMPLES:
            return path.read_bytes()
        return data
    finally:
        os.close(descriptor)


def _plain_pcm(data: bytes, sample_rate: int) -> npt.NDArray[np.int16] | None:
    """Returns the samples of a canonical WAV file (mono, 16-bit, at `sample_rate`), or None for any other file.

    Nearly all clips of Speech Commands are such files, and this is 4.8 times faster than libsndfile. Every header field
    must match and nothing may follow the samples; all other files are left to libsndfile.
    """
    length = len(data) - _HEADER.size
    if length <= 0 or length % 2:
        return None
    plain = (b"RIFF", 36 + length, b"WAVEfmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", length)
    if _HEADER.unpack_from(data) != plain:
        return None
    return np.frombuffer(data, dtype="<i2", offset=_HEADER.size)


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """A recording as it was decoded."""

    waveform: Waveform
    """float32 [samples], the average of its channels."""
    rate: int
    """In Hz."""
    claimed: int = 0
    """The number of samples according to its header, as far as libsndfile believes it; 0: not known."""


class TooLong(ValueError):
    """Raised if a recording is longer than it may be."""


def _decode(source: Path | bytes, start: bytes, max_seconds: float) -> _Decoded:
    """Reads a recording with libsndfile, or else with FFmpeg.

    Args:
        source: the file, or its content.
        start: its first bytes.
        max_seconds: how long it may be.

    Raises:
        TooLong: it is longer, or has more than MOST_SAMPLES.
        ValueError: it cannot be read.
    """
    import soundfile

    try:
        decoded = _read_with_soundfile(source, max_seconds)
        at = start.find(_LENGTH_0)
        if decoded.waveform.size or at < 0:
            return decoded
        data = source if isinstance(source, bytes) else source.read_bytes()
        return _read_with_soundfile(data[:at] + _LENGTH_UNKNOWN + data[at + len(_LENGTH_0) :], max_seconds)
    except soundfile.LibsndfileError as error:
        kind, said = kind_of(start), error.error_string
        if not kind.is_audio:
            raise _not_readable(kind, "") from error
        if start.startswith(ACQUISITION):
            return _read_acquisition(source)
        if importlib.util.find_spec("av") is None:
            raise _not_readable(kind, "which needs PyAV: pip install av") from error
        try:
            return _read_with_ffmpeg(source, max_seconds)
        except EOFError as second:
            raise _not_readable(kind, f"which has no sound: {said}") from second
        except OSError as second:
            raise _not_readable(kind, f"which is damaged: {said}") from second


def _not_readable(kind: Kind, reason: str) -> ValueError:
    return ValueError(
        f"the recording must be an audio file, got {kind.name}"
        + (f", {reason}" if reason else "")
        + (f" ({kind.remedy})" if kind.remedy else "")
    )


def _read_with_soundfile(source: Path | bytes, max_seconds: float) -> _Decoded:
    """Reads a recording with libsndfile, ignoring the length in its header.

    Raises:
        soundfile.LibsndfileError: libsndfile cannot read it.
        TooLong: it is too long.
    """
    with contextlib.ExitStack() as stack:
        name: bytes | int | io.BytesIO
        if isinstance(source, bytes):
            name = io.BytesIO(source)
        elif source.suffix.lower() == ".raw":  # soundfile would ask for the format
            name = stack.enter_context(source.open("rb")).fileno()
        else:
            name = os.fsencode(source)
        file = stack.enter_context(_stream_class()(name, closefd=False))
        blocks = _Blocks(max_seconds * file.samplerate)
        claimed = int(file.frames)
        num_frames = max(1, BLOCK // file.channels)
        while (block := file.read(num_frames, dtype="float32", always_2d=True)).size:
            blocks.add(mono(block))
        return _Decoded(waveform=blocks.joined(), rate=int(file.samplerate), claimed=claimed)


def _read_acquisition(source: Path | bytes) -> _Decoded:
    """Reads a sample of Edge Impulse's data acquisition format: 16-bit numbers in JSON.

    Raises:
        ValueError: it is damaged, or of another sensor than a microphone.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        payload = json.loads(data)["payload"]
        sensors, interval, values = payload["sensors"], float(payload["interval_ms"]), payload["values"]
        samples = np.asarray(values, np.float32).reshape(len(values), -1)[:, 0] / np.float32(32768)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError("the recording must be whole, got a sample of Edge Impulse that is damaged") from error
    names = ", ".join(str(one.get("name")) for one in sensors)
    require(names == "audio" and interval > 0, "the sensor of a sample of Edge Impulse", "be audio", names)
    return _Decoded(waveform=np.ascontiguousarray(samples), rate=round(1000 / interval))


def _read_with_ffmpeg(source: Path | bytes, max_seconds: float) -> _Decoded:
    """Reads a recording with FFmpeg.

    Raises:
        EOFError: there is no sound in it.
        OSError: FFmpeg cannot read it.
        TooLong: it is too long.
    """
    import av

    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "enable_drefs": "0"}
    try:
        # An open file, not its name, which FFmpeg might take for an address.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as opened,
            av.open(opened, "r", options=options, metadata_errors="ignore") as container,
        ):
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise EOFError
            if stream.codec_context is None:
                raise OSError("its coding is unknown")
            if container.format.name == "wav" and stream.codec_context.name not in CODINGS_IN_WAV:
                raise OSError("its header is wrong")
            converter, blocks = None, _Blocks(0)
            for frame in container.decode(stream):
                if converter is None:
                    converter = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
                    blocks = _Blocks(max_seconds * frame.sample_rate)
                for converted in converter.resample(frame):
                    blocks.add(mono(np.asarray(converted.to_ndarray().T, np.float32)))
            for converted in converter.resample(None) if converter else ():
                blocks.add(mono(np.asarray(converted.to_ndarray().T, np.float32)))
    except av.FFmpegError as error:
        raise OSError(str(error)) from error
    if converter is None:
        raise EOFError
    return _Decoded(waveform=blocks.joined(), rate=int(converter.rate))


class _Blocks:
    """Decoded pieces of a recording, up to a number of samples and MOST_SAMPLES."""

    def __init__(self, most: float) -> None:
        self.most = min(most, MOST_SAMPLES)
        self.blocks: list[Waveform] = []
        self.num_samples = 0

    def add(self, block: Waveform) -> None:
        self.blocks.append(block)
        self.num_samples += len(block)
        if self.num_samples > self.most:
            raise TooLong(f"the recording must have at most {self.most:,.0f} samples, got more")

    def joined(self) -> Waveform:
        return self.blocks[0] if len(self.blocks) == 1 else np.concatenate([np.empty(0, np.float32), *self.blocks])


def mono(block: Waveform) -> Waveform:
    """Averages the channels of float32 [frames, channels]; if they cancel each other, takes the loudest one."""
    average: Waveform = block.mean(axis=1)
    if block.shape[1] > 1:
        powers = np.square(block).mean(axis=0)
        if np.square(average).mean() < CANCELLED * powers.max():
            return np.ascontiguousarray(block[:, powers.argmax()])
    return average


@functools.cache
def _stream_class() -> Any:
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        """A file that is read to its end whatever its header says, without a seek after every block."""

        def seekable(self) -> bool:
            return False

    return Stream


def resample(waveform: Waveform, rate: int, new_rate: int) -> Waveform:
    """Resamples float32 [samples] from one rate to another, in Hz, by torchaudio; by soxr where torch is not installed.

    Raises:
        ValueError: the rate is not between 1 kHz and 1 MHz.
    """
    if importlib.util.find_spec("torchaudio") is None:
        return resample_without_torch(waveform, rate, new_rate)
    import torch

    _require_rate(rate)
    # The size of torchaudio's filter grows with the product of the two rates over their common divisors: 6 GB for
    # 22,051 Hz. Limiting the denominator keeps the usual rates exact and others within 0.01 %.
    ratio = Fraction(new_rate, rate).limit_denominator(500)
    return np.asarray(_resampler(ratio.denominator, ratio.numerator)(torch.from_numpy(waveform)))


@functools.lru_cache(maxsize=8)
def _resampler(rate: int, new_rate: int) -> Any:
    """Returns torchaudio's resampler, as computing its filter takes longer than filtering a clip."""
    import torch
    import torchaudio

    return torchaudio.transforms.Resample(rate, new_rate, dtype=torch.float32)


def resample_without_torch(waveform: Waveform, rate: int, new_rate: int) -> Waveform:
    """Resamples as `resample` does, by soxr: for the server, which must not load torch even where it is installed.

    Raises:
        ValueError: the rate is not between 1 kHz and 1 MHz.
    """
    import soxr

    _require_rate(rate)
    return np.asarray(soxr.resample(waveform, rate, new_rate), np.float32)


def _require_rate(rate: int) -> None:
    require(1000 <= rate <= 1_000_000, "the rate of the recording", "be between 1 kHz and 1 MHz", rate)


def fit_length(waveform: Waveform, config: FeatureConfig) -> Waveform:
    """Pads or crops float32 [samples] to [num_samples].

    With `fit` center, a short recording is padded on both sides, and of a long one the part is kept in which most is
    said (see `most_said`), as users' recordings may have the word anywhere. With start, padding goes to the end and the
    first part is kept.
    """
    missing = config.num_samples - waveform.size
    if missing > 0:
        before = missing // 2 if config.fit == "center" else 0
        padded = np.zeros(config.num_samples, np.float32)
        padded[before : before + waveform.size] = waveform
        return padded
    if missing == 0 or config.fit == "start":
        return waveform[: config.num_samples]
    start = most_said(waveform, config)
    return waveform[start : start + config.num_samples]


def most_said(waveform: Waveform, config: FeatureConfig) -> int:
    """Returns where in float32 [samples] the clip begins in which sound stands out of the background for longest.

    The level of every hundredth of a second counts as far as it exceeds the background by FLOOR_DB, up to RANGE_DB: a
    click is louder than a word, but shorter. Of the clips that hold the same sound, the middle one is taken.
    """
    hop = config.sample_rate // 100
    above = loudness(waveform, hop)
    length = max(1, config.num_samples // hop)
    if len(above) <= length:
        return 0
    total = np.concatenate(([0.0], np.cumsum(above)))
    said = total[length:] - total[:-length]
    best = np.flatnonzero(said >= said.max() - 1e-6 * max(1.0, float(said.max())))
    first_run = best[: np.append(np.flatnonzero(np.diff(best) > 1), len(best) - 1)[0] + 1]
    start = int(first_run[len(first_run) // 2]) * hop
    return min(start, waveform.size - config.num_samples)


def loudness(waveform: Waveform, hop: int) -> npt.NDArray[np.float64]:
    """Returns by how much each piece of `hop` samples stands out of the background, in dB from 0 to RANGE_DB, [pieces].

    The background is the level that a fifth of the pieces does not exceed, or SILENT_DB.
    """
    pieces = np.pad(waveform, (0, -waveform.size % hop)).reshape(-1, hop)
    power = np.einsum("ij,ij->i", pieces, pieces, dtype=np.float64) / hop
    levels = 10 * np.log10(np.maximum(power, 1e-12))
    background = max(float(np.quantile(levels, 0.2)), SILENT_DB) if levels.size else SILENT_DB
    return np.asarray(np.clip(levels - background - FLOOR_DB, 0, RANGE_DB))
