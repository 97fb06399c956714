"""Where clips come from. Another layout of recordings is another function in LAYOUTS."""

from collections.abc import Callable
from pathlib import Path

from kws.data.folder import word_folders
from kws.data.listing import Listing
from kws.data.parts import is_of_parts, list_parts

Layout = Callable[[Path], Listing | None]
"""Lists the clips of a folder, or returns None if the folder is laid out otherwise."""

LAYOUTS: tuple[Layout, ...] = (word_folders,)
"""In the order in which they are tried; the last one takes every folder."""


def list_recordings(folder: Path) -> Listing:
    """Lists the clips of a recordings folder.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"recordings must be a folder of <word>/*.wav, got {str(folder)!r}")
    if is_of_parts(folder):
        return list_parts(folder, list_recordings)
    return next(listing for layout in LAYOUTS if (listing := layout(folder)) is not None)
