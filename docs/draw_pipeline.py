"""Draws docs/pictures/pipeline.svg, the compiled pipeline: its steps, what flows between them, and where each runs.

python docs/draw_pipeline.py [OUTPUT]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

from kws.launch.cluster_config import SETTINGS

ROOT = Path(__file__).resolve().parents[1]

WIDTH, HEIGHT, GAP = 2.5, 1.7, 1.1
"""Inches: width and height of a box, and the gap between two boxes."""


def edges_of(spec: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """Returns the artifacts that flow from one step to another, keyed by the pair of steps."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        for artifact in task["inputs"].get("artifacts", {}).values():
            source = artifact["taskOutputArtifact"]
            found.setdefault((source["producerTask"], name), []).append(source["outputArtifactKey"])
    return found


def labels_of(spec: dict[str, Any], platform: dict[str, Any], step: str) -> list[str]:
    """Returns the lines in the box of a step: image, resources, volume, the pods that it starts."""
    executor = spec["components"][spec["root"]["dag"]["tasks"][step]["componentRef"]["name"]]["executorLabel"]
    container = spec["deploymentSpec"]["executors"][executor]["container"]
    resources = container["resources"]
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].get(executor, {}).get("pvcMount", [])
    pods = [json.loads(each["value"]) for each in container.get("env", []) if each["name"] == SETTINGS]
    return [
        container["image"].rpartition("/")[2].partition(":")[0],
        f"{resources['resourceCpuRequest']} to {resources['resourceCpuLimit']} CPU",
        f"{resources['resourceMemoryRequest']} to {resources['resourceMemoryLimit']}",
        *(f"{mount['mountPath']} on {mount['constant']}" for mount in mounts),
        *(f"starts pods of {pod['cpu']} CPU, {pod['memory']}" for pod in pods),
    ]


def draw(output: Path) -> None:
    """Compiles the pipeline and draws it.

    Args:
        output: the picture; its suffix selects SVG or PNG.
    """
    sys.path.insert(0, str(ROOT))
    from pipeline.compiling import compile_to, steps_of_spec

    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "pipeline.yaml"
        compile_to(package)
        spec, platform = yaml.safe_load_all(package.read_text(encoding="utf-8"))
        steps = steps_of_spec(spec)

    place = {step: index * (WIDTH + GAP) for index, step in enumerate(steps)}
    # The same picture, byte for byte, for the same pipeline.
    with pyplot.rc_context({"svg.hashsalt": "kws", "svg.fonttype": "none", "font.family": "sans-serif"}):
        width = place[steps[-1]] + WIDTH + 0.4
        figure, axes = pyplot.subplots(figsize=(width, 3.8))
        axes.set(xlim=(-0.2, width - 0.2), ylim=(-1.0, 2.8))
        axes.axis("off")
        for step, left in place.items():
            axes.add_patch(Rectangle((left, 0), WIDTH, HEIGHT, facecolor="#eef3fb", edgecolor="#30507a"))
            axes.text(left + WIDTH / 2, HEIGHT - 0.13, step, ha="center", va="top", weight="bold", size=13)
            text = "\n".join(labels_of(spec, platform, step))
            axes.text(left + WIDTH / 2, HEIGHT - 0.5, text, ha="center", va="top", size=9, color="#444444")
        for (source, target), artifacts in edges_of(spec).items():
            span = steps.index(target) - steps.index(source)
            far = span > 1
            # Artifacts of train go below, so that the arcs do not cross.
            side = 0 if not far else -1 if source == "train" else 1
            y = HEIGHT / 2 if not far else (HEIGHT if side > 0 else 0)
            start = place[source] + (WIDTH if not far else WIDTH * 0.6)
            end = place[target] + (0 if not far else WIDTH * 0.4)
            bend = -side * 0.5 * span / (end - start)
            axes.annotate(
                "",
                (end, y),
                (start, y),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#30507a",
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "connectionstyle": f"arc3,rad={bend}",
                },
            )
            height = y + (0.1 if not far else side * 0.25 * span)
            axes.text(
                (start + end) / 2,
                height,
                "\n".join(artifacts),
                ha="center",
                va="center" if far else "bottom",
                size=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None, bbox_inches="tight")
        pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "pipeline.svg")
