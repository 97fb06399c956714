import argparse
import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kws import launch
from kws.config import ServeConfig
from kws.kube.client import EVENTS, PODS, WORKFLOWS
from kws.launch.cluster_config import CLAIM, ClusterConfig
from kws.launch.job import Training
from kws.launch.kinds.pod import PORT
from kws.launch.kinds.pytorchjob import PYTORCH_JOB, build_job
from kws.launch.kinds.trainjob import TRAIN_JOB
from kws.settings import field_docs
from kws.train import runs
from pipeline import manifests
from pipeline.cluster.models import serving
from pipeline.cluster.volumes import reader_manifest
from pipeline.kind import local_cluster as kind
from pipeline.kind import preflight

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
LOCAL = (
    "overlays/kind",
    "overlays/storage-class",
    "overlays/profile",
    "trainer-v2",
    "serving",
    "serving-collect",
    "kserve",
    "kserve-canary",
)
REMOTE = ("kubeflow-pipelines/cluster-scoped", "kubeflow-pipelines", "training-operator")
KUBERNETES = "1.34"

each_overlay = pytest.mark.parametrize("overlay", LOCAL)


IMAGES = {"runtime": "ghcr.io/me/kws-runtime:abc", "launcher": "kws-launcher:abc", "serving": "kws-serving:abc"}


@functools.cache
def rendered(overlay: str, namespace: str = "kubeflow", claim: str = CLAIM) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    return manifests.rendered(overlay, IMAGES, namespace=namespace, claim=claim)


def of_kind(overlay: str, kind_: str) -> dict[str, dict[str, Any]]:
    return {thing["metadata"]["name"]: thing for thing in rendered(overlay) if thing["kind"] == kind_}


