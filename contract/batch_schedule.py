"""Samples of a step over a run: constant, or changing at given samples (a batch-size schedule).

Pure and light (standard library only). The *quantum* is a function of the sample alone, and so of
the tokens; how ranks and micro-batches share it out is another matter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Stages = tuple[tuple[int, int], ...]
"""(first sample, samples of a step from there on), by first sample."""


class BatchSchedule:
    """Steps and samples of a run whose quantum may change between steps.

    Args:
        stages: (first sample, quantum), ascending. A stage that begins inside a step of the one
            before cuts that step short. Before the first stage its steps go on backwards.

    Raises:
        ValueError: no stage, a quantum below 1, or samples that don't ascend.
    """

    def __init__(self, stages: Sequence[tuple[int, int]]) -> None:
        if not stages:
            raise ValueError("a schedule of quanta has at least one stage")
        self._starts = [first for first, _ in stages]
        self._sizes = [size for _, size in stages]
        self._steps = [0]  # steps before each stage
        for number, (first, size) in enumerate(stages):
            if size < 1:
                raise ValueError(f"quantum is {size}: it is at least 1 sample")
            if number and first <= self._starts[number - 1]:
                raise ValueError(f"the stage at sample {first} does not come after the one before")
            if number:
                length = first - self._starts[number - 1]
                self._steps.append(self._steps[-1] - (-length // self._sizes[number - 1]))

    @property
    def stages(self) -> Stages:
        """(first sample, quantum) of every stage."""
        return tuple(zip(self._starts, self._sizes, strict=True))

    @property
    def largest(self) -> int:
        """The most samples that a step ever takes."""
        return max(self._sizes)

    def at(self, sample: int) -> int:
        """Samples of a step that begins at `sample`."""
        return self._sizes[self._stage(sample)]

    def until(self, sample: int) -> int | None:
        """First sample of the stage after the one that `sample` lies in; None in the last."""
        later = self._stage(sample) + 1
        return self._starts[later] if later < len(self._starts) else None

    def since(self, sample: int) -> BatchSchedule:
        """What holds from a sample on."""
        later = tuple((first, size) for first, size in self.stages if first > sample)
        return BatchSchedule(((sample, self.at(sample)), *later)).plain()

    def plain(self) -> BatchSchedule:
        """Without stages that change nothing: those on the step grid of the one before."""
        stages: list[tuple[int, int]] = []
        for first, size in self.stages:
            if not stages or stages[-1][1] != size or (first - stages[-1][0]) % size:
                stages.append((first, size))
        return BatchSchedule(stages)

    def index(self, sample: int) -> int:
        """Number of the step that takes a sample, counted from the first stage's first step."""
        stage = self._stage(sample)
        return self._steps[stage] + (sample - self._starts[stage]) // self._sizes[stage]

    def first(self, index: int) -> int:
        """First sample of a step, by its number."""
        stage = max(0, bisect_right(self._steps, index) - 1)
        return self._starts[stage] + (index - self._steps[stage]) * self._sizes[stage]

    def boundary(self, sample: int) -> int:
        """First sample of the first step that begins at `sample` or later."""
        index = self.index(sample)
        first = self.first(index)
        return first if first >= sample else self.first(index + 1)

    def _stage(self, sample: int) -> int:
        return max(0, bisect_right(self._starts, sample) - 1)


def stages_from(wanted: Sequence[tuple[int, int]], sample: int) -> Stages:
    """The stages that hold from a step's first sample on, each begun at a step boundary.

    A stage wanted from a sample inside a step begins with the next step. The result does not
    depend on where a run was interrupted: from a step boundary further on it is the same.

    Args:
        wanted: (sample from which, quantum), ascending, the first at 0.
        sample: the resume point, a step's first sample.
    """
    stages = [(sample, next(size for first, size in reversed(wanted) if first <= sample))]
    for first, size in wanted:
        if first <= sample:
            continue
        at, before = stages[-1]
        start = at - (-(first - at) // before) * before
        if start <= at:  # both are wanted from inside one step: the later one holds
            stages[-1] = (at, size)
        else:
            stages.append((start, size))
    return BatchSchedule(stages).plain().stages


def with_accumulation(stages: Stages, each: int) -> tuple[tuple[int, int, int], ...]:
    """(first sample, quantum, accumulation) of stages, if there are several.

    Args:
        stages: (first sample, quantum), ascending.
        each: samples of a micro-batch over all ranks.
    """
    if len(stages) < 2:
        return ()
    return tuple((first, size, size // each) for first, size in stages)
