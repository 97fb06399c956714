"""Reading recordings: every kind of WAV, other formats, and files that are no recordings."""

import contextlib
import io
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from phones import OF_PHONES, encode

from kws.data.names import is_recording
from kws.preprocess import audio
from kws.preprocess.audio import fit_length, read_clip, read_waveform, resample, resample_without_torch
from kws.recipe import FeatureConfig

WORDS = Path(__file__).parents[2] / "data" / "speech_commands"

AUDIBLE = [path for path in sorted(WORDS.glob("[a-z]*/*_nohash_0.wav")) if np.ptp(soundfile.read(path)[0]) > 0.1]
"""Real clips of words; in one of the others, there is nothing but faint noise."""

CENTER, START = FeatureConfig(), FeatureConfig(fit="start")


def tone(num_samples: int = 1600, rate: int = 16_000, frequency: float = 440) -> "np.ndarray[tuple[int], np.dtype]":
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / rate)).astype(np.float32)


def wav(samples: bytes, *, rate: int = 16_000, extra: bytes = b"", promised: int | None = None) -> bytes:
    """A mono 16-bit WAV, with an extra chunk before the data and with any length in its header."""
    length = len(samples) if promised is None else promised
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16) + extra
    body += b"data" + struct.pack("<I", length) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-23),
        ("FLOAT", 1e-9),
        ("DOUBLE", 1e-7),
        ("ULAW", 0.02),
        ("ALAW", 0.02),
    ],
)
def test_every_sample_width_gives_the_same_waveform(tmp_path: Path, subtype: str, step: float) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(), 16_000, subtype=subtype)
    waveform = read_waveform(path, 16_000)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, tone(), atol=step)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 15_999, 22_051])
def test_every_rate_gives_the_same_tone_of_the_same_length(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(rate // 2, rate), rate, subtype="FLOAT")
    waveform = read_waveform(path, 16_000)
    assert abs(waveform.size - 8000) <= 1
    inside = slice(400, 7600)  # a filter rings at the borders
    np.testing.assert_allclose(waveform[inside], tone(8000)[inside], atol=0.05 if rate % 25 else 0.01)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_051, 44_100, 48_000])
