import argparse
import dataclasses
import hashlib
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from remedies import commands
from rich.console import Console

from kws import files
from kws.config import PipelineConfig
from kws.download.credentials import SECRET, SECRET_FOLDER
from pipeline.cluster import schedules
from pipeline.cluster.commands import add_cluster_commands
from pipeline.cluster.connect import Cluster
from pipeline.cluster.models import pull, table_of_models
from pipeline.cluster.volumes import HostVolume, PodVolume
from pipeline.compiling import compile_to, package_spec, steps_of_spec, version_name
from pipeline.kind import local_cluster as kind
from pipeline.placement import Placement, read_placement
from pipeline.shell import ClusterError, run

ROOT = Path(__file__).resolve().parents[3]
STEPS = ["download", "preprocess", "train", "evaluate", "promote"]
MOVE_DATA = STEPS
"""Recordings, tensors, runs and models lie on the volume, and every step reads or writes some of them."""


@pytest.mark.parametrize("command", commands("python -m pipeline"))
def test_a_command_that_a_message_or_a_page_names_is_there_with_its_flags(command: str) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command")
    add_cluster_commands(subparsers)
    name, *flags = command.split()[3:]
    if name in ("run", "demo", "--help", "COMMAND"):
        return
    assert {flag for flag in flags if flag.startswith("--")} <= set(subparsers.choices[name]._option_string_actions)


