import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serve
from noise_recordings import make_recordings, pack

from kws import files
from kws.config import SPEECH_COMMANDS_SHA256, SPEECH_COMMANDS_URL
from kws.data.digest import DIGESTS, content_digest
from kws.data.sources import list_recordings
from kws.download import archives
from kws.download import transfer as module
from kws.download.step import download

NAME = "small.tar.gz"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF", 0.01)


@pytest.fixture
def archive(file_server: FileServer, tmp_path: Path) -> Path:
    """A small archive, which is served as well."""
    return pack(make_recordings(tmp_path / "recordings"), file_server.root / NAME)


def spawn(source: str, sha256: str, data_root: Path) -> "subprocess.Popen[str]":
    code = (
        "import logging, sys; from pathlib import Path; from kws.download.step import download\n"
        "logging.basicConfig(level=logging.INFO); print(download(sys.argv[1], sys.argv[2], Path(sys.argv[3])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, source, sha256, str(data_root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: object, process: "subprocess.Popen[str]") -> None:
    assert callable(condition)
    end = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def left_over(data_root: Path) -> list[str]:
    """What lies about a data root beside finished data sets and the locks."""
    paths = [path for folder in ("downloads", "datasets") for path in (data_root / folder).glob("*")]
    return [path.name for path in paths if not files.is_complete(path) and not path.name.endswith(".lock")]


# The archive of real recordings, over HTTP, once.


@pytest.fixture(scope="module")
def real(real_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, FileServer]]:
    data_root = tmp_path_factory.mktemp("real")
    size = real_archive.stat().st_size
    with serve(real_archive.parent) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BACKOFF", 0.01)
        server.cut_after = size // 2
        yield download(server.url(real_archive.name), files.sha256_of(real_archive), data_root), server
    shutil.rmtree(data_root)


def test_real_archive_cut_off_half_way_is_resumed_with_a_range_and_complete(
    real: tuple[Path, FileServer], real_archive: Path
) -> None:
    folder, server = real
    whole, rest = server.gets()
    assert whole is None
    assert rest is not None
    assert 0 < int(rest.removeprefix("bytes=").removesuffix("-")) <= real_archive.stat().st_size // 2
    assert folder.name == f"speech_commands_v0.02-{files.sha256_of(real_archive)[:8]}"
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["sha256"] == files.sha256_of(real_archive)
    assert manifest["num_clips"] == sum(manifest["words"].values()) == 62
    assert len(manifest["words"]) == 5
    assert manifest["words"]["yes"] == len(list((folder / "yes").glob("*.wav"))) == 14
    assert len(list((folder / "_background_noise_").glob("*.wav"))) == 2
    assert left_over(folder.parent.parent) == []


def test_torchaudio_opens_the_real_folder_with_the_lists_split(real: tuple[Path, FileServer]) -> None:
    from torchaudio.datasets import SPEECHCOMMANDS

    folder, _ = real
    subsets = {
        subset: SPEECHCOMMANDS(
            root=folder.parents[1],
            url=f"{folder.name}.tar.gz",
            folder_in_archive="datasets",
            download=False,
            subset=subset,
        )
        for subset in ("training", "validation", "testing")
    }
    assert [len(subset) for subset in subsets.values()] == [36, 13, 13]
    path, rate, word, speaker, take = subsets["testing"].get_metadata(0)
    assert (folder.parent / path).is_file()
    assert Path(path).name == f"{speaker}_nohash_{take}.wav"
    assert (rate, Path(path).parent.name) == (16_000, word)


# Transfers.


def test_second_call_with_a_known_digest_asks_no_server(file_server: FileServer, archive: Path, tmp_path: Path) -> None:
    sha256 = files.sha256_of(archive)
    first = download(file_server.url(NAME), sha256, tmp_path / "data")
    file_server.requests.clear()
    assert download(file_server.url(NAME), sha256, tmp_path / "data") == first
    assert file_server.requests == []


