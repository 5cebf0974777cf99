"""datatrove's tokenised folders (nanotron reads them too), read in place.

Each `NAME.ds` holds flat ids of 2 or 4 bytes, `NAME.ds.index` the documents' ends (u64, in tokens)
and `NAME.ds.metadata`, where it is there, `tokenizer|bytes per id` in its first line and the number
of tokens in its second (datatrove, `pipeline/tokens/tokenizer.py`). Files follow one another by
name, and windows go on from one to the next.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixloop.trainer import foreign
from mixloop.trainer.job import JobError
from mixloop.trainer.store import DTYPES, Store
from mixloop.trainer.stream import Stream, file_piece

_BY_SIZE = {2: "uint16", 4: "uint32"}


def open_datatrove(path: Path, eos_id: int | None = None, dtype: str | None = None) -> Store:
    """Open a folder of `.ds` files.

    Args:
        dtype: uint16 or uint32, where no metadata says it.

    Raises:
        JobError: no such files, files of different types, or a damaged one.
    """
    files = sorted(path.glob("*.ds"))
    if not files:
        raise JobError(f"{path}: no .ds file there")
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
        ended = _ends(file)
        documents += len(ended)
        if len(ended) and int(ended[-1]) != size // width:
            raise JobError(f"{file}: {size // width} tokens where its index says {int(ended[-1])}")
        facts += [file.name.encode(), ended.tobytes()]
        pieces.append(file_piece(file, DTYPES[kind], size // width))
    stream = Stream(pieces, DTYPES[kind])
    if not stream.tokens:
        raise JobError(f"{path}: no tokens in its .ds files")
    return Store(path, foreign.info("datatrove", stream, documents, facts, eos_id), stream)


def _kind(file: Path, given: str | None) -> str:
    meta = file.with_name(f"{file.name}.metadata")
    try:
        width = meta.read_text("utf-8").splitlines()[0].rpartition("|")[2]
        found = _BY_SIZE.get(int(width))
    except (OSError, IndexError, ValueError):
        found = None
    if found is None and given is None:
        raise JobError(f"{file}: no metadata says how wide its ids are; give dtype: uint16")
    if found is not None and given is not None and found != given:
        raise JobError(f"{file}: dtype {given} asked for, its metadata says {found}")
    kind = found or given or ""
    if kind not in DTYPES:
        raise JobError(f"dtype: {kind!r} is neither uint16 nor uint32")
    return kind


def _ends(file: Path) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    index = file.with_name(f"{file.name}.index")
    try:
        return np.fromfile(index, "<u8")
    except OSError:
        return np.empty(0, np.uint64)