# The compiled pipeline


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline, compiled for images of a revision."""
    placement = Placement(runtime="reg/kws-runtime:abc", launcher="reg/kws-launcher:abc")
    return compile_to(tmp_path_factory.mktemp("compiled") / "pipeline.yaml", placement)


def containers_of(package: Path) -> dict[str, Any]:
    spec = package_spec(package)
    return {name.removeprefix("exec-"): each["container"] for name, each in spec["deploymentSpec"]["executors"].items()}


def test_the_volume_is_mounted_where_data_moves_and_nowhere_else(package: Path) -> None:
    _, platform = yaml.safe_load_all(package.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = {name.removeprefix("exec-"): each["pvcMount"] for name, each in executors.items() if "pvcMount" in each}
    assert sorted(mounts) == sorted(MOVE_DATA)
    for (mount,) in mounts.values():
        assert mount["mountPath"] == "/data"
        assert mount["pvcNameParameter"]["runtimeValue"]["constant"] == "kws-data"


def test_the_secret_of_downloads_is_mounted_in_that_step_alone_and_need_not_exist(package: Path) -> None:
    _, platform = yaml.safe_load_all(package.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    secrets = {name: each["secretAsVolume"] for name, each in executors.items() if "secretAsVolume" in each}
    ((name, (mount,)),) = secrets.items()
    assert (name, mount["secretName"], mount["mountPath"]) == ("exec-download", SECRET, str(SECRET_FOLDER))
    assert mount["optional"] is True


def test_every_step_says_that_it_does_not_run_as_root_as_restricted_namespaces_demand(package: Path) -> None:
    _, platform = yaml.safe_load_all(package.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    said = {name.removeprefix("exec-"): each["securityContext"]["runAsNonRoot"] for name, each in executors.items()}
    assert said == dict.fromkeys(STEPS, True)


def test_every_step_has_requests_and_limits_of_cpu_and_memory(package: Path) -> None:
    for step, container in containers_of(package).items():
        assert {"resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(
            container["resources"]
        ), step


def test_every_step_runs_an_image_of_the_revision_and_only_train_the_launcher(package: Path) -> None:
    images = {step: container["image"] for step, container in containers_of(package).items()}
    assert images.pop("train") == "reg/kws-launcher:abc"
    assert set(images.values()) == {"reg/kws-runtime:abc"}
    assert ":latest" not in package.read_text()


def test_the_job_that_the_compiled_train_step_would_launch_runs_the_runtime_on_the_volume(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kws.launch.cluster_config import SETTINGS, ClusterConfig
    from kws.launch.job import Training
    from kws.launch.kinds.pytorchjob import build_job

    (settings,) = [e["value"] for e in containers_of(package)["train"]["env"] if e["name"] == SETTINGS]
    monkeypatch.setenv(SETTINGS, settings)
    job = Training(name="kws-1", folder=Path("/data/runs/1"), arguments=(), num_nodes=2, processes_per_node=1)
    manifest = build_job(job, ClusterConfig.from_environment())
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "reg/kws-runtime:abc"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "kws-data"}} in pod["volumes"]


def test_nothing_is_cached_so_that_a_schedule_retrains(package: Path) -> None:
    for task in package_spec(package)["root"]["dag"]["tasks"].values():
        assert not task["cachingOptions"].get("enableCache")


def test_steps_come_in_the_order_in_which_they_run(package: Path) -> None:
    assert steps_of_spec(package_spec(package)) == STEPS


def test_a_version_is_named_by_what_was_compiled(package: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_bytes(package.read_bytes())
    assert version_name(again) == version_name(package)
    again.write_text(package.read_text().replace("kws-runtime:abc", "kws-runtime:abd"))
    assert version_name(again) != version_name(package)


def test_the_picture_of_the_pipeline_in_the_docs_is_of_this_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "pipeline.svg"
    for name in [name for name in os.environ if name.startswith("KWS_")]:
        monkeypatch.delenv(name)
    runpy.run_path(str(ROOT / "docs" / "draw_pipeline.py"))["draw"](drawn)
    words = set(ElementTree.parse(drawn).getroot().itertext())
    kept = set(ElementTree.parse(ROOT / "docs" / "pictures" / "pipeline.svg").getroot().itertext())
    assert {*STEPS, "recordings", "tensors", "model"} <= words
    assert words == kept, "draw it again: python docs/draw_pipeline.py"


# Schedules


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("30 0 3 * * 1", "30 0 3 * * 1"),
        ("  15  4 1 *  * ", "0 15 4 1 * *"),
        ("@daily", "@daily"),
    ],
)
def test_a_cron_expression_gets_the_field_for_seconds(given: str, sent: str) -> None:
    assert schedules.six_fields(given) == sent


@pytest.mark.parametrize("given", ["", "3 *", "* * * * * * *", "daily"])
def test_a_cron_expression_with_other_fields_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"cron must have five fields .*, got"):
        schedules.six_fields(given)


# Reaching a cluster


class Page(BaseHTTPRequestHandler):
    """A real server that is not Kubeflow Pipelines: asks for a login, or shows a page."""

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == "Bearer good"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        expired = self.headers["Authorization"] == "Bearer expired"
        self.wfile.write(b"Jwt is \x1b[2Jexpired" if expired else b"<html>log in</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Any:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def call(*arguments: str) -> None:
    """Runs a command as `python -m pipeline` does."""
    parser = argparse.ArgumentParser()
    add_cluster_commands(parser.add_subparsers(dest="command", required=True))
    options = parser.parse_args(arguments)
    options.call(options)


def test_a_host_that_does_not_answer_is_named_in_a_sentence() -> None:
    with pytest.raises(ClusterError, match=r"^http://127.0.0.1:9 must answer, got .*refused; check that"):
        call("runs", "--host", "http://127.0.0.1:9")


def test_a_cluster_that_is_away_is_told_without_the_log_of_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "kubectl"
    log = 'E1126 11:45:02.400799   10287 memcache.go:265] "Unhandled Error" err="connection refused"'
    said = "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'end'\n{log}\n{log}\n{said}\nend\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError, match=r"^a cluster must answer, got: The connection .* was refused.*make kind-up"):
        run("kubectl", "get", "pods")


def test_a_cluster_that_is_away_ends_a_command_that_needs_its_volume(use_kubeconfig: Callable[..., None]) -> None:
    use_kubeconfig(here="http://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"^the cluster must answer, got .*refused; see python -m pipeline kind-st"):
        call("models")


def test_a_host_that_refuses_credentials_tells_how_to_get_a_token(page: str) -> None:
    with pytest.raises(
        ClusterError, match=r"must accept your credentials, got status 401: Unauthorized; .*kubectl create token"
    ):
        call("runs", "--host", page, "--namespace", "me")


def test_a_host_that_says_why_it_refuses_a_token_is_quoted(page: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("expired")
    with pytest.raises(ClusterError, match=r"got status 401: Jwt is \\x1b\[2Jexpired; for a fresh token: .*> .*token$"):
        call("runs", "--host", page, "--token-file", str(token))


def test_a_host_that_shows_a_page_instead_of_the_api_is_told_apart(page: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("good\n")
    with pytest.raises(ClusterError, match=r"host must be the address .*, got a page at .*> .*token$"):
        call("runs", "--host", page, "--token-file", str(token))


def test_without_kubeconfig_and_host_the_remedy_is_to_make_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="named by kubeconfig or --host, got neither; make kind-up"):
        call("runs")


@pytest.mark.parametrize("text", ["", "[]", "a: {b", "clusters: 3", "\x00"])
def test_a_damaged_kubeconfig_is_told_as_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "damaged"))
    with pytest.raises(ClusterError, match="a cluster must be named by kubeconfig or --host, got neither"):
        call("runs")


def test_a_cluster_of_kubeconfig_that_is_gone_is_named_in_a_sentence(use_kubeconfig: Callable[..., None]) -> None:
    use_kubeconfig(gone="http://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"the cluster of kubeconfig must answer, got .*check the context"):
        call("runs")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "kubeflow.example.com"], "host must begin with http"),
        (["--token-file", "/nowhere"], "token_file must .*, got '/nowhere', which does not exist; .*> /nowhere"),
        (["--token-file", "/"], "token_file must .*, got '/', which cannot be read: Is a directory"),
        (
            ["--token-file", "/dev/null"],
            "token_file must .*, got '/dev/null', which is empty; for a fresh one: kubectl",
        ),
        (["--token-file", __file__], "token_file must .*, got .*, which has more than one word"),
        (["--ca-file", "/nowhere"], "ca_file must be a file, got '/nowhere', which does not exist"),
    ],
)
def test_a_wrong_flag_is_refused_before_the_cluster_is_contacted(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(**{flags[0].removeprefix("--").replace("-", "_"): flags[1]})


@pytest.mark.parametrize(
    "flags", [["--epochs", "-1"], ["--preset", "best"], ["--num-nodes", "0"], ["--data-root", "var/data"]]
)
def test_a_parameter_out_of_range_is_refused_before_anything_is_submitted(flags: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{flags[0][2:].replace('-', '_')} must be .*, got"):
        call("submit", *flags)


@pytest.mark.parametrize("command", ["submit", "schedule"])
def test_a_signed_source_is_refused_before_kubeflow_keeps_it(command: str) -> None:
    signed = "https://bucket.example/words.zip?X-Amz-Signature=abcdef"
    cron = ["--cron", "0 3 * * 1"] if command == "schedule" else []
    with pytest.raises(ValueError, match=r"got one on bucket.example: put .* and give SOURCE=env:WORDS") as caught:
        call(command, *cron, "--source", "/data/mine", "--source", signed)
    assert "abcdef" not in str(caught.value)


IMAGES = {"runtime": "kws-runtime:1", "launcher": "kws-launcher:1"}


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("KWS_PYTORCHJOB", "{image", "KWS_PYTORCHJOB must be a JSON object"),
        ("KWS_PYTORCHJOB", '{"cores": 3}', "ClusterConfig must have fields among image, .*, got 'cores'"),
        ("KWS_PYTORCHJOB", '{"cpu": "much"}', "cpu must be a quantity .*, got 'much'"),
        ("KWS_GPUS_PER_NODE", "two", "KWS_GPUS_PER_NODE must be a whole number, got 'two'"),
    ],
)
def test_a_wrong_setting_of_the_environment_is_refused_by_its_name(variable: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_placement({variable: value}, IMAGES)


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_default() -> None:
    environment = {"KWS_PVC": "mine", "KWS_PYTORCHJOB": '{"cpu": "3", "memory": "5Gi", "elastic": false}'}
    pods = read_placement(environment, IMAGES, device="cuda", cpu="1", memory="").training_pods
    assert (pods.image, pods.pvc, pods.cpu, pods.memory) == ("kws-runtime:1", "mine", "1", "5Gi")
    assert (pods.elastic, pods.gpus_per_node) == (False, 1)
    assert read_placement({}, IMAGES).training_pods.pvc == "kws-data"


def commands_of(target: str, *variables: str) -> list[argparse.Namespace]:
    """Returns the parsed commands of the pipeline that a make target would call."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    command = ["make", "-n", "-o", ".venv/.ready", target, *variables]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if "-m pipeline " in line]
    assert lines, done.stderr
    parser = argparse.ArgumentParser()
    add_cluster_commands(parser.add_subparsers(dest="command", required=True))
    return [parser.parse_args(shlex.split(line)[3:]) for line in lines]


