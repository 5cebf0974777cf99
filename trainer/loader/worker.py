"""A DataLoader worker's part of a mixture: every N-th micro-batch of its rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.contract import BatchSchedule, Segment, Stages
from mixloop.trainer.batches import BatchGatherer
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import open_stores

from .loader_state import LoaderState
from .worker_channel import Board, BoardClosed


@dataclass(frozen=True)
class Assignment:
    """What the training process answers: where to go on, by which schedule.

    `at` is the first sample, over all ranks, of this worker's first micro-batch, and `each` how
    many a micro-batch has; `sizes` and `stages` are the run's sources and steps, as the data order
    has them; `state` is where the round begins; `window` the steps that a worker may be ahead of
    the report.
    """

    at: int
    each: int
    rank: int
    segments: tuple[Segment, ...]
    sizes: Mapping[str, Sequence[tuple[int, int]]]
    stages: Stages
    announced: int
    window: int
    state: LoaderState
    trouble: str = ""


class Worker:
    """Draws for one worker of a DataLoader; `number` of `count`."""

    def __init__(self, board: Board, job: Job, dtype: str, number: int, count: int) -> None:
        self._board = board
        self._job = job
        self._dtype = np.dtype(dtype)
        self._number, self._count = number, count
        self._stores = open_stores(job)
        self.state: LoaderState | None = None

    def draw(
        self, key: str, state: LoaderState | None
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        """This worker's micro-batches, from its state or its place in the round.

        Args:
            key: the same for the workers of one iteration, and for no other.

        Raises:
            JobError: the run can't go on as asked, or the loop doesn't report.
        """
        request = {
            "key": key,
            "worker": self._number,
            "workers": self._count,
            "state": None if state is None else state.to_json(),
        }
        try:
            told: Assignment = self._board.ask(os.urandom(8).hex(), request)
        except BoardClosed as error:
            raise JobError(f"MixtureDataset: {error}") from error
        if told.trouble:
            raise JobError(told.trouble)
        yield from self._drawn(told)

    def _drawn(self, told: Assignment) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        length, rows = self._job.sequence_length, self._job.settings.micro_batch
        if told.at * length >= self._job.budget:
            return
        order, steps = MixtureOrder(told.sizes, self._job.seed, told.segments), _Steps(told)
        numbers = _numbers(order.names, list(self._stores))
        assembler = BatchGatherer(list(self._stores.values()), length)
        at, known, heard = told.at, told.state, told.announced
        while True:
            step, first = steps.of(at)
            if first * length >= self._job.budget:
                return
            self._check(step, told)
            while heard < (there := self._board.announced):
                for switch in self._board.switches(heard, there):
                    weights = dict(zip(self._job.sources, switch.weights, strict=True))
                    order = order.with_weights(switch.sample, weights)
                    pair = (switch.sample, switch.generation)
                    known = replace(known, switches=(*known.switches, pair)[-8:])
                heard = there
            # the samples of a micro-batch over all ranks stand together, those of a rank in a row
            source, index = order.batch(at + told.rank * rows, rows)
            source = numbers[source]
            ids = np.empty((rows, length), self._dtype)
            assembler.fill(source, index, ids)
            at += self._count * told.each
            self.state = steps.place(at, known)
            yield ids, source

    def _check(self, step: int, told: Assignment) -> None:
        """Never draw what a change could still come before."""
        if self._board.closed:
            raise JobError("MixtureDataset: it was closed while batches were asked for")
        reported = self._board.reported
        if step >= reported + told.window:
            raise JobError(
                f"MixtureDataset: step {step} is asked for, but {reported} steps are reported and "
                f"workers may be {told.window} ahead; call dataset.report() after every step, "
                "and give the dataset the DataLoader's prefetch_factor"
            )


def _numbers(names: Sequence[str], own: Sequence[str]) -> npt.NDArray[np.int64]:
    """A job's numbers of the sources of an order; those that it no longer has give nothing."""
    return np.array([own.index(name) if name in own else -1 for name in names], np.int64)


class _Steps:
    """Steps and micro-batches by samples, from where a round of workers begins."""

    def __init__(self, told: Assignment) -> None:
        self._quanta = BatchSchedule(told.stages)
        self._zero = told.state.step - self._quanta.index(told.state.sample)
        self._each = told.each

    def of(self, sample: int) -> tuple[int, int]:
        """Number and first sample of the step that a sample is of."""
        index = self._quanta.index(sample)
        return self._zero + index, self._quanta.first(index)

    def place(self, sample: int, known: LoaderState) -> LoaderState:
        """The state before the micro-batch that begins at a sample."""
        step, first = self.of(sample)
        return replace(
            known,
            step=step,
            sample=first,
            micro=(sample - first) // self._each,
            begun=sample - first,
            quantum=self._quanta.at(first),
        )


def joined(
    states: Mapping[int, Mapping[str, Any] | None],
    each: int,
    quanta: Callable[[int], BatchSchedule],
) -> tuple[LoaderState, dict[int, int]] | None:
    """The one place that several workers' own states amount to, and each one's first sample.

    A worker whose first micro-batch was not yet taken has no state: it stands a round behind.

    Args:
        each: samples of a micro-batch over all ranks.
        quanta: the run's steps, given the first sample of one.

    Returns:
        None when no worker has a state.

    Raises:
        JobError: the places don't follow one another.
    """
    given = {
        number: LoaderState.from_json(state)
        for number, state in states.items()
        if state is not None
    }
    if not given:
        return None
    places = {number: state.sample + state.begun for number, state in given.items()}
    known, place = next(iter(places.items()))
    for number in set(states) - set(given):
        places[number] = place + (number - known - len(states)) * each
    first = min(places.values())
    if sorted(places.values()) != [first + n * each for n in range(len(places))]:
        raise JobError(
            "dataset state: the workers' states are not of one place; resume with as many workers "
            "and the micro_batch it was saved with"
        )
    like = next(iter(given.values()))
    steps = quanta(like.sample)
    index = steps.index(first)
    sample = steps.first(index)
    joint = replace(
        like,
        step=like.step + index - steps.index(like.sample),
        sample=sample,
        micro=(first - sample) // each,
        begun=first - sample,
        quantum=steps.at(sample),
        switches=tuple(sorted({pair for state in given.values() for pair in state.switches})),
    )
    return joint, places
