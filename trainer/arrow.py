"""Hugging Face datasets on disk (`save_to_disk`) with a column of token ids, read in place.

The rows' ids are one stream, in the rows' order, mapped from the arrow files without a copy: rows
of one length and ragged rows alike. A dataset with a shuffled or filtered index is refused, since
its rows aren't where they lie.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.trainer import foreign
from mixloop.trainer.job import JobError
from mixloop.trainer.store import Store
from mixloop.trainer.stream import Piece, Stream


def open_arrow(path: Path, eos_id: int | None = None, column: str = "input_ids") -> Store:
    """Open a dataset folder.

    Raises:
        JobError: no such dataset or column, or nulls in it.
    """
    files, index = _state(path)
    if index is not None:
        raise JobError(f"{path}: its rows are picked by an index; `flatten_indices()` and save it")
    pieces: list[Piece] = []
    kinds: set[str] = set()
    documents = 0
    facts: list[bytes] = []
    for file in files:
        for number, (values, rows) in enumerate(_batches(file, column)):
            kinds.add(values.dtype.str)
            documents += rows
            facts.append(f"{file.name} {number} {rows} {len(values)}".encode())
            pieces.append(Piece(len(values), _later(values)))
    if len(kinds) > 1:
        raise JobError(f"{path}: {column} has different types ({', '.join(sorted(kinds))})")
    if not pieces or not sum(piece.tokens for piece in pieces):
        raise JobError(f"{path}: no tokens in its column {column}")
    stream = Stream(pieces, np.dtype(kinds.pop()))
    return Store(path, foreign.info("arrow", stream, documents, facts, eos_id), stream)


def _later(values: Any) -> Any:
    return lambda: values  # mapped already: what is kept is a view of the file


def _state(path: Path) -> tuple[list[Path], str | None]:
    file = path / "state.json"
    try:
        state = json.loads(file.read_text("utf-8"))
        names = [one["filename"] for one in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{file}: not a dataset's state: {error}") from error
    if any(Path(name).name != name for name in names):
        raise JobError(f"{file}: names a file outside its own folder")
    indices = state.get("_indices_data_files")
    return [path / name for name in names], None if not indices else str(indices)


def _batches(file: Path, column: str) -> Any:
    """(ids [n], rows) of each record batch, as views of the mapped file."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(file)))
        names = reader.schema.names
    except (OSError, pa.ArrowInvalid) as error:
        raise JobError(f"{file}: not an arrow stream: {error}") from error
    if column not in names:
        mend = "; make a token store of it with `mixloop prepare`" if "text" in names else ""
        raise JobError(f"{file}: no column {column!r} (it has {', '.join(names)}){mend}")
    kind = reader.schema.field(column).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in lists) or not pa.types.is_integer(kind.value_type):
        mend = "; make a token store of it with `mixloop prepare`"
        raise JobError(f"{file}: {column} holds {kind}, not lists of token ids{mend}")
    try:
        for batch in reader:
            ids = batch.column(column)
            if ids.null_count:
                raise JobError(f"{file}: {column} has rows without ids")
            values = ids.flatten()  # the rows in this batch alone, without a copy
            if values.null_count:
                raise JobError(f"{file}: {column} has ids that are null")
            yield values.to_numpy(zero_copy_only=True), len(ids)
    except pa.ArrowInvalid as error:
        raise JobError(f"{file}: damaged: {error}") from error
