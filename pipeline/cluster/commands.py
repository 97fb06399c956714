"""The commands of `python -m pipeline` that need a cluster or create one."""

import argparse
import dataclasses
import functools
import os
import subprocess
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from kws.config import PipelineConfig
from kws.launch.settings import SETTINGS, ClusterConfig, claim_name
from kws.promote import registry
from kws.settings import add_registry, field_docs, require
from pipeline.cluster import runs
from pipeline.cluster.connection import Cluster, refused, said_by
from pipeline.cluster.fit import require_fit
from pipeline.cluster.follow import PATIENCE_MINUTES, Following, out
from pipeline.compiling import compile_to, steps_of_package
from pipeline.flags import add_parameters, read_parameters
from pipeline.kind import images, preflight
from pipeline.kind import local_cluster as kind
from pipeline.placement import JOBS, Placement, read_placement
from pipeline.shell import ROOT, ClusterError, docker


def cluster_of(options: argparse.Namespace) -> Cluster:
    """Returns the cluster that parsed flags name."""
    return Cluster(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Cluster)})


def placement_of(options: argparse.Namespace, num_nodes: int = 0) -> Placement:
    """Returns the placement that follows from flags and environment.

    Args:
        options: parsed flags.
        num_nodes: training pods of the run, among which a local cluster divides the cores of this machine.
    """
    names = images.image_names(registry=options.registry, device=options.device)
    pods = {"cpu": options.cpu, "memory": options.memory}
    if num_nodes and not options.host and not options.context and kind.host_data_root() and SETTINGS not in os.environ:
        pods = kind.training_pods(num_nodes) | {name: value for name, value in pods.items() if value}
    return read_placement(os.environ, names, device=options.device, launches=options.launcher, **pods)


def _status(command: Callable[[argparse.Namespace], int | None]) -> Callable[[argparse.Namespace], None]:
    """Ends the program with the status that a command returns, and turns an API's refusal into one sentence.

    Raises:
        ClusterError: the API does not answer, or refuses.
    """

    @functools.wraps(command)
    def call(options: argparse.Namespace) -> None:
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            status = command(options)
        except ApiException as error:
            if error.status in (401, 403):
                raise refused(error.status, cluster_of(options), said_by(error)) from error
            raise ClusterError(f"Kubeflow Pipelines must accept the call, got {said_by(error)}") from error
        except HTTPError as error:
            raise ClusterError(
                f"Kubeflow Pipelines must answer, got {error}; python -m pipeline kind-status shows what is healthy"
            ) from error
        if status:
            raise SystemExit(status)

    return call


