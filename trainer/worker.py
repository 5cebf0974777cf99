"""A DataLoader worker's part of a mixture: every N-th micro-batch of its rank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.assemble import Assembler
from mixloop.trainer.board import Board, BoardClosed
from mixloop.trainer.feed import Layout
from mixloop.trainer.job import Job, JobError
from mixloop.trainer.loader_state import LoaderState
from mixloop.trainer.order import MixtureOrder, Segment
from mixloop.trainer.store import open_stores


@dataclass(frozen=True)
class Assignment:
    """What the training process answers: where to go on, by which schedule.

    `at` is this worker's first micro-batch, counted over the run; `step` the step that the round of
    workers begins in, and `sample` its first; `window` the steps that a worker may be ahead of the
    report.
    """

    at: int
    step: int
    sample: int
    segments: tuple[Segment, ...]
    announced: int
    layout: Layout
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
        self._micros = job.settings.accumulation
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
        micros, length = self._micros, self._job.sequence_length
        layout, quantum = told.layout, told.layout.quantum
        sizes = {name: store.samples(length) for name, store in self._stores.items()}
        order = MixtureOrder(sizes, self._job.seed, told.segments)
        assembler = Assembler(list(self._stores.values()), length)
        at, known, heard = told.at, told.state, told.announced
        positions = layout.positions()
        while True:
            step, micro = divmod(at, micros)
            sample = told.sample + (step - told.step) * quantum
            if sample * length >= self._job.budget:
                return
            self._check(step, told)
            while heard < (there := self._board.announced):
                for switch in self._board.switches(heard, there):
                    weights = dict(zip(self._job.sources, switch.weights, strict=True))
                    order = order.with_segment(Segment(switch.sample, weights, quantum))
                    pair = (switch.sample, switch.generation)
                    known = replace(known, switches=(*known.switches, pair)[-8:])
                heard = there
            source, index = order.batch(sample, quantum)
            source, index = source[positions[micro]], index[positions[micro]]
            ids = np.empty((*source.shape, length), self._dtype)
            assembler.fill(source, index, ids)
            at += self._count
            self.state = self._place(at, told, known)
            yield ids, source

    def _place(self, at: int, told: Assignment, known: LoaderState) -> LoaderState:
        """The state before micro-batch `at`."""
        step, micro = divmod(at, self._micros)
        sample = told.sample + (step - told.step) * told.layout.quantum
        begun = micro * told.layout.rows * told.layout.world
        return replace(known, step=step, sample=sample, micro=micro, begun=begun)

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


def joined(
    states: Mapping[int, Mapping[str, Any] | None], micros: int
) -> tuple[LoaderState, dict[int, int]] | None:
    """The one place that several workers' own states amount to, and each one's micro-batch.

    A worker whose first micro-batch was not yet taken has no state: it stands a round behind.

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
    places = {number: state.step * micros + state.micro for number, state in given.items()}
    known, place = next(iter(places.items()))
    for number in set(states) - set(given):
        places[number] = place - known + number - len(states)
    first = min(places.values())
    if sorted(places.values()) != list(range(first, first + len(places))):
        raise JobError(
            "dataset state: the workers' states are not of one place; resume with as many workers "
            "and as much accumulation as it was saved with"
        )
    like = next(iter(given.values()))
    sample = like.sample + (first // micros - like.step) * like.quantum
    micro = first % micros
    begun = micro * (like.quantum // micros)
    switches = tuple(sorted({pair for state in given.values() for pair in state.switches}))
    joint = replace(
        like,
        step=first // micros,
        sample=sample,
        micro=micro,
        begun=begun,
        switches=switches,
    )
    return joint, places
