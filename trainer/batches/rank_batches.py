"""Batches of one rank, drawn from the global order; switches take effect at their first sample.

There is one global order of samples. A step takes so many of them as the batch schedule says, and
position p of a step is ``(micro * world + rank) * rows + row``: each rank draws its own positions
and nothing else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
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

_MIN_BUSY = 200e-6  # seconds of a loop's own; in less the thread saves nothing (bench/RESULTS.md)
_MIN_DRAWN = 4096  # samples whose sources are drawn together, where their steps are shorter
_MIN_FILLED = 1 << 18  # bytes of ids filled together, where their steps are smaller
_BUFFERS = 8  # blocks whose memory is in circulation; who keeps more gets them for good


@dataclass(frozen=True)
class BatchLayout:
    """How a step's samples are dealt to ranks: micro-batch by micro-batch, `rows` to each."""

    rows: int
    rank: int
    world: int
    sequence_length: int

    def own(self, steps: Ints) -> Ints:
        """This rank's part of steps [steps, samples]: [steps, accumulation, rows], not copied."""
        return steps.reshape(len(steps), -1, self.world, self.rows)[:, :, self.rank]

    def positions(self, samples: int) -> Ints:
        """This rank's positions in a step of so many samples, shape [accumulation, rows]."""
        positions: Ints = self.own(np.arange(samples, dtype=np.int64)[None])[0]
        return positions


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
class _DrawnSteps:
    """Which samples consecutive steps of one size have.

    `source` and `index` are this rank's part, shape [steps, accumulation, rows], and `offsets`
    where these windows lie, if the gatherer knows it beforehand; `counts` [steps, sources] are over
    all ranks.
    """

    first: int
    samples: int
    source: Ints
    index: Ints
    counts: Ints
    offsets: Ints | None

    def number(self, sample: int) -> int | None:
        """The step that begins at `sample`, if there is one."""
        step, inside = divmod(sample - self.first, self.samples)
        return None if inside or not 0 <= step < len(self.counts) else step


@dataclass(frozen=True)
class _Block:
    """Consecutive steps whose ids lie in one piece of memory, filled `together` at a time."""

    first: int
    samples: int
    batches: list[Batch]
    together: int
    ids: LazyParts


