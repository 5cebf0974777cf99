"""`prepare`: text in, token store out. Tokenised by worker processes, in the input's order.

The store appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np

from mixloop.common.files import write_atomic
from mixloop.trainer.sources import (
    DTYPES,
    HEADER,
    Shard,
    StoreInfo,
    TokenizerInfo,
    dtype_for,
    fingerprint,
    inspect_tokenizer,
    keep_tokenizer,
    load_raw,
    read_header,
    resolve_tokenizer,
    shards_fingerprint,
)

from .append import alone, grow
from .documents import Input, Piece, read_pieces, resolve_inputs

_CHUNK_CHARS = 500_000
"""Text handed to a worker at once: about 0.1 s of work."""


@dataclass(frozen=True)
class Progress:
    """How far `prepare` is; `total` is the number of inputs, the file being read included."""

    documents: int
    tokens: int
    inputs_done: int
    inputs: int


@dataclass(frozen=True)
class _Chunk:
    pieces: list[Piece]
    inputs_done: int


# --- what runs in a worker ------------------------------------------------------------------

_worker: dict[str, Any] = {}


def _start_worker(tokenizer: str, eos_id: int, dtype: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker.update(tokenizer=load_raw(Path(tokenizer)), eos_id=eos_id, dtype=dtype)


def _tokenise(pieces: list[Piece]) -> tuple[bytes, int]:
    """Tokens of the pieces as little-endian bytes, and documents ended."""
    encoded = _worker["tokenizer"].encode_batch_fast(
        [piece.text for piece in pieces], add_special_tokens=False
    )
    ids: list[int] = []
    for piece, encoding in zip(pieces, encoded, strict=True):
        ids.extend(encoding.ids)
        if piece.ends:
            ids.append(_worker["eos_id"])
    data = np.asarray(ids, DTYPES[_worker["dtype"]]).tobytes()
    return data, sum(piece.ends for piece in pieces)


# --- the parent -----------------------------------------------------------------------------


def _chunks(inputs: list[Input], options: dict[str, Any]) -> Iterator[_Chunk]:
    held: list[Piece] = []
    size = 0
    for done, source in enumerate(inputs):
        started = False  # a blank document is none; a blank piece may end one
        for piece in read_pieces(source, **options):
            if started or piece.text.strip():
                held.append(piece)
                size += len(piece.text)
            started = not piece.ends
            if size >= _CHUNK_CHARS:
                yield _Chunk(held, done)
                held, size = [], 0
    yield _Chunk(held, len(inputs))


def _tokenised(
    chunks: Iterable[_Chunk], workers: int, setup: tuple[str, int, str]
) -> Iterator[tuple[_Chunk, tuple[bytes, int]]]:
    """Chunks with their tokens, in order; at most a few chunks a worker are in memory."""
    if workers <= 1:
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        _start_worker(*setup)
        try:
            for chunk in chunks:
                yield chunk, _tokenise(chunk.pieces)
        finally:
            if before is None:
                os.environ.pop("TOKENIZERS_PARALLELISM", None)
            else:
                os.environ["TOKENIZERS_PARALLELISM"] = before
        return
    waiting: deque[tuple[_Chunk, Future[tuple[bytes, int]]]] = deque()
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=setup
    )
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_tokenise, chunk.pieces)))
            if len(waiting) > 3 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ValueError("a tokenising worker died (out of memory?); try fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Writer:
    """Tokens into `tokens.bin`, or into shards of `size` tokens numbered from `first`."""

    def __init__(self, folder: Path, width: int, size: int | None, first: int) -> None:
        self.shards: list[Shard] = []
        self.tokens = 0
        self._folder = folder
        self._width = width
        self._size = size
        self._number = first
        self._file: IO[bytes] | None = None
        self._held = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append whole tokens."""
        view = memoryview(data)
        while view:
            if self._file is None:
                self._open()
            assert self._file is not None
            room = len(view) if self._size is None else (self._size - self._held) * self._width
            part = view[:room]
            self._file.write(part)
            self._digest.update(part)
            self._held += len(part) // self._width
            self.tokens += len(part) // self._width
            view = view[room:]
            if self._held == self._size:
                self.close()

    def _open(self) -> None:
        sharded = self._size is not None or self._number
        name = f"tokens-{self._number:05d}.bin" if sharded else "tokens.bin"
        self._file = (self._folder / name).open("wb")

    def close(self) -> None:
        """End the file being written; on return it is on the disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = Path(self._file.name).name
        self.shards.append(Shard(name, self._held, self._digest.hexdigest()))
        self._file, self._held, self._digest = None, 0, hashlib.sha256()
        self._number += 1


def _check_target(out: Path, overwrite: bool, append: bool) -> None:
    if append and overwrite:
        raise ValueError("append and overwrite are both asked for; choose one")
    if append:
        return
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: already there; remove it, choose another name, or append to it")
    if out.exists() and not (out / HEADER).is_file():
        raise ValueError(f"{out}: not a token store, so it is not overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)


def prepare(
    inputs: list[str],
    out: Path,
    tokenizer: str,
    *,
    text_key: str = "text",
    sequence_length: int | None = None,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
    split: str | None = None,
    config: str | None = None,
    overwrite: bool = False,
    shard_size: int | None = None,
    append: bool = False,
) -> StoreInfo:
    """Tokenise `inputs` into a store at `out`; each document is followed by the eos token.

    The result is the same, byte for byte, whatever the number of workers.

    Args:
        inputs: see :func:`mixloop.trainer.prepare.documents.resolve_inputs`.
        tokenizer: folder or hub name of a fast tokenizer; a copy is kept in the store.
        text_key: key (jsonl), column (parquet, datasets) of the text.
        sequence_length: if given, refuse a result shorter than one sample of that length.
        workers: tokenising processes; 1 works in this one.
        split, config: of a Hugging Face dataset.
        overwrite: replace a store that is there.
        shard_size: most tokens of a file; None: one file.
        append: add to the store that is there, as further shards. A run that uses it takes the
            growth at its next start, from each source's next epoch on.

    Raises:
        ValueError: one line naming file, line, key or name of what is wrong.
    """
    out = Path(out)
    _check_target(out, overwrite, append)
    resolved = resolve_inputs(inputs)
    work = out.parent / f".{out.name}.tmp-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with ExitStack() as held:
        held.callback(shutil.rmtree, work, ignore_errors=True)
        if append:
            held.enter_context(alone(out))
        before = read_header(out) if append else None
        folder = resolve_tokenizer(tokenizer, work / "hub-tokenizer")
        facts = inspect_tokenizer(folder)
        if before is not None and before.tokenizer != facts.fingerprint:
            raise ValueError(f"{tokenizer}: not the tokenizer that {out} was made with")
        options = {"text_key": text_key, "split": split, "config": config}
        kind = dtype_for(facts.vocab_size)
        setup = (str(folder), facts.eos_id, kind)
        first = 0 if before is None else max(1, len(before.shards))
        writer = _Writer(work, DTYPES[kind].itemsize, shard_size, first)
        documents = 0
        for chunk, (data, ended) in _tokenised(_chunks(resolved, options), workers, setup):
            writer.write(data)
            documents += ended
            if progress is not None:
                progress(Progress(documents, writer.tokens, chunk.inputs_done, len(resolved)))
        writer.close()
        if not documents:
            raise ValueError(f"{', '.join(inputs)}: no document with text in it")
        if sequence_length is not None and writer.tokens < sequence_length:
            raise ValueError(
                f"{', '.join(inputs)}: {writer.tokens} tokens are fewer than one sample of "
                f"sequence_length {sequence_length}"
            )
        if before is not None:
            return grow(out, before, work, writer.shards, documents)
        info = _header(facts, documents, writer.shards, shard_size is not None)
        _finish(work, out, folder, info)
        return info


def _header(facts: TokenizerInfo, documents: int, files: list[Shard], sharded: bool) -> StoreInfo:
    kind = dtype_for(facts.vocab_size)
    if sharded:
        whole = shards_fingerprint(facts.fingerprint, kind, files)
    else:
        whole = fingerprint(facts.fingerprint, kind, files[0].sha256)
    return StoreInfo(
        tokens=sum(file.tokens for file in files),
        documents=documents,
        dtype=kind,
        vocab_size=facts.vocab_size,
        tokenizer=facts.fingerprint,
        fingerprint=whole,
        eos_id=facts.eos_id,
        shards=tuple(files) if sharded else (),
        probe=facts.probe,
    )


def _finish(work: Path, out: Path, tokenizer: Path, info: StoreInfo) -> None:
    assert info.probe is not None
    keep_tokenizer(tokenizer, work / "tokenizer", info.probe)
    shutil.rmtree(work / "hub-tokenizer", ignore_errors=True)
    write_atomic(work / HEADER, json.dumps(info.to_json(), indent=2).encode())
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)