WHERE = ("HOST=https://h/pipeline", "NAMESPACE=me", "CONTEXT=c")
BUILT = ("REGISTRY=reg", "DEVICE=cuda")
RUN = (*WHERE, *BUILT, "EPOCHS=5", "NUM_NODES=3", "PROCESSES_PER_NODE=2", "PRESET=baseline", "WORDS=yes,no", "CPU=3")


@pytest.mark.parametrize(
    ("target", "variables"),
    [
        ("images", (*BUILT, "TORCH=locked", "BASE_IMAGE=mine:1")),
        ("kind-up", ("DEVICE=cuda",)),
        ("pipeline", (*RUN, "MEMORY=5Gi", "INIT=champion", "LAUNCHER=trainjob", "UNKNOWN_WORDS=auto", "SEED=7")),
        ("pipeline", ("SET=train.weight_decay=0.1 augment.gain_db=-6,6",)),
        ("follow", WHERE),
        ("retry", WHERE),
        ("schedule", (*RUN, "CRON=0 3 * * 1", "TIME_ZONE=Europe/Berlin")),
        ("ui", WHERE),
        ("pull-model", (*WHERE, "VERSION=v1", "TO=models", "IMAGE=mine:1", "REGISTRY=reg")),
        ("deploy", (*WHERE, *BUILT, "IMAGE=mine:1", "COLLECT=yes", "SHADOW=candidate")),
        ("rollback", (*WHERE, "VERSION=v1", "REASON=it's worse", "DATA_ROOT=here", "MODEL_REGISTRY=http://m")),
    ],
)
def test_a_make_variable_is_the_flag_of_its_name(target: str, variables: Sequence[str]) -> None:
    options = commands_of(target, "RUN=r1", *variables)[-1]
    for name, value in (variable.split("=", 1) for variable in variables):
        assert str(getattr(options, name.lower())) == value


