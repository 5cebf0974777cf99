"""What any rank saw at any step: the branches of a run, from nothing but its schedule's lines.

Each incarnation follows a *branch*: the segments as it had them. The last one's branch is the
run's; of those before it counts what they did up to the sample where the next one began. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixloop.contract import BatchSchedule, Line, OpenLine, Schedule, Segment, SegmentLine, VoidLine
from mixloop.trainer.batches import BatchLayout
from mixloop.trainer.mixing import MixtureOrder, epochs_of

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankBatch:
    """What one rank saw in one step; arrays have the shape [accumulation, rows].

    `position` is the sample's place in the global order, `source` an index into `names`, which are
    the sources as the incarnation listed them, `draw` its number among the source's draws since the
    run began, `epoch` the passes over the source before it, and `index` the sample within the
    source.
    """

    incarnation: int
    step: int
    sample: int
    rank: int
    world: int
    names: tuple[str, ...]
    position: Ints
    source: Ints
    draw: Ints
    epoch: Ints
    index: Ints


@dataclass(frozen=True)
class Branch:
    """The order that one incarnation draws by.

    `opens` are the first lines of the incarnations that made it, by first sample, this one's last:
    they say how steps and ranks lay over the samples.
    """

    opens: tuple[OpenLine, ...]
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

    @cached_property
    def steps(self) -> BatchSchedule:
        """The samples of every step."""
        return BatchSchedule(self.schedule.batch_stages)

    @cached_property
    def order(self) -> MixtureOrder:
        """The data order."""
        return MixtureOrder(self.schedule.sizes, self.opened.seed, self.mixture)

    @property
    def opened(self) -> OpenLine:
        """The incarnation whose branch this is."""
        return self.opens[-1]

    def opened_at(self, sample: int) -> OpenLine:
        """The incarnation that drew a sample."""
        return next(o for o in reversed(self.opens) if o.sample <= sample or o is self.opens[0])

    def stretches(self, until: int) -> Iterator[tuple[Segment, int]]:
        """The segments that samples before `until` were drawn from, and how many of them."""
        ends = [segment.sample for segment in self.mixture[1:]] + [until]
        for segment, end in zip(self.mixture, ends, strict=True):
            samples = min(end, until) - segment.sample
            if samples > 0:
                yield segment, samples

    def samples_of(self, step: int) -> tuple[OpenLine, int, int]:
        """The incarnation that made a step, the step's first sample and how many it has.

        Raises:
            ValueError: no step of this branch has that number.
        """
        opened = next((o for o in reversed(self.opens) if o.step <= step), None)
        if opened is None:
            raise ValueError(f"step {step}: the run begins with step {self.opens[0].step}")
        index = self.steps.index(opened.sample) + step - opened.step
        first = self.steps.first(index)
        return opened, first, self.steps.first(index + 1) - first

    def in_force(self, sample: int) -> SegmentLine | None:
        """The segment that the sample before `sample` was drawn by."""
        return next((s for s in reversed(self.segments) if s.sample < sample), None)

    def rank_batch(self, step: int, rank: int, world: int | None = None) -> RankBatch:
        """What a rank saw in a step; with `world`, what it would have seen among so many.

        Raises:
            ValueError: no such step or rank, or a world that the step can't be dealt to.
        """
        opened, first, count = self.samples_of(step)
        world = opened.world_size if world is None else world
        if world < 1 or count % (world * opened.micro_batch):
            raise ValueError(
                f"world {world}: a step of {count} samples can't be dealt to so many ranks in "
                f"micro-batches of {opened.micro_batch}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank}: step {step} was made by ranks 0 to {world - 1}")
        order = self.order
        source, index = order.batch(first, count)
        before = np.array(list(order.drawn(first).values()), np.int64)
        draw = before[source] + _occurrence(source)
        epoch = np.zeros(draw.size, np.int64)
        for number, name in enumerate(order.names):
            here = np.flatnonzero(source == number)
            epoch[here] = epochs_of(order.versions[name], draw[here])
        names = tuple(entry.name for entry in opened.sources)
        numbers = np.array([names.index(n) if n in names else -1 for n in order.names], np.int64)
        source = numbers[source]
        if (source < 0).any():
            lacking = ", ".join(name for name in order.names if name not in names)
            raise ValueError(f"step {step}: draws from one of {lacking}, which it lacked")
        layout = BatchLayout(opened.micro_batch, rank, world, opened.sequence_length)
        positions = layout.positions(count)
        return RankBatch(
            incarnation=opened.incarnation,
            step=step,
            sample=first,
            rank=rank,
            world=world,
            names=names,
            position=first + positions,
            source=source[positions],
            draw=draw[positions],
            epoch=epoch[positions],
            index=index[positions],
        )


class ScheduleReplay:
    """All branches of a run.

    Raises:
        ValueError: the schedule has no `open` line or no segment at sample 0.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = tuple(lines)
        self._branches: dict[tuple[int, int], Branch] = {}
        if not self.opens:
            raise ValueError("no `open` line: no trainer has begun this run")
        if not self.final.mixture or self.final.mixture[0].sample != 0:
            raise ValueError("no segment at sample 0: the run has no first mixture")

    @cached_property
    def opens(self) -> dict[int, OpenLine]:
        """The first line of every incarnation."""
        return {line.incarnation: line for line in self._lines if isinstance(line, OpenLine)}

    @cached_property
    def unreached(self) -> frozenset[int]:
        """Positions of the segment lines that a `void` takes back, whenever it was written."""
        recorded: dict[tuple[int, int, int], list[int]] = {}
        void = set()
        for at, line in enumerate(self._lines):
            if isinstance(line, OpenLine):
                continue
            lines = recorded.setdefault((line.sample, line.fence, line.generation), [])
            if isinstance(line, SegmentLine):
                lines.append(at)
            elif lines:
                void.add(lines.pop())
        return frozenset(void)

    @cached_property
    def recorded(self) -> frozenset[tuple[int, int, int]]:
        """Sample, fence and generation of every segment that was ever durable, void or not."""
        segments = (line for line in self._lines if isinstance(line, SegmentLine))
        return frozenset((s.sample, s.fence, s.generation) for s in segments)

    @property
    def final(self) -> Branch:
        """The run's own branch: that of its last incarnation."""
        return self.branch(next(reversed(self.opens)))

    def branch(self, incarnation: int) -> Branch:
        """The branch of an incarnation: what was recorded until the next began, less what was void.

        Raises:
            ValueError: no such incarnation.
        """
        if incarnation not in self.opens:
            raise ValueError(
                f"incarnation {incarnation}: the run has {', '.join(map(str, self.opens))}"
            )
        return self._build(incarnation)

    def branch_without_last(self, incarnation: int) -> Branch | None:
        """The branch of an incarnation that ended before it could void its last segment.

        That one may have been durable too late to be announced; the next incarnation voids it, or
        goes back to before it and has it in force. None when this can't be, because the next
        went on from beyond that segment and kept it.
        """
        segments = [
            at
            for at, line in enumerate(self._lines)
            if isinstance(line, SegmentLine) and line.incarnation == incarnation and line.sample
        ]
        if not segments or segments[-1] in self.unreached:
            return None
        last = self._lines[segments[-1]]
        heir = next((opened for n, opened in self.opens.items() if n > incarnation), None)
        if heir is not None and heir.sample > last.sample:
            return None
        return self._build(incarnation, without=segments[-1])

    def _build(self, incarnation: int, without: int = -1) -> Branch:
        key = (incarnation, without)
        if key in self._branches:
            return self._branches[key]
        kept: list[Line] = []
        opens: list[OpenLine] = []
        for at, line in enumerate(self._lines):
            if isinstance(line, OpenLine):
                if opens and opens[-1].incarnation == incarnation:
                    break
                while opens and opens[-1].sample >= line.sample:
                    opens.pop()
                opens.append(line)
            if at not in self.unreached and at != without and not isinstance(line, VoidLine):
                kept.append(line)
        self._branches[key] = Branch(tuple(opens), Schedule(tuple(kept)))
        return self._branches[key]


def _occurrence(values: Ints) -> Ints:
    """How many equal values stand before each, shape [n]."""
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values)
    before = np.empty(values.size, np.int64)
    before[order] = np.arange(values.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return before
