"""What any rank saw at any step: the courses of a run, from nothing but its schedule's lines.

Each incarnation follows a *course*: the segments as it had them. The last one's course is the
run's; of those before it counts what they did up to the sample where the next one began. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixloop.contract import BatchSchedule, Line, OpenLine, Schedule, Segment, SegmentLine, VoidLine
from mixloop.trainer.batches import BatchLayout
from mixloop.trainer.mixing import MixtureOrder, epochs_of

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Branch:
    """The order that one incarnation draws by.

    `key` tells courses of a run apart. `pieces` are the incarnations that made it, by first sample,
    this one last: they say how steps and ranks lay over the samples.
    """

    key: tuple[int, int]
    pieces: tuple[OpenLine, ...]
    schedule: Schedule

    @property
    def segments(self) -> tuple[SegmentLine, ...]:
        """Those that hold."""
        return self.schedule.segments

    @property
    def mixture(self) -> tuple[Segment, ...]:
        """As the data order takes it."""
        return self.schedule.mixture

    @property
    def names(self) -> tuple[str, ...]:
        """Every source it ever had, as the data order numbers them."""
        return tuple(self.schedule.sources)

    def quantum(self, sample: int) -> int:
        """Samples of a step that begins at `sample`."""
        return BatchSchedule(self.schedule.batch_stages).at(sample)

    @property
    def opened(self) -> OpenLine:
        """The incarnation whose course this is."""
        return self.pieces[-1]

    def piece(self, sample: int) -> OpenLine:
        """The incarnation that drew a sample."""
        return next(p for p in reversed(self.pieces) if p.sample <= sample or p is self.pieces[0])

    def samples_of(self, step: int) -> tuple[OpenLine, int, int]:
        """The incarnation that made a step, the step's first sample and how many it has.

        Raises:
            ValueError: no step of this course has that number.
        """
        found = [piece for piece in self.pieces if piece.step <= step]
        if not found:
            raise ValueError(f"step {step}: the run begins with step {self.pieces[0].step}")
        piece = found[-1]
        at, done = piece.sample, piece.step
        ends = [segment.sample for segment in self.mixture[1:]] + [None]
        for segment, end in zip(self.mixture, ends, strict=True):
            if end is not None and end <= at:
                continue
            steps = None if end is None else -(-(end - at) // segment.step_samples)
            if steps is None or step - done < steps:
                first = at + (step - done) * segment.step_samples
                return (
                    piece,
                    first,
                    segment.step_samples if end is None else min(segment.step_samples, end - first),
                )
            assert end is not None
            at, done = end, done + steps
        raise ValueError(f"step {step}: the schedule has no segment")

    def in_force(self, sample: int) -> SegmentLine | None:
        """The segment that the sample before `sample` was drawn by."""
        return next((s for s in reversed(self.segments) if s.sample < sample), None)


@dataclass(frozen=True)
class RankBatch:
    """What one rank saw in one step; arrays have the shape [accumulation, rows].

    `place` is the sample's place in the global order, `source` an index into `names`, which are the
    sources as the incarnation listed them, `draw` its number among the source's draws since the run
    began, `epoch` the passes over the source before it, and `index` the sample within the source.
    """

    incarnation: int
    step: int
    sample: int
    rank: int
    world: int
    names: tuple[str, ...]
    place: Ints
    source: Ints
    draw: Ints
    epoch: Ints
    index: Ints


class ScheduleReplay:
    """All courses of a run, and the order of each.

    Raises:
        ValueError: the schedule has no `open` line or no segment at sample 0.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = tuple(lines)
        self._chain: list[tuple[object, MixtureOrder]] = []
        self._sizes: Mapping[str, Sequence[tuple[int, int]]] = {}
        self._built: dict[tuple[int, int], Branch] = {}
        self._orders: dict[tuple[int, int], MixtureOrder] = {}
        if not self.opens:
            raise ValueError("no `open` line: no trainer has begun this run")
        if not self.final.mixture or self.final.mixture[0].sample != 0:
            raise ValueError("no segment at sample 0: the run has no first mixture")

    @cached_property
    def opens(self) -> dict[int, OpenLine]:
        """The first line of every incarnation."""
        return {line.incarnation: line for line in self._lines if isinstance(line, OpenLine)}

    @cached_property
    def never(self) -> frozenset[int]:
        """Positions of the segment lines that a `void` takes back, whenever it was written."""
        open_: dict[tuple[int, int, int], list[int]] = {}
        found = set()
        for at, line in enumerate(self._lines):
            if isinstance(line, SegmentLine):
                open_.setdefault((line.sample, line.fence, line.generation), []).append(at)
            elif isinstance(line, VoidLine):
                recorded = open_.get((line.sample, line.fence, line.generation))
                if recorded:
                    found.add(recorded.pop())
        return frozenset(found)

    @cached_property
    def recorded(self) -> frozenset[tuple[int, int, int]]:
        """Sample, fence and generation of every segment that was ever durable, void or not."""
        segments = (line for line in self._lines if isinstance(line, SegmentLine))
        return frozenset((s.sample, s.fence, s.generation) for s in segments)

    @property
    def final(self) -> Branch:
        """The run's own course: that of its last incarnation."""
        return self.of(next(reversed(self.opens)))

    def of(self, incarnation: int) -> Branch:
        """The course of an incarnation: what was recorded until the next began, less what was void.

        Raises:
            ValueError: no such incarnation.
        """
        if incarnation not in self.opens:
            raise ValueError(
                f"incarnation {incarnation}: the run has {', '.join(map(str, self.opens))}"
            )
        return self._build(incarnation)

    def late(self, incarnation: int) -> Branch | None:
        """The course of an incarnation that ended before it could void its last segment.

        That one may have been durable too late to be announced; the next incarnation voids it, or
        goes back to before it and has it in force. None when this can't be, because the next
        went on from beyond that segment and kept it.
        """
        own = [
            at
            for at, line in enumerate(self._lines)
            if isinstance(line, SegmentLine) and line.incarnation == incarnation and line.sample
        ]
        if not own or own[-1] in self.never:
            return None
        last = self._lines[own[-1]]
        heir = next((opened for n, opened in self.opens.items() if n > incarnation), None)
        if heir is not None and heir.sample > last.sample:
            return None
        return self._build(incarnation, without=own[-1])

    def _build(self, incarnation: int, without: int = -1) -> Branch:
        key = (incarnation, without)
        if key in self._built:
            return self._built[key]
        kept: list[Line] = []
        pieces: list[OpenLine] = []
        for at, line in enumerate(self._lines):
            if isinstance(line, OpenLine):
                if pieces and pieces[-1].incarnation == incarnation:
                    break
                while pieces and pieces[-1].sample >= line.sample:
                    pieces.pop()
                pieces.append(line)
            if at not in self.never and at != without and not isinstance(line, VoidLine):
                kept.append(line)
        schedule = Schedule(tuple(kept))
        self._built[key] = Branch(key, tuple(pieces), schedule)
        return self._built[key]

    def order(self, course: Branch) -> MixtureOrder:
        """The data order of a course; orders with a common beginning share its cost."""
        if course.key in self._orders:
            return self._orders[course.key]
        keys: list[object] = [
            (s.sample, s.step_samples, tuple(s.weights.items())) for s in course.mixture
        ]
        sizes = course.schedule.sizes
        if self._chain and sizes != self._sizes:
            self._chain = []
        self._sizes = sizes
        same = 0
        while same < min(len(keys), len(self._chain)) and self._chain[same][0] == keys[same]:
            same += 1
        del self._chain[same:]
        for key, segment in zip(keys[same:], course.mixture[same:], strict=True):
            if self._chain:
                order = self._chain[-1][1].with_segment(segment)
            else:
                order = MixtureOrder(sizes, course.opened.seed, [segment])
            self._chain.append((key, order))
        # an order of its own, whose blocks stay at hand
        return self._orders.setdefault(course.key, self._chain[-1][1])

    def seen(self, course: Branch, step: int, rank: int, world: int | None = None) -> RankBatch:
        """What a rank saw in a step; with `world`, what it would have seen among so many.

        Raises:
            ValueError: no such step or rank, or a world that the step can't be dealt to.
        """
        piece, first, count = course.samples_of(step)
        world = piece.world_size if world is None else world
        if world < 1 or count % (world * piece.micro_batch):
            raise ValueError(
                f"world {world}: a step of {count} samples can't be dealt to so many ranks in "
                f"micro-batches of {piece.micro_batch}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank}: step {step} was made by ranks 0 to {world - 1}")
        layout = BatchLayout(
            piece.micro_batch, count // (world * piece.micro_batch), rank, world,
            piece.sequence_length,
        )  # fmt: skip
        order = self.order(course)
        source, index = order.batch(first, count)
        before = np.array(list(order.drawn(first).values()), np.int64)
        draw = before[source] + _occurrence(source)
        epoch = np.zeros(draw.size, np.int64)
        for number, name in enumerate(order.names):
            here = np.flatnonzero(source == number)
            epoch[here] = epochs_of(order.versions[name], draw[here])
        own = tuple(entry.name for entry in piece.sources)
        lost = [name for name in order.names if name not in own]
        numbers = np.array([own.index(n) if n in own else -1 for n in order.names], np.int64)
        source = numbers[source]
        if (source < 0).any():
            raise ValueError(f"step {step}: draws from one of {', '.join(lost)}, which it lacked")
        mine = layout.positions()
        return RankBatch(
            incarnation=piece.incarnation,
            step=step,
            sample=first,
            rank=rank,
            world=world,
            names=own,
            place=first + mine,
            source=source[mine],
            draw=draw[mine],
            epoch=epoch[mine],
            index=index[mine],
        )


def _occurrence(values: Ints) -> Ints:
    """How many equal values stand before each, shape [n]."""
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values)
    found = np.empty(values.size, np.int64)
    found[order] = np.arange(values.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return found
