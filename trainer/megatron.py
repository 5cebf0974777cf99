"""Megatron-LM's indexed datasets, read in place: `NAME.bin` (tokens) and `NAME.idx`.

The index: `MMIDIDX\\0\\0`, version 1 (u64), a code of the token type (u8), the number of sequences
(u64) and of document boundaries (u64), then the sequences' lengths (i32), their byte offsets (i64)
and the documents' first sequences (i64); little-endian throughout (Megatron-LM,
`megatron/core/datasets/indexed_dataset.py`). Sequences lie one after another in the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.trainer import foreign
from mixloop.trainer.job import JobError
from mixloop.trainer.store import Store
from mixloop.trainer.stream import Stream, file_piece

MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def open_megatron(index: Path, eos_id: int | None = None) -> Store:
    """Open the dataset of an `.idx` file.

    Raises:
        JobError: no index, or one that doesn't fit the `.bin` beside it.
    """
    data = index.with_suffix(".bin")
    head, kind, sequences, boundaries = _head(index)
    rest = sequences * (4 + 8) + boundaries * 8
    size = index.stat().st_size
    if size < head + rest:
        raise JobError(f"{index}: {size} bytes, its header needs {head + rest}: cut short?")
    lengths: Any = np.memmap(index, "<i4", "r", head, (sequences,)) if sequences else np.empty(0)
    tokens = int(np.sum(lengths, dtype=np.int64))
    held = data.stat().st_size if data.is_file() else 0
    if held != tokens * kind.itemsize:
        raise JobError(
            f"{data}: {held} bytes where {index.name} says {tokens * kind.itemsize} "
            f"({tokens} tokens of {kind.name})"
        )
    if not tokens:
        raise JobError(f"{data}: no tokens in it")
    stream = Stream([file_piece(data, kind, tokens)], kind)
    with index.open("rb") as file:
        facts = [file.read(2**20)]
    info = foreign.info("megatron", stream, max(0, boundaries - 1), facts, eos_id)
    return Store(index.with_suffix(""), info, stream)


def _head(index: Path) -> tuple[int, np.dtype[Any], int, int]:
    """Bytes of the header, token type, sequences, document boundaries."""
    try:
        with index.open("rb") as file:
            magic, rest = file.read(len(MAGIC)), file.read(_HEAD.size)
    except OSError as error:
        raise JobError(f"{index}: {error.strerror or error}") from error
    if magic != MAGIC or len(rest) < _HEAD.size:
        raise JobError(f"{index}: not a Megatron index (it begins with {magic!r})")
    version, code, sequences, boundaries = _HEAD.unpack(rest)
    if version != 1 or code not in _TYPES:
        raise JobError(f"{index}: version {version}, token type {code}: not one this reads")
    return len(MAGIC) + _HEAD.size, np.dtype(_TYPES[code]), sequences, boundaries
