"""Which recording a row of a list names."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from kws.data.layouts.columns import text
from kws.data.layouts.tree import Tree
from kws.data.names import stem_of

PLACES = ("folder", "speaker", "split", "word")
"""Columns that may name a folder in which the recording of their row lies."""


class Finder:
    """Finds the recordings of a table's rows, also where several have the name and other columns name the folder."""

    def __init__(self, tree: Tree, path: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Looks for nothing yet.

        Args:
            tree: where the recordings lie.
            path: of the table.
            columns: the names of its columns by what they say.
            rows: some of its rows.
        """
        self._tree, self._near = tree, path.rpartition("/")[0]
        self._file, self._rows = columns["file"], rows
        self._columns = [columns[what] for what in PLACES if what in columns]

    def find(self, row: Mapping[str, Any]) -> str | None:
        """Returns the recording that a row names; None if there is none, or more than one."""
        name = text(row.get(self._file))
        if (found := self._tree.find(name, self._near)) is not None:
            return found
        decoded = _decoded(name)
        for other in (decoded, _UPLOADED.sub("", decoded)):
            if other != name and (found := self._tree.find(other, self._near)) is not None:
                return found
        of_row = [file for file in self.named(row) if all(_is_in(file, column, row) for column in self._places)]
        return of_row[0] if len(of_row) == 1 and self._places else None

    def named(self, row: Mapping[str, Any]) -> list[str]:
        """Returns all recordings that have the name which a row gives, whatever their folder and format."""
        name = _decoded(text(row.get(self._file))).replace("\\", "/").removeprefix("./")
        files = (self._tree.recordings[at] for at in self._tree.by_name.rows(name)) if name else ()
        return [file for file in files if f"/{stem_of(file).lower()}".endswith(f"/{stem_of(name).lower()}")]

    @functools.cached_property
    def _places(self) -> list[str]:
        """The columns that name a folder of most of the rows that several recordings may be meant by."""
        rows = [(row, files) for row in self._rows if len(files := self.named(row)) > 1]
        return [
            column
            for column in self._columns
            if sum(any(_is_in(file, column, row) for file in files) for row, files in rows) > len(rows) / 2
        ]


def _is_in(file: str, column: str, row: Mapping[str, Any]) -> bool:
    """Tells whether a recording lies in the folder that a cell names, such as 3 or fold3 for fold 3."""
    cell = text(row.get(column)).casefold().strip("/")
    folder = f"/{file.rpartition('/')[0]}/".casefold()
    return bool(cell) and (f"/{cell}/" in folder or f"/{column.casefold()}{cell}/" in folder)


def _decoded(name: str) -> str:
    """Returns the path of a URL, of an address in Label Studio's local storage, or with escapes as in URLs."""
    local = name.partition("/local-files/?d=")[2]
    return unquote(f"/{local}" if local else name.partition("?")[0] if "://" in name else name)


_UPLOADED = re.compile(r"(?<=/)[0-9a-f]{8}-(?=[^/]+$)")
"""What Label Studio puts before the name of an uploaded file."""
