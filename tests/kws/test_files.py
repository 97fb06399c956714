import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from kws import files


def spawn(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def wait_for_line(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})

    def fail() -> None:
        with files.atomic_write(path, "w") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files.read_json(path) == {"a": 1}
    assert names(tmp_path) == ["value.json"]


def test_atomic_write_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("old")
    process = spawn(
        """
        import sys, time
        from pathlib import Path
        from kws import files
        with files.atomic_write(Path(sys.argv[1]), "w") as file:
            file.write("half")
            file.flush()
            print("writing", flush=True)
            time.sleep(60)
        """,
        path,
    )
    wait_for_line(process, "writing")
    process.kill()
    process.communicate()
    assert path.read_text() == "old"


def test_atomic_write_makes_missing_folders_and_a_file_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with files.atomic_write(path) as file:
        file.write(b"bytes")
    assert path.read_bytes() == b"bytes"
    assert path.stat().st_mode & 0o777 == 0o644


def test_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{half")
    with pytest.raises(ValueError, match=r"broken.json must be a JSON file, got"):
        files.read_json(path)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 100_000, b"{" + b"1" * 5000 + b"}"])
def test_file_that_is_nothing_like_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd.json must be a JSON file, got"):
        files.read_json(tmp_path / "odd.json")


def test_object_has_the_fields_that_were_asked_for_of_their_types(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('{"share": 1, "name": "x", "on": true, "other": null}')
    assert files.read_object(path, share=float, name=str) == {"share": 1.0, "name": "x", "on": True, "other": None}
    for fields, found in (({"missing": str}, "none"), ({"on": float}, "True"), ({"name": float}, "'x'")):
        with pytest.raises(ValueError, match=rf"value.json must have .*, got {found}: it is damaged, or not of kws"):
            files.read_object(path, **fields)


def test_folder_is_built_once_and_found_complete_after(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "folder"

    def build(staging: Path) -> None:
        (staging / "content").write_text("whole")
        files.write_json(staging / files.MANIFEST, {})

    assert not files.is_complete(folder)
    assert files.build_folder(folder, build) is True
    assert files.is_complete(folder)
    assert files.build_folder(folder, build) is False
    assert (folder / "content").read_text() == "whole"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_half_a_folder_is_built_anew(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("half")
    assert files.build_folder(folder, lambda staging: files.write_json(staging / files.MANIFEST, {}))
    assert names(folder) == [files.MANIFEST]


def test_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(staging: Path) -> None:
        (staging / "content").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        files.build_folder(tmp_path / "folder", build)
    assert names(tmp_path) == []


BUILD = """
    import sys, time
    from pathlib import Path
    from kws import files
    def build(staging):
        (staging / "content").write_text("whole")
        print("building", flush=True)
        time.sleep(float(sys.argv[2]))
        files.write_json(staging / files.MANIFEST, {})
    print(files.build_folder(Path(sys.argv[1]), build), flush=True)
    """


def test_build_that_was_killed_is_cleared_and_started_again(tmp_path: Path) -> None:
    process = spawn(BUILD, tmp_path / "folder", 60)
    wait_for_line(process, "building")
    process.kill()
    process.communicate()
    assert len(names(tmp_path)) == 1
    assert files.build_folder(tmp_path / "folder", lambda staging: files.write_json(staging / files.MANIFEST, {}))
    assert names(tmp_path) == ["folder"]


def test_two_processes_build_a_folder_once(tmp_path: Path) -> None:
    processes = [spawn(BUILD, tmp_path / "folder", 0.3) for _ in range(2)]
    outputs = sorted(process.communicate()[0].split() for process in processes)
    assert outputs == [["False"], ["building", "True"]]


def test_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from kws import files
        with files.lock(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
        """
    process = spawn(code, tmp_path / "thing")
    wait_for_line(process, "locked")
    waiting = spawn(code, tmp_path / "thing")
    time.sleep(0.3)
    process.kill()
    process.communicate()
    start = time.monotonic()
    wait_for_line(waiting, "locked")
    assert time.monotonic() - start < 10
    waiting.kill()
    waiting.communicate()


def test_lock_in_a_folder_that_may_not_be_written_is_told_as_that() -> None:
    code = """
        import os, sys
        from pathlib import Path
        from kws import files
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            with files.hold(Path(sys.argv[1]) / ".owner", 0):
                print("held")
        except OSError as error:
            print(error)
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), folder], capture_output=True, text=True)
    assert done.stdout == f"[Errno 13] Permission denied: '{folder}/.owner'\n", done.stderr


def test_lock_that_stays_taken_is_refused_after_a_while(tmp_path: Path) -> None:
    refused = pytest.raises(files.Busy, match="lock must be held by one process at a time, got a second")
    with files.hold(tmp_path / "lock", 0), refused, files.hold(tmp_path / "lock", 0.1):
        pass
    with files.hold(tmp_path / "lock", 0):
        pass


def test_files_and_folders_are_for_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o002)  # as groups of OpenShift share volumes
    try:
        files.build_folder(tmp_path / "folder", lambda staging: files.write_json(staging / files.MANIFEST, {}))
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o775
    assert (tmp_path / "folder" / files.MANIFEST).stat().st_mode & 0o777 == 0o664


def test_full_disk_names_the_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*value.json'"):
            files.write_json(tmp_path / "value.json", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_free_bytes_of_a_folder_that_is_not_there_yet_are_those_of_its_disk(tmp_path: Path) -> None:
    there, not_yet = files.free_bytes(tmp_path), files.free_bytes(tmp_path / "not" / "yet")
    assert there > 0
    assert not_yet == pytest.approx(there, rel=0.1)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_428_923_189, "2.43 GB"), (5e12, "5 TB")]
)
def test_bytes_are_formatted_for_people(num_bytes: float, text: str) -> None:
    assert files.human_bytes(num_bytes) == text
