"""Where steps run is a value: no order of imports, environment or earlier call changes what is compiled."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.compiling import compile_to
from pipeline.placement import Placement, read_placement

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("src/kws", "components", "pipeline") for path in sorted((ROOT / folder).rglob("*.py"))]

HERE = Placement(runtime="here/kws-runtime:1", launcher="here/kws-launcher:1")
THERE = Placement(
    runtime="there/kws-runtime:2",
    launcher="there/kws-launcher:2",
    pvc="other",
    launches="trainjob",
    training={"gpus_per_node": 2, "cpu": "7"},
)

COMPILE_AFTER_IMPORTS = """
import importlib, json, sys
from pathlib import Path

names, orders, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
for number, order in enumerate(orders):
    for name in [name for name in sys.modules if name.split(".")[0] in ("kws", "components", "pipeline")]:
        del sys.modules[name]
    for index in order:
        importlib.import_module(names[index])
    from pipeline.compiling import compile_to
    from pipeline.placement import Placement, read_placement
    for name, fields in json.loads(sys.argv[4]).items():
        compile_to(folder / f"{name}-{number}.yaml", Placement(**fields))
"""


def images(package: Path) -> set[str]:
    spec, _ = yaml.safe_load_all(package.read_text())
    return {each["container"]["image"] for each in spec["deploymentSpec"]["executors"].values()}


def test_one_process_compiles_for_two_registries_and_devices(tmp_path: Path) -> None:
    here, there = compile_to(tmp_path / "here.yaml", HERE), compile_to(tmp_path / "there.yaml", THERE)
    assert images(here) == {"here/kws-runtime:1", "here/kws-launcher:1"}
    assert images(there) == {"there/kws-runtime:2", "there/kws-launcher:2"}
    assert "here/" not in there.read_text().replace("there/", "")
    assert '"gpus_per_node": 0' in here.read_text()
    assert '"gpus_per_node": 2' in there.read_text()
    assert "constant: other" in there.read_text()
    assert "KWS_LAUNCHER" not in here.read_text()
    assert "value: trainjob" in there.read_text()
    assert compile_to(tmp_path / "again.yaml", HERE).read_bytes() == here.read_bytes()


def test_no_order_of_imports_and_no_environment_changes_what_is_compiled(tmp_path: Path) -> None:
    # Without the rooms of kws that import torch, which no compiling does: the next test reads them.
    names = [
        ".".join(path.relative_to(ROOT / "src" if "src" in path.parts else ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.name not in ("__init__.py", "__main__.py", "plots.py")
        and ("kws" not in path.parts or path.parent.name in ("kws", "launch"))
    ]
    count = len(names)
    orders = [list(range(count)), list(range(count))[::-1], [(7 * i + 3) % count for i in range(count)]]
    placements = {
        name: {
            "runtime": p.runtime,
            "launcher": p.launcher,
            "pvc": p.pvc,
            "training": p.training,
            "launches": p.launches,
        }
        for name, p in (("here", HERE), ("there", THERE))
    }
    misleading = {
        "KWS_RUNTIME_IMAGE": "wrong/kws-runtime:0",
        "KWS_LAUNCHER_IMAGE": "wrong/kws-launcher:0",
        "KWS_PVC": "wrong",
        "KWS_GPUS_PER_NODE": "9",
        "KWS_PYTORCHJOB": "{",
    }
    command = [
        sys.executable,
        "-c",
        COMPILE_AFTER_IMPORTS,
        *map(json.dumps, (names, orders)),
        str(tmp_path),
        json.dumps(placements),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | misleading, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, placement in (("here", HERE), ("there", THERE)):
        expected = compile_to(tmp_path / f"{name}.yaml", placement).read_bytes()
        for number in range(len(orders)):
            assert (tmp_path / f"{name}-{number}.yaml").read_bytes() == expected


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_a_module_reads_nothing_from_the_environment(path: Path) -> None:
    def at_import(node: ast.AST) -> list[ast.AST]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return [*getattr(node, "decorator_list", ()), *filter(None, (*node.args.defaults, *node.args.kw_defaults))]
        return list(ast.iter_child_nodes(node))

    found, todo = [], [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            found.append(node.lineno)
        todo += at_import(node)
    assert not found, f"line {found}: pass it as a value"


def test_a_launcher_that_no_cluster_has_is_refused() -> None:
    with pytest.raises(ValueError, match="KWS_LAUNCHER must be pytorchjob or trainjob on a cluster, got 'torchrun'"):
        Placement(launches="torchrun")


def test_a_field_of_the_training_pods_that_there_is_not_is_refused_before_compiling() -> None:
    with pytest.raises(ValueError, match="must have fields among image"):
        Placement(training={"cores": "3"})


def test_a_deadline_and_a_time_to_live_are_those_of_the_environment(tmp_path: Path) -> None:
    names = {"runtime": "kws-runtime:1", "launcher": "kws-launcher:1"}
    limited = read_placement({"KWS_DEADLINE_HOURS": "12", "KWS_TTL_DAYS": "3"}, names)
    _, platform = yaml.safe_load_all(compile_to(tmp_path / "limited.yaml", limited).read_text())
    found = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert found["activeDeadlineSeconds"] == 12 * 3600
    assert found["resourceTtlOnCompletion"] == 3 * 86400
    assert read_placement({"KWS_DEADLINE_HOURS": "0.01"}, names).pipeline_config.active_deadline_seconds == 36
    with pytest.raises(ValueError, match="KWS_DEADLINE_HOURS must be a number, got '1h'"):
        read_placement({"KWS_DEADLINE_HOURS": "1h"}, names)
    with pytest.raises(ValueError, match="KWS_TTL_DAYS must be a whole number"):
        read_placement({"KWS_TTL_DAYS": "1.5"}, names)
