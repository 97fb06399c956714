"""The commands of `python -m pipeline` that need a cluster or create one."""

import argparse
import dataclasses
import functools
import os
import subprocess
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.table import Table

from kws import files
from kws.config import CleanConfig, PipelineConfig, split_sources
from kws.download.addresses import is_signed
from kws.download.credentials import SECRET
from kws.kube.errors import KubeError
from kws.launch.cluster_config import SETTINGS, ClusterConfig, claim_name
from kws.model import versions
from kws.promote import by_hand
from kws.settings import add_flag, add_registry, field_docs, read_flags, require
from pipeline.cluster import models, runs, schedules
from pipeline.cluster.connect import Cluster, explained, kubeflow_errors
from pipeline.cluster.fit import require_fit
from pipeline.cluster.follow import PATIENCE_MINUTES, Following
from pipeline.cluster.install import FOLDERS, TENSORBOARD, install
from pipeline.cluster.results import out
from pipeline.cluster.volumes import HostVolume, Volume, reader_pod
from pipeline.compiling import compile_to
from pipeline.flags import add_parameters, read_parameters
from pipeline.kind import docker_images, preflight
from pipeline.kind import local_cluster as kind
from pipeline.placement import JOBS, Placement, read_placement
from pipeline.shell import ClusterError, docker

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

DEFAULT = " (default: %(default)s)"
Options = argparse.Namespace
Command = Callable[[Options], int | None]


def cluster_of(options: Options) -> Cluster:
    """Returns the cluster that parsed flags name."""
    return Cluster(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Cluster)})


def placement_of(options: Options, cluster: Cluster | None = None, num_nodes: int = 1) -> Placement:
    """Returns the placement that follows from flags and environment.

    On a local cluster the training pods divide the cores of this machine among them.
    """
    names = docker_images.image_names(registry=options.registry, device=options.device)
    pods = {"cpu": options.cpu, "memory": options.memory}
    if cluster is not None and cluster.kind and SETTINGS not in os.environ:
        pods = kind.training_pods(num_nodes) | {name: value for name, value in pods.items() if value}
    found = read_placement(
        os.environ, names, device=options.device, launches=options.launcher, notify=options.notify, **pods
    )
    only_new = getattr(options, "only_new", False) or not getattr(options, "always", True)
    # Who is told has no port of this machine.
    ui = cluster.ui if cluster and options.notify and not cluster.ui_hint else ""
    return dataclasses.replace(found, only_new=only_new, ui=ui)


