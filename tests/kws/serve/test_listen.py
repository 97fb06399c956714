"""`kws listen`: files, pipes, and what is refused."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from phones import encode

from kws.cli import main
from kws.model import onnx
from kws.model.bundle import Recognizer
from kws.model.detector import Thresholds
from kws.preprocess.audio import read_waveform
from kws.serve.listen import listen, open_file, standard_input

RATE = 16_000


@pytest.fixture(scope="module")
def model(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("listen") / "model.onnx"
    onnx.export(expert, path)
    (path.parent / "thresholds.json").write_text('{"thresholds": {"no": 0.5, "stop": 0.5, "yes": 0.5}}')
    return path


@pytest.fixture(scope="module")
def stream(tone_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "stream.wav"
    clip = read_waveform(min((tone_corpus / "yes").iterdir()), RATE)[:5600]
    soundfile.write(path, np.concatenate([np.zeros(RATE), clip, np.zeros(2 * RATE)]), RATE, subtype="PCM_16")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["listen", *map(str, arguments)])
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


def test_file_gives_lines_and_a_pipe_gives_the_same(
    model: Path, stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines, _ = run(capsys, "--model", model, stream)
    assert status == 0
    found = [line.split("\t") for line in lines.splitlines()]
    assert "yes" in [word for _, word, _ in found]
    assert all(0.5 <= float(probability) <= 1 for _, _, probability in found)
    command = [str(Path(sys.executable).parent / "kws"), "listen", "--model", str(model), "-"]
    for content in (stream.read_bytes(), stream.read_bytes()[44:]):
        piped = subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode()
        assert piped == lines


def test_json_lines_say_where_the_word_is(model: Path, stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = run(capsys, "--model", model, "--json", stream)
    yes = next(found for found in map(json.loads, lines.splitlines()) if found["word"] == "yes")
    assert set(yes) == {"time", "word", "probability", "begin", "end"}
    assert yes["begin"] == pytest.approx(1, abs=0.1)
    assert yes["end"] == pytest.approx(1.35, abs=0.1)
    assert yes["time"] == pytest.approx(1.2, abs=0.5)


def test_file_of_another_rate_and_two_channels_is_resampled(stream: Path, tmp_path: Path) -> None:
    samples = read_waveform(stream, RATE)
    soundfile.write(tmp_path / "two.wav", np.stack([samples, samples], axis=1), RATE)
    np.testing.assert_allclose(np.concatenate(list(open_file(tmp_path / "two.wav", RATE))), samples, atol=1e-4)
    soundfile.write(tmp_path / "slow.wav", samples, 8_000)
    assert sum(piece.size for piece in open_file(tmp_path / "slow.wav", RATE)) == 2 * samples.size


def test_pipe_with_an_unknown_length_and_further_chunks_is_read_to_its_end() -> None:
    samples = (np.arange(-1000, 1000) * 10).astype("<i2")
    form = b"fmt " + (16).to_bytes(4, "little") + b"\1\0\2\0" + (16_000).to_bytes(4, "little") + bytes(4) + b"\4\0\20\0"
    head = b"RIFF\xff\xff\xff\xffWAVE" + form + b"LIST" + (3).to_bytes(4, "little") + b"abc\0" + b"data\xff\xff\xff\xff"
    both = np.repeat(samples, 2)  # left and right
    heard = np.concatenate(list(standard_input(RATE, io.BytesIO(head + both.tobytes() + b"\1"))))
    np.testing.assert_array_equal(heard, samples / np.float32(32768))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "kws listen must be given one of FILE, - and --microphone, got none"),
        (["a.wav", "--microphone"], "kws listen must be given one of FILE, - and --microphone, got --microphone and a"),
        (["absent.wav"], "the recording must be a file, got 'absent.wav', which is not"),
        (["--thresholds", "absent.json", "-"], "absent.json"),
    ],
)
def test_what_cannot_be_heard_ends_with_a_sentence(
    model: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "--model", model, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_file_that_is_no_recording_ends_with_a_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("hello")
    status, _, err = run(capsys, "--model", model, tmp_path / "text.wav")
    assert status == 2
    assert "the recording must be an audio file, got a text file that begins with 'hello'" in err


@pytest.mark.parametrize("suffix", ["m4a", "webm", "amr", "wma"])
def test_what_phones_record_is_listened_to(model: Path, stream: Path, tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"memo.{suffix}", read_waveform(stream, RATE), suffix)
    found = listen(onnx.load(model), Thresholds.beside(model, ["no", "stop", "yes"], False), open_file(path, RATE))
    assert "yes" in [one.word for one in found]
    with pytest.raises(ValueError, match=r"must be WAV or raw 16-bit samples, got an? .*; give the name of the file"):
        next(standard_input(RATE, io.BytesIO(path.read_bytes())))


def test_pipe_of_another_rate_is_refused(stream: Path) -> None:
    content = bytearray(stream.read_bytes())
    content[24:28] = (44_100).to_bytes(4, "little")
    with pytest.raises(ValueError, match=r"must be WAV with 16000 Hz and 16 bit .* got 44100 Hz"):
        next(standard_input(RATE, io.BytesIO(bytes(content))))


def test_pipe_of_another_kind_of_file_is_refused_and_not_taken_for_samples(stream: Path) -> None:
    samples, rate = soundfile.read(stream)
    for form, name in (("FLAC", "FLAC"), ("OGG", "Ogg"), ("AIFF", "AIFF"), ("CAF", "CAF"), ("AU", "AU")):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format=form)
        buffer.seek(0)
        with pytest.raises(
            ValueError, match=f"WAV or raw 16-bit samples, got an? {name} file; give the name of the file"
        ):
            next(standard_input(RATE, buffer))


def test_ctrl_c_ends_listening_without_advice_to_resume(model: Path) -> None:
    command = [str(Path(sys.executable).parent / "kws"), "listen", "--model", str(model), "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    tones = [0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE) for hertz in (400, 800, 1600)]
    process.stdin.write((np.concatenate([*tones, np.zeros(RATE)]) * 32767).astype("<i2").tobytes())
    process.stdin.flush()
    assert process.stdout.readline()  # it listens
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read().decode() == "stopped\n"


def test_machine_without_a_microphone_says_what_to_do(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounddevice = pytest.importorskip("sounddevice", reason="PortAudio is not here") if _has_portaudio() else None
    if sounddevice is not None and any(device["max_input_channels"] for device in sounddevice.query_devices()):
        pytest.skip("this machine has a microphone")
    status, _, err = run(capsys, "--model", model, "--microphone")
    assert status == 2
    assert "error: the microphone must" in err


def _has_portaudio() -> bool:
    try:
        import sounddevice  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def test_behind_a_gate_a_word_is_heard_only_after_the_gate(
    model: Path, stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines, _ = run(capsys, "--model", model, stream)
    assert "\tyes\t" in lines
    status, lines, _ = run(capsys, "--model", model, "--after", "stop", "--after-seconds", "2", stream)
    assert (status, "\tyes\t" in lines) == (0, False)
    assert "\tyes\t" in run(capsys, "--model", model, "--after", "yes", stream)[1]
    status, _, err = run(capsys, "--model", model, "--after", "left", stream)
    assert status == 2
    assert "after must be one of the words of the model, no, stop, yes, got 'left'" in err
    assert "must be given together with after" in run(capsys, "--model", model, "--after-seconds", "2", stream)[2]
