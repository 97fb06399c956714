"""Draws docs/pictures/rooms.svg from the code: the rooms, what is in them, and which imports from which.

python docs/draw_architecture.py [OUTPUT]
"""

import sys
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

STEPS = ("download", "preprocess", "train", "evaluate", "promote")
ROOMS = ("data", "download", "preprocess", "model", "kube", "launch", "train", "evaluate", "promote", "serve")
HANDED_ON = ("datasets/", "tensors/", "runs/", "report")
WIDTH, GAP, LINE = 1.75, 0.65, 0.215
"""Inches: the width of a box, the gap between two, the height of a line of text."""

Spot = tuple[float, float]


def box(
    axes: Axes, left: float, top: float, width: float, title: str, lines: list[str], color: str, num_lines: int = 0
) -> float:
    """Draws a titled box, at least `num_lines` high, and returns where it ends below."""
    height = LINE * (max(num_lines, len(lines)) + 2)
    axes.add_patch(Rectangle((left, top - height), width, height, facecolor=color, edgecolor="#30507a"))
    axes.text(left + width / 2, top - 0.1, title, ha="center", va="top", weight="bold", size=11)
    axes.text(
        left + width / 2, top - 0.4, "\n".join(lines), ha="center", va="top", size=8.5, color="#444444", linespacing=1.3
    )
    return top - height


def arrow(axes: Axes, start: Spot, end: Spot) -> None:
    """Draws an arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#30507a", "shrinkA": 0, "shrinkB": 0})


def modules_of(graph: grimp.ImportGraph, room: str) -> list[str]:
    """Returns the names of the modules and sub-packages of a package."""
    return sorted(child.rpartition(".")[2] for child in graph.find_children(room))


def imported_by(graph: grimp.ImportGraph, room: str, rooms: tuple[str, ...]) -> list[str]:
    """Returns the rooms that a room imports from."""
    return [
        other
        for other in rooms
        if other != room
        and graph.direct_import_exists(importer=f"kws.{room}", imported=f"kws.{other}", as_packages=True)
    ]


def draw(output: Path) -> None:
    """Draws the rooms into an SVG or PNG file."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    graph = grimp.build_graph("kws", "components", "pipeline", cache_dir=None)
    rooms = tuple(room for room in ROOMS if f"kws.{room}" in graph.modules)
    shared = [name for name in modules_of(graph, "kws") if name not in rooms]
    left = {room: index * (WIDTH + GAP) for index, room in enumerate(rooms)}
    total = len(rooms) * (WIDTH + GAP) - GAP
    # The same picture, byte for byte, for the same code.
    with pyplot.rc_context({"svg.hashsalt": "kws", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots()
        axes.axis("off")
        packages = ("cluster", "kind")
        alone = [name for name in modules_of(graph, "pipeline") if name not in (*packages, "__main__")]
        parts = [
            "   ".join(alone),
            *(f"{name}/: {'   '.join(modules_of(graph, f'pipeline.{name}'))}" for name in packages),
        ]
        end = box(
            axes,
            0,
            0,
            total,
            "pipeline: compiles the steps, runs them here, submits them to Kubeflow",
            parts,
            "#fdf3e3",
        )
        axes.text(0, end - 0.3, "components", size=9, style="italic", color="#30507a")
        for step, handed_on in zip(STEPS, (*HANDED_ON, ""), strict=True):
            box(axes, left[step], end - 0.45, WIDTH, step, [], "#eaf5ea")
            arrow(axes, (left[step] + WIDTH / 2, end), (left[step] + WIDTH / 2, end - 0.45))
            if handed_on:
                following = STEPS[STEPS.index(step) + 1]
                y = end - 0.45 - LINE
                arrow(axes, (left[step] + WIDTH, y), (left[following], y))
                axes.text(
                    (left[step] + WIDTH + left[following]) / 2, y + 0.04, handed_on, ha="center", va="bottom", size=8
                )
        top = end - 0.45 - LINE * 2 - 0.45
        texts = {}
        for room in rooms:
            used = imported_by(graph, room, rooms)
            pairs = [", ".join(used[first : first + 2]) for first in range(0, len(used), 2)]
            texts[room] = [*modules_of(graph, f"kws.{room}"), *(["", "imports from", *pairs] if used else [])]
        most = max(map(len, texts.values()))
        for room, lines in texts.items():
            bottom = box(axes, left[room], top, WIDTH, f"kws/{room}", lines, "#eef3fb", most)
        for step in STEPS:
            assert graph.direct_import_exists(importer=f"components.{step}", imported=f"kws.{step}", as_packages=True)
            arrow(axes, (left[step] + WIDTH / 2, top + 0.45), (left[step] + WIDTH / 2, top))
        bottom = box(axes, 0, bottom - 0.3, total, "kws: what all rooms use", ["   ".join(shared)], "#f4f4f4")
        axes.set(xlim=(-0.1, total + 0.1), ylim=(bottom - 0.1, 0.1))
        figure.set_size_inches(total, -bottom)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None, bbox_inches="tight")
        pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/rooms.svg"))