def add_cluster_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands; each sets `call`, a function of the parsed flags, and explains itself by its docstring."""

    def add(
        name: str, command: Command, *parents: argparse.ArgumentParser, text: str = ""
    ) -> Callable[..., argparse.Action]:
        text = " ".join((text or str(command.__doc__)).split())
        first = text.partition(".")[0]
        parser = subparsers.add_parser(
            name, help=first[0].lower() + first[1:], description=text.replace("%", "%%"), parents=parents
        )
        parser.set_defaults(call=_as_call(command))
        return parser.add_argument

    where, built, pods, volume = _where(), _built(), _pods(), _volume()
    one, followed, parameters = _flags(), _flags(), _flags()
    one.add_argument("wanted", metavar="RUN", help="id of the run, the beginning of it, or its name")
    minutes = "how long to watch a pod that waits for what will not come by itself, such as an image"
    followed.add_argument("--patience", type=float, default=PATIENCE_MINUTES, metavar="MINUTES", help=minutes + DEFAULT)
    changes = "without a terminal, print changes of state only, not the steps' logs"
    followed.add_argument("--quiet", action="store_true", help=changes)
    started = _flags(followed)
    started.add_argument("--no-follow", action="store_true", help="return at once instead of showing the steps")
    add_parameters(parameters)

    flag = add("compile", _compile, built, pods)
    flag("-o", "--output", type=Path, default=Path("speech-commands.yaml"), metavar="FILE", help="the file" + DEFAULT)
    new = "leave out training if data and recipe are those of a version that there is, as schedules do"
    flag("--only-new", action="store_true", help=new)
    flag = add("submit", _submit, started, where, built, pods, parameters)
    flag("--name", default="", help="name of the run (default: the time)")
    flag("--unchecked", action="store_true", help="submit even if pods do not fit the nodes or quotas")
    flag = add("runs", _runs, where)
    flag("--count", type=int, default=20, help="how many" + DEFAULT)
    add("follow", _follow, one, followed, where)
    add("cancel", _cancel, one, where)
    add("retry", _retry, one, started, where)

    flag = add("schedule", _schedule, where, built, pods, parameters)
    fields = "minute hour day month weekday, such as '0 3 * * 1' for Mondays at three; a sixth in front sets seconds"
    flag("--cron", required=True, help=fields)
    flag("--time-zone", default="", help="such as Europe/Berlin, for all schedules of the cluster (default: its own)")
    flag("--name", default=runs.EXPERIMENT, help="name of the schedule" + DEFAULT)
    flag("--always", action="store_true", help="train even if neither data nor recipe have changed since a version")
    add("schedules", _schedules, where)
    flag = add("unschedule", _unschedule, where)
    flag("--name", default=runs.EXPERIMENT, help="name or id of the schedule" + DEFAULT)

    flag = add("install", _install, where, built)
    folder = "what to apply (default: on kind what kind-up applies; in kubeflow storage-class, elsewhere profile)"
    flag("--overlay", choices=tuple(FOLDERS), default="", help=folder)
    flag("--storage-class", default="", help="of the volume; it must have ReadWriteMany (default: that of the cluster)")

    flag = add("pull", _pull, volume, where)
    flag("--version", default="champion", help="a folder of models/ (default: champion, the one in use)")
    folder = "where to make a folder named after the version"
    flag("--to", type=Path, default=Path("var/models"), metavar="DIR", help=folder + DEFAULT)
    flag = add("deploy", _deploy, where, built)
    flag("--image", default="", help="image of the server (default: that of this revision)")
    kept = "keep the sound of words that are heard, on the volume in collected/, until they are reviewed at /review"
    flag("--collect", choices=("yes", "no"), default="no", help=kept + DEFAULT)
    beside = "version, or candidate, that hears what the champion hears and answers nobody; /metrics compares both"
    flag("--shadow", default="", help=beside)
    add("models", _models, volume, where)
    for name, does in by_hand.COMMANDS.items():
        decided = _flags(volume, where)
        by_hand.add_flags(decided, name)
        recorded = f"{does[0].upper()}{does[1:]}. It is recorded who did it and why; servers follow within seconds."
        add(name, functools.partial(_decide, command=name), decided, text=recorded)
    flag = add("candidates", _candidates, volume, where)
    flag("--to", type=Path, default=Path("var/candidate.html"), metavar="FILE", help="where to put the page" + DEFAULT)
    cleaned = _flags(volume, where)
    for name in field_docs(CleanConfig):
        add_flag(cleaned, CleanConfig, name)
    add_registry(cleaned, "whose live entries keep their versions")
    add("clean", _clean, cleaned)
    add("ui", _ui, where)
    add("tensorboard", _tensorboard, where)

    flag = add("images", _images, built)
    torch = "where PyTorch comes from: its index of CPU builds, the CUDA build of uv.lock, or the base image"
    flag("--torch", choices=("cpu", "locked", "base"), help=f"{torch} (default: cpu; base for --device cuda)")
    flag("--base-image", default="", help="base image of the runtime, instead of the default one")
    flag("--push", action="store_true", help="push them to --registry")
    flag = add("preflight", _preflight)
    flag("--running", action="store_true", help="the cluster is running, so its ports may be in use")
    add("kind-up", _kind_up, built)
    add("kind-down", _kind_down)
    add("kind-load", _kind_load, built)
    add("kind-status", _kind_status)


def _as_call(command: Command) -> Callable[[Options], None]:
    """Ends the program with the status that a command returns, and turns an API's refusal into one sentence."""

    @functools.wraps(command)
    def call(options: Options) -> None:
        try:
            with kubeflow_errors():
                status = command(options)
        except KubeError as error:
            raise explained(error, cluster_of(options)) from error
        if status:
            raise SystemExit(status)

    return call


def _flags(*parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False, parents=parents)


def _where() -> argparse.ArgumentParser:
    """Returns the flags that say which cluster."""
    parser = _flags()
    group = parser.add_argument_group("which cluster (default: that of kubeconfig)")
    docs = field_docs(Cluster)
    for field in dataclasses.fields(Cluster):
        shown = f" (default: {field.default})" if field.default else ""
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, default=field.default, help=docs[field.name] + shown, metavar=field.name.upper())
    return parser


def _built() -> argparse.ArgumentParser:
    """Returns the flags that say which images."""
    parser = _flags()
    group = parser.add_argument_group("which images")
    registry = "to push to and pull from, such as ghcr.io/me (default: none; kind gets the images from this machine)"
    group.add_argument("--registry", default="", help=registry)
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what training runs on" + DEFAULT)
    return parser


