"""Batches from open sources: windows of many sources gathered straight into memory that is kept.

Sources that are mapped files lie in one address space, at distances that are multiples of a page.
So all of them can be seen as *one* table of equal pieces, most of which is never touched, and a
batch of any mixture is one `np.take` from it: every token is copied once, from the page cache to
its place in the batch. A batch in another integer type takes one more pass, through scratch memory
small enough for the cache. Sources that can't be seen so (in several files, or windows that don't
fit pages) are gathered one by one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.sources import Store

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_MIN_PIECE = 512  # bytes; smaller pieces cost more than a gather per source
_SCRATCH = 1 << 18  # bytes gathered before they are cast, so that they are still in the cache
_MAX_PIECES = 4  # of a window whose offsets are kept: they are of thousands of windows


@dataclass(frozen=True)
class _Table:
    """Some sources' windows as pieces of one array; `first` [sources] is -1 for the others."""

    pieces: Array
    per_window: int
    first: Ints
    dtype: np.dtype[Any]

    def offsets(self, source: Ints, index: Ints) -> Ints:
        """Pieces of these windows, in order, shape [windows * per_window]."""
        first = self.first[source]
        if self.per_window == 1:
            first += index
            return first
        first += index * self.per_window
        return (first[:, None] + np.arange(self.per_window)).reshape(-1)


