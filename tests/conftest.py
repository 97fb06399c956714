"""Real parts for tests: real recordings where they are available, and a real HTTP server that can misbehave."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serve

os.environ["no_proxy"] = "127.0.0.1"  # where a proxy is set, it does not see our servers

REAL_WORDS = ("left", "stop", "yes")
"""The words of the fixture real_corpus."""

REAL_CLIPS = 40
"""Its clips of each word."""

LONG_FILES = ("test_speech_commands.py", "test_trainer.py", "test_torture.py", "test_notebook.py")
"""Files with the longest tests. They run first, so that none keeps a single process busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the long files to the front; all else keeps its order (--no-loadscope-reorder)."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data with real recordings, which the project does not carry."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real recordings of ../shared/data")
    return folder


@pytest.fixture(scope="session")
def real_archive(shared_data: Path) -> Path:
    """16 words of Speech Commands, 4,043 clips, 100 MB."""
    return shared_data / "speech_commands_real16.tar.gz"


@pytest.fixture(scope="session")
def real_digits(shared_data: Path) -> Path:
    """<digit>/*.wav at 8 kHz, 0.14 to 2.3 s, 2,000 recordings of 10 words by 4 speakers."""
    return shared_data / "spoken-digits"


@pytest.fixture(scope="session")
def real_corpus(real_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 real clips of each of three words, their lists of splits and two background noises. Read only."""
    folder = tmp_path_factory.mktemp("real_corpus")
    taken: Counter[str] = Counter()
    with tarfile.open(real_archive) as archive:
        for member in archive:
            word, _, name = member.name.removeprefix("./").rpartition("/")
            if (
                (word in REAL_WORDS and name.endswith(".wav") and taken[word] < REAL_CLIPS)
                or name in ("running_tap.wav", "exercise_bike.wav")
                or name.endswith("_list.txt")
            ):
                content = archive.extractfile(member)
                assert content is not None
                (folder / word).mkdir(exist_ok=True)
                (folder / word / name).write_bytes(content.read())
                taken[word] += 1
    for path in folder.glob("*_list.txt"):
        path.write_text("".join(f"{line}\n" for line in path.read_text().split() if (folder / line).is_file()))
    return folder


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[FileServer]:
    """A server on 127.0.0.1 of the folder `file_server.root`, at first an empty one."""
    root = tmp_path / "served"
    root.mkdir()
    with serve(root) as server:
        yield server