def _pods() -> argparse.ArgumentParser:
    """Returns the flags that say what a training pod asks for."""
    parser = _flags()
    group = parser.add_argument_group("training pods (more settings: KWS_PYTORCHJOB, see docs/cluster.md)")
    docs = field_docs(ClusterConfig)
    for name in ("cpu", "memory"):
        default = next(field.default for field in dataclasses.fields(ClusterConfig) if field.name == name)
        group.add_argument(f"--{name}", default="", metavar=name.upper(), help=f"{docs[name]} (default: {default})")
    launcher = "the job that trains: pytorchjob, of the training operator, or trainjob, of Kubeflow Trainer v2 (first "
    launcher += "python -m pipeline install --overlay trainer-v2) (default: the variable KWS_LAUNCHER, or pytorchjob)"
    told = "secret that has the address of a hook as `address`: a run that fails, has a candidate or a new champion "
    told += "posts JSON there (default: none)"
    group.add_argument("--notify", default="", metavar="SECRET", help=told)
    group.add_argument("--launcher", choices=JOBS, default="", help=launcher)
    return parser


def _volume() -> argparse.ArgumentParser:
    """Returns the flags that say how the volume is reached."""
    parser = _flags()
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="the volume, if it is mounted on this machine")
    image = "image of the pod that mounts the volume (default: one of this revision)"
    parser.add_argument("--image", default="", help=image)
    parser.add_argument("--registry", default="", help="registry that the image is pulled from")
    return parser


def _parameters(options: Options) -> PipelineConfig:
    """Reads the parameters of the pipeline for a run on a cluster.

    Raises:
        ValueError: data_root is not on the volume, or a source carries a signature or a password.
    """
    config, mounted = read_parameters(options), PipelineConfig().data_root
    for source in split_sources(config.source):
        if is_signed(source):
            raise ValueError(
                "source must have no signature, key or password, which Kubeflow would keep and show, got "
                f"one on {urlsplit(source).hostname}: put the address into the secret {SECRET} (kubectl "
                f"-n {options.namespace} create secret generic {SECRET} --from-literal=WORDS='ADDRESS') and give "
                "SOURCE=env:WORDS"
            )
    on_volume = Path(config.data_root).is_relative_to(mounted)
    require(on_volume, "data_root", f"be {mounted} or below, where the volume is", config.data_root)
    return config


def _compile(options: Options) -> None:
    """Write the pipeline as YAML, for the Kubeflow UI or any client."""
    out.print(f"wrote {compile_to(options.output, placement_of(options))}", soft_wrap=True)


def _submit(options: Options) -> int:
    """Start a run on a cluster and follow it.

    The pipeline is compiled for the images of this revision and uploaded as a new version. Ctrl-C stops following, not
    the run. Exit status 0 only if the run succeeded.
    """
    config, cluster = _parameters(options), cluster_of(options)
    placement = placement_of(options, cluster, config.num_nodes)
    if not options.unchecked:
        require_fit(cluster, placement, config.num_nodes)
    started, steps = runs.submit(cluster, config, placement, name=options.name)
    link = f"{cluster.ui}/#/runs/details/{started.run_id}{cluster.ui_hint}"
    return _show(options, cluster, started, steps, f"run {started.display_name}  {started.run_id}", link)


def _show(options: Options, cluster: Cluster, run: "V2beta1Run", steps: list[str], *lines: str) -> int:
    """Prints lines about a run that was started, and follows it, unless told not to."""
    following = Following(
        cluster, run.run_id, steps, patience=options.patience, quiet=options.quiet, introduction=lines
    )
    if getattr(options, "no_follow", False):
        following.introduce()
        return 0
    return following.run()


def _runs(options: Options) -> None:
    """List the latest runs."""
    table = runs.table_of_runs(cluster_of(options), options.count)
    out.print(table if table.row_count else "no runs yet; make pipeline starts one")


def _follow(options: Options) -> int:
    """Show the steps of a run until it ends."""
    cluster = cluster_of(options)
    found = runs.find_run(cluster, options.wanted)
    return _show(options, cluster, found, runs.steps_of_run(cluster, found))


def _cancel(options: Options) -> None:
    """End a run and its training."""
    runs.cancel(cluster_of(options), options.wanted)


def _retry(options: Options) -> int:
    """Resume a failed or cancelled run at the steps that did not succeed."""
    cluster = cluster_of(options)
    found = runs.retry(cluster, options.wanted)
    return _show(options, cluster, found, runs.steps_of_run(cluster, found), f"retrying {found.display_name}")


