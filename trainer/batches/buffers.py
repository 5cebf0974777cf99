"""Memory for batches, allocated once and used again, never while anyone still holds it.

A batch that is kept stays as it is: a buffer goes back to work only when nothing refers to its
array any more, neither a tensor nor a view. Page-locked memory is torch's to recycle: its caching
allocator knows which copies to a device are still queued, on whatever stream.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


Array = npt.NDArray[Any]


@dataclass
class _Buffer:
    array: Array


def _holders(buffer: _Buffer) -> int:
    """References to a buffer's array, from the same place every time."""
    return sys.getrefcount(buffer.array)


class BatchBuffers:
    """Arrays of one shape and type; `take` in the drawing thread, `settle` in the training one.

    Args:
        kept: buffers in circulation at most; someone who keeps more gets them for good.
        pinned: page-locked memory, which a GPU copies from without the CPU's help.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, kept: int, pinned: bool = False
    ) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._kept = kept
        self._pinned = pinned
        self._lock = threading.Lock()
        self._free: deque[_Buffer] = deque()
        self._out: deque[_Buffer] = deque()
        self._alone = _holders(_Buffer(np.empty(0)))
        self.allocated = 0

    def take(self) -> tuple[Array, torch.Tensor | None]:
        """An array to fill, content undefined, and the tensor whose memory it is, if pinned."""
        if self._pinned:
            return self._page_locked()
        with self._lock:
            buffer = self._free.popleft() if self._free else None
        if buffer is None:
            self.allocated += 1
            buffer = _Buffer(np.empty(self._shape, self._dtype))
        array = buffer.array  # held from here on: `settle` must not think it free
        with self._lock:
            self._out.append(buffer)
            while len(self._out) > self._kept:
                self._out.popleft()
        return array, None

    def settle(self) -> None:
        """Take back what nobody holds any more."""
        with self._lock:
            for _ in range(len(self._out)):
                buffer = self._out.popleft()
                (self._free if _holders(buffer) == self._alone else self._out).append(buffer)

    def _page_locked(self) -> tuple[Array, torch.Tensor]:
        import torch

        kind = torch.from_numpy(np.empty(0, self._dtype)).dtype
        tensor = torch.empty(self._shape, dtype=kind, pin_memory=True)
        return tensor.numpy(), tensor
