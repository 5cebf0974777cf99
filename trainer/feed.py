"""Batches of one rank, drawn from the global order; switches take effect at their first sample.

There is one global order of samples. A step takes `quantum` of them, and position p of a step is
``(micro * world + rank) * rows + row``: each rank draws its own positions and nothing else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.assemble import Assembler
from mixloop.trainer.order import MixtureOrder, Segment
from mixloop.trainer.quanta import Quanta
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

    The step begins at `sample` and has `samples` over all ranks. `source` is the index of a source
    in the stores' order, `index` the sample within it; `counts` [sources] are the samples of each
    source in the step over all ranks, of sources that the job no longer has last. `tensor` has the
    memory of `ids` if that is page-locked.
    """

    sample: int
    samples: int
    ids: Ints
    source: Ints
    index: Ints
    counts: Ints
    tensor: torch.Tensor | None = None


@dataclass(frozen=True)
class _Block:
    """Consecutive steps, drawn together: the cost of a draw is shared among them."""

    first: int
    quantum: int
    batches: list[Batch]


class Feed:
    """Draws batches from `sample` on, up to `prefetch` steps ahead in a thread of its own.

    Half of `prefetch` is drawn together, while the half before is handed out. A switch may be
    applied while later batches are being drawn as long as its first sample lies beyond them;
    :mod:`mixloop.trainer.hotreload` sees to that.

    Args:
        stores: the sources of this job. The order may number them otherwise and have further ones,
            which this job no longer has: they give nothing from `sample` on.
        layout: of a step; `quanta` may ask for another accumulation.
        slabs: where the ids of steps drawn together go, `[rows_ahead(...), L]`; none: new memory
            every time.
        quanta: samples of a step where they change over the run; none: the layout's.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        order: MixtureOrder,
        layout: Layout,
        prefetch: int = 0,
        sample: int = 0,
        slabs: Slabs | None = None,
        quanta: Quanta | None = None,
    ) -> None:
        self.layout = layout
        self.together = together(prefetch)
        self._stores = list(stores.values())
        self._names = [*stores, *(name for name in order.names if name not in stores)]
        number = {name: index for index, name in enumerate(self._names)}
        self._numbers = np.array([number[name] for name in order.names], np.int64)
        self._moved = self._names != list(order.names)
        drawn = order.drawn(sample)
        self._drawn = np.array([drawn[name] for name in self._names], np.int64)
        self._order = order
        self._slabs = slabs
        self._quanta = quanta
        self._lock = threading.Lock()
        self._filling = threading.Lock()
        self._assembler = Assembler(self._stores, layout.sequence_length)
        self._now: _Block | None = None
        self._next: tuple[int, Future[_Block]] | None = None
        self._pool = ThreadPoolExecutor(1, "mixloop-prefetch") if prefetch else None

    def batch(self, sample: int) -> Batch:
        """This rank's part of the step whose first sample is `sample`."""
        block = self._now
        step = (sample - block.first) // block.quantum if block is not None else 0
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
            first = sample + len(block.batches) * block.quantum
            self._next = (first, self._pool.submit(self._draw, first))
        self._now = block
        return block

    def quantum(self, sample: int) -> int:
        """Samples, over all ranks, of the step whose first sample is `sample`."""
        return self.layout.quantum if self._quanta is None else self._quanta.at(sample)

    def _steps(self, sample: int, quantum: int) -> int:
        """Steps from `sample` on that are drawn together: they are all of one size."""
        until = None if self._quanta is None else self._quanta.until(sample)
        if until is None:
            return self.together
        return max(1, min(self.together, (until - sample) // quantum))

    def _draw(self, sample: int) -> _Block:
        quantum = self.quantum(sample)
        steps = self._steps(sample, quantum)
        layout = self.layout
        if quantum != layout.quantum:
            layout = replace(layout, accumulation=quantum // (layout.rows * layout.world))
        with self._lock:
            source, index = self._order.batch(sample, steps * quantum)
        if self._moved:
            source = self._numbers[source]
        source, index = source.reshape(steps, quantum), index.reshape(steps, quantum)
        kinds = len(self._names)
        number = source + np.arange(0, steps * kinds, kinds)[:, None]
        counts = np.bincount(number.ravel(), minlength=steps * kinds).reshape(steps, kinds)
        if counts[:, len(self._stores) :].any():  # refused when the incarnation began
            raise RuntimeError(f"sample {sample} is of a source that this job no longer has")
        source, index = layout.own(source), layout.own(index)
        ids, tensor = self._memory((*source.shape, layout.sequence_length))
        with self._filling:  # the first block is drawn here while the thread draws the next
            self._assembler.fill(source, index, ids)
        held = [None] * steps if tensor is None else list(tensor)
        return _Block(
            sample,
            quantum,
            [
                Batch(
                    sample + n * quantum, quantum, ids[n], source[n], index[n], counts[n], held[n]
                )
                for n in range(steps)
            ],
        )

    def _memory(self, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], torch.Tensor | None]:
        """Memory for ids [steps, accumulation, rows, L], and the tensor it is of, if pinned."""
        if self._slabs is None:
            return np.empty(shape, np.int64), None
        array, tensor = self._slabs.take()
        rows = math.prod(shape[:-1])
        return array[:rows].reshape(shape), None if tensor is None else tensor[:rows].view(shape)

    def switch(self, segment: Segment) -> None:
        """From ``segment.sample`` on, draw by its weights; the quanta are this feed's."""
        with self._lock:
            self._order = self._order.with_weights(segment.sample, segment.weights)

    def drawn(self) -> dict[str, int]:
        """Samples of each source up to and including the last batch handed out, those of sources
        included that the run no longer has."""
        return {name: int(n) for name, n in zip(self._names, self._drawn, strict=True)}

    def close(self) -> None:
        """End the prefetching thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def together(prefetch: int) -> int:
    """Steps that are drawn together, where so many may be drawn ahead."""
    return max(1, prefetch // 2)


def rows_ahead(prefetch: int, rows: int, accumulation: int) -> int:
    """Rows of one rank that are drawn together at most.

    Args:
        accumulation: the greatest of all steps.
    """
    return together(prefetch) * accumulation * rows