def _schedule(options: Options) -> None:
    """Retrain at fixed times.

    One run at a time; missed runs are not caught up on. A schedule of the same name is replaced. Every run looks for
    new recordings; it trains unless data and recipe are those of a version that there is (--always: even then).
    """
    config, cluster = _parameters(options), cluster_of(options)
    placement = placement_of(options, cluster, config.num_nodes)
    schedules.schedule(cluster, config, placement, cron=options.cron, time_zone=options.time_zone, name=options.name)


def _schedules(options: Options) -> None:
    """List the schedules."""
    table = schedules.table_of_schedules(cluster_of(options))
    out.print(table if table.row_count else "no schedules; make schedule CRON='0 3 * * *' makes one")


def _unschedule(options: Options) -> None:
    """Delete a schedule. Its run in progress, if any, is cancelled first."""
    schedules.unschedule(cluster_of(options), options.name)


def _install(options: Options) -> None:
    """Apply the manifests that the pipeline needs on a cluster. They can be applied again at any time.

    The claim of the volume, the rights of the steps, network policies, a quota, TensorBoard; or the runtime of Kubeflow
    Trainer v2, or the server as an InferenceService. Images are those of this revision. A claim that exists is kept.
    """
    images = docker_images.image_names(registry=options.registry, device=options.device)
    claim = claim_name(os.environ)
    install(cluster_of(options), images, claim=claim, overlay=options.overlay, storage_class=options.storage_class)


def _local_root(options: Options) -> Path | None:
    """Returns the folder of this machine that is the volume; None if there is none.

    Raises:
        ValueError: --data-root is not a folder.
    """
    root: Path | None = options.data_root
    if root is not None and not root.is_dir():
        raise ValueError(f"data_root must be a folder, got {str(root)!r}; check the path")
    return root or cluster_of(options).volume


@contextmanager
def _volume_of(options: Options, role: str) -> Iterator[Volume]:
    """Gives read access to the volume, through a pod of the image of a role where it is no folder of this machine."""
    if root := _local_root(options):
        yield HostVolume(root)
        return
    image = options.image or docker_images.image_names(registry=options.registry)[role]
    with reader_pod(cluster_of(options), claim=claim_name(os.environ), image=image) as volume:
        yield volume


def _pull(options: Options) -> None:
    """Copy a model from the volume of the cluster to this machine, verified.

    With kind it is copied from the host's folder, elsewhere through a pod that mounts the volume and is deleted at the
    end.
    """
    with _volume_of(options, "runtime") as volume:
        folder = models.pull(volume, options.to, options.version)
    out.print(f"{folder}\nnext: kws predict --model {folder / 'model.pth'} FILE.wav", soft_wrap=True)


def _deploy(options: Options) -> None:
    """Serve the champion on the cluster, with two pods that switch to each new one.

    After a change of the image, run it again: pods are replaced one by one, and no request is lost.
    """
    cluster = cluster_of(options)
    image = options.image or docker_images.image_names(registry=options.registry)["serving"]
    claim, collect = claim_name(os.environ), options.collect == "yes"
    models.deploy(cluster, image=image, claim=claim, collect=collect, shadow=options.shadow)


def _models(options: Options) -> None:
    """List the published versions, their metrics, and which is champion."""
    with _volume_of(options, "serving") as volume:
        table = models.table_of_models(volume)
    out.print(table if table.row_count else "no versions yet; make demo or make pipeline publishes one")


def _kws_on_cluster(options: Options, command: str, arguments: Sequence[str]) -> str:
    """Runs a command of kws in a pod that mounts the volume; see `kws.cli`."""
    address = options.model_registry
    role = "runtime" if address else "serving"  # only the former has the client of the registry
    image = options.image or docker_images.image_names(registry=options.registry)[role]
    flags = [*arguments, *([f"--model-registry={address}"] if address else [])]
    return models.call_kws(cluster_of(options), command, flags, image=image, claim=claim_name(os.environ))


def _candidates(options: Options) -> None:
    """Show the candidate beside the champion: on each word, and in a page the clips on which they differ."""
    with _volume_of(options, "serving") as volume:
        out.print(models.table_of_candidate(volume), soft_wrap=True)
        page = volume.read(f"{versions.MODELS}/{versions.COMPARISON}")
    if page:
        files.write(options.to, page)
        out.print(f"side by side, with sounds: {options.to}", soft_wrap=True)


def _decide(options: Options, command: str) -> None:
    root = _local_root(options)
    said = by_hand.carry_out(root, command, options) if root else ""
    out.print(said or _kws_on_cluster(options, command, by_hand.as_flags(options)), soft_wrap=True)


