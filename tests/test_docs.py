"""The pages of the documentation: what they link to and name, their length, and the picture drawn from the code."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, *sorted((ROOT / "research").glob("*.md")), ROOT / "tests" / "data" / "README.md"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)", page.read_text()) if "://" not in link]
    parts = [
        (page.parent / name if name else page, anchor) for name, _, anchor in (link.partition("#") for link in links)
    ]
    assert [str(path) for path, _ in parts if not path.exists()] == []
    assert [anchor for path, anchor in parts if anchor and anchor not in anchors(path)] == []


@each_page
def test_modules_and_tests_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    modules = [name.replace(".", "/") for name in re.findall(r"python -m ((?:benchmarks|research)(?:\.\w+)?)", text)]
    missing = [name for name in modules if not any((ROOT / name).with_suffix(end).exists() for end in ("", ".py"))]
    missing += [name for name in re.findall(r"tests/e2e/\w+\.py", text) if not (ROOT / name).exists()]
    assert missing == []


def test_the_documentation_stays_readable_in_an_hour() -> None:
    assert sum(len(page.read_text().split()) for page in DOCS) <= 14_000


def test_the_picture_of_the_rooms_is_of_this_code(tmp_path: Path) -> None:
    drawn = tmp_path / "rooms.svg"
    runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))["draw"](drawn)
    words = set(ElementTree.parse(drawn).getroot().itertext())
    kept = set(ElementTree.parse(ROOT / "docs" / "pictures" / "rooms.svg").getroot().itertext())
    assert {"kws/train", "checkpoint"} <= words
    assert words == kept, "draw it again: python docs/draw_architecture.py"