def pod_specs(value: Any) -> Iterator[dict[str, Any]]:
    """Gives every pod spec in an object, in those of custom kinds too."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pod_specs(part)
    elif isinstance(value, list):
        for part in value:
            yield from pod_specs(part)


@each_overlay
def test_every_object_of_an_overlay_is_valid_kubernetes(overlay: str) -> None:
    for thing in rendered(overlay):
        if not thing["apiVersion"].startswith(("trainer.kubeflow.org/", "serving.kserve.io/")):  # kinds of others
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)
        for spec in pod_specs(thing):
            if thing["kind"] == "InferenceService":  # a pod spec, and what KServe makes of it
                own = ("name", "minReplicas", "maxReplicas", "timeout")
                spec = {name: value for name, value in spec.items() if name not in own}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lifted"}, "spec": spec}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@each_overlay
def test_every_pod_of_an_overlay_is_bounded_and_restricted(overlay: str) -> None:
    specs = [spec for thing in rendered(overlay) for spec in pod_specs(thing)]
    assert specs
    for spec in [*specs, reader_manifest("r", claim="c", image="i:1")["spec"]]:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in spec["containers"]:
            assert set(container["resources"]["requests"]) == set(container["resources"]["limits"]) == {"cpu", "memory"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@each_overlay
def test_every_image_of_an_overlay_is_one_of_the_revision(overlay: str) -> None:
    for spec in (spec for thing in rendered(overlay) for spec in pod_specs(thing)):
        for container in spec["containers"]:
            assert container["image"] in IMAGES.values()


def test_the_pod_that_copies_models_out_is_valid_kubernetes() -> None:
    pod = reader_manifest("kws-reader-1", claim="kws-data", image="kws-runtime:1")
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", REMOTE)
def test_remote_bases_are_pinned_to_a_release_and_alone_in_their_kustomization(folder: str) -> None:
    kustomization = yaml.safe_load((MANIFESTS / folder / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources"}
    for resource in kustomization["resources"]:
        assert re.search(r"^github\.com/kubeflow/.*\?ref=(2\.17\.0|v1\.9\.4)$", resource)


@pytest.mark.parametrize("overlay", LOCAL)
def test_local_overlays_need_no_network(overlay: str) -> None:
    text = (MANIFESTS / overlay / "kustomization.yaml").read_text()
    assert not any("://" in entry or entry.startswith("github.com") for entry in yaml.safe_load(text)["resources"])


@each_overlay
def test_roles_name_no_wildcard(overlay: str) -> None:
    for role in of_kind(overlay, "Role").values():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
    assert not of_kind(overlay, "ClusterRole")


def test_the_role_of_the_launcher_allows_what_it_calls_and_nothing_else() -> None:
    resources = {"PODS": [PODS], "EVENTS": [EVENTS], "WORKFLOWS": [WORKFLOWS]}
    resources["self.kind.resource"] = [kind.resource for kind in (PYTORCH_JOB, TRAIN_JOB)]
    needed = set()
    for path in Path(launch.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                verb = node.func.attr.replace("find", "get")
                named = resources.get(ast.unparse(node.args[0]), ()) if node.args else ()
                needed |= {(resource.group, resource.plural, verb) for resource in named}
                needed |= {("", "pods/log", "get")} if ast.unparse(node.func) == "self.log.read" else set()
    rules = of_kind("overlays/kind", "Role")["kws-launcher"]["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert needed
    assert allowed == needed


@pytest.mark.parametrize(
    ("overlay", "account"),
    [
        ("overlays/kind", "pipeline-runner"),
        ("overlays/storage-class", "pipeline-runner"),
        ("overlays/profile", "default-editor"),
    ],
)
def test_the_role_is_bound_to_the_account_of_the_steps_in_the_namespace(overlay: str, account: str) -> None:
    (binding,) = (thing for thing in rendered(overlay, namespace="me") if thing["kind"] == "RoleBinding")
    assert binding["metadata"]["namespace"] == "me"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "me"}]


@pytest.mark.parametrize("overlay", LOCAL)
def test_namespace_and_claim_are_in_every_object_that_has_them(overlay: str) -> None:
    things = rendered(overlay, namespace="me", claim="ours")
    assert {thing["metadata"].get("namespace") for thing in things if thing["kind"] not in manifests.SHARED} <= {"me"}
    assert not [thing for thing in things if thing["kind"] in manifests.SHARED and "namespace" in thing["metadata"]]
    text = json.dumps([thing for thing in things if thing["kind"] != "PersistentVolume"])
    assert CLAIM not in text.replace(f'"volumeName": "{CLAIM}"', "")
    assert "ours" in text


@pytest.mark.parametrize("overlay", LOCAL[:3])
def test_the_claim_is_shared_by_nodes_and_is_what_the_steps_mount(overlay: str) -> None:
    claim = of_kind(overlay, "PersistentVolumeClaim")[CLAIM]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert ClusterConfig(image="kws-runtime:1").pvc == CLAIM


def test_on_kind_the_volume_is_the_folder_that_every_node_mounts_from_the_host() -> None:
    cluster = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
    volume = of_kind("overlays/kind", "PersistentVolume")["kws-data"]
    claim = of_kind("overlays/kind", "PersistentVolumeClaim")["kws-data"]
    assert cluster["name"] == kind.CLUSTER
    assert [node["role"] for node in cluster["nodes"]] == ["control-plane", "worker", "worker"]
    for node in cluster["nodes"]:
        (mount,) = node["extraMounts"]
        assert ROOT / mount["hostPath"] == kind.DATA_ROOT
        assert mount["containerPath"] == volume["spec"]["hostPath"]["path"]
    assert claim["spec"]["volumeName"] == "kws-data"
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


def test_on_kind_the_ports_of_the_host_lead_to_services_that_are_let_in() -> None:
    cluster = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
    mapped = {each["hostPort"]: each["containerPort"] for each in cluster["nodes"][0]["extraPortMappings"]}
    ports = {
        port["nodePort"]
        for service in of_kind("overlays/kind", "Service").values()
        for port in service["spec"]["ports"]
        if "nodePort" in port
    }
    assert set(mapped) == set(preflight.PORTS)
    assert set(mapped.values()) == ports
    assert {f"http://localhost:{port}" for port in mapped} == {kind.UI, kind.TENSORBOARD}


def test_on_kind_the_images_of_the_revision_take_the_place_of_those_in_the_manifests() -> None:
    rendered("overlays/kind")  # skips where there is no kubectl
    images = [c["image"] for thing in kind.overlay(IMAGES) for spec in pod_specs(thing) for c in spec["containers"]]
    assert images == [IMAGES["runtime"]]


def policy_admits(overlay: str, name: str, labels: dict[str, str]) -> bool:
    """Tells whether a policy selects pods with the labels."""
    selector = of_kind(overlay, "NetworkPolicy")[name]["spec"]["podSelector"]
    matched = selector.get("matchLabels", {}).items() <= labels.items()
    return matched and all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


def test_training_pods_reach_each_other_dns_and_the_controller_of_trainer_and_nothing_else() -> None:
    config = ClusterConfig(image="kws-runtime:1", namespace="kubeflow")
    job = Training(name="kws-1", folder=Path("/data/runs/1"), arguments=(), num_nodes=2, processes_per_node=1)
    labels = build_job(job, config)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"]["labels"]
    assert policy_admits("overlays/kind", "kws-trainer", labels)
    policy = of_kind("overlays/kind", "NetworkPolicy")["kws-trainer"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = policy["ingress"]
    peers, dns, controller = policy["egress"]
    assert ingress["from"] == peers["to"] == [{"podSelector": policy["podSelector"]}]
    for rule in (ingress, peers):
        (ports,) = rule["ports"]
        assert ports["port"] <= PORT <= ports["endPort"]
    assert {(port["protocol"], port["port"]) for port in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    (peer,) = controller["to"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/part-of"] == "kubeflow"
    assert controller["ports"] == [{"protocol": "TCP", "port": 10443}]


def test_runtime_and_sample_have_only_fields_that_trainer_knows() -> None:
    from kubeflow_trainer_api import models

    for model, file in (
        (models.TrainerV1alpha1ClusterTrainingRuntime, "runtime.yaml"),
        (models.TrainerV1alpha1TrainJob, "trainjob.yaml"),
    ):
        written = yaml.safe_load((MANIFESTS / "trainer-v2" / file).read_text())
        assert model.from_dict(written).to_dict() == written


def test_the_pods_of_a_trainjob_are_under_the_policy_of_training() -> None:
    runtime = of_kind("trainer-v2", "ClusterTrainingRuntime")["kws-torch"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = job["template"]["spec"]["template"]["metadata"]["labels"]
    assert policy_admits("overlays/kind", "kws-trainer", labels)


def test_what_tells_the_model_registry_may_connect_to_it_and_accepts_no_connections() -> None:
    """The promote step and the pod of a rollback: no policy that selects them bounds where they connect to."""
    rollback = reader_manifest("r", claim="c", image="i:1", read_only=False)
    policies = of_kind("overlays/profile", "NetworkPolicy")
    for labels in (rollback["metadata"]["labels"], {"pipelines.kubeflow.org/v2_component": "true"}):
        (policy,) = [name for name in policies if policy_admits("overlays/profile", name, labels)]
        assert policies[policy]["spec"]["policyTypes"] == ["Ingress"]
        assert policies[policy]["spec"].get("ingress", []) == []


def test_tensorboard_reader_and_steps_accept_no_connections() -> None:
    deployment = of_kind("overlays/profile", "Deployment")["kws-tensorboard"]
    reader = reader_manifest("r", claim="c", image="i:1")
    for labels in (deployment["spec"]["template"]["metadata"]["labels"], reader["metadata"]["labels"]):
        assert policy_admits("overlays/profile", "kws-readers", labels)
    policies = of_kind("overlays/profile", "NetworkPolicy")
    for name in ("kws-readers", "kws-steps"):
        assert policies[name]["spec"].get("ingress", []) == []
    assert policies["kws-readers"]["spec"].get("egress", []) == []


def test_the_sample_trainjob_runs_our_runtime_with_flags_that_the_trainer_has() -> None:
    job = yaml.safe_load((MANIFESTS / "trainer-v2" / "trainjob.yaml").read_text())
    (runtime,) = of_kind("trainer-v2", "ClusterTrainingRuntime").values()
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert replicated["name"] == container["name"] == "node"
    assert container["command"] == job["spec"]["trainer"]["command"] == ["torchrun", "-m", "kws.train"]
    parser = argparse.ArgumentParser()
    runs.add_arguments(parser)
    options = parser.parse_args(job["spec"]["trainer"]["args"])
    assert (str(options.runs), options.run_id) == ("/data/runs", job["metadata"]["name"])


def test_a_quota_bounds_jobs_everywhere_and_cpu_only_where_a_limit_range_gives_defaults() -> None:
    for overlay in LOCAL[:3]:
        hard = of_kind(overlay, "ResourceQuota")["kws"]["spec"]["hard"]
        assert "count/pytorchjobs.kubeflow.org" in hard
        assert ("requests.cpu" in hard) == bool(of_kind(overlay, "LimitRange"))


def test_manifests_are_canonical_yaml_without_duplicate_keys() -> None:
    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [json.dumps(self.construct_object(key, deep=True)) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
            return super().construct_mapping(node, deep)

    for path in [*MANIFESTS.rglob("*.yaml"), ROOT / "kind-config.yaml"]:
        list(yaml.load_all(path.read_text(), Loader))


def test_the_server_is_called_on_its_two_ports_by_pods_and_calls_nobody() -> None:
    (policy,) = of_kind("serving", "NetworkPolicy").values()
    labels = of_kind("serving", "Deployment")["kws-serving"]["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["egress"] == []
    (rule,) = policy["spec"]["ingress"]
    (container,) = next(pod_specs(of_kind("serving", "Deployment")))["containers"]
    assert [port["port"] for port in rule["ports"]] == [port["containerPort"] for port in container["ports"]]


def test_the_server_is_started_with_flags_that_it_has_and_stops_before_its_pod_is_killed() -> None:
    for overlay in ("serving", "serving-collect", "kserve", "kserve-canary"):
        for spec in (spec for thing in rendered(overlay) for spec in pod_specs(thing)):
            (container,) = spec["containers"]
            given = [*container["command"], *container["args"]]
            flags = [text for text in given if text.startswith("--")]
            assert {flag[2:].replace("-", "_") for flag in flags} - {"data_root"} <= set(field_docs(ServeConfig))
            drain = float(container["args"][container["args"].index("--drain-seconds") + 1])
            assert drain + 30 <= spec["terminationGracePeriodSeconds"]
            writable = [
                mount for mount in container["volumeMounts"] if mount["name"] == "data" and not mount.get("readOnly")
            ]
            collected = {"name": "data", "mountPath": "/data/collected", "subPath": "collected"}
            assert writable == ([collected] if overlay == "serving-collect" else [])


@pytest.mark.parametrize("collect", [False, True])
def test_a_version_in_the_shadow_is_a_flag_of_the_server(collect: bool) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    given = {"image": "i:1", "namespace": "me", "claim": "c", "collect": collect}
    plain, beside = serving(**given), serving(**given, shadow="candidate")
    for before, after in zip(plain, beside, strict=True):
        if before["kind"] == "Deployment":
            args = after["spec"]["template"]["spec"]["containers"][0]["args"]
            assert (args.pop(), args.pop()) == ("candidate", "--shadow")
            assert ("--keep-heard" in args) == collect
        assert before == after


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, as the container does")
def test_the_pod_that_copies_models_out_ends_by_itself_when_nothing_reads_in_it(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urpf", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("needs a name space of processes of its own")
    (*_, script) = reader_manifest("r", claim="c", image="i:1")["spec"]["containers"][0]["command"]
    short = re.sub(r"sleep \d+", "sleep 0.1", re.sub(r"-lt \d+", "-lt 15", script))
    # Beside it: a reader at work for a while, then one whose output nobody takes.
    stuck = tmp_path / "pipe"
    os.mkfifo(stuck)
    beside = f"for i in 1 2 3 4 5 6 7 8; do cat /proc/version; sleep 0.1; done >/dev/null; cat <>{stuck}"
    command = ["unshare", "-Urpf", "--mount-proc", "sh", "-c", f"({beside}) & {short}\necho ended"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "ended\n", done.stderr