class BatchGatherer:
    """Fills batches with windows of several sources.

    Args:
        sources: open sources, in the order that `fill` numbers them. They stay open as long as the
            gatherer lives.
        sequence_length: L, tokens of a window.

    Several threads may fill at once: each has scratch memory of its own.
    """

    def __init__(self, sources: Sequence[Store], sequence_length: int) -> None:
        self._sources = tuple(sources)
        self._length = sequence_length
        self._sizes = np.array([source.samples(sequence_length) for source in sources], np.int64)
        self._tables = _tables([source.flat() for source in sources], sequence_length)
        covered = np.zeros(len(self._sources), bool)
        for table in self._tables:
            covered |= table.first >= 0
        self._alone = np.flatnonzero(~covered)
        self._whole = len(self._tables) == 1 and not self._alone.size
        self._scratch = threading.local()

    def fill(self, source: Ints, index: Ints, out: Array) -> None:
        """Write window ``index[i]`` of source ``source[i]`` to ``out[i]``.

        Args:
            source: indices of sources, any shape.
            index: windows of them, the same shape.
            out: that shape and L; C-contiguous, of any integer type that holds the ids. Memory of
                the sources' own type is filled fastest.

        Raises:
            IndexError: a source has no such window; `out` is untouched then.
            ValueError: `out` has another shape, or isn't contiguous.
        """
        rows = self._rows(index, out)
        source, index = source.reshape(-1), index.reshape(-1)
        self._check(source, index)
        if self._whole:
            self._take(self._tables[0], self._tables[0].offsets(source, index), rows)
            return
        for table in self._tables:
            here = np.flatnonzero(table.first[source] >= 0)
            if here.size:
                self._take(table, table.offsets(source[here], index[here]), rows, here)
        if self._alone.size:
            self._one_by_one(source, index, rows)

    def offsets(self, source: Ints, index: Ints) -> Ints | None:
        """Where windows lie, to `fill_from` again and again without looking them up.

        Args:
            source: indices of sources, shape [parts, ...].
            index: windows of them, the same shape.

        Returns:
            Shape [parts, pieces of a part]; None: the sources lie in several places, or windows in
            many pieces, and only `fill` will do.

        Raises:
            IndexError: a source has no such window.
        """
        if not self._whole or self._tables[0].per_window > _MAX_PIECES:
            return None
        parts = len(source)
        source, index = source.reshape(-1), index.reshape(-1)
        self._check(source, index)
        return self._tables[0].offsets(source, index).reshape(parts, -1)

    def fill_from(self, offsets: Ints, out: Array) -> None:
        """`fill` with the `offsets` of one part or several, in any thread.

        Args:
            out: memory of as many windows, C-contiguous, any shape that ends in L.

        Raises:
            ValueError: `out` isn't contiguous, or holds another number of windows.
        """
        if not out.flags.c_contiguous:
            raise ValueError("out: not in contiguous memory")
        self._take(self._tables[0], offsets.reshape(-1), out.reshape(-1, self._length))

    def _rows(self, index: Ints, out: Array) -> Array:
        """`out` as windows, shape [windows, L].

        Raises:
            ValueError: it has another shape, or isn't contiguous.
        """
        rows = out.reshape(-1, self._length) if out.flags.c_contiguous else out
        if rows.shape != (index.size, self._length) or not rows.flags.c_contiguous:
            raise ValueError(
                f"out has shape {out.shape}: {index.size} windows of {self._length} tokens need "
                "as many rows, in contiguous memory"
            )
        return rows

    def _check(self, source: Ints, index: Ints) -> None:
        limit = self._sizes[source]
        if bool((index.view(np.uint64) >= limit.view(np.uint64)).any()):
            wrong = int(np.flatnonzero((index < 0) | (index >= limit))[0])
            raise IndexError(
                f"window {int(index[wrong])} of source {int(source[wrong])}: it has "
                f"{int(limit[wrong])}"
            )

    def _one_by_one(self, source: Ints, index: Ints, rows: Array) -> None:
        """Windows of the sources outside every table."""
        order = np.argsort(source, kind="stable")
        bounds = np.searchsorted(source[order], np.arange(len(self._sources) + 1))
        for number in self._alone:
            here = order[bounds[number] : bounds[number + 1]]
            if here.size:
                self._sources[number].gather(index[here], self._length, rows, here)

    def _take(self, table: _Table, offsets: Ints, rows: Array, here: Ints | None = None) -> None:
        """Windows by their pieces to ``rows[here]`` (None: to all, in order)."""
        kind, width, per = table.pieces.dtype, table.pieces.shape[1], table.per_window
        if here is None and rows.dtype == table.dtype:
            # every index was checked; "raise" would go through a buffer of its own
            table.pieces.take(offsets, axis=0, out=rows.view(kind).reshape(-1, width), mode="clip")
            return
        scratch = self._scratch_rows(table.dtype)
        step = len(scratch)
        pieces = scratch.view(kind).reshape(-1, width)
        for begin in range(0, offsets.size // per, step):
            part = offsets[begin * per : (begin + step) * per]
            table.pieces.take(part, axis=0, out=pieces[: part.size], mode="clip")
            windows, end = scratch[: part.size // per], begin + part.size // per
            if here is None:
                np.copyto(rows[begin:end], windows, casting="same_kind")
            else:
                rows[here[begin:end]] = windows

    def _scratch_rows(self, dtype: np.dtype[Any]) -> Array:
        """This thread's memory [n, L] to cast from."""
        by_type: dict[str, Array] = self._scratch.__dict__
        if dtype.str not in by_type:
            count = max(1, _SCRATCH // (self._length * dtype.itemsize))
            by_type[dtype.str] = np.empty((count, self._length), dtype)
        return by_type[dtype.str]


def _tables(flats: Sequence[Array | None], length: int) -> list[_Table]:
    """One table for each token type whose sources fit one."""
    by_type: dict[np.dtype[Any], list[int]] = {}
    for number, flat in enumerate(flats):
        if flat is not None and flat.size >= length and flat.flags.c_contiguous:
            by_type.setdefault(flat.dtype, []).append(number)
    tables = (_table(flats, members, length) for members in by_type.values())
    return [table for table in tables if table is not None]


def _table(flats: Sequence[Array | None], members: Sequence[int], length: int) -> _Table | None:
    """The table of these sources, of one type; None if its pieces would be too small."""
    arrays = {number: flats[number] for number in members}
    starts = {n: int(a.ctypes.data) for n, a in arrays.items() if a is not None}
    lowest = min(starts, key=lambda n: starts[n])
    base = arrays[lowest]
    assert base is not None
    row = length * base.dtype.itemsize
    size = math.gcd(row, *(start - starts[lowest] for start in starts.values()))
    if size < min(row, _MIN_PIECE) or size % base.dtype.itemsize:
        return None
    first = np.full(len(flats), -1, np.int64)
    for number, start in starts.items():
        first[number] = (start - starts[lowest]) // size
    end = max(starts[n] + a.nbytes for n, a in arrays.items() if a is not None)
    # Between the sources lies memory that is not ours: `fill` checks every index before it takes.
    shape = ((end - starts[lowest]) // size, size // base.dtype.itemsize)
    strides = (size, base.dtype.itemsize)
    pieces = np.lib.stride_tricks.as_strided(
        np.asarray(base), shape, strides, subok=False, writeable=False
    )
    return _Table(pieces, row // size, first, base.dtype)