def _clean(options: Options) -> None:
    """Delete runs, versions, tensors, features and data sets that nothing needs any more.

    What schedules name is needed, too. It is said what and how much; --dry-run only says it.
    """
    from kws.promote.clean import clean

    if root := _local_root(options):
        needed = () if options.data_root else schedules.needed(cluster_of(options))
        config = read_flags(CleanConfig, options, needed="\n".join([*needed, *filter(None, [options.needed])]))
        clean(root, config, model_registry=options.model_registry, say=functools.partial(out.print, soft_wrap=True))
        return
    config = read_flags(CleanConfig, options)
    needed = [*schedules.needed(cluster_of(options)), *filter(None, config.needed.split("\n"))]
    arguments = [f"--keep={config.keep}", f"--days={config.days}", *(f"--needed={name}" for name in needed)]
    out.print(_kws_on_cluster(options, "clean", arguments + ["--dry-run"] * config.dry_run), soft_wrap=True)


def _ui(options: Options) -> int:
    """Open the UI of Kubeflow Pipelines."""
    missing = "make kind-up installs it on kind, manifests/kubeflow-pipelines elsewhere"
    return _open(options, "ml-pipeline-ui", options.host or kind.UI, kind.NAMESPACE, missing)


def _tensorboard(options: Options) -> int:
    """Open TensorBoard with all runs."""
    missing = f"{cluster_of(options).installing()} makes it"
    return _open(options, TENSORBOARD, kind.TENSORBOARD, options.namespace, missing)


def _open(options: Options, service: str, address: str, namespace: str, missing: str) -> int:
    """Opens a page of the cluster in the browser, through a port forwarded to an address unless it is there.

    `missing` says what makes the service where there is none.
    """
    cluster = cluster_of(options)
    if address != cluster.host and (not cluster.kind or kind.reach(address)):
        port = int(address.rpartition(":")[2])
        preflight.require_all([preflight.port(port, service)])
        forward = ["--namespace", namespace, "port-forward", f"service/{service}", f"{port}:80"]
        none = f"the service {service} must exist in namespace {namespace}, got none; {missing}"
        return _forward([*cluster.kubectl, *forward], address, none)
    out.print(address)
    webbrowser.open(address)
    return 0


def _forward(command: list[str], address: str, none: str) -> int:
    """Forwards a port until Ctrl-C, and opens the page once it answers; says `none` if there is no such service."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise ClusterError(f"kubectl must be on PATH, got none; {preflight.INSTALL['kubectl']}") from None
    try:
        while kind.reach(address):
            if process.poll() is not None:
                assert process.stderr is not None
                said = process.stderr.read().strip()
                if "(NotFound): services" in said:
                    raise ClusterError(none)
                raise ClusterError(
                    f"a port must be forwarded to {address}, got {said}; check the context with "
                    "kubectl config get-contexts"
                )
            time.sleep(0.5)
        out.print(f"{address}  (Ctrl-C ends it)")
        webbrowser.open(address)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()


def _images(options: Options) -> None:
    """Build the container images and print their sizes. Their tag is the commit that last changed their contents."""
    preflight.require_all([preflight.tool(docker()), preflight.docker_engine(), preflight.docker_builder()])
    names = docker_images.image_names(registry=options.registry, device=options.device)
    docker_images.build(
        names, device=options.device, torch=options.torch or "", base_image=options.base_image, push=options.push
    )
    table = Table("image", "size", "revision", box=None)
    for image in docker_images.inspect(list(names.values())):
        tag = next(tag for tag in image["RepoTags"] if tag in names.values())
        labels = image["Config"]["Labels"]
        table.add_row(tag, files.human_bytes(image["Size"]), labels["org.opencontainers.image.revision"])
    out.print(table)


def _preflight(options: Options) -> int:
    """Check what this machine needs for a local cluster."""
    table = Table("", "part", "state", box=None)
    problems = 0
    for check in preflight.checks(new_cluster=not options.running):
        problems += bool(check.problem)
        table.add_row("[red]✗[/]" if check.problem else "[green]✓[/]", check.name, check.problem or check.detail)
    out.print(table)
    return 1 if problems else 0


def _kind_up(options: Options) -> None:
    """Create a local cluster with Kubeflow. It can be interrupted, even killed, and started again."""
    kind.up(docker_images.image_names(device=options.device))


def _kind_down(options: Options) -> None:
    """Delete the local cluster. The volume stays in var/kind."""
    kind.down()


def _kind_load(options: Options) -> None:
    """Copy the images of this revision into the local cluster."""
    kind.load(docker_images.image_names(device=options.device))


def _kind_status(options: Options) -> int:
    """Show which parts of the local cluster are healthy."""
    return 0 if kind.status() else 1