def test_second_call_without_a_digest_asks_once_for_changes(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    first = download(file_server.url(NAME), "", tmp_path)
    file_server.requests.clear()
    assert download(file_server.url(NAME), "", tmp_path) == first
    assert [seen.method for seen in file_server.requests] == ["HEAD"]


def test_signature_of_an_address_is_not_kept_and_one_signed_anew_is_the_same_address(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    url = file_server.url(NAME)
    first = download(f"{url}?X-Amz-Signature=0123&X-Amz-Expires=60&part=1&sig=a%2Fb", "", tmp_path)
    assert files.read_json(first / files.MANIFEST)["source"] == f"{url}?part=1"
    file_server.requests.clear()
    assert download(f"{url}?X-Amz-Signature=4567&X-Amz-Expires=60&part=1&sig=c", "", tmp_path) == first
    assert [seen.method for seen in file_server.requests] == ["HEAD"]
    assert not any("0123" in path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))


def test_changed_archive_at_the_same_address_becomes_another_folder(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    first = download(file_server.url(NAME), "", tmp_path)
    pack(make_recordings(tmp_path / "newer", seed=1, clips=2), archive)
    second = download(file_server.url(NAME), "", tmp_path)
    assert first != second
    assert [files.read_json(f / files.MANIFEST)["num_clips"] for f in (first, second)] == [12, 4]


def test_unreachable_server_is_not_needed_where_the_recordings_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(make_recordings(tmp_path / "recordings"), tmp_path / NAME)
    with serve(tmp_path) as server:
        url = server.url(NAME)
        first = download(url, "", tmp_path / "data")
    assert download(url, "", tmp_path / "data") == first
    assert f"cannot check {url} for changes" in caplog.text


def test_published_archive_is_found_by_its_known_digest_without_network(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / f"speech_commands_v0.02-{SPEECH_COMMANDS_SHA256[:8]}"
    files.write_json(folder / files.MANIFEST, {})
    assert download(SPEECH_COMMANDS_URL, "", tmp_path) == folder


def test_server_that_ignores_ranges_sends_the_whole_file_again(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    file_server.ranges = False
    file_server.cut_after = 100_000
    folder = download(file_server.url(NAME), files.sha256_of(archive), tmp_path)
    assert files.read_json(folder / files.MANIFEST)["num_clips"] == 12
    assert file_server.gets() == [None, "bytes=100000-"]


def test_server_without_validators_is_resumed_by_length_alone(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    file_server.validators = False
    file_server.cut_after = 100_000
    download(file_server.url(NAME), files.sha256_of(archive), tmp_path)
    assert file_server.gets() == [None, "bytes=100000-"]


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range heeded", "If-Range ignored"])
@pytest.mark.parametrize("clips", [1, 9], ids=["shorter", "longer"])
def test_file_that_changed_since_the_cut_is_fetched_from_its_start(
    file_server: FileServer, archive: Path, tmp_path: Path, if_range: bool, clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_server.if_range = if_range
    file_server.cut_after = 100_000
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(ConnectionError, match="kept"):
        download(file_server.url(NAME), "", tmp_path)
    monkeypatch.undo()
    pack(make_recordings(tmp_path / "newer", seed=1, clips=clips), archive)
    folder = download(file_server.url(NAME), "", tmp_path)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["sha256"] == files.sha256_of(archive)
    assert manifest["num_clips"] == 2 * clips


def test_server_that_promises_no_length_is_believed_only_if_the_archive_is_whole(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    file_server.length = False
    file_server.cut_after = 100_000
    with pytest.raises(ValueError, match="must be a whole archive"):
        download(file_server.url(NAME), "", tmp_path)
    assert files.is_complete(download(file_server.url(NAME), "", tmp_path))


def test_overloaded_server_is_asked_again(file_server: FileServer, archive: Path, tmp_path: Path) -> None:
    file_server.failures = [503, 429]
    download(file_server.url(NAME), "", tmp_path)
    assert len(file_server.gets()) == 3


def test_transfer_killed_half_way_goes_on_in_the_next_process(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    file_server.hold_after = archives.CHUNK
    process = spawn(file_server.url(NAME), "", tmp_path / "data")
    parts = tmp_path / "data" / "downloads"
    wait_for(lambda: any(part.stat().st_size for part in parts.glob("*.part")), process)
    process.kill()
    process.communicate()
    file_server.hold_after = None
    file_server.released.set()
    folder = download(file_server.url(NAME), "", tmp_path / "data")
    assert files.read_json(folder / files.MANIFEST)["num_clips"] == 12
    whole, rest = file_server.gets()
    assert whole is None
    assert rest is not None
    assert 0 < int(rest.removeprefix("bytes=").removesuffix("-")) <= archives.CHUNK
    assert left_over(tmp_path / "data") == []


def test_two_processes_at_once_fetch_the_recordings_once(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    sha256 = files.sha256_of(archive)
    processes = [spawn(file_server.url(NAME), sha256, tmp_path / "data") for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({stdout for stdout, _ in outputs}) == 1
    assert file_server.gets() == [None]
    assert left_over(tmp_path / "data") == []


# What is refused.


def test_wrong_digest_is_refused_with_both_and_what_came_is_kept_for_the_right_one(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    right, wrong = files.sha256_of(archive), "0" * 64
    for asked in (1, 2):  # the second start asks anew: the transfer may have been at fault
        with pytest.raises(ValueError, match=f"must be {wrong}, got {right}: correct sha256"):
            download(file_server.url(NAME), wrong, tmp_path)
        assert file_server.gets() == [None] * asked
    assert files.is_complete(download(file_server.url(NAME), right, tmp_path))
    assert file_server.gets() == [None] * 2
    assert left_over(tmp_path) == []


def test_wrong_digest_of_a_local_archive_is_refused_and_the_file_stays(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"must be {'0' * 64}, got {files.sha256_of(archive)}: correct it or"):
        download(str(archive), "0" * 64, tmp_path)
    assert archive.is_file()


@pytest.mark.parametrize("ranges", [True, False])
def test_server_that_promises_more_than_it_has_is_refused_with_the_lengths(
    file_server: FileServer, archive: Path, tmp_path: Path, ranges: bool
) -> None:
    file_server.length_added = 1000
    file_server.ranges = ranges
    size = archive.stat().st_size
    with pytest.raises(ConnectionError, match=f"{size}"):
        download(file_server.url(NAME), "", tmp_path)
    assert len(file_server.gets()) == module.TRIES


def test_server_that_promises_less_than_it_has_is_refused_as_no_whole_archive(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    file_server.length_added = -100_000
    with pytest.raises(ValueError, match="must be a whole archive"):
        download(file_server.url(NAME), "", tmp_path)
    assert left_over(tmp_path) == []


def test_page_in_place_of_an_archive_is_refused_and_not_taken_again(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    whole = archive.read_bytes()
    archive.write_text("<html>back soon</html>")
    with pytest.raises(ValueError, match="which is a web page of 22 B: download the file itself"):
        download(file_server.url(NAME), "", tmp_path)
    archive.write_bytes(whole)
    assert files.is_complete(download(file_server.url(NAME), "", tmp_path))


def test_archive_larger_than_the_disk_is_refused_before_its_transfer(
    file_server: FileServer, archive: Path, tmp_path: Path
) -> None:
    file_server.length_added = 10**16
    with pytest.raises(ValueError, match=r"data_root must have .* TB of free disk space .* choose a data_root on"):
        download(file_server.url(NAME), "", tmp_path)
    assert len(file_server.gets()) == 1


def test_missing_address_is_refused_at_once(file_server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 404 .*check whether a browser opens it"):
        download(file_server.url("none.tar.gz"), "", tmp_path)
    assert len(file_server.gets()) == 1


def test_unreachable_server_is_named_with_the_remedy(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        url = server.url(NAME)
    with pytest.raises(ConnectionError, match=f"{url} must be reachable .* check the network and start again"):
        download(url, "", tmp_path)


@pytest.mark.parametrize("member", ["../evil.wav", "yes/../../evil.wav"])
def test_archive_with_a_member_outside_its_folder_is_refused(tmp_path: Path, member: str) -> None:
    archive = tmp_path / NAME
    with tarfile.open(archive, "w:gz") as file:
        info = tarfile.TarInfo(member)
        info.size = 4
        file.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match="members stay in its folder"):
        download(str(archive), "", tmp_path / "data")
    assert list(tmp_path.rglob("evil.wav")) == []
    assert left_over(tmp_path / "data") == []


def test_archive_cut_short_is_refused_and_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(ValueError, match="must be a whole archive"):
        download(str(archive), "", tmp_path / "data")
    assert left_over(tmp_path / "data") == []


def test_archive_with_flipped_bytes_is_refused_by_its_checksum(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="must be a whole archive"):
        download(str(archive), "", tmp_path / "data")


def test_text_file_is_refused_as_no_archive(tmp_path: Path) -> None:
    (tmp_path / "page.tar.gz").write_text("<html>moved</html>" * 100)
    with pytest.raises(ValueError, match=r"an archive or a folder, got .*page.tar.gz, which is a web page"):
        download(str(tmp_path / "page.tar.gz"), "", tmp_path)


def test_archive_without_words_is_refused_naming_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "notes.txt").write_text("no recordings")
    with pytest.raises(ValueError, match=r"<word>/\*.wav\), got .* with notes.txt"):
        download(str(pack(tmp_path / "inside", tmp_path / NAME)), "", tmp_path / "data")


@pytest.mark.parametrize("source", ["nowhere.tar.gz", "ftp://bucket/archive.tar.gz", "/nowhere/at/all", "file:///no"])
def test_source_that_is_not_there_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match=r"source must be an address \(http://, .*\), an archive or a folder that exi"):
        download(source, "", tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"source must hold a folder of recordings for each word .* with nothing"):
        download(str(tmp_path / "empty"), "", tmp_path)


def test_digest_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sha256 must be 64 lower-case hexadecimal digits, got 'ABC'"):
        download("x.tar.gz", "ABC", tmp_path)


# Archives and folders.


def test_extraction_killed_half_way_starts_again_and_leaves_nothing(tmp_path: Path) -> None:
    archive = pack(make_recordings(tmp_path / "recordings", clips=300), tmp_path / NAME)
    process = spawn(str(archive), "", tmp_path / "data")
    datasets = tmp_path / "data" / "datasets"
    wait_for(lambda: any(datasets.glob(".small-*.partial-*/*/*.wav")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert left_over(tmp_path / "data") != []
    folder = download(str(archive), "", tmp_path / "data")
    assert files.read_json(folder / files.MANIFEST)["num_clips"] == 600
    assert left_over(tmp_path / "data") == []


def test_single_top_folder_of_an_archive_is_dropped(tmp_path: Path) -> None:
    archive = pack(make_recordings(tmp_path / "recordings"), tmp_path / "my words.tgz", wrapping="yes")
    folder = download(str(archive), "", tmp_path / "data")
    assert folder.name.startswith("my-words-")
    assert sorted(path.name for path in folder.iterdir()) == [DIGESTS, "manifest.json", "no", "yes"]
    assert len(list((folder / "yes").iterdir())) == 6


def test_list_that_has_the_name_of_our_manifest_is_kept_under_another(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path / "recordings")
    flat = tmp_path / "nemo"
    (flat / "audio").mkdir(parents=True)
    rows = []
    for number, path in enumerate(sorted(recordings.rglob("*.wav"))):
        shutil.copy(path, flat / "audio" / f"{number}.wav")
        rows.append(json.dumps({"audio_filepath": f"audio/{number}.wav", "command": path.parent.name}))
    (flat / files.MANIFEST).write_text("\n".join(rows) + "\n")
    for source in (flat, pack(flat, tmp_path / "packed.tgz", wrapping="nemo")):
        folder = download(str(source), "", tmp_path / "data")
        assert files.read_json(folder / files.MANIFEST)["words"] == {"no": 6, "yes": 6}
        assert list_recordings(folder).words == ["no", "yes"], "also when our own manifest lies beside it"
        assert len(list(folder.rglob("source-manifest.json"))) == 1


def test_hidden_members_that_macos_packs_are_left_out(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path / "recordings")
    (recordings / "yes" / "._00000000_nohash_0.wav").write_bytes(b"no recording")
    (recordings / ".hidden").mkdir()
    shutil.copy(recordings / "yes" / "00000000_nohash_0.wav", recordings / ".hidden")
    archived = download(str(pack(recordings, tmp_path / NAME)), "", tmp_path / "data")
    copied = download(str(recordings), "", tmp_path / "data")
    for folder in (archived, copied):
        assert files.read_json(folder / files.MANIFEST)["words"] == {"no": 6, "yes": 6}
        assert list(folder.rglob(".*")) == [folder / DIGESTS]


def test_folder_becomes_a_snapshot_with_lists_and_noise(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path / "my recordings")
    (recordings / "testing_list.txt").write_text("yes/00000000_nohash_0.wav\n")
    shutil.copytree(recordings / "no", recordings / "_background_noise_")
    folder = download(str(recordings), "", tmp_path / "data")
    manifest = files.read_json(folder / files.MANIFEST)
    assert folder.name == f"my-recordings-{manifest['sha256'][:8]}"
    assert manifest["sha256"] == manifest["content"] == content_digest(list_recordings(folder))
    assert manifest["words"] == {"no": 6, "yes": 6}
    assert (folder / "testing_list.txt").is_file()
    assert len(list((folder / "_background_noise_").iterdir())) == 6
    assert download(str(recordings), manifest["sha256"], tmp_path / "data") == folder


def test_folder_that_changed_becomes_another_snapshot(tmp_path: Path) -> None:
    recordings = make_recordings(tmp_path / "recordings")
    first = download(str(recordings), "", tmp_path / "data")
    (recordings / "yes" / "00000000_nohash_0.wav").unlink()
    second = download(str(recordings), "", tmp_path / "data")
    assert [files.read_json(f / files.MANIFEST)["num_clips"] for f in (first, second)] == [12, 11]


def test_real_digits_folder_is_copied_whole(real_digits: Path, tmp_path: Path) -> None:
    folder = download(str(real_digits), "", tmp_path)
    assert files.read_json(folder / files.MANIFEST)["num_clips"] == 20


def test_what_was_done_is_told(archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    download(str(archive), "", tmp_path / "data")
    download(str(archive), "", tmp_path / "data")
    told = [record.getMessage() for record in caplog.records]
    assert told[0].endswith("12 clips of 2 words")
    assert told[1].endswith("is complete already")
