"""Columns of parquet and arrow files, a few rows in memory at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .compressed import head_of, open_binary

_ROWS = 64  # in memory at once: a row may be a book


def table_column(path: Path, kind: str, key: str) -> Iterator[Any]:
    """The values of a column, as Python has them; text that is no UTF-8 as bytes.

    Args:
        kind: parquet or arrow.

    Raises:
        ValueError: no such column.
        OSError: it can't be read.
    """
    import pyarrow as pa

    try:
        for batch in _batches(path, kind, key):
            yield from _values(batch)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _file(path: Path) -> Any:
    """A table's file; a compressed one in memory, since tables are read from their end."""
    if head_of(path)[1] is None:
        return str(path)
    import pyarrow as pa

    with open_binary(path) as file:
        return pa.BufferReader(file.read())


def table_names(path: Path, kind: str) -> list[str]:
    """The columns of a table.

    Raises:
        OSError, ValueError: it can't be read.
    """
    if kind == "arrow":
        return list(_arrow_reader(path).schema.names)
    import pyarrow.parquet as pq

    return list(pq.read_schema(_file(path)).names)


def _arrow_reader(path: Path) -> Any:
    """Record batches of an arrow file or stream."""
    import pyarrow as pa

    file = _file(path)
    source = pa.memory_map(file) if isinstance(file, str) else file
    begin = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if begin == b"ARROW1" else pa.ipc.open_stream(source)


def _batches(path: Path, kind: str, key: str) -> Iterator[Any]:
    """Arrays of a table's column, `_ROWS` at most each."""
    import pyarrow.parquet as pq

    if kind == "parquet":
        # a buffer: else the column of a whole row group is in memory
        with pq.ParquetFile(_file(path), buffer_size=2**20, pre_buffer=False) as table:
            check_column(path, table.schema_arrow.names, key)
            for batch in table.iter_batches(batch_size=_ROWS, columns=[key]):
                yield batch.column(0)
        return
    reader = _arrow_reader(path)
    check_column(path, reader.schema.names, key)
    count = getattr(reader, "num_record_batches", None)
    whole: Iterable[Any] = reader if count is None else map(reader.get_batch, range(count))
    for batch in whole:
        column = batch.column(key)
        for start in range(0, len(column), _ROWS):
            yield column.slice(start, _ROWS)


def check_column(path: Path, names: list[str], key: str) -> None:
    """Refuse a table without a column.

    Raises:
        ValueError: it has no such column; the line lists those it has.
    """
    if key not in names:
        raise ValueError(
            f"{path}: no column {key!r} (there are: {', '.join(names[:12])}); choose one by "
            "--text-key"
        )


def _values(column: Any) -> Iterator[Any]:
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow as pa

        yield from column.cast(pa.large_binary()).to_pylist()