def test_resampling_is_that_of_torchaudio(rate: int) -> None:
    import torch
    import torchaudio

    noise = np.random.default_rng(0).uniform(-1, 1, rate // 4).astype(np.float32)
    ratio = Fraction(16_000, rate).limit_denominator(500)
    expected = torchaudio.functional.resample(torch.from_numpy(noise), ratio.denominator, ratio.numerator)
    np.testing.assert_array_equal(resample(noise, rate, 16_000), expected.numpy())


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_without_torch_is_the_same_below_the_edge_of_the_band(rate: int) -> None:
    waveform = tone(rate // 2, rate, 500) + tone(rate // 2, rate, min(rate // 5, 4000))
    with_torch, without = resample(waveform, rate, 16_000), resample_without_torch(waveform, rate, 16_000)
    assert abs(without.size - with_torch.size) <= 1
    assert without.dtype == np.float32
    inside = slice(400, 7600)
    np.testing.assert_allclose(without[inside], with_torch[inside], atol=2e-3)


def test_reading_where_torch_is_not_installed_resamples_with_soxr(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(8000, 8000), 8000, subtype="FLOAT")
    code = f"""
import importlib.util, sys
from pathlib import Path
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.startswith("torch") else found(name, *more)
from kws.preprocess.audio import read_waveform
print(read_waveform(Path({str(path)!r}), 16_000).size, "soxr" in sys.modules, "torch" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["16000", "True", "False"]


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 4_000_000_000])
def test_rate_of_no_recording_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="the rate of the recording must be between 1 kHz and 1 MHz, got"):
        resample(tone(), rate, 16_000)
    with pytest.raises(ValueError, match="the rate of the recording must be between 1 kHz and 1 MHz, got"):
        resample_without_torch(tone(), rate, 16_000)


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_channels_are_averaged(tmp_path: Path, rate: int) -> None:
    path, mono = tmp_path / "clip.wav", tmp_path / "mono.wav"
    left, right, third = tone(rate // 4, rate, 300), tone(rate // 4, rate, 500), tone(rate // 4, rate, 700)
    soundfile.write(path, np.stack([left, right, third], axis=1), rate, subtype="FLOAT")
    soundfile.write(mono, (left + right + third) / 3, rate, subtype="FLOAT")
    np.testing.assert_allclose(read_waveform(path, 16_000), read_waveform(mono, 16_000), atol=1e-6)


@pytest.mark.parametrize(
    "case", ["canonical", "extra chunk", "list behind", "odd length", "shorter than promised", "endless", "extensible"]
)
def test_header_of_any_form_reads_as_libsndfile_reads_it(tmp_path: Path, case: str) -> None:
    samples = (tone() * 32767).astype("<i2").tobytes()
    listed = b"LIST" + struct.pack("<I", 14) + b"INFOINAM" + struct.pack("<I", 2) + b"ab"
    if case == "extensible":
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(), 16_000, format="WAVEX", subtype="PCM_16")
        content = buffer.getvalue()
    else:
        content = {
            "canonical": wav(samples),
            "extra chunk": wav(samples, extra=listed),
            "list behind": wav(samples) + listed,
            "odd length": wav(samples + b"x"),
            "shorter than promised": wav(samples[:2000], promised=len(samples)),
            "endless": wav(samples, promised=0xFFFFFFFF),
        }[case]
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    expected, _ = soundfile.read(path, dtype="float32")
    assert expected.size in (1600, 1000)
    np.testing.assert_array_equal(read_waveform(path, 16_000), expected)


def test_real_clips_read_the_fast_way_as_libsndfile_reads_them(real_corpus: Path) -> None:
    paths = sorted(real_corpus.glob("[a-z]*/*.wav"))[:60]
    assert paths
    for path in paths:
        expected, rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000
        np.testing.assert_array_equal(read_waveform(path, 16_000), expected)


def test_flac_is_read_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.flac", tone(), 16_000)
    np.testing.assert_allclose(read_waveform(tmp_path / "clip.flac", 16_000), tone(), atol=2**-15)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an audio file, got an empty file"),
        (b"<html>not found</html>", "must be an audio file, got a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS.*git lfs pull"),
        (b"PAR1" + bytes(60), "got a Parquet file"),
        (bytes(5000), "must be an audio file, got nothing but zeros"),
        (wav(b"")[:30], "must be an audio file, got a WAV file, which is damaged"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "got a text file that begins with '#EXTM3U'"),
        (b"OggS" + bytes(500), "got an Ogg file, which is damaged"),
        (wav(b""), "must have samples, got none"),
        (wav(b"", rate=8000), "must have samples, got none"),
    ],
)
def test_file_without_a_recording_is_refused_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_waveform(path, 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    samples = tone()
    samples[7] = value
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match="must have finite samples, got NaN or infinity"):
        read_waveform(tmp_path / "clip.wav", 16_000)


@pytest.mark.parametrize("value", [1e25, -1e25, 3e38, 1e4, -32768.0, 17.0])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sample_far_beyond_full_scale_is_refused(tmp_path: Path, value: float, rate: int) -> None:
    samples = tone(rate=rate)
    samples[700] = value
    soundfile.write(tmp_path / "clip.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"must have samples of at most 16 times full scale, got"):
        read_waveform(tmp_path / "clip.wav", 16_000)


def test_floats_that_were_driven_over_full_scale_are_read_as_they_are(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", 20 * tone(), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_waveform(tmp_path / "clip.wav", 16_000), 20 * tone())


@pytest.mark.parametrize("claimed", [0, 2**36 - 1], ids=["unknown", "too much"])
def test_length_in_the_header_of_a_flac_is_not_believed(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "clip.flac"
    soundfile.write(path, tone(), 16_000)
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | claimed >> 32  # 36 bits of STREAMINFO
    content[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    np.testing.assert_allclose(read_waveform(path, 16_000), tone(), atol=2**-15)


def test_length_in_the_header_of_an_mp3_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp3"
    soundfile.write(path, tone(16_000), 16_000, format="MP3")
    content = bytearray(path.read_bytes())
    place = max(content.find(b"Xing"), content.find(b"Info"))
    assert place > 0
    content[place + 8 : place + 12] = b"\x7f\xff\xff\xff"  # frames
    path.write_bytes(content)
    assert 0 < read_waveform(path, 16_000).size < 20_000


def test_recording_that_lasts_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MOST_SAMPLES", 30_000)
    for name in ("clip.flac", "clip.wav"):
        soundfile.write(tmp_path / name, np.zeros(40_000), 16_000)
        with pytest.raises(ValueError, match="must have at most 30,000 samples, got more"):
            read_waveform(tmp_path / name, 16_000)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus", "mp3", "wav"])
def test_recording_of_many_blocks_is_read_as_libsndfile_reads_it_at_once(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK", 5000)
    path = tmp_path / f"clip.{suffix}"
    noise = 0.1 * np.random.default_rng(0).standard_normal((40_000, 2))
    format_ = {"opus": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(path, noise, 16_000, format=format_, subtype="OPUS" if suffix == "opus" else None)
    expected, rate = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(
        read_waveform(path, rate), expected.mean(axis=1), rtol=0, atol=1e-7 if suffix == "mp3" else 0
    )


def test_name_that_is_no_utf8_or_ends_in_raw_is_read_by_its_bytes(tmp_path: Path) -> None:
    content = wav((tone(400) * 32767).astype("<i2").tobytes(), rate=8000)
    for name in ("cl\udcefp.WAV", "clip.raw", "clip.m4a", "clip"):
        (tmp_path / name).write_bytes(content)
        assert read_waveform(tmp_path / name, 8000).size == 400
    with pytest.raises(FileNotFoundError):
        read_waveform(tmp_path / "missing.raw", 8000)


def correlation(one: "np.ndarray[tuple[int], np.dtype]", other: "np.ndarray[tuple[int], np.dtype]") -> float:
    """The largest correlation of two waveforms over a shift of up to 0.15 s, as encoders delay."""
    size = min(len(one), len(other)) - 2400
    best = 0.0
    for shift in range(-2400, 2400, 1):
        first, second = one[max(shift, 0) :][:size], other[max(-shift, 0) :][:size]
        size_now = min(len(first), len(second))
        a, b = first[:size_now], second[:size_now]
        best = max(best, float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-9)))
    return best


@pytest.mark.parametrize("suffix", OF_PHONES)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_phones_and_browsers_record_is_heard_as_it_was_spoken(
    tmp_path: Path, real_corpus: Path, suffix: str, channels: int
) -> None:
    if channels == 2 and "amr" in OF_PHONES[suffix][1]:
        pytest.skip("AMR is mono")
    spoken = read_waveform(sorted((real_corpus / "yes").glob("*.wav"))[0], 16_000)
    path = encode(tmp_path / f"clip.{suffix}", spoken, suffix, channels)
    heard = read_waveform(path, 16_000)
    assert heard.dtype == np.float32
    assert abs(heard.size - spoken.size) < 3200
    assert correlation(spoken, heard) > 0.85
    misnamed = path.rename(tmp_path / "clip.wav")
    np.testing.assert_array_equal(read_waveform(misnamed, 16_000), heard)


@pytest.mark.parametrize("suffix", ["aiff", "aif", "au", "caf", "w64", "oga"])
def test_what_libsndfile_reads_is_a_recording_by_its_name_and_read_by_libsndfile(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    format_ = {"aif": "AIFF", "oga": "OGG"}.get(suffix, suffix.upper())
    soundfile.write(path, tone(), 16_000, format=format_)
    assert is_recording(path.name)
    np.testing.assert_array_equal(read_waveform(path, 16_000), soundfile.read(path, dtype="float32")[0])


def ogg_checksum(page: bytes) -> int:
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x04C11DB7 if register & 1 << 31 else 0)) & 0xFFFFFFFF
    return register


def test_ogg_opus_that_libsndfile_refuses_as_malformed_is_read_by_the_other_decoder(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.opus", tone(48_000), "opus")
    data, pages, place = bytearray(path.read_bytes()), [], 0
    while place < len(data):
        size = 27 + data[place + 26] + sum(data[place + 27 : place + 27 + data[place + 26]])
        pages.append((place, size))
        place += size
    place, size = pages[-2]  # its position, 500 samples earlier than libsndfile counts, is no reason to refuse a file
    (position,) = struct.unpack_from("<q", data, place + 6)
    struct.pack_into("<q", data, place + 6, position - 500)
    data[place + 22 : place + 26] = bytes(4)
    struct.pack_into("<I", data, place + 22, ogg_checksum(bytes(data[place : place + size])))
    path.write_bytes(data)
    with pytest.raises(soundfile.LibsndfileError, match="malformed"):
        soundfile.read(path)
    assert abs(read_waveform(path, 16_000).size - 48_000) < 480


def test_end_of_an_ogg_opus_that_ffmpeg_cut_off_is_read_though_libsndfile_refuses_it(tmp_path: Path) -> None:
    whole, end = encode(tmp_path / "whole.opus", tone(128_000), "opus"), tmp_path / "end.opus"
    with av.open(str(whole)) as source, av.open(str(end), "w", format="ogg") as target:
        packets = [packet for packet in source.demux(source.streams.audio[0]) if packet.size]
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in packets[399:402]:  # as `ffmpeg -ss 7.98 -c copy` does
            packet.stream = stream
            target.mux(packet)
    with pytest.raises(soundfile.LibsndfileError, match="malformed"):
        soundfile.read(end)
    assert read_waveform(end, 16_000).size > 0


def test_without_pyav_the_package_is_named(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.m4a", tone(16_000), "m4a")
    code = (
        "import sys, importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'av' else f(name, *more)\n"
        "from pathlib import Path; from kws.preprocess.audio import read_waveform\n"
        "read_waveform(Path(sys.argv[1]), 16000)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "got an MP4 file, which needs PyAV: pip install av" in ran.stderr


@pytest.mark.parametrize("suffix", ["m4a", "webm", "amr"])
def test_recording_of_a_phone_that_is_damaged_is_read_or_refused_in_a_sentence(tmp_path: Path, suffix: str) -> None:
    content = encode(tmp_path / "clip", tone(16_000), suffix).read_bytes()
    drawn = np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    for _ in range(40):
        data = bytearray(content[: drawn.integers(1, len(content))])
        for place in drawn.integers(0, len(data), 5):
            data[place] = drawn.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            assert read_waveform(path, 16_000).size


SIZES = st.sampled_from([0, 1, 2, 3, 8, 35, 36, 44, 100, 200, 236, 237, 2**31 - 1, 2**31, 2**32 - 1])
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 24, 32, 80, 8000, 16_000, 32_000, 65_535])


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    riff=SIZES | st.just(None),
    tag=st.sampled_from([b"RIFF"] * 8 + [b"RIFX", b"RF64", b"JUNK"]),
    form_size=NUMBERS | st.just(16),
    form=st.just(1) | NUMBERS,
    channels=st.just(1) | NUMBERS,
    rate=st.just(16_000) | NUMBERS,
    byte_rate=st.just(32_000) | NUMBERS,
    align=st.just(2) | NUMBERS,
    bits=st.just(16) | NUMBERS,
    data_tag=st.sampled_from([b"data"] * 8 + [b"LIST", b"fact"]),
    data_size=SIZES | st.just(None),
    num_bytes=st.sampled_from([0, 1, 2, 3, 199, 200, 201]),
    behind=st.sampled_from([b""] * 4 + [b"\0", b"LIST\4\0\0\0abcd", b"data\4\0\0\0abcd", b"fmt \4\0\0\0abcd"]),
)
@example(
    riff=8,
    tag=b"RIFF",
    form_size=16,
    form=1,
    channels=1,
    rate=16_000,
    byte_rate=32_000,
    align=2,
    bits=16,
    data_tag=b"data",
    data_size=0,
    num_bytes=200,
    behind=b"",
)
def test_fast_path_and_libsndfile_agree_on_every_header(
    tmp_path_factory: pytest.TempPathFactory,
    riff: int | None,
    tag: bytes,
    form_size: int,
    form: int,
    channels: int,
    rate: int,
    byte_rate: int,
    align: int,
    bits: int,
    data_tag: bytes,
    data_size: int | None,
    num_bytes: int,
    behind: bytes,
) -> None:
    samples = bytes(range(1, num_bytes + 1))
    data_size = num_bytes if data_size is None else data_size
    riff = 36 + num_bytes + len(behind) if riff is None else riff
    content = struct.pack(
        "<4sI8sIHHIIHH4sI",
        tag,
        riff,
        b"WAVEfmt ",
        form_size,
        form,
        channels,
        rate,
        byte_rate,
        align,
        bits,
        data_tag,
        data_size,
    )
    path = tmp_path_factory.getbasetemp() / "any.wav"
    path.write_bytes(content + samples + behind)
    expected = None
    with contextlib.suppress(soundfile.LibsndfileError):
        expected, read_rate = soundfile.read(path, dtype="float32", always_2d=True)
    if expected is None or not expected.size:
        with pytest.raises(ValueError, match="the recording must"):
            read_waveform(path, 16_000)
    elif read_rate == 16_000:
        np.testing.assert_array_equal(read_waveform(path, 16_000), expected.mean(axis=1))


def test_missing_file_is_no_bad_recording_but_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "clip.wav", CENTER)


def test_damaged_headers_give_a_waveform_or_a_value_error_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "clip.wav"
    good = wav((tone(400) * 32767).astype("<i2").tobytes(), rate=8000)
    outcomes = set()
    for _ in range(150):
        content = bytearray(good)
        for place in random.integers(0, 44, size=2):
            content[place] = random.integers(0, 256)
        path.write_bytes(content[: random.integers(1, len(content) + 1)])
        try:
            outcomes.add(read_clip(path, CENTER).shape)
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {(16_000,), "refused"}


def test_short_recording_is_padded_on_both_sides_or_behind() -> None:
    short = np.ones(9, dtype=np.float32)
    centred, first = fit_length(short, CENTER), fit_length(short, START)
    assert centred.size == first.size == 16_000
    assert np.flatnonzero(centred).tolist() == list(range(7995, 8004))
    assert np.flatnonzero(first).tolist() == list(range(9))


def test_long_recording_keeps_the_second_in_which_most_is_said_or_the_first() -> None:
    long = np.full(50_000, 0.01, dtype=np.float32)
    long[30_000:46_000] = 0.5
    assert (fit_length(long, CENTER) == 0.5).mean() >= 0.99  # to a hundredth of a second
    np.testing.assert_array_equal(fit_length(long, START), long[:16_000])


@pytest.mark.parametrize("level", [0.3, 1.0])
@pytest.mark.parametrize("path", AUDIBLE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_word_is_kept_though_a_click_seconds_later_is_louder(path: Path, level: float) -> None:
    word = read_waveform(path, 16_000)
    random = np.random.default_rng(0)
    long = np.concatenate((word, np.zeros(48_000, np.float32)))
    long += 0.1 * np.sqrt(np.mean(word**2)) * random.standard_normal(long.size).astype(np.float32)
    long[-8000:-7600] += level * 2 * random.standard_normal(400).astype(np.float32)  # 25 ms
    heard = fit_length(long, CENTER)
    start = next(i for i in range(long.size) if np.array_equal(long[i : i + 10], heard[:10]))
    assert start <= 8000  # half of the clip's second at least, with the word in its middle


def test_of_the_clips_that_hold_all_of_a_word_the_middle_one_is_taken() -> None:
    long = np.full(64_000, 0.001, dtype=np.float32)
    long[40_000:46_400] = 0.5
    heard = np.flatnonzero(fit_length(long, CENTER) == 0.5)
    assert heard.size == 6400
    assert abs((heard[0] + heard[-1]) / 2 - 8000) < 200


def test_stereo_whose_channels_cancel_is_heard_from_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "reversed.wav"
    soundfile.write(path, np.stack([tone(), -tone()], axis=1), 16_000)
    np.testing.assert_allclose(np.abs(read_waveform(path, 16_000)), np.abs(tone()), atol=2**-14)


def test_loudest_second_may_be_the_very_last() -> None:
    long = np.zeros(16_001, dtype=np.float32)
    long[-1] = 1
    assert fit_length(long, CENTER)[-1] == 1


@pytest.mark.parametrize("config", [CENTER, START])
def test_recording_of_the_right_length_stays_as_it_is(config: FeatureConfig) -> None:
    samples = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    np.testing.assert_array_equal(fit_length(samples, config), samples)


def test_real_digits_at_8_khz_become_clips_of_a_second_with_their_word_inside(real_digits: Path) -> None:
    paths = sorted(real_digits.glob("*/*.wav"))
    assert len(paths) == 20
    for path in paths:
        info = soundfile.info(path)
        assert info.samplerate == 8000
        clip = read_clip(path, CENTER)
        assert clip.shape == (16_000,)
        samples, _ = soundfile.read(path)
        if info.duration <= 1:  # all of its energy: the rate is twice as high
            assert np.square(clip).sum() == pytest.approx(2 * np.square(samples).sum(), rel=0.02)