def add_cluster_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands; each sets `call`, a function of the parsed flags."""
    where, built, pods = _where(), _built(), _pods()

    def add(
        name: str,
        command: Callable[[argparse.Namespace], int | None],
        summary: str,
        more: str = "",
        parents: tuple[argparse.ArgumentParser, ...] = (),
    ) -> argparse.ArgumentParser:
        parser = subparsers.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}", parents=parents
        )
        parser.set_defaults(call=_status(command))
        return parser

    parser = add(
        "compile", _compile, "write the pipeline as YAML, for the Kubeflow UI or any client", parents=(built, pods)
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("speech-commands.yaml"),
        metavar="FILE",
        help="the file (default: %(default)s)",
    )

    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("wanted", metavar="RUN", help="id of the run, the beginning of it, or its name")
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_MINUTES,
        metavar="MINUTES",
        help="stop following, "
        "with status 1, when a pod has waited so long for something that will not come by itself, such "
        "as a missing image (default: %(default)g)",
    )
    shown.add_argument(
        "--quiet", action="store_true", help="without a terminal, print changes of state only, not the steps' logs"
    )
    on = argparse.ArgumentParser(add_help=False, parents=[shown])
    on.add_argument("--no-follow", action="store_true", help="return at once instead of showing the steps")

    parser = add(
        "submit",
        _submit,
        "start a run on a cluster and follow it",
        "The pipeline is compiled for the images of this revision and uploaded as a new version. Ctrl-C stops "
        "following, not the run. Exit status 0 only if the run succeeded.",
        (on, where, built, pods),
    )
    parser.add_argument("--name", default="", help="name of the run (default: the time)")
    parser.add_argument("--unchecked", action="store_true", help="submit even if pods do not fit the nodes or quotas")
    add_parameters(parser)
    parser = add("runs", _runs, "list the latest runs", parents=(where,))
    parser.add_argument("--count", type=int, default=20, help="how many (default: %(default)s)")
    add("follow", _follow, "show the steps of a run until it ends", parents=(one, shown, where))
    add("cancel", lambda o: runs.cancel(cluster_of(o), o.wanted), "end a run and its training", parents=(one, where))
    add("retry", _retry, "resume a failed or cancelled run at the steps that did not succeed", parents=(one, on, where))

    parser = add(
        "schedule",
        _schedule,
        "retrain at fixed times",
        "One run at a time; missed runs are not caught up on. A schedule of the same name is replaced. "
        "Nothing is cached: every run looks for new recordings and trains.",
        (where, built, pods),
    )
    parser.add_argument(
        "--cron",
        required=True,
        help="minute hour day month weekday, such as '0 3 * * 1' for Mondays "
        "at three; a sixth field in front sets the seconds",
    )
    parser.add_argument(
        "--time-zone",
        default="",
        help="time zone of the cron expression, such as Europe/Berlin; "
        "it applies to all schedules of the cluster (default: its setting, initially UTC)",
    )
    parser.add_argument("--name", default=runs.EXPERIMENT, help="name of the schedule (default: %(default)s)")
    add_parameters(parser)
    add("schedules", _schedules, "list the schedules", parents=(where,))
    parser = add(
        "unschedule",
        lambda o: runs.unschedule(cluster_of(o), o.name),
        "delete a schedule",
        "Its run in progress, if any, is cancelled first.",
        (where,),
    )
    parser.add_argument("--name", default=runs.EXPERIMENT, help="name or id of the schedule (default: %(default)s)")

    parser = add(
        "pull",
        _pull,
        "copy a model from the volume of the cluster to this machine, verified",
        "With kind it is copied from the host's folder, elsewhere through a pod that mounts the volume and is "
        "deleted at the end.",
        (where,),
    )
    parser.add_argument("--version", default="champion", help="a folder of models/ (default: champion, the one in use)")
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("var/models"),
        metavar="DIR",
        help="where to make a folder named after the version (default: %(default)s)",
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="the volume, if it is mounted on this machine")
    parser.add_argument(
        "--image", default="", help="image of the pod that mounts the volume (default: the runtime of this revision)"
    )
    parser.add_argument("--registry", default="", help="registry that the image is pulled from")
    parser = add(
        "deploy",
        _deploy,
        "serve the champion on the cluster, with two pods that switch to each new one",
        "After a change of the image, run it again: pods are replaced one by one, and no request is lost.",
        (where, built),
    )
    parser.add_argument("--image", default="", help="image of the server (default: that of this revision)")
    on_volume = argparse.ArgumentParser(add_help=False)
    on_volume.add_argument("--data-root", type=Path, metavar="DIR", help="the volume, if it is mounted here")
    on_volume.add_argument(
        "--image",
        default="",
        help="image of the pod that mounts the volume (default: the serving image of this revision)",
    )
    on_volume.add_argument("--registry", default="", help="registry that the image is pulled from")
    add(
        "models",
        _models,
        "list the published versions, their metrics, and which is champion",
        parents=(on_volume, where),
    )
    parser = add(
        "rollback",
        _rollback,
        "make an earlier version champion",
        "champion.json records who did it and why; servers switch within seconds.",
        (on_volume, where),
    )
    parser.add_argument("--version", default="", help="a folder of models/ (default: the previous champion)")
    parser.add_argument("--reason", default="", help="the reason to record")
    add_registry(parser, "in which to mark the champion")
    add(
        "ui",
        lambda o: _open(o, "ml-pipeline-ui", 8080, kind.NAMESPACE),
        "open the UI of Kubeflow Pipelines",
        parents=(where,),
    )
    add(
        "tensorboard",
        lambda o: _open(o, "kws-tensorboard", 6006, o.namespace),
        "open TensorBoard with all runs",
        parents=(where,),
    )

    parser = add(
        "images",
        _images,
        "build the container images and print their sizes",
        "Their tag is the commit that last changed their contents.",
        (built,),
    )
    parser.add_argument(
        "--torch",
        choices=("cpu", "locked", "base"),
        help="where PyTorch comes from: cpu, its index "
        "of CPU builds; locked, the CUDA build of uv.lock; base, the base image (default: cpu; base "
        "for --device cuda)",
    )
    parser.add_argument("--base-image", default="", help="base image of the runtime, instead of the default one")
    parser.add_argument("--push", action="store_true", help="push them to --registry")
    parser = add("preflight", _preflight, "check what this machine needs for a local cluster")
    parser.add_argument("--running", action="store_true", help="the cluster is running, so its ports may be in use")
    add(
        "kind-up",
        lambda o: kind.up(images.image_names(device=o.device)),
        "create a local cluster with Kubeflow",
        "It can be interrupted, even killed, and started again.",
        (built,),
    )
    add(
        "kind-down",
        lambda o: kind.down(),
        "delete the local cluster",
        f"The volume stays in {kind.DATA_ROOT.relative_to(ROOT)}.",
    )
    add(
        "kind-load",
        lambda o: kind.load(images.image_names(device=o.device)),
        "copy the images of this revision into the local cluster",
        parents=(built,),
    )
    add("kind-status", lambda o: not kind.status(), "show which parts of the local cluster are healthy")
    parser = add("graph", _graph, "draw the compiled pipeline")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("docs/pictures/pipeline.svg"),
        metavar="FILE",
        help="SVG or PNG (default: %(default)s)",
    )


def _where() -> argparse.ArgumentParser:
    """Returns the flags that say which cluster."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("which cluster (default: that of kubeconfig)")
    docs = field_docs(Cluster)
    for field in dataclasses.fields(Cluster):
        shown = f" (default: {field.default})" if field.default else ""
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            help=docs[field.name] + shown,
            metavar=field.name.upper(),
        )
    return parser


