"""Which cluster a command reaches: with --context that one alone, also where kind's is the current one."""

import argparse
import dataclasses
import shlex
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_stand_in import StandIn

from kws.model import versions
from kws.promote import by_hand
from pipeline.cluster.commands import add_cluster_commands, cluster_of, placement_of
from pipeline.cluster.connect import Cluster
from pipeline.kind import local_cluster as kind
from pipeline.shell import ClusterError

IMAGE = ["--image", "kws-runtime:1"]
COMMANDS = {
    "submit": [],
    "runs": [],
    "follow": ["r"],
    "cancel": ["r"],
    "retry": ["r"],
    "schedule": ["--cron", "0 3 * * *"],
    "schedules": [],
    "unschedule": [],
    "install": [],
    "pull": IMAGE,
    "deploy": IMAGE,
    "models": IMAGE,
    "rollback": IMAGE,
    "clean": IMAGE,
    "candidates": IMAGE,
    "approve": IMAGE,
    "reject": IMAGE,
    "ui": [],
    "tensorboard": [],
}
IN_PODS = ("pull", "models", "rollback", "candidates", "approve", "reject", "ui", "tensorboard")
"""Commands that call kubectl, where the volume is not a folder of this machine."""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Puts programs on PATH that note how they are called and fail, but for docker; gives the calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, end in (("kubectl", "exit 1"), ("kind", "exit 1"), ("docker", "echo '{\"NCPU\": 4}'")):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{folder}/calls\n{end}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("DOCKER", raising=False)
    for role in ("RUNTIME", "LAUNCHER", "SERVING"):
        monkeypatch.setenv(f"KWS_{role}_IMAGE", f"kws-{role.lower()}:1")
    calls = folder / "calls"
    return lambda: [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def call(*arguments: str) -> str:
    """Runs a command as `python -m pipeline` does; gives the sentence that it ends with, if it does."""
    parser = argparse.ArgumentParser()
    add_cluster_commands(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_args(arguments)
    try:
        options.call(options)
    except (ClusterError, ValueError) as error:
        return str(error)
    return ""


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume of kind, without a model."""
    folder = tmp_path / "volume"
    folder.mkdir()
    monkeypatch.setattr(kind, "DATA_ROOT", folder)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser is told to open."""
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    return addresses


@pytest.mark.parametrize("command", ["rollback", "approve", "reject"])
def test_what_a_person_decides_is_decided_by_the_same_flags_here_and_in_a_pod(command: str, tmp_path: Path) -> None:
    def flags(parser: argparse.ArgumentParser) -> dict[str, str | None]:
        common = {"--help", "--data-root", "--image", "--registry"} | {
            f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Cluster)
        }
        return {
            action.option_strings[-1]: action.help
            for action in parser._actions
            if action.option_strings and action.option_strings[-1] not in common
        }

    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command")
    add_cluster_commands(subparsers)
    theirs = argparse.ArgumentParser()
    by_hand.add_flags(theirs, command)
    assert flags(subparsers.choices[command]) == flags(theirs)
    given = ["--version", "v1", "--reason", "it's worse", *(["--force"] if command == "approve" else [])]
    sent = by_hand.as_flags(theirs.parse_args([*given, "--by", "ann"]))
    there = theirs.parse_args(sent)  # as the command in the pod reads them
    assert (there.version, there.reason, there.by) == ("v1", "it's worse", "ann")
    assert getattr(there, "force", False) == (command == "approve")
    assert theirs.parse_args(by_hand.as_flags(theirs.parse_args(given))).by == versions.who()


def test_links_say_where_a_port_must_be_forwarded_first(
    use_kubeconfig: Callable[..., None], programs: Callable[[], list[list[str]]]
) -> None:
    use_kubeconfig(kind_kws="http://127.0.0.1:9", other="http://127.0.0.1:9")
    assert Cluster(context=kind.CONTEXT).ui_hint == ""
    assert Cluster(host="https://kubeflow.example.com/pipeline").ui_hint == ""
    assert Cluster(context="other").ui_hint == "  (while make ui runs)"
    told = {}
    for context in (kind.CONTEXT, "other"):
        parser = argparse.ArgumentParser()
        add_cluster_commands(parser.add_subparsers(dest="command"))
        options = parser.parse_args(["submit", "--source", "x", "--notify", "hook", "--context", context])
        told[context] = placement_of(options, cluster_of(options)).ui
    assert told == {kind.CONTEXT: kind.UI, "other": ""}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_a_context_reaches_that_cluster_and_nothing_of_kind(
    command: str,
    stand_in: StandIn,
    use_kubeconfig: Callable[..., None],
    programs: Callable[[], list[list[str]]],
    volume: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_kubeconfig(kind_kws="http://127.0.0.1:9", other=stand_in.address)
    stand_in.claim = "Bound" if command in IN_PODS else ""
    for page in ("UI", "TENSORBOARD"):
        monkeypatch.setattr(kind, page, f"http://localhost:{free_port()}")
    call(command, *COMMANDS[command], "--context", "other")
    called = programs()
    assert [program for program, *_ in called] == ["kubectl"] * len(called)
    assert all(arguments[:2] == ["--context", "other"] for _, *arguments in called)
    assert called if command in IN_PODS else stand_in.calls
    assert opened == []


@pytest.mark.parametrize("command", ["submit", "schedule", "pull", "deploy", "models", "rollback"])
def test_a_command_without_the_claim_names_what_makes_it(
    command: str,
    stand_in: StandIn,
    use_kubeconfig: Callable[..., None],
    programs: Callable[[], list[list[str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_kubeconfig(other=stand_in.address)
    said = call(command, *COMMANDS[command], "--namespace", "me")
    assert said == (
        "the claim kws-data must exist in namespace me, got none; python -m pipeline install --namespace me makes it"
    )
    assert programs() == []


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("ui", "make kind-up installs it on kind, manifests/kubeflow-pipelines elsewhere"),
        ("tensorboard", "python -m pipeline install --context other makes it"),
    ],
)
def test_a_page_whose_service_there_is_not_names_what_makes_it(
    command: str,
    remedy: str,
    use_kubeconfig: Callable[..., None],
    programs: Callable[[], list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_kubeconfig(other="http://127.0.0.1:9")
    for page in ("UI", "TENSORBOARD"):
        monkeypatch.setattr(kind, page, f"http://localhost:{free_port()}")
    kubectl = tmp_path / "bin" / "kubectl"
    # What kubectl 1.34 says.
    error = """Error from server (NotFound): services "it" not found"""
    text = kubectl.read_text().replace("exit 1", f"echo '{error}' >&2; exit 1")
    kubectl.write_text(text)
    said = call(command, "--context", "other")
    assert "must exist in namespace kubeflow, got none" in said
    assert said.endswith(remedy)


@pytest.mark.parametrize("flags", [[], ["--context", "kind-kws"]])
def test_our_kind_cluster_is_known_by_its_context_named_or_current(
    flags: list[str],
    stand_in: StandIn,
    use_kubeconfig: Callable[..., None],
    programs: Callable[[], list[list[str]]],
    volume: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = {"kind_kws": stand_in.address, "other": "http://127.0.0.1:9"}
    use_kubeconfig(**(dict(reversed(servers.items())) if flags else servers))
    monkeypatch.setattr(kind, "UI", stand_in.address)
    assert call("models", *flags) == ""
    assert "there must be a champion, got none" in call("pull", *flags)
    assert call("ui", *flags) == ""
    assert opened == [stand_in.address]
    assert programs() == []
    call("submit", *flags)
    assert {program for program, *_ in programs()} == {"docker", "kind"}  # cores of this machine, images of the nodes


def test_the_page_of_kind_is_not_opened_for_another_cluster(
    stand_in: StandIn,
    use_kubeconfig: Callable[..., None],
    programs: Callable[[], list[list[str]]],
    volume: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_kubeconfig(kind_kws="http://127.0.0.1:9", other="http://127.0.0.1:9")
    monkeypatch.setattr(kind, "UI", stand_in.address)
    assert "must be free for ml-pipeline-ui, got in use" in call("ui", "--context", "other")
    assert opened == []


def test_a_context_that_there_is_not_is_named(use_kubeconfig: Callable[..., None]) -> None:
    use_kubeconfig(here="http://127.0.0.1:9")
    assert call("runs", "--context", "there").startswith("context must be one of kubeconfig")


def test_a_host_is_not_our_kind_cluster_though_the_current_context_is(
    use_kubeconfig: Callable[..., None], volume: Path
) -> None:
    use_kubeconfig(kind_kws="http://127.0.0.1:9")
    assert (Cluster().kind, Cluster().volume) == (True, volume)
    there = Cluster(host="https://kubeflow.example.com/pipeline")
    assert (there.kind, there.volume) == (False, None)
