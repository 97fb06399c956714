"""What lies below a folder: recordings and other files, and how to find one of them by what a table calls it."""

import functools
import itertools
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kws.config import RUNNING_SPEECH
from kws.data.index import Lookup, Strings, strings
from kws.data.names import is_passed_over, is_recording, is_utf8, stem_of
from kws.data.pack import Pack

log = logging.getLogger(__name__)

DEEPEST = 8
"""How many folders deep recordings may lie."""


@dataclass(frozen=True)
class Tree:
    """The files below a folder, without hidden ones and those whose names are not UTF-8."""

    folder: Path
    recordings: Strings
    """Paths from the folder, with slashes, sorted."""
    others: list[str]
    """Paths of all other files."""

    @staticmethod
    def of(folder: Path) -> "Tree":
        """Lists a folder. Links to folders are followed, but a folder that was listed already is not listed again.

        Raises:
            OSError: a folder cannot be read.
        """
        others: list[str] = []

        def recordings() -> Iterator[str]:
            waiting, links, listed = [""], list[str](), set[tuple[int, int]]()
            while waiting or links:
                if not waiting:
                    waiting.append(links.pop())
                below = waiting.pop()
                status = os.stat(folder / below)
                if (status.st_dev, status.st_ino) in listed:
                    log.info("%s is not listed, as it leads to a folder that is listed already", folder / below)
                    continue
                listed.add((status.st_dev, status.st_ino))
                begin = len(links)
                with os.scandir(folder / below) as entries:
                    for entry in entries:
                        path = f"{below}{entry.name}"
                        if is_passed_over(entry.name) or not is_utf8(entry.name):
                            continue
                        try:
                            if entry.is_dir():
                                if path.count("/") < DEEPEST and entry.name != RUNNING_SPEECH:  # see `kws.data.speech`
                                    (links if entry.is_symlink() else waiting).append(f"{path}/")
                            elif entry.is_file() and is_recording(entry.name):
                                yield path
                            elif entry.is_file():
                                others.append(path)
                        except OSError:  # a link to itself
                            continue
                links[begin:] = sorted(links[begin:], reverse=True)

        pack = Pack.of(folder)
        found = strings(itertools.chain(recordings(), pack.names() if pack else ()))
        return Tree(folder, np.sort(found), sorted(others))

    def with_recordings(self, paths: Iterable[str]) -> "Tree":
        """Returns a tree in which some of the other files are recordings, too."""
        more = set(paths)
        if not more:
            return self
        recordings = np.sort(np.concatenate([self.recordings, strings(more)]))
        return Tree(self.folder, recordings, [path for path in self.others if path not in more])

    def only_by_name(self, names: Mapping[str, str]) -> dict[str, str]:
        """Returns those of the other files, by key, of which there is only one of the given name, in any case."""
        found = {
            key: [path for path in self.others if path.rpartition("/")[2].lower() == name]
            for key, name in names.items()
        }
        return {key: paths[0] for key, paths in found.items() if len(paths) == 1}

    def find(self, name: str, near: str = "") -> str | None:
        """Returns the recording that a table names, or None if there is none, or more than one.

        The name may be a path from the table or from the folder, or end in one (an absolute path of another machine);
        case, Unicode normal form, the suffix of the format and zeros before a number make no difference, unless two
        recordings differ in nothing else.

        Args:
            name: what the table has.
            near: the folder of the table.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return None
        for path in ("/".join([near, *parts]) if near else "", "/".join(parts)):
            if path and self._paths.rows(path):
                return path
        wanted = [_key(part) for part in parts]
        best: dict[int, list[str]] = {}
        for path in (self.recordings[row] for row in self.by_name.rows(parts[-1])):
            there = [_key(part) for part in path.split("/")]
            there[-1] = wanted[-1] if _name(path.split("/")[-1]) == _name(parts[-1]) else there[-1]
            shared = next(
                (i for i, (a, b) in enumerate(zip(reversed(wanted), reversed(there), strict=False)) if a != b), 0
            )
            shared = shared or min(len(wanted), len(there))
            if shared in (len(wanted), len(there)) or _is_absolute(name):
                best.setdefault(shared, []).append(path)
        found = best[max(best)] if best else []
        for key in (_key, lambda one: stem_of(_key(one))):  # of several, the one that is spelled so
            exact = [path for path in found if key(path.split("/")[-1]) == key(parts[-1])]
            found = exact or found
        return found[0] if len(found) == 1 else None

    @functools.cached_property
    def _paths(self) -> Lookup:
        return Lookup(self.recordings)

    @functools.cached_property
    def by_name(self) -> Lookup:
        """Finds recordings by their names, in any case and format; numbers with any zeros before them."""
        return Lookup(self.recordings, lambda path: _name(path.rpartition("/")[2]))


def _is_absolute(name: str) -> bool:
    return name.startswith(("/", "\\", "{", "$")) or name[1:3] in (":\\", ":/") or "://" in name


def _name(name: str) -> str:
    """Returns what different spellings of the name of a recording have in common: 7 is 007, as in spreadsheets."""
    key = _key(stem_of(name))
    return key.lstrip("0") or "0" if key.isdigit() else key


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())
