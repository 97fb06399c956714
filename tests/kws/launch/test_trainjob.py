"""The TrainJob of Kubeflow Trainer v2."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kws.kube.errors import KubeError
from kws.launch import job_status
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import LaunchError, Training
from kws.launch.kinds.trainjob import TRAIN_JOB

SCHEMA = Path(__file__).resolve().parents[2] / "data" / "trainjob.schema.json"
RUNTIME = Path(__file__).resolve().parents[3] / "manifests" / "trainer-v2" / "runtime.yaml"
RUN = Path("/data/runs/20240501-100000-1f3c")
JOB = Training(name="kws-1f3c", folder=RUN, arguments=("--run-folder", str(RUN)), num_nodes=2, processes_per_node=1)
CONFIG = ClusterConfig(image="kws-runtime:0.2.0", namespace="kubeflow")
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "6a1f"}


def built(config: ClusterConfig = CONFIG, job: Training = JOB) -> dict[str, Any]:
    return TRAIN_JOB.build(job, config, OWNER)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        ClusterConfig(
            image="kws-runtime:1",
            namespace="team",
            gpus_per_node=2,
            cpu="7500m",
            runtime="own",
            runtime_kind="TrainingRuntime",
            env={"NCCL_DEBUG": "WARN"},
        ),
    ],
    ids=["on CPUs", "on GPUs, with a runtime of the namespace"],
)
def test_the_schema_of_trainer_accepts_every_field_of_the_job(config: ClusterConfig) -> None:
    from test_pytorchjob import unknown_fields

    schema, manifest = json.loads(SCHEMA.read_text()), built(config)
    jsonschema.validate(manifest, schema, jsonschema.Draft202012Validator)
    assert list(unknown_fields(manifest, schema)) == []
    manifest["spec"]["trainer"]["comand"] = ["python"]
    assert list(unknown_fields(manifest, schema)) == [".spec.trainer.comand"]


def test_the_job_trains_over_our_runtime_with_what_the_settings_say() -> None:
    manifest = built(dataclasses.replace(CONFIG, env={"NCCL_DEBUG": "WARN"}, memory="6Gi"))
    runtime = yaml.safe_load(RUNTIME.read_text())
    assert manifest["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert TRAIN_JOB.container == replicated["name"] == container["name"]
    trainer = manifest["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == ("kws-runtime:0.2.0", 2, 1)
    assert trainer["command"][:6] == ["python", "-m", "kws.launch.node", f"--run={RUN}", "--lease=900", "--"]
    assert trainer["command"][-2:] == ["-m", "kws.train"]
    assert trainer["args"] == ["--run-folder", str(RUN)]
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in trainer["env"]
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "2", "memory": "6Gi"}
    assert not any(variable["name"].startswith("PET_") for variable in trainer["env"])  # the webhook refuses them


def test_torchrun_understands_the_command_and_what_trainer_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import config_from_args, parse_args

    for variable, value in {
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "NODE_RANK": "1",
        "MASTER_PORT": "29400",
        "MASTER_ADDR": "kws-1f3c-node-0-0.kws-1f3c",
    }.items():
        monkeypatch.setenv(f"PET_{variable}", value)
    trainer = built()["spec"]["trainer"]
    config, _, arguments = config_from_args(parse_args([*trainer["command"][6:], *trainer["args"]]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 1)
    assert config.rdzv_endpoint == "kws-1f3c-node-0-0.kws-1f3c:29400"
    assert {"timeout": "1800", "rank": 1}.items() <= config.rdzv_configs.items()
    assert arguments[-3:] == ["kws.train", "--run-folder", str(RUN)]


def test_the_job_ends_with_the_pod_that_made_it() -> None:
    assert built()["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "6a1f"}
    ]


@pytest.mark.parametrize(
    ("settings", "pods"),
    [
        ({"pvc": "other"}, {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "other"}}]}),
        ({"shm_size": "8Gi"}, {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]}),
        (
            {"node_selector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
            {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        ),
        ({"service_account": "trainer"}, {"serviceAccountName": "trainer"}),
    ],
)
def test_what_differs_from_the_runtime_patches_it(settings: dict[str, Any], pods: dict[str, Any]) -> None:
    (patch,) = built(dataclasses.replace(CONFIG, **settings))["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert (patch["manager"], replicated["name"]) == ("kws.local/launcher", TRAIN_JOB.container)
    assert replicated["template"]["spec"]["template"]["spec"] == pods
    (of_runtime,) = yaml.safe_load(RUNTIME.read_text())["spec"]["template"]["spec"]["replicatedJobs"]
    names = {volume["name"] for volume in of_runtime["template"]["spec"]["template"]["spec"]["volumes"]}
    assert names >= {volume["name"] for volume in pods.get("volumes", ())}  # merged by name, not added


def test_a_deadline_that_was_set_is_the_jobs() -> None:
    assert "activeDeadlineSeconds" not in built()["spec"]
    assert built(dataclasses.replace(CONFIG, active_deadline_seconds=60))["spec"]["activeDeadlineSeconds"] == 60


def test_a_release_of_trainer_that_lacks_a_field_is_named() -> None:
    said = (
        'TrainJob in version "v1alpha1" cannot be handled: strict decoding error: unknown field "spec.runtimePatches"'
    )
    with pytest.raises(LaunchError, match=r"Trainer 2\.2 or later, or set it in the runtime"):
        raise job_status.explain(KubeError(said, status=400), TRAIN_JOB, "kubeflow")


def test_nodes_are_counted_as_the_indexed_job_counts_them() -> None:
    assert TRAIN_JOB.node_rank({"metadata": {"labels": {"batch.kubernetes.io/job-completion-index": "1"}}}) == 1


def with_conditions(**conditions: str) -> dict[str, Any]:
    job = built()
    job["metadata"] |= {"uid": "1"}
    job["status"] = {
        "conditions": [
            {"type": kind, "status": "True", "reason": "JobsFailed", "message": message}
            for kind, message in conditions.items()
        ]
    }
    return job


def test_a_job_has_ended_when_trainer_says_so_and_only_then() -> None:
    assert job_status.verdict(built()) is None
    assert job_status.verdict(with_conditions(Suspended="")) is None
    assert job_status.verdict(with_conditions(Complete="jobset completed successfully")) == "Succeeded"
    assert job_status.verdict(with_conditions(Failed="jobset failed due to one or more job failures")) == "Failed"


def test_a_job_of_an_earlier_attempt_is_adopted_and_one_that_does_something_else_is_not() -> None:
    assert job_status.on_conflict(with_conditions(Complete=""), built()) == "adopt"
    assert job_status.on_conflict(with_conditions(Failed=""), built()) == "replace"
    other = built(job=dataclasses.replace(JOB, arguments=("--run-folder", "/data/runs/other")))
    with pytest.raises(
        LaunchError, match=r"TrainJob kws-1f3c must have the settings .* kubectl -n kubeflow delete trainj"
    ):
        job_status.on_conflict(with_conditions(), other)
