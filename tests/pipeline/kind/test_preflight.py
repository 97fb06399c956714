import json
import os
import platform
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.kind import local_cluster, preflight
from pipeline.shell import ClusterError

TOOLS = ("docker", "kind", "kubectl")


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty at first."""
    monkeypatch.delenv("DOCKER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def link(folder: Path, name: str) -> None:
    """Puts the real tool on PATH, or skips."""
    found = shutil.which(name, path=os.defpath + os.pathsep + REAL_PATH)
    if found is None:
        pytest.skip(f"needs {name}")
    (folder / name).symlink_to(found)


REAL_PATH = os.environ["PATH"]


@pytest.mark.parametrize("name", TOOLS)
def test_an_absent_tool_is_named_with_where_to_get_it(name: str, bin_folder: Path) -> None:
    check = preflight.tool(name)
    assert check.problem.startswith(f"{name} must be on PATH, got none; install ")
    assert "https://" in check.problem


@pytest.mark.parametrize("name", TOOLS)
def test_a_present_tool_is_found(name: str, bin_folder: Path) -> None:
    link(bin_folder, name)
    check = preflight.tool(name)
    assert not check.problem
    assert check.detail == str(bin_folder / name)


def test_without_tools_every_problem_is_told_at_once_and_nothing_fails(bin_folder: Path) -> None:
    with pytest.raises(ClusterError) as raised:
        preflight.require_all(preflight.checks())
    assert [line.split()[0] for line in str(raised.value).splitlines()][:3] == list(TOOLS)


def test_a_docker_engine_that_does_not_run_is_told_with_a_remedy(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(bin_folder, "docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{bin_folder}/no.sock")
    problem = preflight.docker_engine().problem
    assert "docker" in problem.lower()
    assert "start Docker Desktop, or systemctl start docker" in problem


def test_without_a_docker_client_the_engine_check_says_so(bin_folder: Path) -> None:
    assert preflight.docker_engine().problem.startswith("docker must be installed and on PATH, got none")


def test_a_docker_engine_that_runs_tells_its_memory(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link(bin_folder, "docker")
    if preflight.docker_engine().problem:
        pytest.skip("needs a running Docker engine")
    assert "CPUs" in preflight.docker_engine().detail
    monkeypatch.setattr(preflight, "MIN_MEMORY", 1 << 60)
    assert preflight.docker_engine().problem.startswith("Docker must have 1.15e+06 TB of memory, got ")


@pytest.mark.parametrize(
    ("client", "problem"),
    [
        ({"Version": "28.2.2", "Plugins": []}, True),
        ({"Version": "23.0.1", "Plugins": None}, True),
        ({"Version": "28.2.2", "Plugins": [{"Name": "compose"}, {"Name": "buildx"}]}, False),
        ({"Plugins": []}, False),  # Docker 20.10
        (None, False),  # a client of another kind
    ],
)
def test_a_docker_client_that_cannot_build_is_told_before_it_is_tried(
    client: dict[str, Any] | None, problem: bool, bin_folder: Path
) -> None:
    script = bin_folder / "docker"
    script.write_text(f"#!/bin/sh\necho '{json.dumps({'ClientInfo': client})}'\n")
    script.chmod(0o755)
    found = preflight.docker_builder().problem
    assert found.startswith("the Docker client") == problem
    assert ("install docker-buildx" in found) == problem


def test_a_port_in_use_is_named_with_how_to_find_who_uses_it() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        problem = preflight.port(number, "the UI").problem
        assert problem.startswith(f"port {number} must be free for the UI, got in use; ")
        assert f"sport = :{number}" in problem
    assert not preflight.port(number, "the UI").problem


@pytest.mark.skipif(platform.system() != "Linux", reason="inotify is Linux's")
def test_low_inotify_limits_come_with_the_command_that_raises_them(tmp_path: Path) -> None:
    (tmp_path / "max_user_watches").write_text("8192\n")
    (tmp_path / "max_user_instances").write_text("512\n")
    problem = preflight.inotify(tmp_path).problem
    assert problem.startswith("inotify must allow three nodes full of pods, got fs.inotify.max_user_watches=8192; ")
    assert problem.endswith("sudo sysctl fs.inotify.max_user_watches=524288")
    (tmp_path / "max_user_watches").write_text("524288\n")
    assert not preflight.inotify(tmp_path).problem


def test_too_small_a_disk_is_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MIN_DISK", 1 << 60)
    assert preflight.disk(tmp_path).problem.startswith(f"the disk of {tmp_path} must have 1.15e+06 TB free, got ")
    monkeypatch.setattr(preflight, "MIN_DISK", 1)
    assert not preflight.disk(tmp_path).problem


def test_the_disk_must_hold_every_copy_of_the_images(tmp_path: Path) -> None:
    problem = preflight.disk(tmp_path, image_bytes=1 << 59).problem
    assert ", 3 times 5.76e+05 TB of it for our images, got " in problem


def client(folder: Path, **info: object) -> None:
    """Puts a Docker client on PATH whose engine says this of itself."""
    (folder / "docker").write_text(f"#!/bin/sh\necho '{json.dumps(info)}'\n")
    (folder / "docker").chmod(0o755)


def test_the_disk_is_that_on_which_docker_keeps_images(bin_folder: Path) -> None:
    client(bin_folder, DockerRootDir=str(bin_folder))
    found = preflight.disk()
    assert str(bin_folder) in (found.detail or found.problem)


ROOTLESS = {
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
    "MemTotal": 1 << 34,
    "NCPU": 4,
    "ServerVersion": "28.2.2",
}


def test_rootless_docker_is_told_what_kind_needs_of_it(bin_folder: Path) -> None:
    client(bin_folder, **ROOTLESS, CgroupVersion="1")
    problem = preflight.docker_engine().problem
    assert problem.startswith(
        "rootless Docker must have control groups of version 2 for kind, got version 1; see https"
    )
    client(bin_folder, **ROOTLESS, CgroupVersion="2")
    assert preflight.docker_engine().detail == "28.2.2, 4 CPUs, 17.2 GB, rootless"


def test_with_rootless_docker_the_volume_is_open_to_the_user_of_the_containers(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(bin_folder, **ROOTLESS)
    monkeypatch.setattr(local_cluster, "DATA_ROOT", bin_folder / "volume")
    local_cluster._make_data_root()
    assert (bin_folder / "volume").stat().st_mode & 0o777 == 0o777


def test_on_macos_the_messages_are_those_of_macos(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "Docker Desktop" in preflight.disk().detail
    assert preflight.inotify().detail == "Docker Desktop sets it"
    assert "systemctl" not in preflight.docker_engine().problem
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        assert f"lsof -nP -iTCP:{number}" in preflight.port(number, "the UI").problem


def test_where_the_cluster_runs_its_ports_may_be_in_use(bin_folder: Path) -> None:
    names = {check.name for check in preflight.checks(new_cluster=False)}
    assert not any(name.startswith("port ") for name in names)
    assert {f"port {number}" for number in preflight.PORTS} <= {check.name for check in preflight.checks()}
