"""Real servers, as processes of the command line, over small real models."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Server

from kws import files
from kws.model import onnx, versions
from kws.model.bundle import Recognizer

Start = Callable[..., Server]


@contextlib.contextmanager
def started() -> Iterator[Start]:
    """Gives a function that starts servers, which are ended."""
    servers: list[Server] = []

    def start(*arguments: object) -> Server:
        servers.append(Server(*map(str, arguments)))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def start() -> Iterator[Start]:
    with started() as start:
        yield start


@pytest.fixture(scope="session")
def expert_onnx(expert: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that tells the tones apart, as a file. Read only."""
    path = tmp_path_factory.mktemp("expert") / "model.onnx"
    onnx.export(expert, path)
    return path


@pytest.fixture(scope="session")
def server(expert_onnx: Path) -> Iterator[Server]:
    """A server of that file, for tests that leave it as it is."""
    with started() as start:
        yield start("--model", expert_onnx)


def publish(data_root: Path, version: str, model: Path, champion: bool = True) -> Path:
    """Publishes a file as a version by hand, as `promote` does but for all else that it writes."""
    folder = data_root / "models" / version
    folder.mkdir(parents=True)
    (folder / versions.ONNX).write_bytes(model.read_bytes())
    files.write_json(
        folder / files.MANIFEST,
        {"schema": 2, "version": version, "files": {versions.ONNX: files.sha256_of(folder / versions.ONNX)}},
    )
    if champion:
        versions.appoint(data_root, version, 1.0, by="a test", reason="")
    return folder
