"""The results of a run: its artifacts, and what is printed of them at its end."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape

from kws.files import human_bytes
from pipeline.cluster.connect import Cluster

out = Console(highlight=False)
console = Console(stderr=True, highlight=False)

_OUTPUT = re.compile(r"I\d{4} .*\] ExecutorOutput: \{$")


def artifacts_of(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the artifacts of a step by name, each with `uri` and `metadata`, as the launcher writes them to the log.

    The API of Kubeflow Pipelines 2.17 has no call for them. A step that failed has none.
    """
    taken: list[str] | None = None
    for line in lines:
        if taken is not None:
            taken.append(line)
            if line == "}":
                break
        elif _OUTPUT.match(line):
            taken = ["{"]
    try:
        listed = json.loads("\n".join(taken or ["{}"])).get("artifacts", {})
    except ValueError:  # cut off in the middle
        return {}
    return {name: each["artifacts"][0] for name, each in listed.items() if each.get("artifacts")}


def used(artifacts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what a step used, as its metrics have it (see `kws.steps.used`); empty if they do not."""
    found = artifacts.get("metrics", {}).get("metadata", {})
    if "peak_memory_mb" not in found:
        return ""
    texts = {"peak_memory_mb": "of memory", "read_mb": "read", "written_mb": "written"}
    said = [f"{human_bytes(1e6 * found[name])} {text}" for name, text in texts.items() if name in found]
    return ", ".join([f"{found['cpu_seconds']:.0f} s of CPU", *said])


def show_result(cluster: Cluster, run_id: str, artifacts: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the results of a run, as `make demo` does.

    `artifacts` are those of the steps evaluate and promote by name.
    """
    metrics, decision = (artifacts.get(name, {}).get("metadata", {}) for name in ("metrics", "decision"))
    facts: dict[str, str] = {}
    if "accuracy" in metrics:
        facts["accuracy"] = (
            f"[bold]{metrics['accuracy']:.2%}[/] on {metrics['num_clips']:.0f} test clips, macro F1 "
            f"{metrics['macro_f1']:.2%}, calibration error "
            f"{metrics['calibration_error']:.2%}"
        )
    version = str(decision.get("version", ""))
    if version:
        waits = (
            "a candidate that waits (python -m pipeline candidates, approve)" if decision.get("is_candidate") else ""
        )
        state = waits or ("yes" if decision.get("is_champion") else "no")
        facts["champion"] = f"{state}: {escape(str(decision['reason']))}"
        facts["version"] = version
    if report := artifacts.get("report", {}).get("uri"):
        facts["report"] = report_link(cluster, report, version)
    facts["run"] = f"{cluster.ui}/#/runs/details/{run_id}{cluster.ui_hint}"
    if version:
        facts["model"] = f"make pull-model VERSION={version}"
    out.print()
    for name, fact in facts.items():
        out.print(f"{name:<9} {fact}", soft_wrap=True)  # unwrapped, so that links and commands can be copied
    if not version:
        console.print(
            "[yellow]the metrics and the decision cannot be read from here[/]: the page of the run has "
            "them, and make pull-model copies the champion",
            soft_wrap=True,
        )


def report_link(cluster: Cluster, uri: str, version: str) -> str:
    """Returns a link to the report: a file if the volume is a folder of this machine, otherwise a page of the UI."""
    root = cluster.volume
    if root and version and (page := root / "models" / version / "report.html").is_file():
        return str(page)
    store = urlsplit(uri)
    query = f"source={store.scheme}&namespace={cluster.namespace}&bucket={store.netloc}&key={store.path.lstrip('/')}"
    return f"{cluster.ui}/artifacts/get?{query}{cluster.ui_hint}"
