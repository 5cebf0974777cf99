"""The mixing order: which source, and which of its samples, comes at each place of the run.

A pure function of sizes, seed and schedule, exact in integers. Light: numpy only.

*Shares.* Weights are integers over ``SCALE`` = 2^24. For each source the order keeps its *credit*:
what the integrated weights owe it less what it got, in units of 1/SCALE samples. Credits sum to
zero. Each quantum adds every source's weight times the quantum, then gives whole samples: first
what is overdue (credit of a sample or more), then, one each, to the sources with some credit whose
next sample falls due first, ties by source index. This is earliest-deadline-first over the windows
of proportionate fairness (Baruah, Cohen, Plaxton and Varvel 1996; for one at a time Tijdeman 1980,
"The chairman assignment problem"), which is optimal here because a quantum may give several samples
to one source: unit jobs, integral release times and deadlines, so the fluid schedule that always
exists has an integral one, and EDF finds it. Under fixed weights every source therefore has floor
or ceil of its share after every quantum.

*Changes.* Credits are carried into the next segment. A source is never ahead by a whole sample; one
may fall behind by more than one when a change makes more samples overdue than a quantum holds: then
the least credit waits. No on-line rule can bound that by a constant for every adversary: one that
always takes the weight from whoever was just served drives some source to H(k) - 1 behind (k
sources, H the harmonic number; below 2 up to 10 sources). See the tests for what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mixloop.trainer.permutation import half_bits, permute, round_keys

SHIFT = 24
SCALE = 1 << SHIFT
"""Weights are integers over this."""

SUM_TOLERANCE = 1e-6
_SNAPSHOT_EVERY = 4096  # quanta between remembered states, so that going back is cheap
_NEVER = np.int64(2**62)
_EPOCH_BITS = 44

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A stretch under one mixture, from ``sample`` on.

    ``weights`` are shares by source name (floats that sum to 1, or integers that sum to SCALE; a
    source left out has none); ``quantum`` is the samples of one optimizer step.
    """

    sample: int
    weights: Mapping[str, float] | Mapping[str, int]
    quantum: int


def quantise(weights: Mapping[str, float]) -> dict[str, int]:
    """Shares as integers that sum to ``SCALE``, by largest remainder.

    A positive share never becomes zero.

    Raises:
        ValueError: a share that is negative or not finite, or shares that don't sum to 1.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} has weight {weight!r}, which is no share")
    total = math.fsum(weights.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"the weights sum to {total:.9g}, not 1")
    exact = {name: weight / total * SCALE for name, weight in weights.items()}
    units = {name: max(int(value), int(value > 0)) for name, value in exact.items()}
    short = SCALE - sum(units.values())
    if short > 0:
        by_rest = sorted(exact, key=lambda name: units[name] - exact[name])
        for name in by_rest[:short]:
            units[name] += 1
    for _ in range(-short):  # more tiny shares than units to spare: the largest gives
        units[max(units, key=lambda name: units[name])] -= 1
    return units


def _units(weights: Mapping[str, float] | Mapping[str, int], names: Sequence[str]) -> Ints:
    """The weights as integers in source order.

    Raises:
        ValueError: an unknown source, or no mixture.
    """
    if unknown := [name for name in weights if name not in names]:
        raise ValueError(f"no source is called {unknown[0]!r}")
    whole = all(type(value) is int and value >= 0 for value in weights.values())
    if not (whole and sum(weights.values()) == SCALE):
        weights = quantise(weights)
    return np.array([weights.get(name, 0) for name in names], dtype=np.int64)


@dataclass(frozen=True)
class _State:
    """Samples each source got since the start of the run, and its credit (in 1/SCALE samples)."""

    got: Ints
    credit: Ints


class _Stretch:
    """One segment: the state after any number of its quanta."""

    def __init__(self, weights: Ints, quantum: int, start: _State) -> None:
        self.weights = weights
        self.quantum = quantum
        self._owed = weights * np.int64(quantum)
        self._rate = np.where(weights > 0, weights, 1)
        self._period = SCALE // math.gcd(SCALE, quantum)
        self._snapshots: dict[int, _State] = {0: start}
        self._cursor = (0, start)
        self._cycle: tuple[int, int] | None = None  # (first quantum, length) of what repeats

    def give(self, credit: Ints, owed: Ints, quantum: int) -> Ints:
        """Samples per source of the next quantum, by the rule in the module's docstring."""
        credit = credit + owed
        given = np.maximum(credit >> SHIFT, 0)
        left = quantum - int(given.sum())
        if left > 0:
            rest = credit - (given << SHIFT)
            # ceil((SCALE - rest) / weight): samples until the next one is overdue
            due = (SCALE - rest + self._rate - 1) // self._rate
            due[self.weights == 0] = _NEVER - 1  # owed from earlier, growing no more: last
            due[rest <= 0] = _NEVER  # nothing owed: not eligible
            given[np.argsort(due, kind="stable")[:left]] += 1
        elif left < 0:
            _withhold(given, credit, -left)
        return given

    def _next(self, state: _State) -> _State:
        given = self.give(state.credit, self._owed, self.quantum)
        return _State(state.got + given, state.credit + self._owed - (given << SHIFT))

    def after(self, quanta: int) -> _State:
        """The state after so many whole quanta of this segment."""
        if self._cycle is None and quanta > self._period:
            self._find_cycle(quanta)
        if self._cycle is None or quanta <= self._cycle[0]:
            return self._walk(quanta)
        first, length = self._cycle
        rounds, rest = divmod(quanta - first, length)
        once = self._walk(first + length).got - self._walk(first).got
        here = self._walk(first + rest)
        return _State(here.got + rounds * once, here.credit)

    def _find_cycle(self, quanta: int) -> None:
        """Look for a period whose end has the credits of its beginning.

        Credits return to the same fractions every period, so once they are equal they stay so.
        """
        ends = range(0, quanta - quanta % self._period + 1, self._period)
        for before, after in pairwise(ends):
            if np.array_equal(self._walk(before).credit, self._walk(after).credit):
                self._cycle = (before, self._period)
                return

    def _walk(self, quanta: int) -> _State:
        place, state = self._cursor
        if place > quanta:
            place = quanta - quanta % _SNAPSHOT_EVERY
            while place not in self._snapshots:
                place -= _SNAPSHOT_EVERY
            state = self._snapshots[place]
        while place < quanta:
            state = self._next(state)
            place += 1
            if place % _SNAPSHOT_EVERY == 0:
                self._snapshots[place] = state
        self._cursor = (place, state)
        return state


