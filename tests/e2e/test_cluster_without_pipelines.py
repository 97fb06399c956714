"""Tests on a Kubernetes with the training operator, without Kubeflow Pipelines: `make test-cluster KUBECONFIG=…`.

They take minutes and need none of our images: pods run an image that every test cluster has (KWS_E2E_IMAGE, by default
busybox:1.35, of which sh, cat and sleep are used), in namespaces that the tests create and delete.
"""

import json
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from cluster_stand_in import StandIn
from remedies import commands
from rich.console import Console

from kws import files
from kws.launch.cluster_config import CLAIM, ClusterConfig
from kws.launch.job import LaunchError, Training
from kws.launch.kinds.pytorchjob import PYTORCH_JOB, build_job
from kws.launch.submit import ClusterLauncher
from pipeline import cli, manifests, shell
from pipeline.cluster import follow, readiness, results, run_pods
from pipeline.cluster.argo_steps import Step
from pipeline.cluster.connect import Cluster
from pipeline.cluster.fit import require_fit
from pipeline.cluster.models import pull
from pipeline.cluster.run_pods import Pods
from pipeline.cluster.volumes import reader_pod
from pipeline.kind import local_cluster as kind
from pipeline.placement import Placement
from pipeline.shell import ClusterError

IMAGE = os.environ.get("KWS_E2E_IMAGE", "busybox:1.35")
IMAGES = {"runtime": IMAGE, "launcher": IMAGE, "serving": IMAGE}
SECONDS = 120

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="needs a cluster: make test-cluster KUBECONFIG=…"),
]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    return shell.run("kubectl", *arguments, stdin=stdin, timeout=SECONDS)


def wait_for(what: str, condition: Any) -> Any:
    until = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < until, f"{what} must come within {SECONDS} s"
        time.sleep(1)
    return value


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A namespace with the restricted pod security standard, and in it the overlay of kind on a folder of the node."""
    name = f"kws-test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        manifests.apply(["kubectl"], overlay_in(name))
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")
        kubectl("delete", "persistentvolume", name, "--ignore-not-found", "--wait=false")


def overlay_in(namespace: str) -> list[dict[str, Any]]:
    """Renders the overlay of kind, with its objects in another namespace and its volume in another folder."""
    kept = []
    for thing in kind.overlay(IMAGES):
        if thing["kind"] in ("Service", "Deployment"):  # node ports are the cluster's, and TensorBoard needs our image
            continue
        thing["metadata"].pop("namespace", None)
        if thing["kind"] == "PersistentVolume":
            thing["metadata"]["name"] = namespace
            thing["spec"]["claimRef"]["namespace"] = namespace
            thing["spec"]["hostPath"] = {"path": f"/tmp/{namespace}", "type": "DirectoryOrCreate"}
        elif thing["kind"] == "PersistentVolumeClaim":
            thing["spec"]["volumeName"] = namespace
        if thing["kind"] != "PersistentVolume":
            thing["metadata"]["namespace"] = namespace
        kept.append(thing)
    return kept


@pytest.fixture
def as_kind(namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the cluster have the context of our kind cluster, and Kubeflow's namespace be the one of the tests."""
    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    config["contexts"][0]["name"] = config["current-context"] = kind.CONTEXT
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(kind, "NAMESPACE", namespace)


@pytest.mark.parametrize("overlay", ["kind", "storage-class", "profile"])
def test_the_cluster_accepts_every_object_of_an_overlay(overlay: str, namespace: str) -> None:
    things = manifests.rendered(f"overlays/{overlay}", IMAGES, namespace=namespace)
    for thing in things:
        if thing["kind"].startswith("PersistentVolume"):  # those that there are cannot be changed
            thing["metadata"]["name"] = f"{namespace}-other"
        for port in thing.get("spec", {}).get("ports", []) if thing["kind"] == "Service" else []:
            port.pop("nodePort", None)  # may be taken by another overlay on this cluster
    kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(things)
    )