def _built() -> argparse.ArgumentParser:
    """Returns the flags that say which images."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("which images")
    group.add_argument(
        "--registry",
        default="",
        help="registry to push to and pull from, such as ghcr.io/me "
        "(default: none; kind gets the images from this machine)",
    )
    group.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what training runs on (default: %(default)s)"
    )
    return parser


def _pods() -> argparse.ArgumentParser:
    """Returns the flags that say what a training pod asks for."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("training pods (more settings: KWS_PYTORCHJOB, see docs/cluster.md)")
    docs = field_docs(ClusterConfig)
    for name in ("cpu", "memory"):
        default = next(field.default for field in dataclasses.fields(ClusterConfig) if field.name == name)
        group.add_argument(f"--{name}", default="", metavar=name.upper(), help=f"{docs[name]} (default: {default})")
    group.add_argument(
        "--launcher",
        choices=JOBS,
        default="",
        help="the job that trains: pytorchjob, of the training operator, or trainjob, of Kubeflow Trainer v2 "
        "(first kubectl apply -k manifests/trainer-v2) (default: the environment variable KWS_LAUNCHER, or pytorchjob)",
    )
    return parser


def _compile(options: argparse.Namespace) -> None:
    out.print(f"wrote {compile_to(options.output, placement_of(options))}", soft_wrap=True)


def _parameters(options: argparse.Namespace) -> PipelineConfig:
    """Reads the parameters of the pipeline for a run on a cluster.

    Raises:
        ValueError: data_root is not on the volume.
    """
    config = read_parameters(options)
    mounted = PipelineConfig().data_root
    require(
        Path(config.data_root).is_relative_to(mounted),
        "data_root",
        f"be {mounted} or below, where the volume is",
        config.data_root,
    )
    return config


def _submit(options: argparse.Namespace) -> int:
    config = _parameters(options)
    cluster = cluster_of(options)
    placement = placement_of(options, config.num_nodes)
    if not options.unchecked:
        require_fit(cluster, placement, config.num_nodes)
    run_id = runs.submit(cluster, config, placement, name=options.name)
    return 0 if options.no_follow else _following(options, cluster, run_id, steps_of_package()).run()


def _runs(options: argparse.Namespace) -> None:
    table = runs.table_of_runs(cluster_of(options), options.count)
    out.print(table if table.row_count else "no runs yet; make pipeline starts one")


def _following(options: argparse.Namespace, cluster: Cluster, run_id: str, names: list[str]) -> Following:
    return Following(cluster, run_id, names, patience=options.patience, quiet=options.quiet)


def _follow(options: argparse.Namespace) -> int:
    cluster = cluster_of(options)
    found = runs.find_run(cluster, options.wanted)
    return _following(options, cluster, found.run_id, runs.steps_of_run(cluster, found)).run()


def _retry(options: argparse.Namespace) -> int:
    cluster = cluster_of(options)
    found = runs.retry(cluster, options.wanted)
    if options.no_follow:
        return 0
    return _following(options, cluster, found.run_id, runs.steps_of_run(cluster, found)).run()


def _schedule(options: argparse.Namespace) -> None:
    config = _parameters(options)
    runs.schedule(
        cluster_of(options),
        config,
        placement_of(options, config.num_nodes),
        cron=options.cron,
        time_zone=options.time_zone,
        name=options.name,
    )


def _schedules(options: argparse.Namespace) -> None:
    table = runs.table_of_schedules(cluster_of(options))
    out.print(table if table.row_count else "no schedules; make schedule CRON='0 3 * * *' makes one")


def _pull(options: argparse.Namespace) -> None:
    from pipeline.cluster.pull import HostVolume
    from pipeline.cluster.pull import pull as fetch

    if options.data_root:
        if not options.data_root.is_dir():
            raise ValueError(f"data_root must be a folder, got {str(options.data_root)!r}; check the path")
        folder = fetch(HostVolume(options.data_root), options.to, options.version)
    elif not options.host and not options.context and (root := kind.host_data_root()):
        folder = fetch(HostVolume(root), options.to, options.version)
    else:
        from pipeline.cluster.pull import reader_pod

        cluster = cluster_of(options)
        image = options.image or images.image_names(registry=options.registry, device="cpu")["runtime"]
        with reader_pod(cluster.kubectl, claim=claim_name(os.environ), image=image) as volume:
            folder = fetch(volume, options.to, options.version)
    out.print(f"{folder}\nnext: kws predict --model {folder / 'model.pth'} FILE.wav", soft_wrap=True)


