"""datatrove's tokenised folders (nanotron reads them too), read in place.

Each `NAME.ds` holds flat ids of 2 or 4 bytes, `NAME.ds.index` the documents' ends (u64, in tokens)
and `NAME.ds.metadata`, where it is there, `tokenizer|bytes per id` in its first line and the number
of tokens in its second (datatrove, `pipeline/tokens/tokenizer.py`). Files follow one another by
name, those of subfolders too as in datatrove's own reader, and windows go on from one to the next.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixloop.trainer.config import JobError

from . import fingerprints
from .memory_map import map_file
from .stream import Stream, file_piece
from .token_store import DTYPES, Store

_BY_SIZE = {2: "uint16", 4: "uint32"}


def open_datatrove(path: Path, eos_id: int | None = None, dtype: str | None = None) -> Store:
    """Open a folder of `.ds` files.

    Args:
        path: the folder.
        eos_id: the id that ends a document.
        dtype: uint16 or uint32, where no metadata says it.

    Raises:
        JobError: no such files, files of different types, or a damaged one.
    """
    files = _files(path)
    kinds = {file: _kind(file, dtype) for file in files}
    kind = kinds[files[0]]
    for file, other in kinds.items():
        if other != kind:
            raise JobError(f"{file}: ids of {other}, those of {files[0].name} are {kind}")
    width = DTYPES[kind].itemsize
    pieces, documents, facts = [], 0, []
    for file in files:
        size = file.stat().st_size
        if size % width:
            raise JobError(f"{file}: {size} bytes are no whole number of {kind} ids")
        count, end = _index(file)
        documents += count
        if count and end != size // width:
            raise JobError(f"{file}: {size // width} tokens where its index says {end}")
        facts.append(f"{file.relative_to(path).as_posix()} {size} {count}".encode())
        pieces.append(file_piece(file, DTYPES[kind], size // width))
    stream = Stream(pieces, DTYPES[kind])
    if not stream.tokens:
        raise JobError(f"{path}: no tokens in its .ds files")
    return Store(path, fingerprints.info("datatrove", stream, documents, facts, eos_id), stream)


def _files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.ds"))
    if not files:
        raise JobError(f"{path}: no .ds file there")
    return files


def _kind(file: Path, dtype: str | None) -> str:
    """The token type of a file: as its metadata says, else as given."""
    meta = file.with_name(f"{file.name}.metadata")
    try:
        width = meta.read_text("utf-8").splitlines()[0].rpartition("|")[2]
        stated = _BY_SIZE.get(int(width))
    except (OSError, IndexError, ValueError):
        stated = None
    if stated is None and dtype is None:
        raise JobError(f"{file}: no metadata says how wide its ids are; give dtype: uint16")
    if stated is not None and dtype is not None and stated != dtype:
        raise JobError(f"{file}: dtype {dtype} asked for, its metadata says {stated}")
    kind = stated or dtype or ""
    if kind not in DTYPES:
        raise JobError(f"dtype: {kind!r} is neither uint16 nor uint32")
    return kind


def _index(file: Path) -> tuple[int, int]:
    """Documents of a file, and where the last one ends; 0 documents without an index."""
    index = file.with_name(f"{file.name}.index")
    try:
        with index.open("rb") as stream:
            size = stream.seek(0, 2)
            if size % 8:
                raise JobError(f"{index}: {size} bytes are no whole number of ends: cut short?")
            if not size:
                return 0, 0
            stream.seek(size - 8)
            return size // 8, int.from_bytes(stream.read(8), "little")
    except FileNotFoundError:
        return 0, 0
    except OSError as error:
        raise JobError(f"{index}: {error.strerror or error}") from error


def verify_datatrove(path: Path, dtype: str | None = None) -> list[str]:
    """What is wrong with a folder's whole indices, file by file.

    Raises:
        JobError: as for `open_datatrove`.
    """
    open_datatrove(path, dtype=dtype)
    problems = []
    for file in _files(path):
        count, _ = _index(file)
        if count:
            index = file.with_name(f"{file.name}.index")
            ends = np.frombuffer(map_file(index, 8 * count), "<u8")
            wrong = np.flatnonzero(ends[1:] < ends[:-1])
            if wrong.size:
                problems.append(f"{index}: document {int(wrong[0]) + 1} ends before it begins")
    return problems
