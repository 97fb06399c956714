"""Draws docs/pictures/kubeflow-*.webp: runs in Kubeflow's UI, in Chromium.

python docs/draw_kubeflow.py --run ID [--nothing-new ID] [--ui http://localhost:8080] [--output DIR]
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

PANEL = 25_000
"""Milliseconds to wait for what the UI reads from the stores of Kubeflow Pipelines."""


def keep(page: Page, path: Path) -> None:
    """Writes what a page shows as WebP."""
    page.wait_for_timeout(1500)  # until nothing moves
    Image.open(io.BytesIO(page.screenshot())).save(path, quality=85, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def open_run(page: Page, ui: str, run: str) -> None:
    """Shows the graph of a run, with the states of its steps."""
    page.goto("about:blank")
    page.goto(f"{ui}/#/runs/details/{run}")
    page.locator(".react-flow__node").filter(has_text="download").locator("svg").last.wait_for()
    page.wait_for_load_state("networkidle")


def open_artifact(page: Page, step: str, name: str) -> None:
    """Shows an artifact of a step beside the graph, which is moved to the left so that the steps can be seen."""
    page.mouse.move(1400, 200)
    page.mouse.wheel(0, 200)  # a little smaller
    page.wait_for_timeout(1000)
    steps = page.locator(".react-flow__node-EXECUTION")
    ends = steps.evaluate_all("all => all.map(each => each.getBoundingClientRect().right)")
    page.mouse.down()
    page.mouse.move(1400 + 815 - max(ends), 200, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)  # a click just after it would count as the end of the move
    page.locator(f".react-flow__node[data-id='artifact.{step}.{name}']").dispatch_event("click")
    page.get_by_role("button", name="Visualization", exact=True).click()


def main() -> None:
    """Takes the pictures that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="ID", help="a run that trained")
    parser.add_argument("--nothing-new", metavar="ID", help="a scheduled run that had nothing new to train on")
    parser.add_argument("--ui", default="http://localhost:8080", metavar="URL", help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "pictures", metavar="DIR", help="default: docs/pictures"
    )
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        open_run(page, options.ui, options.run)
        open_artifact(page, "train", "metrics")
        expect(page.get_by_text("Scalar Metrics: metrics")).to_be_visible(timeout=PANEL)
        keep(page, options.output / "kubeflow-run.webp")

        open_run(page, options.ui, options.run)
        open_artifact(page, "evaluate", "report")
        page.get_by_role("button", name="Popout").or_(page.locator("button:has([data-testid=LaunchIcon])")).click()
        heading = page.frame_locator("[role=dialog] iframe").get_by_role("heading", name="Training", exact=True)
        heading.evaluate("element => element.scrollIntoView()")
        keep(page, options.output / "kubeflow-report.webp")

        if options.nothing_new:
            open_run(page, options.ui, options.nothing_new)
            keep(page, options.output / "kubeflow-nothing-new.webp")
        browser.close()


if __name__ == "__main__":
    main()