def _deploy(options: argparse.Namespace) -> None:
    from pipeline.cluster import serving

    cluster = cluster_of(options)
    image = options.image or images.image_names(registry=options.registry)["serving"]
    serving.deploy(cluster.kubectl, namespace=cluster.namespace, image=image, claim=claim_name(os.environ))


def _local_root(options: argparse.Namespace) -> Path | None:
    """Returns the folder of this machine that is the volume; None if there is none.

    Raises:
        ValueError: --data-root is not a folder.
    """
    if options.data_root:
        if not options.data_root.is_dir():
            raise ValueError(f"data_root must be a folder, got {str(options.data_root)!r}; check the path")
        return Path(options.data_root)
    return kind.host_data_root() if not options.host and not options.context else None


def _models(options: argparse.Namespace) -> None:
    from pipeline.cluster import serving
    from pipeline.cluster.pull import HostVolume, reader_pod

    if root := _local_root(options):
        table = serving.table_of_models(HostVolume(root))
    else:
        image = options.image or images.image_names(registry=options.registry)["serving"]
        with reader_pod(cluster_of(options).kubectl, claim=claim_name(os.environ), image=image) as volume:
            table = serving.table_of_models(volume)
    out.print(table if table.row_count else "no versions yet; make demo or make pipeline publishes one")


def _rollback(options: argparse.Namespace) -> None:
    from kws.model import versions
    from pipeline.cluster import serving

    address = options.model_registry
    if root := _local_root(options):
        before, now = versions.rollback(root, options.version, reason=options.reason)
        registry.try_register(address, root, now)
        out.print(f"champion {now}, before {before or 'none'}")
        return
    role = "runtime" if address else "serving"  # only the former has the client of the registry
    image = options.image or images.image_names(registry=options.registry, device="cpu")[role]
    out.print(
        serving.rollback(
            cluster_of(options).kubectl,
            image=image,
            claim=claim_name(os.environ),
            version=options.version,
            reason=options.reason,
            by=versions.who(),
            model_registry=address,
        )
    )


def _open(options: argparse.Namespace, service: str, port: int, namespace: str) -> int:
    """Opens a page of the cluster in the browser, through a forwarded port unless kind maps one."""
    cluster = cluster_of(options)
    address = f"http://localhost:{port}"
    if options.host and service == "ml-pipeline-ui":
        address = options.host
    elif kind.host_data_root() is None or kind.reach(address):
        preflight.require_all([preflight.port(port, service)])
        context = ["--context", cluster.context] if cluster.context else []
        return _forward(
            ["kubectl", *context, "--namespace", namespace, "port-forward", f"service/{service}", f"{port}:80"], address
        )
    out.print(address)
    webbrowser.open(address)
    return 0


def _forward(command: list[str], address: str) -> int:
    """Forwards a port until Ctrl-C, and opens the page once it answers."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise ClusterError(f"kubectl must be on PATH, got none; {preflight.INSTALL['kubectl']}") from None
    try:
        while kind.reach(address):
            if process.poll() is not None:
                assert process.stderr is not None
                raise ClusterError(
                    f"a port must be forwarded to {address}, got {process.stderr.read().strip()}; "
                    "check the context with kubectl config get-contexts"
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


def _images(options: argparse.Namespace) -> None:
    preflight.require_all([preflight.tool(docker()), preflight.docker_engine()])
    names = images.image_names(registry=options.registry, device=options.device)
    images.build(
        names, device=options.device, torch=options.torch or "", base_image=options.base_image, push=options.push
    )
    table = Table("image", "size", "revision", box=None)
    for image in images.inspect(list(names.values())):
        tag = next(tag for tag in image["RepoTags"] if tag in names.values())
        labels = image["Config"]["Labels"]
        table.add_row(tag, images.size(image), labels["org.opencontainers.image.revision"])
    out.print(table)


def _preflight(options: argparse.Namespace) -> int:
    table = Table("", "part", "state", box=None)
    problems = 0
    for check in preflight.checks(new_cluster=not options.running):
        problems += bool(check.problem)
        table.add_row("[red]✗[/]" if check.problem else "[green]✓[/]", check.name, check.problem or check.detail)
    out.print(table)
    return 1 if problems else 0


def _graph(options: argparse.Namespace) -> None:
    from pipeline.picture import draw

    draw(options.output)
    out.print(str(options.output))
