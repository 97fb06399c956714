"""Parquet and Arrow files that hold recordings or name them: their rows, and the bytes of one recording."""

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kws.data.clip import Clip
from kws.data.pack import opened

SUFFIXES = (".parquet", ".arrow", ".feather")
"""Of the files that are read here."""

_BATCH = 1024
"""Number of rows that are read at a time."""


class _Parquet:
    """A Parquet file; its groups of rows are read one by one."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.file = pyarrow.parquet.ParquetFile(path)
        self.schema = self.file.schema_arrow
        self.sizes = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]

    def column(self, name: str, group: int) -> Any:
        """Returns a column of a group of rows; a part of a struct, such as audio.bytes, as a struct of that part."""
        return self.file.read_row_group(group, columns=[name]).column(0).combine_chunks()

    def has_values(self, name: str) -> bool:
        """Tells from the statistics of the first group whether a column has values there."""
        group = self.file.metadata.row_group(0)
        columns = (group.column(number) for number in range(group.num_columns))
        statistics = next(column.statistics for column in columns if column.path_in_schema == name)
        return statistics is None or not statistics.has_null_count or statistics.null_count < group.num_rows

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Yields the rows of some columns."""
        yield from self.file.iter_batches(_BATCH, columns=columns)


class _Arrow:
    """An Arrow file, as `Dataset.save_to_disk` and Feather write it; its batches stay on the disk until used."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        source = pyarrow.memory_map(str(path))
        is_stream = source.read(6) != b"ARROW1"
        source.seek(0)
        reader = pyarrow.ipc.open_stream(source) if is_stream else pyarrow.ipc.open_file(source)
        table = reader.read_all()
        self.schema = table.schema
        self._batches = table.to_batches()
        self.sizes = [batch.num_rows for batch in self._batches]

    def column(self, name: str, group: int) -> Any:
        """Returns a column of a batch, or a part of a struct, such as audio.bytes."""
        whole, _, part = name.partition(".")
        if not part or name in self.schema.names:
            return self._batches[group].column(name)
        return self._batches[group].column(whole).field(part)

    def has_values(self, name: str) -> bool:
        """Tells whether a column has values in the first batch."""
        return bool(self.column(name, 0).null_count < self.sizes[0])

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Yields the rows of some columns; a part of a struct stands under the name of the struct."""
        import pyarrow

        names = [name if name in self.schema.names else name.partition(".")[0] for name in columns]
        for group in range(len(self.sizes)):
            arrays = [self.column(name, group) for name in columns]
            yield from pyarrow.Table.from_arrays(arrays, names).to_batches(_BATCH)


class Shard:
    """A Parquet or Arrow file, as Hugging Face's `datasets` and pandas write it."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            ValueError: it is no such file, or the package pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError(f"pyarrow must be installed to read {path.name}: pip install kws[train]") from error
        kind = _Parquet if path.suffix.lower() == ".parquet" else _Arrow
        try:
            self.file: _Parquet | _Arrow = kind(path)
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"{path.name} must be a file of {kind.__name__[1:]}, got {str(error).splitlines()[0]}"
            ) from error
        self.schema = self.file.schema
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
        return bool(self.sound and self.file.sizes) and self.file.has_values(self.sound)

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
        for batch in self.file.batches(self.columns()):
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
        for group, num_rows in enumerate(self.file.sizes):
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
            kept = self._kept = group, self.file.column(self.sound, group)
        return kept[1]


_local = threading.local()
"""The file that each thread read last, as a group of rows of it is in memory."""


def recording(folder: Path, clip: Clip) -> Path | bytes:
    """Returns a clip's recording: its path, or its content if it stands in a file of many or is packed.

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
