"""Batches of one rank, drawn from the global order; switches take effect at their first sample.

There is one global order of samples. A step takes `quantum` of them, and position p of a step is
``(micro * world + rank) * rows + row``: each rank draws its own positions and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mixloop.trainer.assemble import Assembler
from mixloop.trainer.order import MixtureOrder, Segment
from mixloop.trainer.slabs import Slabs
from mixloop.trainer.store import Store

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How a step's samples are dealt to ranks and micro-batches."""

    rows: int
    accumulation: int
    rank: int
    world: int
    sequence_length: int

    @property
    def quantum(self) -> int:
        """Samples of one step over all ranks."""
        return self.rows * self.accumulation * self.world

    def own(self, step: Ints) -> Ints:
        """This rank's part of steps' samples [steps, quantum]: [steps, accumulation, rows].

        No copy is made.
        """
        return step.reshape(-1, self.accumulation, self.world, self.rows)[:, :, self.rank]

    def positions(self) -> Ints:
        """This rank's positions within a step, shape [accumulation, rows]."""
        micro = np.arange(self.accumulation, dtype=np.int64)[:, None]
        return (micro * self.world + self.rank) * self.rows + np.arange(self.rows, dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step: `ids` [accumulation, rows, L]; `source`, `index` without L.

    `source` is the index of a source in the stores' order, `index` the sample within it; `counts`
    [sources] are the samples of each source in the step over all ranks. `tensor` has the memory of
    `ids` if that is page-locked.
    """

    sample: int
    ids: Ints
    source: Ints
    index: Ints
    counts: Ints
    tensor: torch.Tensor | None = None


@dataclass(frozen=True)
class _Block:
    """Consecutive steps, drawn together: the cost of a draw is shared among them."""

    first: int
    batches: list[Batch]


class Feed:
    """Draws batches from `sample` on, up to `prefetch` steps ahead in a thread of its own.

    Half of `prefetch` is drawn together, while the half before is handed out. A switch may be
    applied while later batches are being drawn as long as its first sample lies beyond them;
    :mod:`mixloop.trainer.hotreload` sees to that.

    Args:
        slabs: where the ids of `together` steps go, [together, accumulation, rows, L]; none: new
            memory every time.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        order: MixtureOrder,
        layout: Layout,
        prefetch: int = 0,
        sample: int = 0,
        slabs: Slabs | None = None,
    ) -> None:
        self.layout = layout
        self.together = together(prefetch)
        self._stores = list(stores.values())
        self._names = list(stores)
        self._drawn = np.array(list(order.drawn(sample).values()), np.int64)
        self._order = order
        self._slabs = slabs
        self._lock = threading.Lock()
        self._filling = threading.Lock()
        self._assembler = Assembler(self._stores, layout.sequence_length)
        self._now: _Block | None = None
        self._next: tuple[int, Future[_Block]] | None = None
        self._pool = ThreadPoolExecutor(1, "mixloop-prefetch") if prefetch else None

    def batch(self, sample: int) -> Batch:
        """This rank's part of the step whose first sample is `sample`."""
        block = self._now
        step = (sample - block.first) // self.layout.quantum if block is not None else 0
        if block is None or not 0 <= step < len(block.batches):
            block, step = self._turn(sample), 0
        batch = block.batches[step]
        if batch.sample != sample:  # not on a step of this block's: somebody went back
            block = self._turn(sample)
            batch, step = block.batches[0], 0
        self._drawn += batch.counts
        if step == len(block.batches) - 1:
            self._now = None  # its memory may go back to work
        return batch

    def _turn(self, sample: int) -> _Block:
        """The block that begins at `sample`; the one after it is begun."""
        waiting, self._next, self._now = self._next, None, None
        if self._slabs is not None:
            self._slabs.settle()
        if waiting is not None and waiting[0] == sample:
            block = waiting[1].result()
        else:
            block = self._draw(sample)
        if self._pool is not None:
            first = sample + self.together * self.layout.quantum
            self._next = (first, self._pool.submit(self._draw, first))
        self._now = block
        return block

    def _draw(self, sample: int) -> _Block:
        layout, steps = self.layout, self.together
        quantum = layout.quantum
        with self._lock:
            source, index = self._order.batch(sample, steps * quantum)
        source, index = source.reshape(steps, quantum), index.reshape(steps, quantum)
        kinds = len(self._stores)
        number = source + np.arange(0, steps * kinds, kinds)[:, None]
        counts = np.bincount(number.ravel(), minlength=steps * kinds).reshape(steps, kinds)
        source, index = layout.own(source), layout.own(index)
        shape = (*source.shape, layout.sequence_length)
        ids, tensor = (
            self._slabs.take() if self._slabs is not None else (np.empty(shape, np.int64), None)
        )
        with self._filling:  # the first block is drawn here while the thread draws the next
            self._assembler.fill(source, index, ids)
        held = [None] * steps if tensor is None else list(tensor)
        return _Block(
            sample,
            [
                Batch(sample + n * quantum, ids[n], source[n], index[n], counts[n], held[n])
                for n in range(steps)
            ],
        )

    def switch(self, segment: Segment) -> None:
        """From ``segment.sample`` on, draw by its weights."""
        with self._lock:
            self._order = self._order.with_segment(segment)

    def drawn(self) -> dict[str, int]:
        """Samples of each source up to and including the last batch handed out."""
        return {name: int(n) for name, n in zip(self._names, self._drawn, strict=True)}

    def close(self) -> None:
        """End the prefetching thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def together(prefetch: int) -> int:
    """Steps that are drawn together, where so many may be drawn ahead."""
    return max(1, prefetch // 2)
