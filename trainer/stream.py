"""A source's tokens as one long stream in many files, each mapped when it is first needed.

Nothing is opened at the start: a source of ten thousand shards costs a list of sizes. Windows are
of the whole stream, so that some begin in one file and end in the next.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[Any]

MAPPED = 512  # files mapped at a time by one source; a map keeps no file descriptor


@dataclass(frozen=True)
class Piece:
    """A stretch of the stream: how many tokens, and how to map them (a 1-d array)."""

    tokens: int
    load: Callable[[], Tokens]


def file_piece(path: Path, dtype: np.dtype[Any], tokens: int, offset: int = 0) -> Piece:
    """A piece that is a file of flat integers; `offset` in bytes."""

    def load() -> Tokens:
        return np.memmap(path, dtype, "r", offset, (tokens,))

    return Piece(tokens, load)


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
        self._open: OrderedDict[int, Tokens] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """Tokens of the whole stream."""
        return int(self._begins[-1])

    @property
    def mapped(self) -> int:
        """Pieces that are mapped now."""
        return len(self._open)

    def flat(self) -> Tokens | None:
        """The whole stream as one array, where it is one piece."""
        return self._piece(0) if len(self._pieces) == 1 else None

    def read(self, start: int, count: int) -> Tokens:
        """Tokens `start` to ``start + count``, copied, shape [count]."""
        found = np.empty(count, self.dtype)
        done = 0
        while done < count:
            at = start + done
            number = int(np.searchsorted(self._begins, at, "right")) - 1
            inside = at - int(self._begins[number])
            part = self._piece(number)[inside : inside + count - done]
            found[done : done + len(part)] = part
            done += len(part)
        return found

    def gather(
        self, samples: Ints, length: int, out: Tokens | None = None, rows: Ints | None = None
    ) -> Tokens:
        """Windows of `length` tokens by index.

        Args:
            samples: shape [n]; window i holds the tokens from ``i * length`` on.
            out: [m, length], filled at `rows` (shape [n]; all, in order, without it) in its own
                type; new memory in the stream's type without it.

        Returns:
            `out`.
        """
        made = np.empty((len(samples), length), self.dtype) if out is None else out
        target = np.arange(len(samples)) if rows is None else rows
        starts = samples * length
        number = np.searchsorted(self._begins, starts, "right") - 1
        whole = starts + length <= self._begins[number + 1]
        for piece in np.unique(number[whole]):
            here = whole & (number == piece)
            tokens = self._piece(int(piece))
            windows = np.lib.stride_tricks.sliding_window_view(tokens, length)
            made[target[here]] = windows[starts[here] - self._begins[piece]]
        for place in np.flatnonzero(~whole):
            made[target[place]] = self.read(int(starts[place]), length)
        return made

    def _piece(self, number: int) -> Tokens:
        with self._lock:
            tokens = self._open.get(number)
            if tokens is None:
                tokens = self._pieces[number].load()
                self._open[number] = tokens
                while len(self._open) > MAPPED:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
        return tokens