def _withhold(given: Ints, credit: Ints, count: int) -> None:
    """More is overdue than the quantum holds: the least credit waits. Changes ``given``."""
    while count > 0:
        behind = credit - (given << SHIFT)
        behind[given == 0] = _NEVER
        chosen = np.argsort(behind, kind="stable")[: min(count, int((given > 0).sum()))]
        given[chosen] -= 1
        count -= len(chosen)


class MixtureOrder:
    """The global sample order of a run.

    Args:
        sizes: Samples each source holds, by name; their order gives the source indices.
        seed: Of the permutations within the sources.
        schedule: Segments; the first starts at sample 0. Of two at one sample the later holds.

    A segment that starts inside a quantum of the one before shortens that quantum.

    Raises:
        ValueError: for an empty source, a schedule that doesn't start at 0, or weights that are
            no mixture of these sources.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int, schedule: Sequence[Segment]) -> None:
        if not sizes:
            raise ValueError("no sources")
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"source {name!r} has {size} samples")
        self._names = tuple(sizes)
        self._sizes = dict(sizes)
        self._size = np.array(list(sizes.values()), dtype=np.int64)
        self._bits = np.array([half_bits(size) for size in sizes.values()], dtype=np.uint64)
        self._seed = seed
        self._keys: dict[tuple[int, int], npt.NDArray[np.uint64]] = {}
        self._segments: list[Segment] = []
        self._stretches: list[_Stretch | None] = []
        latest = {segment.sample: segment for segment in schedule}
        for sample in sorted(latest):
            self._append(latest[sample])
        if not self._segments or self._segments[0].sample != 0:
            raise ValueError("the schedule must start with a segment at sample 0")

    @property
    def names(self) -> tuple[str, ...]:
        """The sources, in the order of their indices."""
        return self._names

    @property
    def schedule(self) -> tuple[Segment, ...]:
        """The segments, by sample."""
        return tuple(self._segments)

    def with_segment(self, segment: Segment) -> MixtureOrder:
        """This order with one more segment; what is known of the earlier ones is kept.

        Raises:
            ValueError: when the segment starts before the last one.
        """
        if segment.sample <= self._segments[-1].sample:
            raise ValueError(f"segment at {segment.sample} is not after the last one")
        made = MixtureOrder.__new__(MixtureOrder)
        made.__dict__ |= self.__dict__
        made._segments, made._stretches = list(self._segments), list(self._stretches)
        made._append(segment)
        return made

    def _append(self, segment: Segment) -> None:
        if segment.quantum < 1:
            raise ValueError(f"a quantum of {segment.quantum} samples")
        _units(segment.weights, self._names)
        self._segments.append(segment)
        self._stretches.append(None)

    # -- where we are ------------------------------------------------------------------------

    def _index(self, sample: int) -> int:
        """The segment that a sample lies in."""
        low, high = 0, len(self._segments)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._segments[middle].sample <= sample else (low, middle)
        return low

    def _stretch(self, index: int) -> _Stretch:
        ready = index
        while ready > 0 and self._stretches[ready] is None:
            ready -= 1
        for place in range(ready, index + 1):
            if self._stretches[place] is None:
                self._stretches[place] = self._begin(place)
        found = self._stretches[index]
        assert found is not None
        return found

    def _begin(self, index: int) -> _Stretch:
        segment = self._segments[index]
        start = _State(np.zeros_like(self._size), np.zeros_like(self._size))
        if index > 0:
            before = self._stretches[index - 1]
            assert before is not None
            length = segment.sample - self._segments[index - 1].sample
            start = self._end_of(before, length)
        return _Stretch(_units(segment.weights, self._names), segment.quantum, start)

    def _end_of(self, stretch: _Stretch, length: int) -> _State:
        whole, rest = divmod(length, stretch.quantum)
        state = stretch.after(whole)
        if rest == 0:
            return state
        owed = stretch.weights * np.int64(rest)
        given = stretch.give(state.credit, owed, rest)
        return _State(state.got + given, state.credit + owed - (given << SHIFT))

    def _quantum(self, sample: int) -> tuple[int, int, Ints, Ints]:
        """The quantum a sample lies in: (first sample, length, got before it, given in it)."""
        index = self._index(sample)
        segment, stretch = self._segments[index], self._stretch(index)
        number = (sample - segment.sample) // segment.quantum
        first = segment.sample + number * segment.quantum
        length = segment.quantum
        if index + 1 < len(self._segments):
            length = min(length, self._segments[index + 1].sample - first)
        state = stretch.after(number)
        given = stretch.give(state.credit, stretch.weights * np.int64(length), length)
        return first, length, state.got, given

    # -- what comes --------------------------------------------------------------------------

    def batch(self, start: int, count: int) -> tuple[Ints, Ints]:
        """``count`` samples of the global order, from ``start`` on.

        Returns:
            Two int64 arrays of shape [count]: index of the source (in the order of ``sizes``), and
            index of the sample within it.

        Raises:
            ValueError: a negative start or count.
        """
        if start < 0 or count < 0:
            raise ValueError(f"no batch of {count} samples from {start}")
        sources, positions, place, end = [], [], start, start + count
        while place < end:
            first, length, got, given = self._quantum(place)
            source, position = _spread(given, got)
            window = slice(place - first, min(end - first, length))
            sources.append(source[window])
            positions.append(position[window])
            place = first + length
        if not sources:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        source = np.concatenate(sources)
        return source, self._shuffled(source, np.concatenate(positions))

    def drawn(self, sample: int) -> dict[str, int]:
        """Samples of each source among the first ``sample`` of the run.

        Raises:
            ValueError: a negative sample.
        """
        if sample < 0:
            raise ValueError(f"no sample {sample}")
        first, _, got, given = self._quantum(sample)
        if sample > first:
            source, _ = _spread(given, got)
            got = got + np.bincount(source[: sample - first], minlength=len(got))
        return {name: int(count) for name, count in zip(self._names, got, strict=True)}

    def _shuffled(self, source: Ints, position: Ints) -> Ints:
        """Positions in the sources' endless streams as sample indices, epoch by epoch."""
        size = self._size[source]
        epoch, index = position // size, position % size
        pairs, inverse = np.unique((source << _EPOCH_BITS) | epoch, return_inverse=True)
        last = (1 << _EPOCH_BITS) - 1
        found = [self._key(int(p) >> _EPOCH_BITS, int(p) & last) for p in pairs]
        keys = np.stack(found, axis=1)
        moved = permute(
            index.astype(np.uint64),
            size.astype(np.uint64),
            self._bits[source],
            keys[:, inverse],
        )
        return moved.astype(np.int64)

    def _key(self, source: int, epoch: int) -> npt.NDArray[np.uint64]:
        found = self._keys.get((source, epoch))
        if found is None:
            found = round_keys(self._seed, self._names[source], epoch)
            self._keys[source, epoch] = found
        return found


def _spread(given: Ints, got: Ints) -> tuple[Ints, Ints]:
    """A quantum's samples, every source spread evenly over it: source and stream position of each.

    The j-th of a source's m samples aims at (j + 1/2) / m of the quantum; ties by source index.
    """
    source = np.repeat(np.arange(len(given)), given)
    nth = np.arange(len(source)) - np.repeat(np.cumsum(given) - given, given)
    place = np.argsort((nth + 0.5) / given[source], kind="stable")
    return source[place], (got[source] + nth)[place]
