"""Hugging Face datasets on disk (`save_to_disk`) with a column of token ids, read in place.

The rows' ids are one stream, in the rows' order, mapped from the arrow files without a copy: rows
of one length and ragged rows alike. Arrow's own reader only tells where the ids lie in each file;
then the files are closed, and mapped again when they are needed as any source's are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixloop.trainer.config import JobError

from . import fingerprints
from .memory_map import MappedFile
from .stream import Piece, Stream
from .token_store import Store

_MEND = "; make a token store of it with `mixloop prepare`"


class _Batch(NamedTuple):
    """Ids of a record batch: rows, tokens, and where in the file they begin (in bytes)."""

    rows: int
    tokens: int
    offset: int
    kind: np.dtype[Any]


def open_arrow(path: Path, eos_id: int | None = None, column: str = "input_ids") -> Store:
    """Open a dataset folder.

    Raises:
        JobError: no such dataset or column, nulls in it, or rows that an index picks.
    """
    pieces: list[Piece] = []
    kinds: set[str] = set()
    documents = 0
    facts: list[bytes] = []
    for file in _files(path):
        whole = MappedFile(file, file.stat().st_size if file.is_file() else 0)
        for number, batch in enumerate(_batches(file, column)):
            kinds.add(batch.kind.str)
            documents += batch.rows
            facts.append(f"{file.name} {number} {batch.rows} {batch.tokens}".encode())
            pieces.append(Piece(whole, batch.tokens, batch.offset))
    if len(kinds) > 1:
        raise JobError(f"{path}: {column} has different types ({', '.join(sorted(kinds))})")
    if not sum(piece.tokens for piece in pieces):
        raise JobError(f"{path}: no tokens in its column {column}")
    stream = Stream(pieces, np.dtype(kinds.pop()))
    return Store(path, fingerprints.info("arrow", stream, documents, facts, eos_id), stream)


def _files(path: Path) -> list[Path]:
    file = path / "state.json"
    try:
        state = json.loads(file.read_text("utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{file}: not a dataset's state: {error}") from error
    if any(Path(name).name != name for name in names):
        raise JobError(f"{file}: names a file outside its own folder")
    if state.get("_indices_data_files"):
        raise JobError(f"{path}: its rows are picked by an index; `flatten_indices()` and save it")
    return [path / name for name in names]


def _batches(file: Path, column: str) -> list[_Batch]:
    """Where the ids of each record batch lie in a file.

    Raises:
        JobError: no arrow stream, no such column, not lists of integers, or nulls in it.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source:
            base, size = source.read_buffer().address, source.size()
            source.seek(0)
            schema = pa.ipc.read_schema(source)
            kind = _kind(file, schema, column)
            source.seek(0)
            only = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(column)])
            chunks = pa.ipc.open_stream(source, options=only).read_all().column(0).chunks
            return [_located(file, column, chunk, kind, base, size) for chunk in chunks]
    except pa.ArrowInvalid as error:
        raise JobError(f"{file}: not an arrow stream, or damaged: {error}") from error
    except OSError as error:
        raise JobError(f"{file}: {error.strerror or error}") from error


def _kind(file: Path, schema: Any, column: str) -> np.dtype[Any]:
    """Type of the ids in a column."""
    import pyarrow as pa

    names = schema.names
    if column not in names:
        mend = _MEND if "text" in names else ""
        raise JobError(f"{file}: no column {column!r} (it has {', '.join(names)}){mend}")
    kind = schema.field(column).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in lists) or not pa.types.is_integer(kind.value_type):
        raise JobError(f"{file}: {column} holds {kind}, not lists of token ids{_MEND}")
    ids: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
    return ids


def _located(
    file: Path, column: str, rows: Any, kind: np.dtype[Any], base: int, size: int
) -> _Batch:
    """The ids of a record batch as a stretch of the mapped file, which `base` is the address of."""
    if rows.null_count:
        raise JobError(f"{file}: {column} has rows without ids")
    values = rows.flatten()  # the rows in this batch alone, without a copy
    if values.null_count:
        raise JobError(f"{file}: {column} has ids that are null")
    if not len(values):
        return _Batch(len(rows), 0, 0, kind)
    offset = values.buffers()[1].address + values.offset * kind.itemsize - base
    if not 0 <= offset <= size - len(values) * kind.itemsize:
        raise JobError(f"{file}: {column} is compressed; load the dataset and save it again")
    return _Batch(len(rows), len(values), offset, kind)


def verify_arrow(path: Path, column: str = "input_ids") -> list[str]:
    """What is wrong with a dataset's files: rows whose ends don't rise, lengths that don't fit.

    Raises:
        JobError: as for `open_arrow`.
    """
    import pyarrow as pa

    open_arrow(path, column=column)
    problems = []
    for file in _files(path):
        with pa.memory_map(str(file)) as source:
            for number, batch in enumerate(pa.ipc.open_stream(source)):
                try:
                    batch.column(column).validate(full=True)
                except pa.ArrowInvalid as error:
                    problems.append(f"{file}: record batch {number}: {error}")
    return problems
