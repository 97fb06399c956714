"""The server from outside: processes of the command line, third-party clients."""

import asyncio
import base64
import gzip
import io
import itertools
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tritonclient.grpc
import tritonclient.http
from phones import OF_PHONES, encode
from recognizers import MakeRecognizer
from serve.conftest import Server, Start, publish

from kws import files
from kws.cli import main
from kws.config import ServeConfig
from kws.model import bundle as pth
from kws.model import onnx, versions
from kws.model.bundle import Recognizer
from kws.preprocess.audio import read_clip
from kws.serve.server import open_models

WORDS = ["no", "stop", "yes"]


@pytest.fixture(scope="module")
def clips(tone_corpus: Path, expert: Recognizer) -> np.ndarray:
    """One clip of every word, float32 [3, 16000]."""
    return np.stack([read_clip(min((tone_corpus / word).iterdir()), expert.features) for word in WORDS])


def fp32(waveforms: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": "waveforms", "datatype": "FP32", "shape": list(waveforms.shape), "data": waveforms.tolist()} | more


def wav(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def audio(*recordings: bytes) -> dict[str, Any]:
    data = [base64.b64encode(recording).decode() for recording in recordings]
    return {"name": "waveforms", "datatype": "BYTES", "shape": [len(data)], "data": data}


def output(answer: Any, name: str) -> Any:
    (found,) = [each for each in answer["outputs"] if each["name"] == name]
    return found


def test_health_and_metadata_say_what_is_served(server: Server, expert_onnx: Path) -> None:
    assert server.get("/v2/health/live") == (200, {"live": True})
    assert server.get("/v2/health/ready") == (200, {"ready": True})
    assert server.get("/v2")[1]["extensions"] == ["binary_tensor_data", "classification"]
    status, found = server.get("/v2/models/kws")
    assert status == 200
    (version,) = found["versions"]
    assert found["inputs"] == [{"name": "waveforms", "datatype": "FP32", "shape": [-1, 16000]}]
    assert found["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    assert found["labels"] == WORDS
    assert server.get(f"/v2/models/kws/versions/{version}/ready") == (200, {"name": "kws", "ready": True})
    assert server.get("/v2/models/kws/versions/other/ready")[0] == 404
    assert server.get("/v2/models/other")[0] == 404


def test_every_way_to_ask_gives_the_same_numbers(server: Server, clips: np.ndarray, expert: Recognizer) -> None:
    expected = expert.predict(clips)
    status, answer = server.infer(fp32(clips), id="seven")
    assert (status, answer["id"], answer["model_name"]) == (200, "seven", "kws")
    assert output(answer, "probabilities")["shape"] == [3, 3]
    assert output(answer, "words")["data"] == WORDS
    found = {"json": np.array(output(answer, "probabilities")["data"]).reshape(3, 3)}
    for kind, client, name in (("rest", tritonclient.http, server.url[7:]), ("grpc", tritonclient.grpc, server.grpc)):
        with client.InferenceServerClient(name) as connection:
            assert connection.is_server_ready()
            assert connection.is_model_ready("kws")
            asked = client.InferInput("waveforms", [3, 16000], "FP32")
            asked.set_data_from_numpy(clips)
            heard = connection.infer("kws", [asked], request_id="eight")
            found[f"{kind} raw"] = heard.as_numpy("probabilities")
            assert heard.as_numpy("words").tolist() == [word.encode() for word in WORDS]
            best = client.InferRequestedOutput("probabilities", class_count=2)
            classes = connection.infer("kws", [asked], outputs=[best]).as_numpy("probabilities")
            assert classes.shape == (3, 2)
            assert classes[1, 0].decode().split(":")[1:] == ["1", "stop"]
            recordings = np.array([wav(clip, subtype="FLOAT") for clip in clips], dtype=np.object_)
            asked = client.InferInput("waveforms", [3], "BYTES")
            asked.set_data_from_numpy(recordings)
            found[f"{kind} audio"] = connection.infer("kws", [asked]).as_numpy("probabilities")
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="kws", id="nine")
        tensor = request.inputs.add(name="waveforms", datatype="FP32", shape=[3, 16000])
        tensor.contents.fp32_contents.extend(clips.reshape(-1).tolist())
        typed = stub.ModelInfer(request)
        assert typed.id == "nine"
        found["grpc typed"] = np.array(typed.outputs[0].contents.fp32_contents).reshape(3, 3)
    assert set(found) == {"json", "rest raw", "rest audio", "grpc raw", "grpc audio", "grpc typed"}
    for kind, numbers in found.items():
        np.testing.assert_allclose(numbers, expected, atol=2e-4, err_msg=kind)


def test_clients_of_kserve_are_answered(server: Server, clips: np.ndarray) -> None:
    code = f"""
import asyncio, json
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

def request():
    asked = InferInput("waveforms", [3, 16000], "FP32")
    asked.set_data_from_numpy(np.load("clips.npy"), binary_data=True)
    return InferRequest("kws", [asked])

async def main():
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    remote = InferenceGRPCClient({server.grpc!r})
    print(json.dumps([
        await rest.is_server_ready({server.url!r}), await rest.is_model_ready({server.url!r}, "kws"),
        (await rest.infer({server.url!r}, request(), model_name="kws")).outputs[1].data,
        await remote.is_server_ready(), await remote.is_model_ready("kws"),
        [str(each, "utf-8") for each in (await remote.infer(request())).outputs[1].as_numpy()],
    ]))

asyncio.run(main())
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/clips.npy", clips)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True, WORDS, True, True, WORDS]


@pytest.mark.parametrize(
    ("form", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 8000),
        ("WAV", "FLOAT", 44_100),
        ("FLAC", "PCM_16", 16_000),
        ("OGG", "VORBIS", 48_000),
        ("MP3", None, 16_000),
        ("WAV", "ULAW", 8000),
    ],
)
def test_audio_files_of_any_kind_are_heard(server: Server, form: str, subtype: str | None, rate: int) -> None:
    time = np.arange(2 * rate) / rate
    tones = [0.3 * np.sin(2 * np.pi * 400 * 2**index * time) for index in range(3)]
    tones[1] = np.stack([tones[1], tones[1]], axis=1)  # stereo
    status, answer = server.infer(audio(*(wav(tone, rate, form, subtype) for tone in tones)))
    assert (status, output(answer, "words")["data"]) == (200, WORDS)


@pytest.mark.parametrize("suffix", OF_PHONES)
def test_what_phones_record_is_heard(server: Server, tmp_path: Path, suffix: str) -> None:
    time = np.arange(16_000) / 16_000
    tones = [(0.3 * np.sin(2 * np.pi * 400 * 2**index * time)).astype(np.float32) for index in range(3)]
    paths = [encode(tmp_path / f"{index}.{suffix}", tone, suffix) for index, tone in enumerate(tones)]
    status, answer = server.infer(audio(*(path.read_bytes() for path in paths)))
    assert (status, output(answer, "words")["data"]) == (200, WORDS)
    status, answer = server.infer(audio(paths[0].read_bytes()[:40]))
    assert status == 400
    assert answer["error"].startswith("audio file 0: the recording must be an audio file, got a")


GOOD = {"name": "waveforms", "datatype": "FP32", "shape": [1, 16000], "data": [0.0] * 16000}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "input0"}, "inputs must be one tensor named waveforms, got 'input0'"),
        ({"datatype": "INT16"}, "datatype of waveforms must be FP32 or BYTES, got 'INT16'"),
        ({"datatype": 5}, "datatype of waveforms must be a string"),
        ({"shape": [1, -16000]}, "shape of waveforms must be a list of integers of at least 0"),
        ({"shape": [1, 15999]}, r"shape of waveforms must be \[clips, 16000\]"),
        ({"shape": [2, 16000]}, "data of waveforms must be 32000 numbers according to its shape, got 16000"),
        ({"shape": [1 << 40, 16000]}, r"clips of a request must be 1 to 64 \(the server's --max-clips\)"),
        ({"shape": [0, 16000], "data": []}, "clips of a request must be 1 to 64"),
        ({"shape": "16000"}, "shape of waveforms must be a list of integers"),
        ({"data": ["0.5"] * 16000}, "data of waveforms must be numbers"),
        ({"data": [None] * 16000}, "data of waveforms must be numbers"),
        ({"data": [True] * 16000}, "data of waveforms must be numbers"),
        ({"data": [[0.0], [0.0, 1.0]] * 8000}, "nested as its shape"),
        ({"data": [[0.0] * 8000, [0.0] * 8000]}, r"nested as its shape \[1, 16000\], got 'other lists'"),
        ({"data": [[[0.0] * 16000]]}, "nested as its shape"),
        ({"data": [True, *[0.5] * 15999]}, "data of waveforms must be numbers, got 'bool'"),
        ({"data": [[0.5] * 15999 + [None]]}, "data of waveforms must be numbers, got 'NoneType'"),
        ({"shape": 0}, "shape of waveforms must be a list of integers of at least 0, got 0"),
        ({"data": [1e39] * 16000}, "data of waveforms must be finite numbers"),
        ({"data": [10**400] * 16000}, "the request must be JSON|data of waveforms must be"),
        ({"data": [12000] * 16000}, "must be samples in -1 to 1 .divide 16-bit samples by 32768., got 12000"),
        ({"data": 0}, "data of waveforms must be a list, got 'int'"),
        ({"parameters": {"binary_data_size": 64000}}, "binary_data_size of waveforms must be at most 0"),
        ({"parameters": []}, "parameters of waveforms must be an object"),
        ({"datatype": "BYTES", "shape": [1], "data": ["%%"]}, "must be audio files in base64"),
        ({"datatype": "BYTES", "shape": [1], "data": [7]}, "data of waveforms must be strings"),
        ({"datatype": "BYTES", "shape": [1], "data": [["AAAA"]]}, "data of waveforms must be strings, got 'list'"),
        ({"datatype": "BYTES", "shape": [2], "data": ["AAAA"]}, "must be 2 strings according to its shape, got 1"),
        (
            {"datatype": "BYTES", "shape": [1], "data": ["AAAA"]},
            "audio file 0: the recording must be .*, got nothing but zeros",
        ),
        (
            {"datatype": "BYTES", "shape": [1], "data": [""]},
            "audio file 0: the recording must be .*, got an empty file",
        ),
    ],
)
def test_bad_input_gets_a_400_with_a_sentence(server: Server, change: dict[str, Any], said: str) -> None:
    status, answer = server.infer(GOOD | change)
    assert status == 400
    assert re.search(said, answer["error"]), answer


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"", {}, "the request must be JSON"),
        (b"[]", {}, "the request must be a JSON object"),
        (b'{"inputs": NaN}', {}, "the request must be JSON"),
        (b"[" * 100_000, {}, "the request must be JSON"),
        (b'{"inputs": {}}', {}, "inputs of the request must be a list of objects"),
        (b'{"inputs": []}', {}, "inputs must be one tensor named waveforms, got 'none'"),
        (b'{"id": 5, "inputs": []}', {}, "id must be a string"),
        (b'{"id": 0, "inputs": []}', {}, "id must be a string"),
        (b'{"id": [], "inputs": []}', {}, "id must be a string"),
        (b"\x1f\x8b", {"content-encoding": "gzip"}, "must be compressed with gzip, got a part of it"),
        (b"{}", {"content-encoding": "deflate"}, "must be compressed with deflate, got Error"),
        (b'{"inputs": [], "outputs": [{"name": "logits"}]}', {}, "an output must be probabilities or words"),
        (b"{}", {"inference-header-content-length": "-3"}, "must be a number of bytes"),
        (b"{}", {"inference-header-content-length": "9"}, "must be a number of bytes up to 2"),
        (b'{"inputs": []}behind', {"inference-header-content-length": "14"}, "6 more"),
    ],
)
def test_a_body_that_is_no_request_gets_a_400(server: Server, body: bytes, headers: dict[str, str], said: str) -> None:
    status, answer = server.post("/v2/models/kws/infer", body, headers)
    assert (status, said in answer["error"]) == (400, True), answer


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_understood(server: Server, clips: np.ndarray, algorithm: str) -> None:
    with tritonclient.http.InferenceServerClient(server.url[7:]) as client:
        asked = tritonclient.http.InferInput("waveforms", [3, 16000], "FP32")
        asked.set_data_from_numpy(clips)
        heard = client.infer("kws", [asked], request_compression_algorithm=algorithm)
        assert heard.as_numpy("words").tolist() == [word.encode() for word in WORDS]
    assert server.post("/v2/models/kws/infer", b"", {"content-encoding": "br"})[0] == 415
    bomb = gzip.compress(b" " * (32 << 20))
    assert server.post("/v2/models/kws/infer", bomb, {"content-encoding": "gzip"})[0] == 413


def test_audio_file_that_is_cut_off_is_refused_and_one_from_a_pipe_is_not(server: Server, clips: np.ndarray) -> None:
    for form in ("WAV", "FLAC"):
        whole = wav(clips[0], form=form)
        for length in (len(whole) // 30 + 200, len(whole) - 2):
            status, answer = server.infer(audio(whole[:length]))
            assert status == 400, answer
    piped = bytearray(wav(clips[0]))
    piped[4:8] = piped[40:44] = b"\xff\xff\xff\xff"
    assert server.infer(audio(bytes(piped)))[0] == 200


def test_methods_that_the_server_does_not_have_leave_no_traceback_in_its_log(server: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(tritonclient.grpc.InferenceServerException) as caught:
            client.get_model_repository_index()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert not any("Traceback" in line for line in server.log)


def test_raw_tensors_are_checked_against_their_shape(server: Server) -> None:
    head = GOOD | {"parameters": {"binary_data_size": 8}}
    del head["data"]
    text = json.dumps({"inputs": [head]}).encode()
    status, answer = server.post(
        "/v2/models/kws/infer", text + b"\0" * 8, {"inference-header-content-length": str(len(text))}
    )
    assert (status, answer["error"]) == (400, "data of waveforms must be 64000 bytes according to its shape, got 8")
    text = json.dumps({"inputs": [head | {"datatype": "BYTES", "shape": [1]}]}).encode()
    raw = struct.pack("<I", 1 << 31) + b"RIFF"
    status, answer = server.post(
        "/v2/models/kws/infer", text + raw, {"inference-header-content-length": str(len(text))}
    )
    assert (status, "each after its length" in answer["error"]) == (400, True)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_far_beyond_full_scale_are_refused_in_audio_files_as_in_tensors(server: Server, rate: int) -> None:
    samples = np.zeros(rate)
    samples[7] = 1e25
    status, answer = server.infer(audio(wav(samples, rate, subtype="FLOAT")))
    assert (status, "at most 16 times full scale, got 1e+25" in answer["error"]) == (400, True), answer


def test_samples_that_are_no_numbers_are_refused_over_grpc_too(server: Server, clips: np.ndarray) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for waveforms, said in (
            (np.full((1, 16000), np.nan, np.float32), "finite"),
            (clips[:, :100], "shape of waveforms must be"),
        ):
            asked = tritonclient.grpc.InferInput("waveforms", list(waveforms.shape), "FP32")
            asked.set_data_from_numpy(np.ascontiguousarray(waveforms))
            with pytest.raises(tritonclient.grpc.InferenceServerException, match=said) as caught:
                client.infer("kws", [asked])
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="model must be kws"):
            client.get_model_metadata("other")
        assert client.get_model_metadata("kws", as_json=True)["inputs"][0]["shape"] == ["-1", "16000"]


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/v2/models/kws/infer", b"application/json", 413),
        ("/v2/models/kws/infer", b"application/json\r\ncontent-encoding: br", 415),
        ("/collection/yes?speaker=0123abcd", b"text/plain", 404),
        ("/nowhere", b"text/plain", 404),
    ],
)
def test_client_that_still_sends_its_body_sees_why_it_is_refused(
    server: Server, path: str, kind: bytes, status: int
) -> None:
    size = 64 << 20
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\ncontent-type: %b\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as client:
        client.sendall(head % (path.encode(), size, kind))
        client.recv(1, socket.MSG_PEEK)  # the server has answered
        for _ in range(size >> 20):
            client.sendall(bytes(1 << 20))
        with client.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 %d " % status)


def test_size_duration_and_number_are_bounded_and_the_setting_is_named(
    start: Start, expert_onnx: Path, clips: np.ndarray
) -> None:
    server = start("--model", expert_onnx, "--max-request-mib", "1", "--max-seconds", "2", "--max-clips", "2")
    status, answer = server.post("/v2/models/kws/infer", b" " * ((1 << 20) + 1))
    assert (status, "--max-request-mib" in answer["error"]) == (413, True)
    status, answer = server.infer(audio(wav(np.zeros(40_000))))
    assert (status, "--max-seconds" in answer["error"]) == (400, True)
    status, answer = server.infer(fp32(clips))
    assert (status, "--max-clips" in answer["error"]) == (400, True)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        asked = tritonclient.grpc.InferInput("waveforms", [20, 16000], "FP32")
        asked.set_data_from_numpy(np.zeros((20, 16000), np.float32))
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="--max-request-mib"):
            client.infer("kws", [asked])
    assert server.infer(fp32(clips[:1]))[0] == 200


def test_too_much_at_once_is_turned_away_with_429_and_what_was_taken_is_answered(
    start: Start, expert_onnx: Path
) -> None:
    server = start("--model", expert_onnx, "--max-waiting", "1", "--num-threads", "1")
    body = np.zeros((64, 16000), np.float32).tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "waveforms",
                    "datatype": "FP32",
                    "shape": [64, 16000],
                    "parameters": {"binary_data_size": len(body)},
                }
            ]
        }
    ).encode()
    found: list[int] = []

    def ask() -> None:
        found.append(
            server.post("/v2/models/kws/infer", head + body, {"inference-header-content-length": str(len(head))})[0]
        )

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {200, 429}
    assert server.get("/v2/health/ready")[0] == 200


def test_metrics_tell_requests_words_and_version(start: Start, expert_onnx: Path, clips: np.ndarray) -> None:
    server = start("--model", expert_onnx)
    server.infer(fp32(clips))
    server.infer(fp32(clips[:, :5]))
    (version,) = server.get("/v2/models/kws")[1]["versions"]
    status, text = server.get("/metrics")
    assert status == 200
    for line in (
        f'kws_requests_total{{model="kws",protocol="rest",status="200",version="{version}"}} 1.0',
        f'kws_requests_total{{model="kws",protocol="rest",status="400",version="{version}"}} 1.0',
        f'kws_request_seconds_count{{model="kws",protocol="rest",version="{version}"}} 2.0',
        f'kws_words_total{{model="kws",version="{version}",word="stop"}} 1.0',
        f'kws_model_info{{model="kws",version="{version}"}} 1.0',
    ):
        assert line in text


def test_schemathesis_finds_no_answer_beyond_499(server: Server, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "run",
            f"{server.url}/openapi.json",
            "--checks",
            "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance",
            "--max-examples",
            "8",
            "--seed",
            "1",
            "--phases",
            "examples,coverage,fuzzing",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_serving_imports_no_torch_and_no_onnx(expert_onnx: Path) -> None:
    code = f"""
import json, sys
from pathlib import Path
from kws.config import ServeConfig
from kws.serve import server
from kws.serve.service import Service
server.create_app(Service(server.open_models(Path({str(expert_onnx)!r}), None, ServeConfig()), ServeConfig()))
print(json.dumps(sorted({{"torch", "onnx", "kserve", "pandas", "kubernetes", "matplotlib"}} & set(sys.modules))))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == []


# Which model answers


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def version_of(server: Server, clips: np.ndarray) -> str:
    status, answer = server.infer(fp32(clips[:1]))
    assert status == 200
    return str(answer["model_version"])


def test_without_a_champion_the_server_lives_unready_until_there_is_one(
    start: Start, data_root: Path, expert_onnx: Path, clips: np.ndarray
) -> None:
    server = start("--data-root", data_root)
    assert server.get("/v2/health/live")[0] == 200
    assert server.get("/v2/health/ready")[0] == 503
    status, answer = server.infer(fp32(clips))
    assert (status, answer["error"]) == (503, "the server must have a model, got none: there is no champion yet")
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
    publish(data_root, "one", expert_onnx)
    server.wait_for("serving version one")
    assert server.get("/v2/health/ready")[0] == 200
    assert version_of(server, clips) == "one"


@pytest.fixture(scope="module")
def other_onnx(make_recognizer: MakeRecognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other words, and more of them."""
    path = tmp_path_factory.mktemp("other") / "model.onnx"
    onnx.export(make_recognizer(words=["a", "b", "c", "d"]), path)
    return path


def test_champions_change_under_requests_without_one_lost_or_mixed(
    start: Start, data_root: Path, expert_onnx: Path, other_onnx: Path, clips: np.ndarray
) -> None:
    publish(data_root, "other", other_onnx, champion=False)
    publish(data_root, "expert", expert_onnx)
    server = start("--data-root", data_root)
    labels = {"expert": WORDS, "other": ["a", "b", "c", "d"]}
    stop = threading.Event()
    seen: list[str] = []
    wrong: list[Any] = []

    def ask_over_rest() -> None:
        with tritonclient.http.InferenceServerClient(server.url[7:]) as client:
            ask(tritonclient.http, client)

    def ask_over_grpc() -> None:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            ask(tritonclient.grpc, client)

    def ask(kind: Any, client: Any) -> None:
        while not stop.is_set():
            some = clips[: random.randint(1, 3)]
            asked = kind.InferInput("waveforms", list(some.shape), "FP32")
            asked.set_data_from_numpy(some)
            try:
                answer = client.infer("kws", [asked])
                response = answer.get_response()
                version = response["model_version"] if isinstance(response, dict) else response.model_version
                words = [word.decode() for word in answer.as_numpy("words")]
                shape = answer.as_numpy("probabilities").shape
                whole = shape == (len(some), len(labels[version])) and set(words) <= set(labels[version])
                seen.append(version) if whole else wrong.append((version, words, shape))
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=each) for each in (ask_over_rest, ask_over_grpc) * 2]
    for thread in threads:
        thread.start()
    while "expert" not in seen and not wrong:
        assert server.process.poll() is None
        time.sleep(0.01)
    for number in range(1, 7):
        version = ("expert", "other")[number % 2]
        before = len([line for line in server.log if "serving version" in line])
        versions.rollback(data_root, version, reason="a test")
        while len([line for line in server.log if "serving version" in line]) == before:
            assert server.process.poll() is None
        asked = len(seen)
        while version not in seen[asked:] and not wrong:
            assert server.process.poll() is None
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(seen) == {"expert", "other"}
    assert sum(one != two for one, two in itertools.pairwise(seen)) >= 6


DAMAGES = {
    "cut": "must have the SHA-256",
    "gone": "must have its model.onnx",
    "half": "must be complete",
    "no model": "damaged",
    "path": "must be the name of a folder",
    "text": "must be a JSON file",
}


def test_a_damaged_champion_is_refused_and_the_model_at_work_stays(
    start: Start, data_root: Path, expert_onnx: Path, clips: np.ndarray, tmp_path: Path
) -> None:
    publish(data_root, "good", expert_onnx)
    server = start("--data-root", data_root)
    broken = tmp_path / "broken.onnx"
    champion = data_root / "models" / versions.CHAMPION
    for damage, said in DAMAGES.items():
        server.log.clear()
        broken.write_bytes(expert_onnx.read_bytes()[: 5000 if damage == "no model" else None])
        folder = publish(data_root, f"bad {damage}", broken, champion=False)
        model = folder / versions.ONNX
        if damage == "cut":
            model.write_bytes(model.read_bytes()[:-1])
        elif damage == "gone":
            model.unlink()
        elif damage == "half":
            (folder / "manifest.json").unlink()
        if damage == "text":
            champion.write_text('{"version": ')
        elif damage == "path":
            champion.write_text('{"version": "../../elsewhere"}')
        else:
            versions.appoint(data_root, folder.name, 1.0, by="a test", reason="")
        line = server.wait_for("the champion was refused, good stays: .*")
        assert said in line, damage
        assert version_of(server, clips) == "good"
        assert server.get("/v2/health/ready")[0] == 200
    publish(data_root, "next", expert_onnx)
    server.wait_for("serving version next")
    assert version_of(server, clips) == "next"


def test_a_model_that_hears_its_reference_clip_otherwise_is_refused(
    start: Start, data_root: Path, expert_onnx: Path, clips: np.ndarray
) -> None:
    folder = publish(data_root, "one", expert_onnx)
    soundfile.write(folder / versions.REFERENCE, clips[0], 16_000)
    manifest = files.read_json(folder / files.MANIFEST)
    manifest["files"][versions.REFERENCE] = files.sha256_of(folder / versions.REFERENCE)
    manifest["reference"] = {versions.ONNX: [0.2, 0.6, 0.2]}
    files.write_json(folder / files.MANIFEST, manifest)
    server = start("--data-root", data_root)
    server.wait_for("must give its reference clip the same probabilities as on publication")
    said = "the champion was refused, see the server's log"  # and not the paths of the server that are in its log
    assert server.get("/v2/health/ready") == (503, {"ready": False, "reason": said})
    assert server.infer(fp32(clips)) == (503, {"error": f"the server must have a model, got none: {said}"})


def test_int8_serves_versions_without_an_int8_model_in_full_precision(
    start: Start, data_root: Path, expert: Recognizer, expert_onnx: Path, clips: np.ndarray
) -> None:
    publish(data_root, "one", expert_onnx)
    server = start("--data-root", data_root, "--int8")
    server.wait_for("version one has no model.int8.onnx: serving model.onnx")
    assert version_of(server, clips) == "one"
    folder = publish(data_root, "two", expert_onnx, champion=False)
    onnx.export(expert, folder / versions.INT8, int8=True)
    manifest = files.read_json(folder / files.MANIFEST)
    manifest["files"][versions.INT8] = files.sha256_of(folder / versions.INT8)
    files.write_json(folder / files.MANIFEST, manifest)
    versions.appoint(data_root, "two", 1.0, by="a test", reason="")
    server.wait_for("serving version two")
    publish(data_root, "three", expert_onnx)
    server.wait_for("serving version three")
    assert version_of(server, clips) == "three"


def test_champion_that_servers_cannot_serve_is_refused_and_no_rollback_goes_to_it(
    start: Start, data_root: Path, expert: Recognizer, expert_onnx: Path
) -> None:
    publish(data_root, "good", expert_onnx)
    folder = data_root / "models" / "early"
    folder.mkdir()
    pth.save(folder / versions.MODEL, expert)
    digests = {versions.MODEL: files.sha256_of(folder / versions.MODEL)}
    files.write_json(folder / files.MANIFEST, {"version": "early", "files": digests})
    with pytest.raises(ValueError, match=r"version early must have a model\.onnx, got none in its manifest"):
        versions.rollback(data_root, "early")
    assert versions.champion(data_root) == "good"
    versions.appoint(data_root, "early", 1.0, by="an early release", reason="")
    server = start("--data-root", data_root)
    server.wait_for("the champion was refused, there is no model yet: version early must have a model.onnx")


def test_second_signal_ends_a_server_that_is_draining(start: Start, expert_onnx: Path) -> None:
    server = start("--model", expert_onnx, "--drain-seconds", "600")
    server.process.send_signal(signal.SIGINT)
    server.wait_for("Ctrl-C again to stop at once")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0


def test_a_server_that_is_told_to_stop_answers_what_it_took_and_ends_well(
    start: Start, expert_onnx: Path, clips: np.ndarray
) -> None:
    server = start("--model", expert_onnx, "--drain-seconds", "0.5")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(server.infer(fp32(clips))[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    server.wait_for("batches at a time")
    asked = threading.Thread(target=lambda: found.append(server.stop()))
    asked.start()
    server.wait_for("stopping")
    request = urllib.request.Request(server.url + "/v2/health/ready")
    assert server.send(request)[0] == 503
    for thread in [*threads, asked]:
        thread.join()
    assert found == [200] * 8 + [0]
    assert not any("Traceback" in line for line in server.log)


def test_what_cannot_be_served_is_one_line_with_the_remedy(
    server: Server, expert: Recognizer, expert_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pth.save(tmp_path / "model.pth", expert)
    port = server.url.rpartition(":")[2]
    grpc_port = server.grpc.rpartition(":")[2]
    for arguments, said in (
        (("--model", tmp_path / "model.pth"), "model must be an .onnx file (kws export converts a .pth)"),
        (("--model", tmp_path / "none.onnx"), "which does not exist"),
        (("--data-root", tmp_path / "none"), "data_root must be a folder"),
        (("--model", expert_onnx, "--port", port), "--port"),
        (("--model", expert_onnx, "--port", "0", "--grpc-port", grpc_port), "--grpc-port"),
        (("--model", expert_onnx, "--max-clips", "0"), "max_clips must be positive, got 0"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["serve", *map(str, arguments)])
        shown = capsys.readouterr().err
        assert (caught.value.code, "Traceback" in shown) == (2, False), shown
        assert shown.splitlines()[-1].startswith("error: ")
        assert said in shown.splitlines()[-1]


def test_batches_are_answered_in_their_order_and_gather_who_waits(expert_onnx: Path, clips: np.ndarray) -> None:
    from kws.serve.batching import Batcher
    from kws.serve.models import load_file

    served = load_file(expert_onnx)

    class Sizes(list[int]):
        observe = list.append

    async def main() -> tuple[list[np.ndarray], Sizes]:
        batcher = Batcher(num_threads=1, max_batch=8, max_waiting=100)
        batcher.batch_sizes = Sizes()
        found = await asyncio.gather(*(batcher.predict(served, clips[i % 3 : i % 3 + 1]) for i in range(20)))
        batcher.close()
        return found, batcher.batch_sizes

    found, sizes = asyncio.run(main())
    assert [WORDS[int(each[0].argmax())] for each in found] == [WORDS[i % 3] for i in range(20)]
    assert sizes == [1, 8, 8, 3]


def test_gate_is_that_of_every_champion_and_one_that_does_not_know_the_word_is_refused(
    expert_onnx: Path, data_root: Path
) -> None:
    given = open_models(expert_onnx, None, ServeConfig(after="stop", after_seconds=2)).current
    publish(data_root, "one", expert_onnx)
    followed = open_models(None, data_root, ServeConfig(after="stop", after_seconds=2)).current
    for served in (given, followed):
        assert served is not None
        assert (served.thresholds.after, served.thresholds.after_seconds) == ("stop", 2)
    rule = "after must be one of the words of the model, no, stop, yes, got 'left'"
    with pytest.raises(ValueError, match=rule):
        open_models(expert_onnx, None, ServeConfig(after="left"))
    refused = open_models(None, data_root, ServeConfig(after="left"))
    assert (refused.current, refused.refusal) == (None, rule)