@pytest.mark.parametrize("target", ["pipeline", "follow", "retry", "schedule", "pull-model", "deploy", "rollback"])
def test_a_make_target_passes_further_flags_on(target: str) -> None:
    options = commands_of(target, "RUN=r1", "CRON=0 3 * * 1", "ARGS=--ca-file ca.pem")[-1]
    assert options.ca_file == "ca.pem"


def test_make_refuses_a_variable_that_no_command_takes() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    done = subprocess.run(["make", "-n", "pipeline", "WORKERS=2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "WORKERS must be a variable of this Makefile, got none of that name" in done.stderr
    assert "NUM_NODES" in done.stderr


def test_what_make_starts_keeps_bytecode_whatever_the_environment_says() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    rule = "show:\n\t@echo [$$PYTHONDONTWRITEBYTECODE]\n"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = ["make", "--no-print-directory", "-f", "Makefile", "-f", "-", "show"]  # make test is a make around it
    done = subprocess.run(command, cwd=ROOT, env=environment, input=rule, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_every_parameter_of_the_pipeline_is_a_make_variable() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"^PARAMETERS := (.*)", text, flags=re.M)
    switches = {"debug"}
    assert {field.name for field in dataclasses.fields(PipelineConfig)} - switches <= set(names.lower().split())


def test_make_has_at_most_twenty_targets_and_shows_each() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), flags=re.M)
    targets = {target for line in phony for target in line.split()} - {"help"}
    assert targets == set(re.findall(r"^  ([a-z0-9-]+) ", shown, flags=re.M))
    assert len(targets) < 20


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_cluster_commands(commands)
    for command in commands.choices.values():
        assert len(command.format_help().split()) > 10


