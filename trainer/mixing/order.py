"""The mixing order: which sample of which source stands at which place, as a pure function.

There is one global order, computable from any place without replay and independent of how it is
sliced. :mod:`quota` says how many samples each source gives to a quantum, this module spreads them
inside it, :mod:`permutation` says which sample of the source each one is, and :mod:`epochs` where
the epochs of a source begin that has grown.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixloop.contract import SCALE, Segment, quantise

from .epochs import GrowingSource, SourceVersions, histories_of, passes, versions_of
from .permutation import Permutations
from .quota import SourceQuotas

Ints = npt.NDArray[np.int64]

_BLOCK = 32768  # samples computed together; a quantum is never split
_KEPT = 4  # blocks kept for the next call
_PHASE = np.uint32(0x9E3779B9)  # 2^32 divided by the golden ratio: multiples spread evenly


@dataclass(frozen=True)
class _Stretch:
    """A segment, what was drawn and owed when it began."""

    start: int
    weights: Ints
    quota: SourceQuotas
    before: Ints
    carried: Ints


@dataclass(frozen=True)
class _Block:
    """Consecutive quanta: where they begin, their samples, and the draws after each quantum."""

    first: int
    source: Ints
    position: Ints
    drawn: Ints


class MixtureOrder:
    """The global order of samples of a run.

    Args:
        sizes: samples of each source by name, in the order that `batch` numbers them. For a source
            that was extended: (first sample of the run from which, samples), ascending; each size
            holds from the first epoch that begins at that sample or later.
        seed: the run's seed; it keys the order within each source.
        schedule: segments by first sample, the first at 0. A source's remainder is carried from
            one to the next. One that begins inside a quantum of the segment before makes that
            quantum a shorter one; quanta are counted from the segment's first sample.

    Raises:
        ValueError: a size, quantum, weight, name or first sample is out of range.
    """

    def __init__(
        self,
        sizes: Mapping[str, int | Sequence[tuple[int, int]]],
        seed: int,
        schedule: Sequence[Segment],
    ) -> None:
        self._histories = histories_of(sizes)
        self._seed = seed
        if not schedule or schedule[0].sample != 0:
            raise ValueError("a schedule begins with a segment at sample 0")
        self._names = tuple(sizes)
        first = {name: history[0][1] for name, history in self._histories.items()}
        self._permutations: Permutations | GrowingSource = Permutations(first, seed)
        self._versions: dict[str, SourceVersions] = {}
        self._stretches: tuple[_Stretch, ...] = ()
        self._blocks: dict[tuple[int, int], _Block] = {}
        for segment in schedule:
            self._extend(segment)
        self._grow()

    @property
    def names(self) -> tuple[str, ...]:
        """Sources, in the order that `batch` numbers them."""
        return self._names

    def with_segment(self, segment: Segment) -> MixtureOrder:
        """This order with one more segment; whole quanta before it stay as they are.

        Raises:
            ValueError: the segment begins before the last one, or is out of range.
        """
        return self._with(self._stretches, [segment])

    def with_weights(
        self, sample: int, weights: Mapping[str, float] | Mapping[str, int]
    ) -> MixtureOrder:
        """This order drawn by other weights from `sample` on; its quanta stay as they are.

        Segments that begin later keep their quanta and get these weights too.

        Raises:
            ValueError: `sample` is negative, or the weights are out of range.
        """
        if sample < 0:
            raise ValueError(f"sample {sample} must not be negative")
        cut = bisect_right(self._stretches, sample, key=lambda stretch: stretch.start)
        later = self._stretches[cut:]
        quantum = self._stretches[cut - 1].quota.quantum
        while cut and self._stretches[cut - 1].start == sample:
            cut -= 1
        stages = [(sample, quantum), *((s.start, s.quota.quantum) for s in later)]
        return self._with(self._stretches[:cut], [Segment(at, weights, q) for at, q in stages])

    def _with(self, kept: tuple[_Stretch, ...], segments: Sequence[Segment]) -> MixtureOrder:
        """An order of some of these stretches, and of further segments."""
        other = copy.copy(self)
        other._stretches, other._blocks = kept, {}
        for segment in segments:
            other._extend(segment)
        other._grow()
        return other

    def batch(self, start: int, count: int) -> tuple[Ints, Ints]:
        """Samples `start` to ``start + count`` of the order.

        Returns:
            Index of the source (in `sizes`' order) and of the sample within it, two arrays of
            shape [count].

        Raises:
            ValueError: `start` or `count` is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start {start} and count {count} must not be negative")
        at, end = start, start + count
        newest = next(reversed(self._blocks.values()), None)  # it mostly holds it all
        if newest and newest.first <= at and end <= newest.first + newest.source.size:
            part = slice(at - newest.first, end - newest.first)
            return newest.source[part].copy(), newest.position[part].copy()
        sources, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while at < end:
            block = self._block_at(at)
            part = slice(at - block.first, end - block.first)
            sources.append(block.source[part])
            positions.append(block.position[part])
            at += sources[-1].size
        return np.concatenate(sources), np.concatenate(positions)

    def drawn(self, sample: int) -> dict[str, int]:
        """Draws of each source among the first `sample` samples of the order.

        Raises:
            ValueError: `sample` is negative.
        """
        if sample < 0:
            raise ValueError(f"sample {sample} must not be negative")
        return dict(zip(self._names, map(int, self._drawn(sample)), strict=True))

    # --- epochs ------------------------------------------------------------------------------

    @property
    def versions(self) -> Mapping[str, SourceVersions]:
        """By source, where its epochs begin and how many samples they have."""
        return self._versions

    def epochs(self, sample: int) -> dict[str, float]:
        """Passes over each source in the first `sample` samples of the order.

        Raises:
            ValueError: `sample` is negative.
        """
        return {
            name: passes(self._versions[name], drawn) for name, drawn in self.drawn(sample).items()
        }

    def _grow(self) -> None:
        """Find where sources that were extended change their size, from what was drawn by then."""
        at = sorted({sample for sizes in self._histories.values() for sample, _ in sizes[1:]})
        drawn = {sample: self._drawn(sample) for sample in at}
        self._versions = {
            name: versions_of(sizes, {sample: int(drawn[sample][index]) for sample in at})
            for index, (name, sizes) in enumerate(self._histories.items())
        }
        if at:
            self._permutations = GrowingSource(self._versions, self._seed)
            self._blocks = {}  # of sources that had not grown

    # --- segments ----------------------------------------------------------------------------

    def _extend(self, segment: Segment) -> None:
        weights = self._units(segment)
        zero = np.zeros(len(self._names), np.int64)
        before, carried = zero, zero
        if self._stretches:
            last = self._stretches[-1]
            length = segment.sample - last.start
            if length < 0:
                raise ValueError(
                    f"the segment at sample {segment.sample} comes after one at {last.start}"
                )
            drawn = _drawn_at_end(last.quota, length)
            before = last.before + drawn
            carried = _remainder(last, length, drawn)
        quota = SourceQuotas(weights, segment.step_samples, carried)
        stretch = _Stretch(segment.sample, weights, quota, before, carried)
        self._stretches = (*self._stretches, stretch)

    def _units(self, segment: Segment) -> Ints:
        """The segment's integer weights, shape [sources]."""
        unknown = sorted(set(segment.weights) - set(self._names))
        if unknown:
            raise ValueError(f"the segment at sample {segment.sample}: no source {unknown[0]!r}")
        if segment.step_samples < 1:
            raise ValueError(f"quantum is {segment.step_samples}: it is at least 1 sample")
        units = quantise(segment.weights)
        return np.array([units.get(name, 0) for name in self._names], np.int64)

    def _index(self, sample: int) -> int:
        return bisect_right(self._stretches, sample, key=lambda stretch: stretch.start) - 1

    def _end(self, index: int) -> int | None:
        """Samples of a stretch; None for the last, which goes on."""
        if index + 1 == len(self._stretches):
            return None
        return self._stretches[index + 1].start - self._stretches[index].start

    # --- blocks ------------------------------------------------------------------------------

    def _drawn(self, sample: int) -> Ints:
        index = self._index(sample)
        stretch = self._stretches[index]
        quantum = stretch.quota.quantum
        quanta, part = divmod(sample - stretch.start, quantum)
        if part == 0 and (index, self._number(sample)) not in self._blocks:
            return np.asarray(stretch.before + stretch.quota.after(quanta), np.int64)
        block = self._block_at(sample)
        row, part = divmod(sample - block.first, quantum)
        begun = np.bincount(block.source[row * quantum :][:part], minlength=len(self._names))
        return np.asarray(block.drawn[row] + begun, np.int64)

    def _number(self, sample: int) -> int:
        """Number of the block within its stretch that a sample lies in."""
        stretch = self._stretches[self._index(sample)]
        return (sample - stretch.start) // _block_size(stretch.quota.quantum)

    def _block_at(self, sample: int) -> _Block:
        key = (self._index(sample), self._number(sample))
        block = self._blocks.get(key)
        if block is None:
            while len(self._blocks) >= _KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[key] = self._compute(*key)
        return block

    def _compute(self, index: int, number: int) -> _Block:
        """Compute a block; from the one before it if that is at hand."""
        stretch, length = self._stretches[index], self._end(index)
        quantum = stretch.quota.quantum
        size = _block_size(quantum)
        first = number * size
        last = first + size if length is None else min(first + size, length)
        previous = self._blocks.get((index, number - 1))
        if previous is None:
            begun = stretch.quota.after(first // quantum)
        else:
            begun = previous.drawn[-1] - stretch.before
        ends = np.minimum(np.arange(first + quantum, last + quantum, quantum), last)
        drawn = np.vstack((begun, stretch.quota.walk(first, ends, begun)))
        drawn += stretch.before
        source, position = self._select(drawn, first // quantum)
        return _Block(stretch.start + first, source, position, drawn)

    def _select(self, drawn: Ints, quantum: int) -> tuple[Ints, Ints]:
        """Source and sample at each place of some quanta; arguments as for `_spread`."""
        every = drawn[-1] - drawn[0]
        order = _spread(drawn, quantum)
        sample = self._permutations.consecutive(drawn[0], every)
        return np.repeat(np.arange(every.size), every).take(order), sample.take(order)


def _block_size(quantum: int) -> int:
    return max(1, _BLOCK // quantum) * quantum


def _drawn_at_end(quota: SourceQuotas, length: int) -> Ints:
    """Draws by source in the first `length` samples of a stretch that ends there."""
    quanta, rest = divmod(length, quota.quantum)
    drawn = quota.after(quanta)
    if rest:
        drawn = quota.walk(length - rest, np.array([length]), drawn)[0]
    return drawn


def _remainder(stretch: _Stretch, length: int, drawn: Ints) -> Ints:
    """Entitlement less draws after `length` samples, in units of 1/SCALE sample."""
    turns, offset = divmod(length, SCALE)
    owed = stretch.carried + stretch.weights * offset - (drawn - stretch.weights * turns) * SCALE
    return np.asarray(owed, np.int64)


def _spread(drawn: Ints, quantum: int) -> Ints:
    """Order the samples of some quanta, each source spread evenly inside each quantum.

    The j-th of c samples of a source stands at ``(j + phase) / c``; the phase differs by source and
    quantum, so that sources with a single sample don't crowd in one place. Places are integers over
    2^32, with the sample's number below them: no two are alike, so any sorting gives this order.

    Args:
        drawn: draws by source before the first and after each quantum, shape [quanta + 1, sources].
        quantum: number of the first of them.

    Returns:
        Numbers of the samples, counted source after source and draw after draw, shape [samples].
    """
    counts = np.diff(drawn, axis=0)
    quanta, sources = counts.shape
    every = drawn[-1] - drawn[0]
    total = int(every.sum())
    bits = np.uint64(max(1, total - 1).bit_length())
    row = (np.arange(quanta) + quantum & 0xFFFF).astype(np.uint32)[:, None]
    phase = np.arange(1, sources + 1, dtype=np.uint32) + np.uint32(7) * row
    phase *= _PHASE  # modulo 2^32
    first = drawn[:-1] - (drawn[0] + every - np.cumsum(every))
    # many sources give nothing to most quanta of a few samples: those are left out from here on
    cells = np.flatnonzero(counts != 0)
    count = counts.reshape(-1).take(cells)
    steps = np.arange(int(count.max()) + 1, dtype=np.uint64)
    steps[1:] = np.uint64(2**32) // steps[1:]
    step = steps.take(count)
    key = phase.reshape(-1).take(cells).astype(np.uint64)
    key *= step
    key >>= np.uint64(32)
    key <<= bits
    key += first.reshape(-1).take(cells).view(np.uint64)
    # the key of a source's j-th sample in a quantum is its first one's plus j strides, modulo 2^64
    step <<= bits
    step |= np.uint64(1)
    back = np.cumsum(count)
    back -= count
    keys = np.arange(total, dtype=np.uint64)
    keys *= np.repeat(step, count)
    step *= back.view(np.uint64)
    key -= step
    keys += np.repeat(key, count)
    _sort_rows(keys, int(counts[0].sum()))
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


def _sort_rows(keys: npt.NDArray[np.uint64], width: int) -> None:
    """Sort each row of a ragged array, whose last row alone may be shorter, in place."""
    whole = keys.size // width * width
    keys[:whole].reshape(-1, width).sort(axis=1)
    keys[whole:].sort()
