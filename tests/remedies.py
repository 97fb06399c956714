"""The commands that messages and documentation tell a reader to type."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_COMMAND = re.compile(r"((?:kubectl|python -m pipeline) [^;,`\"\n#]+)")
_WORD = re.compile(r"\w+")
_PROSE = re.compile(r"\)|(?<!\w)(?:tells|shows|lists|makes|must|those|applies)\b")
"""Where a command ends and the sentence goes on."""


def commands(program: str) -> list[str]:
    """Returns what is to be typed that begins with a program; an expression stands as its last word, in braces."""
    sources = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "src").rglob("*.py")]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "manifests").rglob("*.yaml")]
    # Comments and paragraphs are broken into lines in the middle of a command.
    texts = [re.sub(r"\n#? ?(?=--)", " ", page.read_text()) for page in pages]
    texts += [text for source in sources for text in _messages(ast.parse(source.read_text()))]
    found = {_PROSE.split(each)[0].strip() for text in texts for each in _COMMAND.findall(text)}
    return sorted(each for each in found if each.startswith(program + " "))


def _messages(tree: ast.AST) -> Iterator[str]:
    """Yields the texts in a module, but for docstrings."""
    parts = {id(each) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # a docstring
            parts |= {id(each) for each in ast.walk(node) if isinstance(node.value, ast.Constant)}
        elif isinstance(node, ast.JoinedStr):
            values = [
                str(each.value) if isinstance(each, ast.Constant) else f"{{{_WORD.findall(ast.unparse(each))[-1]}}}"
                for each in node.values
            ]
            yield "".join(values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value
