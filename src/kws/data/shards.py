"""Parquet files that hold recordings or name them: their rows, and the bytes of one recording."""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kws.data.clip import Clip
from kws.data.pack import opened

_BATCH = 1024
"""Number of rows that are read at a time."""


class Shard:
    """A Parquet file, as Hugging Face's `datasets` and pandas write it."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            ValueError: it is no Parquet file, or the package pyarrow is not installed.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(f"pyarrow must be installed to read {path.name}: pip install kws[train]") from error
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path.name} must be a Parquet file, got {str(error).splitlines()[0]}") from error
        self.schema = self.file.schema_arrow
        self._types = pyarrow.types

    @property
    def sound(self) -> str:
        """The column that holds the bytes of the recordings, such as audio.bytes; empty if none does."""
        for column in self.schema:
            if self._types.is_binary(column.type) or self._types.is_large_binary(column.type):
                return str(column.name)
            if self._types.is_struct(column.type) and "bytes" in [one.name for one in column.type]:
                return f"{column.name}.bytes"
        return ""

    @property
    def holds_recordings(self) -> bool:
        """Whether the recordings stand in the file, and are not only named."""
        if not self.sound or self.file.num_row_groups == 0:
            return False
        group = self.file.metadata.row_group(0)
        columns = (group.column(number) for number in range(group.num_columns))
        statistics = next(column.statistics for column in columns if column.path_in_schema == self.sound)
        return statistics is None or not statistics.has_null_count or statistics.null_count < group.num_rows

    def columns(self) -> list[str]:
        """Returns the columns of texts and numbers; of a column with the bytes of recordings only their path."""
        found = []
        for column in self.schema:
            if self._types.is_struct(column.type):
                found += [f"{column.name}.path"] if "path" in [one.name for one in column.type] else []
            elif not (self._types.is_nested(column.type) or "binary" in str(column.type)):
                found.append(str(column.name))
        return found

    def names_of_classes(self) -> Mapping[str, list[str]]:
        """Returns the names of the classes that columns number, as Hugging Face's metadata states them, by column."""
        try:
            features = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return {
                name: list(one["names"]) for name, one in features.items() if isinstance(one, dict) and "names" in one
            }
        except (KeyError, ValueError, TypeError):
            return {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows, without the bytes of recordings; a struct's path stands under the name of its column."""
        classes = self.names_of_classes()
        for batch in self.file.iter_batches(_BATCH, columns=self.columns()):
            for row in batch.to_pylist():
                for name, value in row.items():
                    if isinstance(value, dict):
                        row[name] = value.get("path")
                    elif name in classes and isinstance(value, int):
                        row[name] = classes[name][value] if 0 <= value < len(classes[name]) else None
                yield row

    def content(self, row: int) -> bytes:
        """Returns the bytes of the recording in a row.

        Raises:
            ValueError: the row has none.
        """
        first = 0
        for group in range(self.file.num_row_groups):
            num_rows = self.file.metadata.row_group(group).num_rows
            if row < first + num_rows:
                value = self._group(group)[row - first].as_py()
                if isinstance(value, dict):
                    value = value.get("bytes")
                if value is None:
                    raise ValueError(f"row {row} must hold a recording, got none")
                return bytes(value)
            first += num_rows
        raise ValueError(f"the row must be below {first}, got {row}")

    def _group(self, group: int) -> Any:
        """Returns the column of the recordings in a group of rows, and keeps the last one."""
        kept: tuple[int, Any] = getattr(self, "_kept", (-1, None))
        if kept[0] != group:
            table = self.file.read_row_group(group, columns=[self.sound])
            kept = self._kept = group, table.column(0).combine_chunks() if table.num_rows else []
        return kept[1]


_local = threading.local()
"""The Parquet file that each thread read last, as a group of rows of it is in memory."""


def recording(folder: Path, clip: Clip) -> Path | bytes:
    """Returns a clip's recording: its path, or its content if it stands in a Parquet file or is packed.

    Raises:
        ValueError: the row holds no recording.
        OSError: the file cannot be read.
    """
    if clip.row is None:
        return opened(folder, clip.file)
    path = folder / clip.file
    status = path.stat()
    key = (path, status.st_mtime_ns, status.st_size)
    if getattr(_local, "key", None) != key:
        _local.shard, _local.key = Shard(path), key
    content: bytes = _local.shard.content(clip.row)
    return content
