"""A source's tokens as one long stream in many files, each mapped when it is first needed.

Nothing is opened at the start: a source of ten thousand shards costs a list of sizes. Windows are
of the whole stream, so that some begin in one file and end in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .memory_map import POOL, MappedFile, Pool

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[Any]

_FEW = 8  # windows of one piece that are cheaper copied one by one


class Piece(NamedTuple):
    """A stretch of the stream: `tokens` integers of a file, from the byte `offset` on."""

    file: MappedFile
    tokens: int
    offset: int = 0


def file_piece(path: Path, dtype: np.dtype[Any], tokens: int, pool: Pool = POOL) -> Piece:
    """A piece that is a whole file of flat integers."""
    return Piece(MappedFile(path, tokens * dtype.itemsize, pool), tokens)


class Stream:
    """The concatenation of pieces; safe to read from several threads.

    Args:
        dtype: of the tokens, the same in every piece.
    """

    def __init__(self, pieces: Sequence[Piece], dtype: npt.DTypeLike) -> None:
        self._pieces = [piece for piece in pieces if piece.tokens]
        self.dtype = np.dtype(dtype)
        ends = np.cumsum([piece.tokens for piece in self._pieces], dtype=np.int64)
        self._begins = np.concatenate([np.zeros(1, np.int64), ends])

    @property
    def tokens(self) -> int:
        """Tokens of the whole stream."""
        return int(self._begins[-1])

    @property
    def mapped(self) -> int:
        """Files of it that are mapped now."""
        return len({id(piece.file) for piece in self._pieces if piece.file.mapped})

    def flat(self) -> Tokens | None:
        """The whole stream as one array, where it is one piece; it stays mapped as long."""
        return self._piece(0) if len(self._pieces) == 1 else None

    def read(self, start: int, count: int) -> Tokens:
        """Tokens `start` to ``start + count``, copied, shape [count]."""
        tokens = np.empty(count, self.dtype)
        self._read(start, tokens)
        return tokens

    def gather(
        self, samples: Ints, length: int, out: Tokens | None = None, rows: Ints | None = None
    ) -> Tokens:
        """Windows of `length` tokens by index.

        Args:
            samples: shape [n]; window i holds the tokens from ``i * length`` on.
            length: tokens of a window.
            out: [m, length], filled in its own type; new memory in the stream's type without it.
            rows: those of `out` to fill, shape [n]; without it all, in order.

        Returns:
            `out`.
        """
        gathered = np.empty((len(samples), length), self.dtype) if out is None else out
        target = np.arange(len(samples)) if rows is None else rows
        if not len(samples):
            return gathered
        starts = samples * length
        number = np.searchsorted(self._begins, starts, "right") - 1
        order = np.argsort(number, kind="stable")
        starts, number, target = starts[order], number[order], target[order]
        inside = starts - self._begins[number]
        whole = inside + length <= self._begins[number + 1] - self._begins[number]
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(number)]
        for begin, end in pairwise(bounds):
            here = slice(begin, end)
            tokens = self._piece(int(number[begin]))
            if end - begin <= _FEW or len(tokens) < length:
                places = zip(target[here], inside[here].tolist(), whole[here], strict=True)
                for row, at, fits in places:
                    if fits:
                        gathered[row] = tokens[at : at + length]
            else:
                windows = np.lib.stride_tricks.sliding_window_view(tokens, length)
                kept = whole[here]
                gathered[target[here][kept]] = windows[inside[here][kept]]
        for place in np.flatnonzero(~whole):
            self._read(int(starts[place]), gathered[target[place]])
        return gathered

    def _read(self, start: int, out: Tokens) -> None:
        """Fill `out`, shape [count], from a place of the stream on."""
        number = int(np.searchsorted(self._begins, start, "right")) - 1
        inside, done = start - int(self._begins[number]), 0
        while done < len(out):
            part = self._piece(number)[inside : inside + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            number, inside = number + 1, 0

    def _piece(self, number: int) -> Tokens:
        file, tokens, offset = self._pieces[number]
        return np.frombuffer(file.bytes(), self.dtype, tokens, offset)
