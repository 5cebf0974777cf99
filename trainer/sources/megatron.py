r"""Megatron-LM's indexed datasets, read in place: `NAME.bin` (tokens) and `NAME.idx`.

The index: `MMIDIDX\0\0`, version 1 (u64), a code of the token type (u8), the number of sequences
(u64) and of document boundaries (u64), then the sequences' lengths (i32), their byte offsets (i64)
and the documents' first sequences (i64); little-endian throughout (Megatron-LM,
`megatron/core/datasets/indexed_dataset.py`). Sequences lie one after another in the file. An index
may have gigabytes: opening looks at its head and its last sequence, `verify_megatron` at all of it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.trainer.config import JobError

from . import fingerprints
from .memory_map import map_file
from .stream import Stream, file_piece
from .token_store import Store

MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")
_BEGIN = len(MAGIC) + _HEAD.size
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_NO_IDS = {6: "float64", 7: "float32"}
_ROWS = 1 << 20  # of the index that are verified at a time


def index_of(path: Path) -> Path:
    """The `.idx` of a source named by its prefix, its `.bin` or its `.idx`."""
    if path.suffix in (".bin", ".idx"):
        return path.with_suffix(".idx")
    return path.with_name(f"{path.name}.idx")


def open_megatron(path: Path, eos_id: int | None = None) -> Store:
    """Open a dataset named as for :func:`index_of`.

    Raises:
        JobError: no index, or one that doesn't fit the `.bin` beside it.
    """
    index = index_of(path)
    data = index.with_suffix(".bin")
    kind, sequences, boundaries = _head(index)
    size, needed = index.stat().st_size, _BEGIN + sequences * (4 + 8) + boundaries * 8
    if size < needed:
        raise JobError(f"{index}: {size} bytes, its header needs {needed}: cut short?")
    held = data.stat().st_size if data.is_file() else 0
    stated = _end(index, sequences, kind.itemsize)
    if held != stated:
        raise JobError(f"{data}: {held} bytes where {index.name} says {stated} ({kind.name} ids)")
    if not held:
        raise JobError(f"{data}: no tokens in it")
    tokens = held // kind.itemsize
    stream = Stream([file_piece(data, kind, tokens)], kind)
    facts = fingerprints.edges(index)
    info = fingerprints.info("megatron", stream, max(0, boundaries - 1), facts, eos_id)
    return Store(index.with_suffix(""), info, stream)


def _head(index: Path) -> tuple[np.dtype[Any], int, int]:
    """Token type, sequences, document boundaries."""
    try:
        with index.open("rb") as file:
            magic, rest = file.read(len(MAGIC)), file.read(_HEAD.size)
    except OSError as error:
        raise JobError(f"{index}: {error.strerror or error}") from error
    if magic != MAGIC or len(rest) < _HEAD.size:
        raise JobError(f"{index}: not a Megatron index (it begins with {magic!r})")
    version, code, sequences, boundaries = _HEAD.unpack(rest)
    if version != 1 or code not in _TYPES:
        kind = _NO_IDS.get(code, f"code {code}")
        raise JobError(f"{index}: version {version}, token type {kind}: not one this reads")
    return np.dtype(_TYPES[code]), sequences, boundaries


def _end(index: Path, sequences: int, width: int) -> int:
    """Bytes of the `.bin` by the index's last sequence."""
    if not sequences:
        return 0
    with index.open("rb") as file:
        file.seek(_BEGIN + (sequences - 1) * 4)
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(_BEGIN + sequences * 4 + (sequences - 1) * 8)
        (pointer,) = struct.unpack("<q", file.read(8))
    return int(pointer + length * width)


def verify_megatron(path: Path) -> list[str]:
    """What is wrong with a whole index.

    Sequences that don't follow one another, documents that end before they begin.

    Raises:
        JobError: as for `open_megatron`.
    """
    index = index_of(path)
    open_megatron(index)
    kind, sequences, boundaries = _head(index)
    content = map_file(index, index.stat().st_size)
    lengths = np.frombuffer(content, "<i4", sequences, _BEGIN)
    pointers = np.frombuffer(content, "<i8", sequences, _BEGIN + lengths.nbytes)
    rest = _BEGIN + lengths.nbytes + pointers.nbytes
    documents = np.frombuffer(content, "<i8", boundaries, rest)
    at = 0
    for begin in range(0, sequences, _ROWS):
        part = lengths[begin : begin + _ROWS].astype(np.int64) * kind.itemsize
        ends = at + np.cumsum(part)
        wrong = np.flatnonzero((pointers[begin : begin + _ROWS] != ends - part) | (part < 0))
        if wrong.size:
            return [f"{index}: sequence {begin + int(wrong[0])} doesn't begin where the last ends"]
        at = int(ends[-1])
    for begin in range(0, boundaries, _ROWS):
        part = documents[begin : begin + _ROWS + 1]
        wrong = np.flatnonzero(np.diff(part) < 0)
        if wrong.size or part[-1] > sequences:
            number = begin + int(wrong[0]) if wrong.size else begin + len(part) - 1
            return [f"{index}: document {number} has no such sequences"]
    return []