# Models


def publish(root: Path, version: str, content: bytes = b"weights") -> Path:
    """Leaves a bundle on a volume as promote does."""
    folder = root / "models" / version
    folder.mkdir(parents=True)
    (folder / "model.pth").write_bytes(content)
    (folder / "report.html").write_text("<html>")
    digests = {name: files.sha256_of(folder / name) for name in ("model.pth", "report.html")}
    files.write_json(folder / files.MANIFEST, {"version": version, "files": digests})
    files.write_json(root / "models" / "champion.json", {"version": version})
    return folder


def test_versions_are_listed_with_whole_names_on_a_narrow_terminal(tmp_path: Path) -> None:
    version = "20261126-082521-909ecd52-6b46-49f6-8994-3f81a74d990c"
    publish(tmp_path, version)
    console = Console(width=80, file=io.StringIO())
    console.print(table_of_models(HostVolume(tmp_path)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    begin = lines[0].index("version")
    assert (
        "".join(line[begin : lines[0].index("accuracy")].strip() for line in lines[1:-1]) == version
    )  # a caption follows
    assert "champion" in lines[1]


def test_pull_brings_the_champion_with_its_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path / "data", "1")
    publish(tmp_path / "data", "2", os.urandom(3_000_000))
    folder = pull(HostVolume(tmp_path / "data"), tmp_path / "to")
    assert folder == tmp_path / "to" / "2"
    assert {path.name for path in folder.iterdir()} == {"model.pth", "report.html", "manifest.json"}
    digest = files.sha256_of(tmp_path / "data/models/2/model.pth")
    assert files.sha256_of(folder / "model.pth") == digest
    assert f"model.pth  3 MB  sha256 {digest}" in capsys.readouterr().err.splitlines()  # in one piece, to be copied


def test_pull_of_a_version_leaves_the_champion_alone(tmp_path: Path) -> None:
    publish(tmp_path / "data", "1")
    publish(tmp_path / "data", "2")
    assert pull(HostVolume(tmp_path / "data"), tmp_path / "to", "1").name == "1"
    assert [path.name for path in (tmp_path / "to").iterdir() if path.is_dir()] == ["1"]


def test_pull_refuses_a_damaged_file_and_leaves_nothing(tmp_path: Path) -> None:
    (publish(tmp_path / "data", "1") / "model.pth").write_bytes(b"weight$")
    with pytest.raises(ClusterError, match=r"models/1/model.pth must have the sha256 \w+, got \w+; start again"):
        pull(HostVolume(tmp_path / "data"), tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir() if path.is_dir()] == []


def test_pull_of_what_is_there_verifies_it(tmp_path: Path) -> None:
    publish(tmp_path / "data", "1")
    folder = pull(HostVolume(tmp_path / "data"), tmp_path / "to")
    assert pull(HostVolume(tmp_path / "data"), tmp_path / "to") == folder
    (folder / "model.pth").write_bytes(b"rotten")
    with pytest.raises(ClusterError, match=r"delete .* and start again"):
        pull(HostVolume(tmp_path / "data"), tmp_path / "to")


def test_pull_of_a_missing_version_lists_those_there_are(tmp_path: Path) -> None:
    publish(tmp_path / "data", "20260101-1")
    with pytest.raises(ValueError, match=r"versions: 20260101-1.*got '7'"):
        pull(HostVolume(tmp_path / "data"), tmp_path / "to", "7")


def test_pull_without_a_champion_says_what_makes_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"no version was published yet.*there must be a champion, got none"):
        pull(HostVolume(tmp_path / "data"), tmp_path / "to")


