"""The pages of the documentation: their links, and the picture that is drawn from the code."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_picture_of_the_rooms_is_of_this_code(tmp_path: Path) -> None:
    drawn = tmp_path / "rooms.svg"
    subprocess.run([sys.executable, ROOT / "docs" / "draw_architecture.py", drawn], cwd=ROOT, check=True)
    words = set(ElementTree.parse(drawn).getroot().itertext())
    kept = set(ElementTree.parse(ROOT / "docs" / "pictures" / "rooms.svg").getroot().itertext())
    assert {"kws/train", "loop", "checkpoint"} <= words
    assert words == kept, "draw it again: python docs/draw_architecture.py"
