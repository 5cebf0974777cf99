"""Batches of one rank, drawn from the global order; switches take effect at their first sample.

There is one global order of samples. A step takes `quantum` of them, and position p of a step is
``(micro * world + rank) * rows + row``: each rank draws its own positions and nothing else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixloop.contract import BatchSchedule, Segment
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import Store

from .buffers import BatchBuffers
from .gather import BatchGatherer
from .prefetch import LazyParts, LazyValue, Prefetcher

if TYPE_CHECKING:
    import torch


Ints = npt.NDArray[np.int64]

_WORTH = 200e-6  # seconds of a loop's own; in less the thread saves nothing (bench/RESULTS.md)
_CHOSEN = 4096  # samples chosen together, where their steps are shorter
_PART = 1 << 18  # bytes of ids filled together, where their steps are smaller


@dataclass(frozen=True)
class BatchLayout:
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


@dataclass(slots=True, eq=False)  # not frozen: one is made for every step
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
class _Choice:
    """Which samples consecutive steps of one size have.

    `source` and `index` are this rank's part, shape [steps, accumulation, rows], and `places` where
    these windows lie, if the assembler knows it beforehand; `counts` [steps, sources] are over all
    ranks.
    """

    first: int
    quantum: int
    source: Ints
    index: Ints
    counts: Ints
    places: Ints | None

    def step(self, sample: int) -> int | None:
        """The step that begins at `sample`, if there is one."""
        step, inside = divmod(sample - self.first, self.quantum)
        return None if inside or not 0 <= step < len(self.counts) else step


@dataclass(frozen=True)
class _Block:
    """Consecutive steps whose ids lie in one piece of memory, filled `each` together."""

    first: int
    quantum: int
    batches: list[Batch]
    each: int
    ids: LazyParts


class RankBatches:
    """Draws batches from `sample` on, up to `prefetch` steps ahead in a thread of its own.

    Half of `prefetch` is drawn while the half before is handed out; what the thread has not begun
    when it is needed is drawn by who needs it. Who comes back at once, step after step, draws all
    by itself: there is no time in which the thread could be of use.

    A switch may be applied while later batches are being drawn as long as its first sample lies
    beyond them; :mod:`mixloop.trainer.run.order_inbox` sees to that.

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
        layout: BatchLayout,
        prefetch: int = 0,
        sample: int = 0,
        slabs: BatchBuffers | None = None,
        quanta: BatchSchedule | None = None,
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
        self._assembler = BatchGatherer(self._stores, layout.sequence_length)
        self._choice: _Choice | None = None
        self._now: _Block | None = None
        self._next: tuple[int, LazyValue[_Block]] | None = None
        self._thread = Prefetcher("mixloop-prefetch") if prefetch else None
        self._left = perf_counter()
        self._away = _WORTH  # seconds between the steps of a block, all together

    def batch(self, sample: int) -> Batch:
        """This rank's part of the step whose first sample is `sample`."""
        if self._thread is None:
            return self._at_once(sample)
        self._away += perf_counter() - self._left
        block = self._now
        step = (sample - block.first) // block.quantum if block is not None else 0
        if block is None or not 0 <= step < len(block.batches):
            block, step = self._turn(sample), 0
        batch = block.batches[step]
        if batch.sample != sample:  # not on a step of this block's: somebody went back
            block = self._turn(sample)
            batch, step = block.batches[0], 0
        block.ids.need(step // block.each)
        self._drawn += batch.counts
        if step == len(block.batches) - 1:
            self._now = None  # its memory may go back to work
        self._left = perf_counter()
        return batch

    def _at_once(self, sample: int) -> Batch:
        """The same where nothing is drawn ahead."""
        if self._slabs is not None:
            self._slabs.settle()
        choice, step = self._chosen(sample)
        source, counts = choice.source[step], choice.counts[step]
        ids, tensor = self._memory((1, *source.shape, self.layout.sequence_length))
        _fill(self._assembler, choice, step, ids, 1, 0)
        self._drawn += counts
        held = None if tensor is None else tensor[0]
        return Batch(sample, choice.quantum, ids[0], source, choice.index[step], counts, held)

    def _turn(self, sample: int) -> _Block:
        """The block that begins at `sample`; the one after it is begun."""
        waiting, self._next, self._now = self._next, None, None
        if self._slabs is not None:
            self._slabs.settle()
        if waiting is not None and waiting[0] == sample:
            block = waiting[1].get()
        else:
            block = self._select(sample)
        first = sample + len(block.batches) * block.quantum
        following = LazyValue(partial(self._select, first))
        self._next = (first, following)
        if self._thread is not None and self._away >= _WORTH:
            self._thread.submit(partial(_ahead, following))
        self._now, self._away = block, 0.0
        return block

    def quantum(self, sample: int) -> int:
        """Samples, over all ranks, of the step whose first sample is `sample`."""
        return self.layout.quantum if self._quanta is None else self._quanta.at(sample)

    def _chosen(self, sample: int) -> tuple[_Choice, int]:
        """Steps chosen together, and which of them begins at `sample`."""
        with self._lock:
            choice = self._choice
            step = None if choice is None else choice.step(sample)
            if choice is None or step is None:
                choice, step = self._choose(sample), 0
                self._choice = choice
        return choice, step

    def _choose(self, sample: int) -> _Choice:
        quantum, layout = self.quantum(sample), self.layout
        steps = max(1, _CHOSEN // (quantum * self.together)) * self.together
        until = None if self._quanta is None else self._quanta.until(sample)
        if until is not None:
            steps = max(1, min(steps, (until - sample) // quantum))
        if quantum != layout.quantum:
            layout = replace(layout, accumulation=quantum // (layout.rows * layout.world))
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
        places = self._assembler.places(source, index)
        return _Choice(sample, quantum, source, index, counts, places)

    def _select(self, sample: int) -> _Block:
        """The block that begins at `sample`, and memory for its ids, not filled yet."""
        choice, begin = self._chosen(sample)
        part = slice(begin, begin + self.together)
        source, index, counts = choice.source[part], choice.index[part], choice.counts[part]
        quantum = choice.quantum
        ids, tensor = self._memory((*source.shape, self.layout.sequence_length))
        batches = [
            Batch(
                sample + n * quantum,
                quantum,
                ids[n],
                source[n],
                index[n],
                counts[n],
                None if tensor is None else tensor[n],
            )
            for n in range(len(counts))
        ]
        each = max(1, _PART // ids[0].nbytes)
        fill = partial(
            _fill, self._assembler, choice, begin, ids, each
        )  # and not of self: no cycle
        return _Block(sample, quantum, batches, each, LazyParts(-(-len(ids) // each), fill))

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
            self._choice = None

    def drawn(self) -> dict[str, int]:
        """Samples of each source up to and including the last batch handed out, those of sources
        included that the run no longer has."""
        return {name: int(n) for name, n in zip(self._names, self._drawn, strict=True)}

    def close(self) -> None:
        """End the prefetching thread."""
        if self._thread is not None:
            self._thread.close()


def _fill(
    assembler: BatchGatherer,
    choice: _Choice,
    begin: int,
    ids: npt.NDArray[Any],
    each: int,
    number: int,
) -> None:
    """Fill a part of a block, `each` steps; its first is step `begin` of the choice."""
    out = ids[number * each : (number + 1) * each]
    part = slice(begin + number * each, begin + number * each + len(out))
    if choice.places is not None:
        assembler.fill_from(choice.places[part], out)
    else:
        assembler.fill(choice.source[part], choice.index[part], out)


def _ahead(block: LazyValue[_Block], stop: threading.Event) -> None:
    block.get().ids.ahead(stop)


def together(prefetch: int) -> int:
    """Steps that are drawn together, where so many may be drawn ahead."""
    return max(1, prefetch // 2)


def rows_ahead(prefetch: int, rows: int, accumulation: int) -> int:
    """Rows of one rank that are drawn together at most.

    Args:
        accumulation: the greatest of all steps.
    """
    return together(prefetch) * accumulation * rows