def test_pull_writes_nowhere_else_whatever_the_volume_says(tmp_path: Path) -> None:
    folder = publish(tmp_path / "data", "1")
    outside = tmp_path / "data" / "models" / "evil"
    outside.write_bytes(b"evil")
    digest = hashlib.sha256(b"evil").hexdigest()
    files.write_json(folder / files.MANIFEST, {"version": "1", "files": {"../evil": digest}})
    with pytest.raises(ValueError, match=r"must be names of files in its folder, got '../evil'"):
        pull(HostVolume(tmp_path / "data"), tmp_path / "to")
    files.write_json(tmp_path / "data" / "models" / "champion.json", {"version": "../1"})
    with pytest.raises(ValueError, match=r"models/champion.json on the volume: version must be the name of a folder"):
        pull(HostVolume(tmp_path / "data"), tmp_path / "to")


def test_pull_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = publish(tmp_path / "data", "1")
    (folder / "model.pth").unlink()
    os.mkfifo(folder / "model.pth")  # gives nothing until someone writes: the copy hangs in it
    command = [sys.executable, "-m", "pipeline", "pull", "--data-root", tmp_path / "data", "--to", tmp_path / "to"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    until = time.monotonic() + 30
    while not list((tmp_path / "to").glob(".1.partial-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "to").glob(".1.partial-*")), process.stderr.read() if process.stderr else ""
    assert not (tmp_path / "to" / "1").exists()
    (folder / "model.pth").unlink()
    (folder / "model.pth").write_bytes(b"weights")
    assert (pull(HostVolume(tmp_path / "data"), tmp_path / "to") / "model.pth").read_bytes() == b"weights"
    assert not list((tmp_path / "to").glob(".1.partial-*"))


@pytest.fixture
def pod_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PodVolume:
    """A folder, read through a kubectl that runs the commands of `exec` on this machine."""
    (tmp_path / "kubectl").write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return PodVolume(["kubectl"], "pod", str(tmp_path / "data"))


def test_through_a_pod_a_volume_without_models_has_none(pod_volume: PodVolume, tmp_path: Path) -> None:
    assert table_of_models(pod_volume).row_count == 0
    with pytest.raises(ValueError, match=r"no version was published yet.*there must be a champion, got none"):
        pull(pod_volume, tmp_path / "to")


def test_through_a_pod_the_champion_comes_whole(pod_volume: PodVolume, tmp_path: Path) -> None:
    publish(tmp_path / "data", "1", os.urandom(3_000_000))
    assert table_of_models(pod_volume).row_count == 1
    folder = pull(pod_volume, tmp_path / "to")
    assert files.sha256_of(folder / "model.pth") == files.sha256_of(tmp_path / "data/models/1/model.pth")
    with pytest.raises(ClusterError, match=r"models must be readable in the reader pod, got: .*directory"):
        pod_volume.read("models")


# kind


def test_kind_commands_without_kind_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kind must be installed and on PATH, got none"):
        kind.exists()
    monkeypatch.delenv("DOCKER", raising=False)
    with pytest.raises(ClusterError, match=r"docker must be on PATH, got none; install Docker.*\n.*\n"):
        kind.up({"runtime": "kws-runtime:1"})
