"""Real parts for tests: real recordings, and a real HTTP server that can misbehave."""

import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from certificates import make_authority
from file_server import FileServer, serve

os.environ["no_proxy"] = "127.0.0.1"  # where a proxy is set, it does not see our servers

DATA = Path(__file__).resolve().parent / "data"
"""Real clips and a schema; its README says whose."""

REAL_WORDS = ("left", "stop", "yes")
"""The words of the fixture real_corpus."""

LONG_FILES = ("test_speech_commands.py", "test_trainer.py", "test_torture.py", "test_notebook.py")
"""Files with the longest tests. They run first, so that none keeps a single process busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the long files to the front; all else keeps its order (--no-loadscope-reorder)."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session", autouse=True)
def heed_ctrl_c() -> None:
    """Lets the processes that tests start heed Ctrl-C: workers of pytest-xdist and scripts in the background ignore it,
    and what a process ignores its children ignore, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 real clips of each of three words, their lists of splits and two background noises. Read only."""
    folder = tmp_path_factory.mktemp("real_corpus")
    for word in (*REAL_WORDS, "_background_noise_"):
        shutil.copytree(DATA / "speech_commands" / word, folder / word)
    for path in (DATA / "speech_commands").glob("*_list.txt"):
        kept = [line for line in path.read_text().split() if (folder / line).is_file()]
        (folder / path.name).write_text("".join(f"{line}\n" for line in kept))
    return folder


@pytest.fixture(scope="session")
def real_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """62 real clips of five words, packed as the published archive is. Read only."""
    path = tmp_path_factory.mktemp("real_archive") / "speech_commands_v0.02.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(DATA / "speech_commands", ".")
    return path


@pytest.fixture(scope="session")
def real_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<digit>/*.wav at 8 kHz, 0.4 to 2.3 s long, ten each of "one" and "five": unlike Speech Commands. Read only."""
    folder = tmp_path_factory.mktemp("real_digits")
    for word in ("one", "five"):
        (folder / word).mkdir()
        for number, path in enumerate(sorted((DATA / "speech_commands" / word).glob("*.wav"))):
            samples, rate = soundfile.read(path, dtype="float32")
            samples = soxr.resample(samples, rate, 8000)
            if number % 2:
                loudest = int(np.abs(samples).argmax())
                samples = samples[max(0, loudest - 1600) : loudest + 1600]
            elif number % 4:
                samples = np.pad(samples, (4000 + 200 * number, 5200))
            soundfile.write(folder / word / path.name, samples, 8000, subtype="PCM_16")
    return folder


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A company's certificate authority, and a certificate and key that it signed for 127.0.0.1."""
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[FileServer]:
    """A server on 127.0.0.1 of the folder `file_server.root`, at first an empty one."""
    root = tmp_path / "served"
    root.mkdir()
    with serve(root) as server:
        yield server
