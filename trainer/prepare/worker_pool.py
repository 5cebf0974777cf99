"""Tokenising processes: chunks in, tokens out, in order. They end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixloop.common.process import end_with_parent
from mixloop.trainer.sources import DTYPES

from .long_documents import OVERLAP, Window
from .text_encoder import Changes, Spans, TextEncoder

_THREADS = "TOKENIZERS_PARALLELISM"
_GRACE = 2.0
"""Seconds in which the pool finds out by itself that a worker has died."""


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know; ids of -1 are not put around documents."""

    tokenizer: Path
    dtype: str
    bos_id: int
    eos_id: int
    parse_special: bool

    def encoder(self) -> TextEncoder:
        """The tokenizer, loaded."""
        return TextEncoder(self.tokenizer, self.parse_special)


class Chunk(NamedTuple):
    """Whole documents, or one window of a long one; and how many inputs are read through."""

    windows: list[Window]
    inputs_done: int


@dataclass
class Tokens:
    """A chunk's tokens: whole documents as little-endian bytes, or a window's with their places."""

    data: bytes = b""
    window: Spans | None = None
    changes: Changes = field(default_factory=Changes)


class _Worker:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._encoder = setup.encoder()

    def tokenise(self, windows: list[Window]) -> Tokens:
        first, changes = windows[0], Changes()
        if not first.whole:
            counted = slice(OVERLAP if first.begin else 0, None)
            found = self._encoder.encode_window(first.text, changes, counted)
            self._encoder.count_marks(found.ids, changes)
            return Tokens(window=found, changes=changes)
        before = [self._setup.bos_id] if self._setup.bos_id >= 0 else []
        behind = [self._setup.eos_id] if self._setup.eos_id >= 0 else []
        ids: list[int] = []
        for document in self._encoder.encode([window.text for window in windows], changes):
            ids += before
            ids += document
            ids += behind
        tokens = np.asarray(ids, DTYPES[self._setup.dtype])
        self._encoder.count_marks(tokens, changes)
        return Tokens(tokens.tobytes(), changes=changes)


_worker: dict[str, _Worker] = {}


def _start(setup: Setup, parent: int) -> None:
    # Ctrl-C reaches the whole group of processes; the parent alone answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent=parent)
    os.environ[_THREADS] = "false"  # the processes are the parallelism
    _worker["this"] = _Worker(setup)


def _tokenise(windows: list[Window]) -> Tokens:
    return _worker["this"].tokenise(windows)


def tokenised(
    chunks: Iterable[Chunk], workers: int, setup: Setup
) -> Generator[tuple[Chunk, Tokens]]:
    """Chunks with their tokens, in order; at most a few chunks a worker are in memory.

    Raises:
        ValueError: a worker died.
    """
    if workers <= 1:
        with _one_thread():
            worker = _Worker(setup)
            for chunk in chunks:
                yield chunk, worker.tokenise(chunk.windows)
        return
    waiting: deque[tuple[Chunk, Future[Tokens]]] = deque()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (setup, os.getpid())
    )
    started: set[multiprocessing.process.BaseProcess] = set()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_tokenise, chunk.windows)))
            started |= set(multiprocessing.active_children()) - others
            if len(waiting) > 3 * workers:
                first, future = waiting.popleft()
                yield first, _result(future, pool, started)
        while waiting:
            first, future = waiting.popleft()
            yield first, _result(future, pool, started)
    except BrokenProcessPool as error:
        pool.shutdown(wait=True)  # by then all exit codes are known
        raise ValueError(_death([one.exitcode for one in started])) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(
    future: Future[Tokens],
    pool: ProcessPoolExecutor,
    started: Iterable[multiprocessing.process.BaseProcess],
) -> Tokens:
    """A worker's answer.

    One that was killed in the middle of an answer leaves the pool waiting for the rest of it, and
    the other workers for their turn to speak: then all are ended.

    Raises:
        BrokenProcessPool: a worker died.
    """
    while True:
        dead = any(one.exitcode is not None for one in started)
        try:
            return future.result(_GRACE)
        except TimeoutError:
            if not dead:
                continue
        for one in started:
            one.terminate()
        # the pool's thread hears of no end as long as we could write there ourselves
        pool._result_queue._writer.close()  # type: ignore[attr-defined]
        raise BrokenProcessPool


def _death(codes: Iterable[int | None]) -> str:
    """Why the workers are gone, by their exit codes; the pool ends those that live by SIGTERM."""
    own = [code for code in codes if code not in (None, 0, -signal.SIGTERM)]
    code = own[0] if own else -signal.SIGTERM
    if code is not None and code > 0:
        return (
            f"a tokenising worker could not start (exit code {code}; what it said stands above); a "
            'script that calls prepare needs `if __name__ == "__main__":`, or workers=1'
        )
    name = signal.Signals(-(code or 0)).name
    if code == -signal.SIGKILL:
        return (
            "a tokenising worker was killed (SIGKILL): by hand, or for want of memory (dmesg or "
            "the job's log tells); each worker takes about 0.5 GB and the tokenizer, so start "
            "fewer (--workers), or ask for more memory"
        )
    return (
        f"a tokenising worker was ended by {name}; if that comes again, --workers 1 shows what "
        "it dies of"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tokenise in this process without threads, which would not survive a later fork."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
