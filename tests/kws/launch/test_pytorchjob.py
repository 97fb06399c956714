import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from kws.kube import client
from kws.kube.errors import error_of
from kws.launch import job_status
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import LaunchError, Training
from kws.launch.kinds.pytorchjob import PYTORCH_JOB, build_job
from kws.launch.submit import save_manifest

SCHEMA = Path(__file__).resolve().parents[2] / "data" / "pytorchjob.schema.json"
IMAGE = "kws-runtime:0.2.0"
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "6a1f"}
RUN = Path("/data/runs/20240501-100000-1f3c")
JOB = Training(
    name="kws-1f3c", folder=RUN, arguments=("--tensors", "/data/tensors/ab"), num_nodes=3, processes_per_node=2
)

SETTINGS = {
    "elastic on CPUs": ClusterConfig(image=IMAGE, namespace="kubeflow"),
    "fixed on CPUs": ClusterConfig(image=IMAGE, namespace="kubeflow", elastic=False),
    "elastic on GPUs": ClusterConfig(
        image=IMAGE,
        namespace="team",
        gpus_per_node=2,
        cpu="7500m",
        memory="32Gi",
        shm_size="8Gi",
        min_nodes=2,
        node_selector={"accelerator": "a100"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        env={"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "1"},
        service_account="trainer",
    ),
    "fixed on GPUs": ClusterConfig(
        image=f"{IMAGE}@sha256:{'a' * 64}",
        namespace="team",
        gpus_per_node=4,
        elastic=False,
        tolerations=[{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
    ),
}
each_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS.keys())


def built(config: ClusterConfig, job: Training = JOB) -> dict[str, Any]:
    return build_job(job, config, OWNER)


def templates(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: spec["template"] for name, spec in manifest["spec"]["pytorchReplicaSpecs"].items()}


def container(manifest: Mapping[str, Any], replica: str = "Worker") -> dict[str, Any]:
    (only,) = templates(manifest)[replica]["spec"]["containers"]
    return dict(only)


def unknown_fields(value: Any, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Gives the paths of what the API server would drop silently, as the schema does not know it."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name, part in value.items():
            if name in known:
                yield from unknown_fields(part, known[name], f"{path}.{name}")
            elif isinstance(schema.get("additionalProperties"), Mapping):
                yield from unknown_fields(part, schema["additionalProperties"], f"{path}.{name}")
            elif path != ".metadata":  # the API server knows this one without the schema
                yield f"{path}.{name}"
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from unknown_fields(part, schema["items"], f"{path}[{index}]")


@pytest.fixture(scope="session")
def crd_schema() -> dict[str, Any]:
    return dict(json.loads(SCHEMA.read_text()))


@each_setting
def test_the_operators_schema_accepts_every_field_of_the_job(config: ClusterConfig, crd_schema: dict[str, Any]) -> None:
    manifest = built(config)
    jsonschema.validate(manifest, crd_schema, jsonschema.Draft202012Validator)
    assert list(unknown_fields(manifest, crd_schema)) == []


def test_the_check_against_the_schema_finds_what_is_wrong(crd_schema: dict[str, Any]) -> None:
    manifest = built(SETTINGS["fixed on CPUs"])
    manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["comand"] = ["python"]
    assert list(unknown_fields(manifest, crd_schema)) == [
        ".spec.pytorchReplicaSpecs.Worker.template.spec.containers[0].comand"
    ]
    manifest["spec"]["nprocPerNode"] = 2
    with pytest.raises(jsonschema.ValidationError, match="2 is not of type 'string'"):
        jsonschema.validate(manifest, crd_schema, jsonschema.Draft202012Validator)


@each_setting
def test_kubernetes_accepts_the_pods_of_the_job(config: ClusterConfig) -> None:
    for template in templates(built(config)).values():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "kws-1f3c-worker-0", **template["metadata"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)


@each_setting
def test_the_pods_fit_a_namespace_with_restricted_pod_security(config: ClusterConfig) -> None:
    for template in templates(built(config)).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["runAsUser"] == 1000
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (only,) = template["spec"]["containers"]
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert template["spec"]["automountServiceAccountToken"] is False
        kinds = {kind for volume in template["spec"]["volumes"] for kind in volume if kind != "name"}
        assert kinds == {"persistentVolumeClaim", "emptyDir"}
        writable = {mount["mountPath"] for mount in only["volumeMounts"]}
        assert writable == {config.mount_path, "/dev/shm", "/tmp"}
        assert {"name": "HOME", "value": "/tmp"} in only["env"]


def test_an_elastic_job_has_workers_only_that_meet_at_the_first() -> None:
    manifest = built(SETTINGS["elastic on GPUs"])

    assert {name: spec["replicas"] for name, spec in manifest["spec"]["pytorchReplicaSpecs"].items()} == {"Worker": 3}
    policy = manifest["spec"]["elasticPolicy"]
    assert policy["rdzvBackend"] == "c10d"
    assert (policy["rdzvHost"], policy["rdzvPort"]) == ("kws-1f3c-worker-0", 23456)
    assert (policy["minReplicas"], policy["maxReplicas"], policy["maxRestarts"]) == (2, 3, 3)
    assert "nProcPerNode" not in policy  # the webhook forbids it beside nprocPerNode
    assert manifest["spec"]["nprocPerNode"] == "2"


def test_a_fixed_job_trains_with_all_its_workers_only_and_needs_no_init_container() -> None:
    manifest = built(SETTINGS["fixed on CPUs"])
    # The operator gives workers beside a master an init container that a restricted namespace refuses.
    assert {name: spec["replicas"] for name, spec in manifest["spec"]["pytorchReplicaSpecs"].items()} == {"Worker": 3}
    policy = manifest["spec"]["elasticPolicy"]
    assert (policy["minReplicas"], policy["maxReplicas"]) == (3, 3)


# What the operator sets besides, for node 1 of the 3 of JOB.
OPERATOR = {
    "elastic on CPUs": {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "kws-1f3c-worker-0:23456",
        "PET_RDZV_ID": "kws-1f3c",
        "PET_RDZV_CONF": "read_timeout=1800,join_timeout=1800",
        "PET_NNODES": "1:3",
        "PET_MAX_RESTARTS": "3",
    },
    "fixed on CPUs": {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "kws-1f3c-worker-0:23456",
        "PET_RDZV_ID": "kws-1f3c",
        "PET_RDZV_CONF": "read_timeout=1800,join_timeout=1800",
        "PET_NNODES": "3:3",
        "PET_MAX_RESTARTS": "3",
    },
}


@pytest.mark.parametrize(("name", "nodes"), [("elastic on CPUs", (1, 3)), ("fixed on CPUs", (3, 3))])
def test_torchrun_understands_the_command_and_what_the_operator_adds(
    name: str, nodes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.run import config_from_args, parse_args

    for variable, value in OPERATOR[name].items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    only = container(built(SETTINGS[name]))
    assert only["command"][:6] == ["python", "-m", "kws.launch.node", f"--run={RUN}", "--lease=900", "--"]

    config, _, arguments = config_from_args(parse_args([*only["command"][6:], *only["args"]]))

    assert (config.min_nodes, config.max_nodes) == nodes
    assert config.nproc_per_node == 2
    assert config.rdzv_endpoint == "kws-1f3c-worker-0:23456"
    assert {"read_timeout": "1800", "join_timeout": "1800"}.items() <= config.rdzv_configs.items()
    assert arguments[-4:] == ["-m", "kws.train", "--tensors", "/data/tensors/ab"]


def test_a_pod_gets_what_the_settings_say() -> None:
    config = SETTINGS["elastic on GPUs"]
    manifest = built(config)
    only, pod = container(manifest), templates(manifest)["Worker"]["spec"]

    assert only["name"] == "pytorch"
    assert only["image"] == IMAGE
    resources = {"cpu": "7500m", "memory": "32Gi", "nvidia.com/gpu": "2"}
    assert only["resources"] == {"requests": resources, "limits": resources}
    assert pod["nodeSelector"] == {"accelerator": "a100"}
    assert pod["tolerations"] == list(config.tolerations)
    assert pod["serviceAccountName"] == "trainer"
    environment = {variable["name"]: variable["value"] for variable in only["env"]}
    assert environment["NCCL_DEBUG"] == "WARN"
    assert environment["OMP_NUM_THREADS"] == "1"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "kws-data"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    annotations = templates(manifest)["Worker"]["metadata"]["annotations"]
    assert annotations == {"sidecar.istio.io/inject": "false"}


def test_the_processes_of_a_pod_share_its_cores() -> None:
    config = ClusterConfig(image=IMAGE, cpu="7500m")
    environment = {variable["name"]: variable["value"] for variable in container(built(config))["env"]}
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_job_ends_by_itself_and_with_the_pod_that_made_it() -> None:
    manifest = built(SETTINGS["elastic on CPUs"])
    assert manifest["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "6a1f"}
    ]
    assert manifest["spec"]["runPolicy"] == {
        "activeDeadlineSeconds": 86_400,
        "backoffLimit": 10,  # three restarts for each of three pods; the tenth is one too many
        "cleanPodPolicy": "Running",
        "ttlSecondsAfterFinished": 86_400,
    }
    replicas = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert replicas["restartPolicy"] == "OnFailure"
    assert replicas["template"]["spec"]["terminationGracePeriodSeconds"] >= 40


def test_a_job_is_built_the_same_every_time(tmp_path: Path) -> None:
    config = SETTINGS["elastic on CPUs"]
    assert built(config) == built(config)
    save_manifest(built(config), tmp_path / "manifest.yaml")
    assert yaml.safe_load((tmp_path / "manifest.yaml").read_text()) == built(config)


def test_min_nodes_above_the_number_of_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("min_nodes must be at most num_nodes (3), got 4")):
        built(ClusterConfig(image=IMAGE, min_nodes=4))


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("processes_per_node must be at most gpus_per_node (1), a GPU for")):
        built(ClusterConfig(image=IMAGE, gpus_per_node=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "kws-runtime"),
        ("image", "localhost:5000/kws-runtime"),
        ("image", "kws-runtime:latest"),
        ("mount_path", "data"),
        ("pvc", ""),
        ("cpu", 2),
        ("memory", "4 GB"),
        ("gpus_per_node", "1"),
        ("gpus_per_node", -1),
        ("min_nodes", 0),
        ("elastic", "false"),
        ("env", {"A": 1}),
        ("node_selector", ["gpu"]),
        ("tolerations", [{"kye": "gpu"}]),
        ("active_deadline_seconds", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must "):
        ClusterConfig(**({"image": IMAGE} | {field: value}))


def test_settings_go_through_the_environment_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SETTINGS["elastic on GPUs"]
    for name, value in config.to_environment().items():
        monkeypatch.setenv(name, value)
    assert build_job(JOB, ClusterConfig.from_environment()) == build_job(JOB, config)


def test_the_namespace_is_the_steps_own_where_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("team-a\n")
    monkeypatch.setattr(client, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KWS_PYTORCHJOB", json.dumps({"image": IMAGE}))
    assert ClusterConfig.from_environment().namespace == "team-a"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pvc": "data"}'])
def test_an_environment_without_settings_is_refused_with_an_example(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_PYTORCHJOB", text)
    with pytest.raises(ValueError, match=r'KWS_PYTORCHJOB must be a JSON object .* such as {"image": "kws-runtime'):
        ClusterConfig.from_environment()


def test_an_unknown_setting_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_PYTORCHJOB", json.dumps({"image": IMAGE, "gpu": 1}))
    with pytest.raises(ValueError, match=r"ClusterConfig must have fields among .*, got 'gpu'"):
        ClusterConfig.from_environment()


def submitted(*conditions: tuple[str, str], **metadata: Any) -> dict[str, Any]:
    """Returns a job as the API gives it, with conditions that are true."""
    job = built(SETTINGS["elastic on CPUs"])
    job["metadata"] |= {"uid": "1", **metadata}
    job["status"] = {
        "conditions": [
            {"type": state, "status": "True", "reason": f"PyTorchJob{state}", "message": message}
            for state, message in conditions
        ]
    }
    return job


CREATED = ("Created", "PyTorchJob kws-1f3c is created.")
FAILED = ("Failed", "Job kws-1f3c has failed because it has reached the specified backoff limit")
SUCCEEDED = ("Succeeded", "PyTorchJob kubeflow/kws-1f3c successfully completed.")


def test_a_job_has_ended_only_when_a_condition_that_holds_says_so() -> None:
    assert job_status.verdict(built(SETTINGS["elastic on CPUs"])) is None  # not seen by the operator yet
    running = submitted(CREATED, ("Running", "PyTorchJob kubeflow/kws-1f3c is running."))
    assert job_status.verdict(running) is None
    running["status"]["conditions"].append({"type": "Failed", "status": "False"})
    assert job_status.verdict(running) is None
    assert job_status.verdict(submitted(CREATED, SUCCEEDED)) == "Succeeded"
    assert job_status.verdict(submitted(CREATED, FAILED)) == "Failed"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        (submitted(CREATED), "adopt"),
        (submitted(CREATED, SUCCEEDED), "adopt"),
        (submitted(CREATED, FAILED), "replace"),
        (submitted(CREATED, deletionTimestamp="2024-05-01T10:00:00Z"), "wait"),
        (submitted(CREATED, FAILED, deletionTimestamp="2024-05-01T10:00:00Z"), "wait"),
    ],
    ids=["running", "succeeded", "failed", "running and being deleted", "failed and being deleted"],
)
def test_a_job_of_an_earlier_attempt_is_adopted_or_replaced(existing: dict[str, Any], expected: str) -> None:
    assert job_status.on_conflict(existing, built(SETTINGS["elastic on CPUs"])) == expected


def test_a_job_of_someone_else_is_left_alone() -> None:
    with pytest.raises(LaunchError, match="got another PyTorchJob; delete it: kubectl -n kubeflow delete"):
        job_status.on_conflict(submitted(CREATED, labels={}), built(SETTINGS["elastic on CPUs"]))


def test_a_job_that_does_something_else_is_not_adopted() -> None:
    other = dataclasses.replace(JOB, arguments=("--tensors", "/data/tensors/cd"))
    with pytest.raises(LaunchError, match="must have the settings of this run, got others; delete it"):
        job_status.on_conflict(submitted(CREATED), built(SETTINGS["elastic on CPUs"], other))
    failed = submitted(CREATED, FAILED)
    assert job_status.on_conflict(failed, built(SETTINGS["elastic on CPUs"], other)) == "replace"


def pod(name: str, container_status: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    if container_status is not None:
        status["containerStatuses"] = [{"name": "pytorch", **container_status}]
    return {"metadata": {"name": name, "uid": name}, "status": status}


def ended(status: int, time: str, **more: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": status, "finishedAt": f"2024-05-01T10:00:{time}Z", "reason": "Error", **more}}


def test_a_failed_job_is_reported_with_its_message_and_the_log_of_the_first_pod_to_fail() -> None:
    seen = [
        pod("kws-1f3c-worker-0", {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(1, "09")}),
        pod("kws-1f3c-worker-1", {"state": ended(1, "05")}),
        pod("kws-1f3c-worker-2", {"state": ended(0, "01")}),
    ]
    ends = {
        "kws-1f3c-worker-0": ["RuntimeError: Connection reset by peer"],
        "kws-1f3c-worker-1": ["epoch 3", "ValueError: loss must be finite, got nan"],
    }
    message = job_status.failure_message(submitted(CREATED, FAILED), seen, ends, "pytorch")
    assert message.splitlines() == [
        "PyTorchJob kubeflow/kws-1f3c failed: PyTorchJobFailed: Job kws-1f3c has failed because it has reached the "
        "specified backoff limit; kws-1f3c-worker-1 ended with status 1:",
        "  epoch 3",
        "  ValueError: loss must be finite, got nan",
    ]


def test_a_failed_pod_whose_log_was_lost_is_reported_by_its_status() -> None:
    seen = [pod("kws-1f3c-worker-0", {"state": ended(137, "05", reason="OOMKilled", message="epoch 1\nepoch 2")})]
    message = job_status.failure_message(submitted(CREATED, FAILED), seen, {}, "pytorch")
    assert message.endswith(
        "kws-1f3c-worker-0 ended with OOMKilled (status 137); it ran out of memory: MEMORY= of make pipeline gives the "
        "training pods more, a retry does not:"
        "\n  epoch 1\n  epoch 2"
    )


def test_a_job_that_failed_without_ever_running_says_what_it_waited_for() -> None:
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes fit"}
    message = job_status.failure_message(
        submitted(CREATED, ("Failed", "active longer than specified deadline")),
        [pod("kws-1f3c-worker-0", phase="Pending", conditions=[unschedulable])],
        {},
        "pytorch",
    )
    assert message.endswith("PyTorchJobFailed: active longer than specified deadline; Unschedulable: 0/3 nodes fit")


def test_nodes_are_counted_as_the_operator_counts_them() -> None:
    labels = {"training.kubeflow.org/replica-type": "worker", "training.kubeflow.org/replica-index": "1"}
    assert PYTORCH_JOB.node_rank({"metadata": {"labels": labels}}) == 1


REFUSALS = {
    "rights": (
        403,
        'pytorchjobs.kubeflow.org is forbidden: User "default" cannot create resource "pytorchjobs"',
        "the step's service account must be allowed to create, get, patch and delete pytorchjobs",
    ),
    "quota": (
        403,
        'pytorchjobs.kubeflow.org "kws-1" is forbidden: exceeded quota: kws, requested: '
        "count/pytorchjobs.kubeflow.org=1, used: count/pytorchjobs.kubeflow.org=8, limited: 8",
        "delete what is not needed (kubectl -n kubeflow get resourcequotas,pytorchjobs)",
    ),
    "new quota": (
        403,
        'pytorchjobs.kubeflow.org "kws-1" is forbidden: status unknown for quota: kws, resources: '
        "count/pytorchjobs.kubeflow.org",
        "wait until kubectl -n kubeflow get resourcequotas",
    ),
    "namespace": (
        403,
        'pytorchjobs.kubeflow.org "kws-1" is forbidden: unable to create new content in namespace '
        "kubeflow because it is being terminated",
        "the namespace kubeflow is being deleted",
    ),
    "webhook": (
        403,
        'admission webhook "v.kubeflow.org" denied the request: spec.nprocPerNode: Invalid value: "x"',
        "change what it names: num_nodes, processes_per_node or a field of KWS_PYTORCHJOB",
    ),
    "policy": (403, "no image of this registry may run here", ""),
    "invalid": (
        422,
        'PyTorchJob.kubeflow.org "kws-1" is invalid: spec.runPolicy.backoffLimit: Invalid value: -1',
        "change what it names",
    ),
    "no namespace": (404, 'namespaces "kubeflow" not found', "create the namespace kubeflow"),
    "no operator": (404, "the server could not find the requested resource", "install the operator of pytorchjobs"),
    "token": (401, "Unauthorized", "the step needs a service account with a valid token"),
}


@pytest.mark.parametrize(("status", "said", "remedy"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_in_the_words_of_the_api_with_its_remedy(status: int, said: str, remedy: str) -> None:
    error = error_of(status, "Refused", json.dumps({"message": said}))
    told = str(job_status.explain(error, PYTORCH_JOB, "kubeflow"))
    before, _, after = told.partition(said)
    assert before == "the Kubernetes API must accept the PyTorchJob, got: "
    assert after.startswith(f"; {remedy}") if remedy else after == ""


def test_a_refusal_without_words_is_told_by_its_reason() -> None:
    missing = error_of(404, "Not Found", "<html>404</html>")
    told = str(job_status.explain(missing, PYTORCH_JOB, "kubeflow"))
    assert "got: Not Found; install the operator of pytorchjobs.kubeflow.org: the training operator" in told


def test_a_job_that_a_retry_may_fix_is_told_from_one_that_it_cannot() -> None:
    def mends(job: dict[str, Any], status: int, **more: str) -> bool:
        return job_status.may_mend(
            job, [pod("kws-1f3c-worker-0", {"lastState": ended(status, "05", **more)})], "pytorch"
        )

    failed = submitted(CREATED, FAILED)
    assert mends(failed, 1)
    assert mends(failed, 137)
    assert not mends(failed, 137, reason="OOMKilled")
    assert not mends(failed, 65)
    assert not mends(failed, 75)
    assert not mends(submitted(CREATED, ("Failed", "active longer than specified deadline")), 1)
    assert not job_status.may_mend(failed, [pod("kws-1f3c-worker-0", phase="Pending")], "pytorch")


def test_an_error_that_cannot_mend_ends_a_job_that_has_not_failed_yet() -> None:
    seen = [pod("kws-1f3c-worker-0", {"state": {"waiting": {}}, "lastState": ended(65, "05")})]
    assert job_status.is_hopeless(seen, "pytorch")
    assert not job_status.is_hopeless([pod("kws-1f3c-worker-0", {"lastState": ended(1, "05")})], "pytorch")
    killed = pod("kws-1f3c-worker-0", {"state": {"waiting": {}}, "lastState": ended(137, "05", reason="OOMKilled")})
    assert job_status.is_hopeless([killed], "pytorch")  # it would be killed again, with the same limit
    ends = {"kws-1f3c-worker-0": ["error: ValueError: batch_size must be positive, got -1"]}
    assert job_status.failure_message(submitted(CREATED), seen, ends, "pytorch").splitlines() == [
        "PyTorchJob kubeflow/kws-1f3c failed: starting it again would not help; kws-1f3c-worker-0 ended with status "
        "65:",
        "  error: ValueError: batch_size must be positive, got -1",
    ]


@pytest.mark.parametrize(("name", "value"), [("memory", "4ki"), ("memory", "4KB"), ("cpu", "4Gi"), ("cpu", "2k")])
def test_a_quantity_that_kubernetes_would_not_take_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ClusterConfig(image="kws:1", **{name: value})  # type: ignore[arg-type]


def test_quantities_of_kubernetes_are_taken() -> None:
    for memory in ("4194304Ki", "4Gi", "4G", "400M", "4000000k", "4000000000"):
        ClusterConfig(image="kws:1", memory=memory)
    for cpu in ("2", "0.5", "500m"):
        ClusterConfig(image="kws:1", cpu=cpu)
