"""The dashboard and the alert rules ask for what the server exports, and the rules fire when they should."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from recognizers import MakeRecognizer

from kws.config import ServeConfig
from kws.model import onnx
from kws.model.distribution import CONFIDENCE_BOUNDS, LEVEL_BOUNDS, Distribution, levels
from kws.serve.models import Models, load_file
from kws.serve.service import Service

MONITORING = Path(__file__).resolve().parents[3] / "manifests" / "monitoring"
RULES = MONITORING / "rules.yaml"

ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def queries() -> list[str]:
    """Returns what dashboard and rules ask Prometheus."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return [*asked, *(rule["expr"] for rule in rules)]


@pytest.fixture(scope="module")
def exported(make_recognizer: MakeRecognizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of each metric of a server with a version in the shadow, after a request and a stream."""
    path = tmp_path_factory.mktemp("monitoring") / "model.onnx"
    onnx.export(make_recognizer(), path)
    test = {
        "recognized": {"no": 1, "stop": 2, "yes": 3},
        "confidence": dataclasses.asdict(Distribution.of(np.array([0.5, 0.97, 1.0]), CONFIDENCE_BOUNDS)),
        "level_dbfs": dataclasses.asdict(Distribution.of(np.array([-20.0, -130.0, 3.0]), LEVEL_BOUNDS)),
    }
    served = dataclasses.replace(load_file(path), test=test)
    service = Service(Models(current=served), ServeConfig(), Models(current=served))
    service.drift.clips(served.version, np.zeros((1, 16_000), np.float32), np.eye(3, dtype=np.float32)[:1])
    service.drift.stream(served).hear(np.zeros(16_000, np.int16), [])
    text = service.metrics().decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for ending in ENDINGS.get(family.type, ()):
            found[family.name + ending] = {name for one in family.samples for name in one.labels}
    label = f'model="kws",version="{served.version}"'
    for line in (
        f'kws_test_confidence_bucket{{le="0.5",{label}}} 1.0',
        f'kws_test_confidence_bucket{{le="0.95",{label}}} 1.0',
        f'kws_test_confidence_bucket{{le="0.99",{label}}} 2.0',
        f'kws_test_confidence_bucket{{le="+Inf",{label}}} 3.0',
        f'kws_test_input_level_dbfs_bucket{{le="-80.0",{label}}} 1.0',
        f'kws_test_input_level_dbfs_bucket{{le="0.0",{label}}} 2.0',
        f'kws_test_input_level_dbfs_bucket{{le="+Inf",{label}}} 3.0',
        f'kws_test_words{{{label},word="stop"}} 2.0',
        f'kws_input_level_dbfs_count{{model="kws",source="stream",version="{served.version}"}} 1.0',
    ):
        assert line in text
    return found


def test_every_metric_of_dashboard_and_rules_is_one_that_the_server_exports(exported: dict[str, set[str]]) -> None:
    asked = {name for query in queries() for name in re.findall(r"\bkws_\w+", query)}
    assert {"kws_confidence_bucket", "kws_shadow_differences_total", "kws_model_info"} <= asked
    assert asked <= exported.keys()


def test_every_bound_of_which_they_ask_is_one_of_the_bins(exported: dict[str, set[str]]) -> None:
    for name, bound in (found for query in queries() for found in re.findall(r'(kws_\w+){[^}]*\ble="([^"]+)"', query)):
        assert bound == "+Inf" or float(bound) in (CONFIDENCE_BOUNDS if "confidence" in name else LEVEL_BOUNDS)


def test_recording_rules_are_all_used_and_all_there() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    made = {rule["record"] for rule in rules if "record" in rule}
    assert made == {name for rule in rules if "alert" in rule for name in re.findall(r"kws:[\w:]+", rule["expr"])}


def test_level_is_that_of_a_full_scale_square_wave_at_0_dbfs() -> None:
    time = np.arange(16_000, dtype=np.float32)
    sine = np.sin(2 * np.pi * time / 16).astype(np.float32)
    found = levels(np.stack([np.sign(sine + 1e-6), sine, sine / 10, np.zeros_like(sine)]))
    np.testing.assert_allclose(found, [0, -3.01, -23.01, -120], atol=0.01)
    assert levels(np.zeros((0, 16_000), np.float32)).size == 0


@pytest.mark.parametrize("value", [None, 3, {}, {"bounds": [1], "counts": [1], "total": 1.0}, {"bounds": [1]}])
def test_distribution_that_is_none_is_left_out(value: Any) -> None:
    assert Distribution.from_json(value) is None


def series(name: str, start: int, step: int, **labels: str) -> dict[str, str]:
    """Returns a counter that rises by a step a minute, or stays if the step is 0."""
    labels = {"model": "kws", "version": "v1"} | labels
    listed = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{listed}}}", "values": f"{start}+{step}x120"}


def fired(name: str, *heard: dict[str, str], tmp_path: Path) -> list[str]:
    """Returns the summaries of an alert that fire after 100 minutes, as real Prometheus evaluates the rules."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (apt install prometheus)")
    test = [
        series("kws_model_info", 1, 0),
        series("kws_test_confidence_bucket", 10, 0, le="0.5"),
        series("kws_test_confidence_bucket", 200, 0, le="+Inf"),
        series("kws_test_input_level_dbfs_bucket", 0, 0, le="-25"),
        series("kws_test_input_level_dbfs_bucket", 200, 0, le="-15"),
        series("kws_test_input_level_dbfs_bucket", 200, 0, le="+Inf"),
    ]
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [*test, *heard],
                "alert_rule_test": [{"eval_time": "100m", "alertname": name, "exp_alerts": []}],
            }
        ],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert "exp:" in said or done.returncode == 0, said
    return re.findall(r'summary="([^"]*)"', said.split("got:", 1)[-1])


def confidence(unsure: int, clips: int, **labels: str) -> list[dict[str, str]]:
    kept = {"source": "request"} | labels
    return [
        series("kws_confidence_bucket", 0, unsure, le="0.5", **kept),
        series("kws_confidence_count", 0, clips, **kept),
    ]


def loud(dbfs: int, clips: int = 10) -> list[dict[str, str]]:
    kept = {"source": "request"}
    bounds = ("-60", "-45", "-30", "-15", "+Inf")
    return [
        series("kws_input_level_dbfs_bucket", 0, clips if float(bound) >= dbfs else 0, le=bound, **kept)
        for bound in bounds
    ]


def test_rules_are_valid() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (apt install prometheus)")
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("unsure", "clips", "labels", "says"),
    [
        (4, 10, {}, ["Version v1 is unsure of 40% of what it hears."]),
        (1, 10, {}, []),  # 10 %, against 5 % on the test split
        (1, 1, {}, []),  # too few clips
        (8, 10, {"version": "v2"}, []),  # it is in the shadow
        (8, 10, {"source": "stream"}, []),
    ],
)
def test_alert_on_what_a_version_is_unsure_of(
    unsure: int, clips: int, labels: dict[str, str], says: list[str], tmp_path: Path
) -> None:
    assert fired("KwsUnsure", *confidence(unsure, clips, **labels), tmp_path=tmp_path) == says


@pytest.mark.parametrize(("dbfs", "says"), [(-50, ["Version v1 hears nothing louder than -46 dBFS."]), (-20, [])])
def test_alert_on_input_that_is_too_quiet(dbfs: int, says: list[str], tmp_path: Path) -> None:
    heard = [*confidence(0, 10), *loud(dbfs)]
    assert fired("KwsInputTooQuiet", *heard, tmp_path=tmp_path) == says