def test_what_kind_up_waits_for_is_seen_on_a_real_cluster(as_kind: None, namespace: str) -> None:
    assert kind.answers()
    kind._wait_for_claim()
    assert {node["metadata"]["name"] for node in kind._get("nodes")["items"]}
    assert kind._unready() == ([], 0)
    deployment: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "never", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec("nothing.invalid/none:1")},
        },
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(deployment))
    try:
        assert kind._unready() == (["never"], 1)
        wait_for("the reason", lambda: "Pull" in kind._troubles() or "Back" in kind._troubles())
    finally:
        kubectl("-n", namespace, "delete", "deployment", "never", "--wait=false")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Types the command that applies manifests, with an image in which there is no TensorBoard to wait for."""
    for role, image in IMAGES.items():
        monkeypatch.setenv(f"KWS_{role.upper()}_IMAGE", image)
    monkeypatch.setattr(readiness, "READY_SECONDS", 0)
    monkeypatch.setattr(readiness, "SLICE_SECONDS", 1)

    def call(namespace: str, *flags: str) -> None:
        command = shlex.split(Cluster(namespace=namespace).installing())
        with pytest.raises(SystemExit) as ended:
            cli.main([*command[3:], *flags])
        assert ended.value.code == 1

    return call


def test_claim_is_replaced_by_that_of_another_volume_and_back(
    as_kind: None, installed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/cluster.md has it (Another volume): delete the claim, apply the other overlay."""
    name = f"kws-swap-{uuid.uuid4().hex[:8]}"
    of_kind = overlay_in(name)
    made = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": "kubernetes.io/no-provisioner",
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{name}-other"},
            "spec": {
                "storageClassName": name,
                "accessModes": ["ReadWriteMany"],
                "capacity": {"storage": "50Gi"},
                "hostPath": {"path": f"/tmp/{name}-other", "type": "DirectoryOrCreate"},
            },
        },
    ]

    def apply_other() -> None:
        installed(name, "--storage-class", "none-such")
        assert "the storage class must be one that the cluster has (" in capsys.readouterr().err
        installed(name, "--storage-class", name)
        assert "kws-tensorboard must become ready, got " in capsys.readouterr().err

    def replace(apply: Callable[[], object]) -> None:
        kubectl("-n", name, "scale", "deployment/kws-tensorboard", "--replicas=0")
        kubectl("-n", name, "delete", "pvc", "kws-data")
        apply()
        kubectl("-n", name, "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/kws-data", "--timeout=60s")

    kubectl("create", "namespace", name)
    try:
        kind.apply_overlay(of_kind)
        kind.apply_overlay(of_kind)
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(made))
        installed(name, "--storage-class", name)
        assert f"the claim kws-data must be of storage class {name}, got one of none" in capsys.readouterr().err
        installed(name)
        assert "kws-tensorboard must become ready, got " in capsys.readouterr().err
        replace(apply_other)
        with pytest.raises(ClusterError, match=f"got one of storage class {name}, and a claim cannot be changed"):
            kind.apply_overlay(of_kind)
        wait_for(
            "the release of the volume",
            lambda: "Released" in kubectl("get", "pv", name, "-o", "jsonpath={.status.phase}"),
        )
        replace(lambda: kind.apply_overlay(of_kind))
    finally:
        kubectl("delete", "namespace", name, "--wait=false")
        kubectl("delete", "persistentvolume", name, f"{name}-other", "--ignore-not-found", "--wait=false")
        kubectl("delete", "storageclass", name, "--ignore-not-found")


DEFINITIONS = [("clustertrainingruntimes", "ClusterTrainingRuntime", "trainer.kubeflow.org", "v1alpha1", "Cluster")]
DEFINITIONS += [("inferenceservices", "InferenceService", "serving.kserve.io", "v1beta1", "Namespaced")]


@pytest.fixture
def trainer_and_kserve() -> Iterator[None]:
    """The kinds of Kubeflow Trainer v2 and KServe, where the cluster has none."""
    made = []
    try:
        for plural, kind_, group, version, scope in DEFINITIONS:
            if f"{plural}.{group}" in kubectl("get", "customresourcedefinitions", "-o", "name"):
                continue
            schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            spec = {"group": group, "scope": scope, "names": {"plural": plural, "kind": kind_}, "versions": [served]}
            thing: dict[str, Any] = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
            thing |= {"metadata": {"name": f"{plural}.{group}"}, "spec": spec}
            made.append(f"customresourcedefinition/{plural}.{group}")
            kubectl("apply", "-f", "-", stdin=json.dumps(thing))
            kubectl("wait", "--for=condition=Established", made[-1], "--timeout=30s")
        yield
    finally:
        for each in made:
            kubectl("delete", each, "--wait=false")


