"""Batches of one rank, drawn from the global order; switches take effect at their first sample.

There is one global order of samples. A step takes `quantum` of them, and position p of a step is
``(micro * world + rank) * rows + row``: each rank draws its own positions and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixloop.trainer.order import MixtureOrder, Segment
from mixloop.trainer.slabs import Slabs
from mixloop.trainer.store import Store

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

    def positions(self) -> Ints:
        """This rank's positions within a step, shape [accumulation, rows]."""
        micro = np.arange(self.accumulation, dtype=np.int64)[:, None]
        return (micro * self.world + self.rank) * self.rows + np.arange(self.rows, dtype=np.int64)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step: `ids` [accumulation, rows, L]; `source`, `index` without L.

    `source` is the index of a source in the stores' order, `index` the sample within it; `counts`
    [sources] are the samples of each source in the step over all ranks.
    """

    sample: int
    ids: Ints
    source: Ints
    index: Ints
    counts: Ints


class Feed:
    """Draws batches from `sample` on, `prefetch` steps ahead in a thread of its own.

    A switch may be applied while later batches are being drawn as long as its first sample lies
    beyond them; :mod:`mixloop.trainer.hotreload` sees to that.

    Args:
        slabs: where the ids of a step go, [accumulation, rows, L]; none: new memory every time.
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
        self.prefetch = prefetch
        self._stores = list(stores.values())
        self._names = list(stores)
        self._drawn = np.array(list(order.drawn(sample).values()), np.int64)
        self._order = order
        self._slabs = slabs
        self._lock = threading.Lock()
        self._positions = layout.positions()
        self._ahead: dict[int, Future[Batch]] = {}
        self._pool = ThreadPoolExecutor(1, "mixloop-prefetch") if prefetch else None

    def batch(self, sample: int) -> Batch:
        """This rank's part of the step whose first sample is `sample`."""
        waiting = self._ahead.pop(sample, None)
        if self._slabs is not None:
            self._slabs.settle()
        if self._pool is not None:
            for ahead in range(1, self.prefetch + 1):
                first = sample + ahead * self.layout.quantum
                if first not in self._ahead:
                    self._ahead[first] = self._pool.submit(self._draw, first)
        batch = self._draw(sample) if waiting is None else waiting.result()
        self._drawn += batch.counts
        return batch

    def _draw(self, sample: int) -> Batch:
        with self._lock:
            source, index = self._order.batch(sample, self.layout.quantum)
        counts = np.bincount(source, minlength=len(self._stores)).astype(np.int64)
        source, index = source[self._positions], index[self._positions]
        length = self.layout.sequence_length
        shape = (*source.shape, length)
        ids = np.empty(shape, np.int64) if self._slabs is None else self._slabs.take()
        for number in np.unique(source):
            here = source == number
            ids[here] = self._stores[number].gather(index[here], length)
        return Batch(sample, ids, source, index, counts)

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