class RankBatches:
    """Draws batches from `sample` on, up to `prefetch` steps ahead in a thread of its own.

    Half of `prefetch`, a block, is drawn while the half before is handed out; what the thread has
    not begun when it is needed is drawn by who needs it. Who comes back at once, step after step,
    draws all by itself: there is no time in which the thread could be of use.

    A switch may be applied while later batches are being drawn as long as its first sample lies
    beyond them; :mod:`mixloop.trainer.run.order_inbox` sees to that.

    Args:
        stores: the sources of this job. The order may number them otherwise and have further ones,
            which this job no longer has: they give nothing from `sample` on.
        schedule: samples of every step.
        dtype: of ids in memory that is used again; None: int64 in new memory every time.
        pinned: page-locked memory, where it is used again.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        order: MixtureOrder,
        layout: BatchLayout,
        schedule: BatchSchedule,
        prefetch: int = 0,
        sample: int = 0,
        dtype: npt.DTypeLike | None = None,
        pinned: bool = False,
    ) -> None:
        self.layout = layout
        self._block_steps = max(1, prefetch // 2)
        self._schedule = schedule
        self._sources = len(stores)
        self._names = [*stores, *(name for name in order.names if name not in stores)]
        number = {name: index for index, name in enumerate(self._names)}
        self._numbers = np.array([number[name] for name in order.names], np.int64)
        self._renumbered = self._names != list(order.names)
        drawn = order.drawn(sample)
        self._drawn = np.array([drawn[name] for name in self._names], np.int64)
        self._order = order
        self._lock = threading.Lock()  # of the order and of the steps drawn from it
        self._steps: _DrawnSteps | None = None
        self._gatherer = BatchGatherer(list(stores.values()), layout.sequence_length)
        self._buffers: BatchBuffers | None = None
        if dtype is not None:
            rows = self._block_steps * schedule.since(sample).largest // layout.world
            shape = (rows, layout.sequence_length)
            self._buffers = BatchBuffers(shape, dtype, _BUFFERS, pinned)
        self._block: _Block | None = None
        self._next: tuple[int, LazyValue[_Block]] | None = None
        self._thread = Prefetcher("mixloop-prefetch") if prefetch else None
        self._left_at = perf_counter()
        self._busy = _MIN_BUSY  # seconds of the loop's own between the steps of a block, in all

    def batch(self, sample: int) -> Batch:
        """This rank's part of the step whose first sample is `sample`."""
        if self._thread is None:
            return self._batch_now(sample)
        self._busy += perf_counter() - self._left_at
        block = self._block
        step = (sample - block.first) // block.samples if block is not None else 0
        if block is None or not 0 <= step < len(block.batches):
            block, step = self._turn(sample), 0
        batch = block.batches[step]
        if batch.sample != sample:  # not on a step of this block's: somebody went back
            block = self._turn(sample)
            batch, step = block.batches[0], 0
        block.ids.need(step // block.together)
        self._drawn += batch.counts
        if step == len(block.batches) - 1:
            self._block = None  # its memory may go back to work
        self._left_at = perf_counter()
        return batch

    def switch(self, segment: Segment) -> None:
        """From ``segment.sample`` on, draw by its weights; the schedule stays this one's."""
        with self._lock:
            self._order = self._order.with_weights(segment.sample, segment.weights)
            self._steps = None

    def drawn(self) -> dict[str, int]:
        """Samples of each source up to the last batch handed out, of sources gone by now too."""
        return {name: int(n) for name, n in zip(self._names, self._drawn, strict=True)}

    def close(self) -> None:
        """End the prefetching thread."""
        if self._thread is not None:
            self._thread.close()

    def _batch_now(self, sample: int) -> Batch:
        """The same where nothing is drawn ahead."""
        if self._buffers is not None:
            self._buffers.settle()
        steps, number = self._steps_from(sample)
        source, counts = steps.source[number], steps.counts[number]
        ids, tensor = self._memory((1, *source.shape, self.layout.sequence_length))
        _fill(self._gatherer, steps, number, ids, 1, 0)
        self._drawn += counts
        held = None if tensor is None else tensor[0]
        return Batch(sample, steps.samples, ids[0], source, steps.index[number], counts, held)

    def _turn(self, sample: int) -> _Block:
        """The block that begins at `sample`; the one after it is begun."""
        waiting, self._next, self._block = self._next, None, None
        if self._buffers is not None:
            self._buffers.settle()
        if waiting is not None and waiting[0] == sample:
            block = waiting[1].get()
        else:
            block = self._make_block(sample)
        end = sample + len(block.batches) * block.samples
        following = LazyValue(partial(self._make_block, end))
        self._next = (end, following)
        if self._thread is not None and self._busy >= _MIN_BUSY:
            self._thread.submit(partial(_fill_ahead, following))
        self._block, self._busy = block, 0.0
        return block

    def _make_block(self, sample: int) -> _Block:
        """The block that begins at `sample`, and memory for its ids, not filled yet."""
        steps, begin = self._steps_from(sample)
        part = slice(begin, begin + self._block_steps)
        source, index, counts = steps.source[part], steps.index[part], steps.counts[part]
        ids, tensor = self._memory((*source.shape, self.layout.sequence_length))
        batches = [
            Batch(
                sample + n * steps.samples,
                steps.samples,
                ids[n],
                source[n],
                index[n],
                counts[n],
                None if tensor is None else tensor[n],
            )
            for n in range(len(counts))
        ]
        together = max(1, _MIN_FILLED // ids[0].nbytes)
        # and not of self: no cycle
        fill = partial(_fill, self._gatherer, steps, begin, ids, together)
        parts = LazyParts(-(-len(ids) // together), fill)
        return _Block(sample, steps.samples, batches, together, parts)

    def _steps_from(self, sample: int) -> tuple[_DrawnSteps, int]:
        """Steps drawn together, and which of them begins at `sample`."""
        with self._lock:
            number = None if self._steps is None else self._steps.number(sample)
            if self._steps is None or number is None:
                self._steps, number = self._draw_steps(sample), 0
            return self._steps, number

    def _draw_steps(self, sample: int) -> _DrawnSteps:
        samples = self._schedule.at(sample)
        steps = max(1, _MIN_DRAWN // (samples * self._block_steps)) * self._block_steps
        until = self._schedule.until(sample)
        if until is not None:
            steps = max(1, min(steps, (until - sample) // samples))
        source, index = self._order.batch(sample, steps * samples)
        if self._renumbered:
            source = self._numbers[source]
        source, index = source.reshape(steps, samples), index.reshape(steps, samples)
        names = len(self._names)
        number = source + np.arange(0, steps * names, names)[:, None]
        counts = np.bincount(number.ravel(), minlength=steps * names).reshape(steps, names)
        if counts[:, self._sources :].any():  # refused when the incarnation began
            raise RuntimeError(f"sample {sample} is of a source that this job no longer has")
        source, index = self.layout.own(source), self.layout.own(index)
        offsets = self._gatherer.offsets(source, index)
        return _DrawnSteps(sample, samples, source, index, counts, offsets)

    def _memory(self, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], torch.Tensor | None]:
        """Memory for ids [steps, accumulation, rows, L], and the tensor it is of, if pinned."""
        if self._buffers is None:
            return np.empty(shape, np.int64), None
        array, tensor = self._buffers.take()
        rows = math.prod(shape[:-1])
        return array[:rows].reshape(shape), None if tensor is None else tensor[:rows].view(shape)


def _fill(
    gatherer: BatchGatherer,
    steps: _DrawnSteps,
    begin: int,
    ids: npt.NDArray[Any],
    together: int,
    number: int,
) -> None:
    """Fill a part of a block, `together` steps; its first is step `begin` of those drawn."""
    out = ids[number * together : (number + 1) * together]
    part = slice(begin + number * together, begin + number * together + len(out))
    if steps.offsets is not None:
        gatherer.fill_from(steps.offsets[part], out)
    else:
        gatherer.fill(steps.source[part], steps.index[part], out)


def _fill_ahead(block: LazyValue[_Block], stop: threading.Event) -> None:
    block.get().ids.ahead(stop)