def test_every_command_that_a_message_or_a_page_names_does_what_it_says(
    trainer_and_kserve: None, installed: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those of Kubeflow Pipelines and kind; every command of `python -m pipeline` is parsed by a quick test."""
    name = f"kws-typed-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    monkeypatch.chdir(tmp_path)
    try:
        manifests.apply(["kubectl"], [each for each in overlay_in(name) if each["kind"] != "ResourceQuota"])
        kubectl("-n", name, "create", "serviceaccount", "default-editor")
        metadata = {"name": "typed", "namespace": name, "labels": {"app": "typed"}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(IMAGE)}
        port = {"selector": {"app": "typed"}, "ports": [{"port": 80}]}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kws-serving", "namespace": name}}
        config = ClusterConfig(image=IMAGE, namespace=name, cpu="10m", memory="64Mi")
        job = build_job(
            Training(name="typed", folder=tmp_path, arguments=(), num_nodes=1, processes_per_node=1), config
        )
        manifests.apply(["kubectl"], [pod, service | {"spec": port}, job])
        kubectl("-n", name, "wait", "--for=condition=Ready", "pod/typed", "--timeout=60s")
        # What installs comes first, as another command deletes the claim.
        for command in commands("python -m pipeline"):
            if command.startswith("python -m pipeline install ") and not command.endswith("--overlay"):
                flags = command.replace("--storage-class nfs", "").split()[4:]
                given = [*flags, "--namespace", name]  # the last one counts
                if "trainer-v2" in given or "kserve" in given:
                    cli.main(["install", *given])
                else:
                    installed(name, *given)
        assert f"pvc://{CLAIM}" in kubectl("-n", name, "get", "inferenceservice", "kws", "-o", "json")
        assert IMAGE in kubectl("get", "clustertrainingruntime", "kws-torch", "-o", "json")
        typed = [_typed(command, name) for command in commands("kubectl")]
        for command in sorted(typed, key=lambda text: " delete " in text):
            done = subprocess.run(["timeout", "90", "bash", "-c", command], capture_output=True, text=True)
            if "port-forward" in command:
                assert done.stdout.startswith("Forwarding from 127.0.0.1"), done.stderr
            else:
                assert done.returncode == 0, (command, done.stderr)
        assert len((tmp_path / "token").read_text().split(".")) == 3
        # The last of them deleted the claim.
        with (
            pytest.raises(ClusterError, match=f"none; python -m pipeline install --namespace {name} makes it"),
            reader_pod(Cluster(namespace=name), claim=CLAIM, image=IMAGE),
        ):
            pass
    finally:
        kubectl("delete", "namespace", name, "--wait=false")
        kubectl("delete", "persistentvolume", name, "--ignore-not-found", "--wait=false")


def _typed(command: str, namespace: str) -> str:
    """Returns a command with the names of the things in a namespace."""
    values = {"namespace": namespace, "NAMESPACE": namespace, "claim_name": CLAIM, "DEPLOYMENT": "kws-serving"}
    values |= {"pod": "typed", "name": "typed", "lower": "pytorchjob", "token": "token", "count": "pytorchjobs"}
    values |= {"selector": "app=typed", "SECRET": "typed"}
    command = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], command)
    command = re.sub(r"-n (kubeflow|me)\b", f"-n {namespace}", command)
    command = re.sub(r"(kws-…-worker-1|speech-commands-\S+)", "typed", command)
    command = re.sub(r"^kubectl create secret", f"kubectl -n {namespace} create secret", command.removesuffix("\\"))
    command = re.sub(r"secret generic \S+", f"secret generic typed-{len(command)}", command)
    command = re.sub(r"get pods$|describe pod$", rf"\g<0> -n {namespace}", command)
    return re.sub(r"^(.* port-forward \S+) \d+:80", r"head -n 1 < <(exec timeout 60 \1 :80)", command)


def pod_spec(image: str, **container: Any) -> dict[str, Any]:
    """A pod that the restricted standard lets in."""
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    main = {"name": "main", "image": image, "command": ["sleep", "300"], "securityContext": restricted} | container
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 1,
        "securityContext": security,
        "containers": [main],
    }


@pytest.mark.parametrize(
    ("image", "container", "reason"),
    [
        ("nothing.invalid/none:1", {}, "Pull"),
        (IMAGE, {"resources": {"requests": {"cpu": "4000"}}}, "Unschedulable: 0/"),
        (
            IMAGE,
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "a"}}}]},
            'CreateContainerConfigError: secret "none" not found',
        ),
        (
            IMAGE,
            {
                "volumes": [{"name": "v", "secret": {"secretName": "none"}}],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            },
            "FailedMount: MountVolume.SetUp failed",
        ),
    ],
)
def test_what_a_step_pod_waits_for_is_shown_in_the_words_of_kubernetes(
    namespace: str, image: str, container: dict[str, Any], reason: str
) -> None:
    run = uuid.uuid4().hex
    spec = pod_spec(image, **{key: value for key, value in container.items() if key != "volumes"})
    spec["volumes"] = container.get("volumes", [])
    annotations = {"workflows.argoproj.io/node-name": "w(0).root(0).download(0).executor(0)"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": spec,
        "metadata": {
            "name": f"step-{run[:8]}",
            "namespace": namespace,
            "labels": {"pipeline/runid": run},
            "annotations": annotations,
        },
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    try:
        pods = Pods(Cluster(namespace=namespace), run)

        def told() -> bool:
            pods.look()
            return any(reason in str(wait) for wait in pods.waits([Step(name="download", state="RUNNING")]))

        wait_for(reason, told)
        assert pods.problem == ""
    finally:
        kubectl("-n", namespace, "delete", "pod", f"step-{run[:8]}", "--wait=false")


def test_a_run_that_cannot_fit_is_refused_by_nodes_and_by_a_quota(namespace: str) -> None:
    cluster = Cluster(namespace=namespace)
    with pytest.raises(ClusterError, match="training pod 1 of 2 must fit on a node beside what runs there, got one"):
        require_fit(cluster, Placement(training={"cpu": "4000"}), 2)
    little = Placement(training={"cpu": "50m", "memory": "64Mi"})
    quota: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "spec": {"hard": {"pods": "2"}},
        "metadata": {"name": "few", "namespace": namespace},
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(quota))
    try:
        wait_for(
            "the quota",
            lambda: (
                "2" in kubectl("-n", namespace, "get", "resourcequota", "few", "-o", "jsonpath={.status.hard.pods}")
            ),
        )
        with pytest.raises(ClusterError, match="must stay within quota few, got 3 of pods where it allows 2"):
            require_fit(cluster, little, 2)
    finally:
        kubectl("-n", namespace, "delete", "resourcequota", "few")


def test_a_model_comes_back_verified_through_a_pod_in_a_restricted_namespace(namespace: str, tmp_path: Path) -> None:
    version, text = "20260101-1", "weights " * 10_000
    digest = files.sha256_of(_file(tmp_path / "model.pth", text))
    manifest = json.dumps({"schema": 1, "version": version, "files": {"model.pth": digest}})
    champion = json.dumps({"version": version})
    script = f"""set -e; mkdir -p /data/models/{version}; cd /data/models
        i=0; while [ $i -lt 10000 ]; do printf 'weights '; i=$((i+1)); done > {version}/model.pth
        echo '{manifest}' > {version}/manifest.json; echo '{champion}' > champion.json; chmod -R a+rX /data/models"""
    spec = pod_spec(IMAGE, command=["sh", "-c", script], volumeMounts=[{"name": "data", "mountPath": "/data"}])
    # The folder was made by the kubelet, for root alone to write to.
    spec |= {
        "restartPolicy": "Never",
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "kws-data"}}],
    }
    kubectl("label", "--overwrite", "namespace", namespace, "pod-security.kubernetes.io/enforce=privileged")
    spec["securityContext"], spec["containers"][0]["securityContext"] = {"runAsUser": 0}, {}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "writer", "namespace": namespace}, "spec": spec}
    kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    kubectl("-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/writer", "--timeout=90s")
    kubectl("label", "--overwrite", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    with reader_pod(Cluster(namespace=namespace), claim="kws-data", image=IMAGE) as volume:
        folder = pull(volume, tmp_path / "pulled")
    assert (folder / "model.pth").read_text() == text
    wait_for("the end of the reader pod", lambda: "kws-reader" not in kubectl("-n", namespace, "get", "pods"))


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def quota_counts(namespace: str) -> bool:
    """Tells whether the quota lets jobs in; else makes it anew, as one older than what it counts waits for minutes."""
    quota = ("-n", namespace, "get", "resourcequota", "kws", "-o")
    if "pytorchjobs" in kubectl(*quota, "jsonpath={.status.used}"):
        return True
    spec, meta = json.loads(kubectl(*quota, "json"))["spec"], {"name": "kws", "namespace": namespace}
    thing = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": spec}
    kubectl("replace", "--force", "-f", "-", stdin=json.dumps(thing))
    time.sleep(4)
    return False


@pytest.mark.parametrize("elastic", [True, False])
def test_the_operator_accepts_the_job_that_the_train_step_submits(namespace: str, elastic: bool) -> None:
    config = ClusterConfig(image=IMAGE, namespace=namespace, elastic=elastic)
    job = Training(name="kws-1", folder=Path("/data/runs/1"), arguments=(), num_nodes=2, processes_per_node=1)
    wait_for("the count of what the quota bounds", lambda: quota_counts(namespace))
    kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(build_job(job, config)))


def test_a_job_whose_pods_are_never_let_in_ends_the_step_with_the_words_of_kubernetes(
    namespace: str, tmp_path: Path
) -> None:
    limits: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "small", "namespace": namespace},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "16Mi"}}]},
    }
    config = ClusterConfig(image=IMAGE, namespace=namespace, cpu="10m", memory="64Mi", shm_size="1Mi")
    job = Training(name="kws-refused", folder=tmp_path, arguments=(), num_nodes=1, processes_per_node=1)
    wait_for("the count of what the quota bounds", lambda: quota_counts(namespace))
    kubectl("apply", "-f", "-", stdin=json.dumps(limits))
    try:
        refused = (
            "must be allowed to create its pods, got: FailedCreatePod: .*maximum memory usage per Container is 16Mi"
        )
        with pytest.raises(LaunchError, match=refused):
            ClusterLauncher(PYTORCH_JOB, config).run(job)
    finally:
        kubectl("-n", namespace, "delete", "limitrange", "small")
    wait_for("the end of the job", lambda: "kws-refused" not in kubectl("-n", namespace, "get", "pytorchjobs"))


def test_the_account_of_the_steps_may_do_what_the_launcher_does_and_no_more(namespace: str) -> None:
    binding = json.loads(kubectl("-n", namespace, "get", "rolebinding", "kws-launcher", "-o", "json"))
    (account,) = binding["subjects"]
    who = f"--as=system:serviceaccount:{account['namespace']}:{account['name']}"

    def may(verb: str, resource: str) -> bool:
        try:
            return kubectl("-n", namespace, "auth", "can-i", verb, resource, who).strip() == "yes"
        except ClusterError:  # kubectl's status is 1 for no
            return False

    for verb, resource in (
        ("create", "pytorchjobs.kubeflow.org"),
        ("delete", "pytorchjobs.kubeflow.org"),
        ("patch", "pytorchjobs.kubeflow.org"),
        ("list", "pods"),
        ("get", "pods/log"),
    ):
        assert may(verb, resource), (verb, resource)
    for verb, resource in (("create", "pods"), ("get", "secrets"), ("delete", "persistentvolumeclaims")):
        assert not may(verb, resource), (verb, resource)


# Runs, on a real Argo; what Kubeflow's API says of them is put on


def workflow(name: str, run_id: str, namespace: str) -> dict[str, Any]:
    """A workflow with nodes and names as Kubeflow Pipelines compiles them, with two steps of one second."""

    def container(name: str, script: str) -> dict[str, Any]:
        return {"name": name, "container": {"image": IMAGE, "command": ["sh", "-c", script]}}

    def dag(name: str, *tasks: tuple[str, str, str]) -> dict[str, Any]:
        return {
            "name": name,
            "dag": {"tasks": [{"name": task, "template": of, "depends": after} for task, of, after in tasks]},
        }

    labels = {"pipeline/runid": run_id}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "entrypoint": "entrypoint",
            "serviceAccountName": "argo",
            "podMetadata": {"labels": labels},
            "templates": [
                dag("entrypoint", ("root-driver", "driver", ""), ("root", "root", "root-driver")),
                dag(
                    "root",
                    ("download-driver", "driver", ""),
                    ("download", "step", "download-driver"),
                    ("preprocess-driver", "driver", "download"),
                    ("preprocess", "step", "preprocess-driver"),
                ),
                dag("step", ("executor", "main", "")),
                container("driver", "echo asking the object store; sleep 3"),
                container("main", "echo at work; sleep 1"),
            ],
        },
    }


@pytest.fixture
def argo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], tuple[int, str]]]:
    """Follows a workflow of two steps in a namespace of its own, and gives status and what was printed.

    Kubeflow's API, a stand-in, knows that the run runs and no step of it, until Argo is done.
    """
    if "workflows.argoproj.io" not in kubectl("get", "customresourcedefinitions", "-o", "name"):
        pytest.skip("needs a cluster with Argo Workflows")
    name, run_id = f"kws-argo-{uuid.uuid4().hex[:8]}", str(uuid.uuid4())
    printed = Console(width=100, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    for module in (follow, results):
        monkeypatch.setattr(module, "console", printed)
        monkeypatch.setattr(module, "out", printed)
    for setting, seconds in (("POLL_SECONDS", 0.5), ("TRAIL_SECONDS", 1)):
        monkeypatch.setattr(follow, setting, seconds)
    monkeypatch.setattr(run_pods, "HANGING_SECONDS", 2)

    class Runs(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            phase = kubectl("-n", name, "get", "workflow", "w", "-o", "jsonpath={.status.phase}")
            meanwhile[-1](name)
            state = {"Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED"}.get(phase, "RUNNING")
            said = {"error": {"message": "No more retries left"}} if state == "FAILED" else {}
            return {"run_id": run_id, "state": state, "run_details": None} | said

    meanwhile: list[Callable[[str], object]] = [len]

    def call(then: Callable[[str], object] = len) -> tuple[int, str]:
        meanwhile.append(then)
        kubectl("apply", "-f", "-", stdin=json.dumps(workflow("w", run_id, name)))
        cluster = Cluster(host=pipelines.address, namespace=name)
        status = follow.Following(cluster, run_id, ["download", "preprocess"]).run()
        return status, " ".join(printed.export_text().split())

    kubectl("create", "namespace", name)
    try:
        kubectl("-n", name, "create", "serviceaccount", "argo")
        kubectl(
            *("-n", name, "create", "role", "argo", "--verb=create,patch"), "--resource=workflowtaskresults.argoproj.io"
        )
        kubectl("-n", name, "create", "rolebinding", "argo", "--role=argo", f"--serviceaccount={name}:argo")
        with StandIn() as pipelines:
            pipelines.runs = Runs([{}])
            Thread(target=pipelines.serve_forever, daemon=True).start()
            yield call
            pipelines.shutdown()
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def test_a_run_of_which_kubeflow_reports_nothing_is_followed_by_its_pods(argo: Any) -> None:
    status, text = argo()
    assert status == 0
    told = (
        "download waits: Kubeflow's driver of the step has not ended, which calls the API of Kubeflow Pipelines and its"
    )
    assert f"{told} object store: asking the object store" in text
    assert "argo=true" not in text
    for line in ("download running", "download │ at work", "preprocess running", "preprocess │ at work"):
        assert text.count(line) == 1, line
    assert text.index("preprocess running") > text.index("download │ at work")


def limits(namespace: str) -> None:
    hard = {"limits.cpu": "100", "limits.memory": "100Gi", "requests.cpu": "100"}
    quota: dict[str, Any] = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": hard}}
    kubectl("apply", "-f", "-", stdin=json.dumps(quota | {"metadata": {"name": "late", "namespace": namespace}}))


def test_a_quota_that_comes_between_two_steps_is_told_as_what_ended_the_run(argo: Any) -> None:
    made: list[str] = []

    def after_the_first_step(namespace: str) -> None:
        if not made and "download(0).executor" in kubectl("-n", namespace, "get", "pods", "-o", "json"):
            made.append(namespace)
            limits(namespace)

    status, text = argo(after_the_first_step)
    assert status == 1
    assert "download succeeded" in text
    assert "preprocess not run" in text
    assert "download waits: pods" not in text
    assert re.search(r"the run failed: .*failed quota: late: must specify limits.cpu for: ", text)


def test_a_quota_that_kubeflows_own_pods_cannot_meet_is_refused_before_submitting(namespace: str) -> None:
    cluster, little = Cluster(namespace=namespace), Placement(training={"cpu": "50m", "memory": "64Mi"})
    ranged: dict[str, Any] = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "few"}}
    default = {"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "10m"}}
    limits(namespace)
    try:
        with pytest.raises(ClusterError, match=r"got: .*failed quota: late: must specify limits\.cpu for: init,wait"):
            wait_for("the quota", lambda: require_fit(cluster, little, 1))
        kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(ranged | {"spec": {"limits": [default]}}))
        require_fit(cluster, little, 1)
    finally:
        kubectl("-n", namespace, "delete", "resourcequota/late", "limitrange/few", "--ignore-not-found")
