"""What the trainer says of itself: its heartbeat, its incarnations, what became of orders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mixloop.common.json_records import Problem
from mixloop.contract import OpenLine, Schedule, Status, read_status, schedule_of
from mixloop.controller.core import Applied, Rewind, find_rewinds
from mixloop.controller.journal import queries
from mixloop.trainer.config import SUM_TOLERANCE

from .mixture_file import by_sources
from .takeover import OwnedRun


class TrainerNews:
    """Reads the heartbeat and, when that tells of a new incarnation, the schedule.

    Attributes:
        status: The newest heartbeat that could be read; its mixture is told by run.yaml's sources,
            if no other has a share.
        problem: What is wrong with the heartbeat's file now.
        unknown_sources: Sources of run.yaml that the trainer has not been started with.
        rewinds: Where it left branches, oldest first.
    """

    def __init__(self, run: OwnedRun) -> None:
        self._paths = run.paths
        self._journal = run.journal
        self._config = run.config
        self.status: Status | None = None
        self.problem: Problem | None = None
        self.unknown_sources: tuple[str, ...] = ()
        self.rewinds: tuple[Rewind, ...] = ()
        self._opened: tuple[OpenLine, ...] = ()
        self._read_until = -1  # the incarnation up to which the schedule was read
        self._read_schedule()

    def update(self) -> None:
        """Read what is new; what can't be read is no news."""
        self._read_heartbeat()
        if self.status is not None and self.status.incarnation > self._read_until:
            self._read_schedule()

    def _read_heartbeat(self) -> None:
        result = read_status(self._paths.status)
        self.problem, status = result.problem, result.value
        if status is None:
            return
        weights = status.in_force.weights  # of all sources that the trainer was started with
        self.unknown_sources = tuple(name for name in self._config.sources if name not in weights)
        ours = by_sources(weights, self._config)
        if set(weights) != set(ours) and sum(ours.values()) > 1 - SUM_TOLERANCE:
            status = replace(status, in_force=replace(status.in_force, weights=ours))
        self.status = status

    def _read_schedule(self) -> None:
        schedule = schedule_of(self._paths.schedule).value
        # else there is none yet, or it can't be read now: at the next look
        if schedule is not None and schedule.lines:
            self.rewinds = find_rewinds(schedule)
            self._opened = tuple(line for line in schedule.lines if isinstance(line, OpenLine))
            self._read_until = schedule.incarnation

    @property
    def training_ended(self) -> bool:
        """Whether the trainer has spent *this* budget: one that was raised goes on."""
        status = self.status
        if status is None or not status.finished:
            return False
        return max(status.tokens, status.budget) >= self._config.budget

    def began(self) -> tuple[OpenLine, ...]:
        """Incarnations that the journal does not know of, oldest first."""
        noted = queries.noted_incarnation(self._journal)
        return tuple(line for line in self._opened if line.incarnation > noted)

    def newly_applied(self) -> Iterator[Applied]:
        """Orders that have come into force, and that the journal does not know of."""
        if self.status is None:
            return
        in_force = self.status.in_force
        orders = queries.unapplied_orders(self._journal, in_force.generation)
        if not orders:
            return
        if [(order.generation, order.plan) for order in orders] == [(in_force.generation, ())]:
            # the only stretch of this order: the heartbeat says itself where it began
            yield Applied(in_force.generation, in_force.sample, in_force.step)
            return
        segments = (schedule_of(self._paths.schedule).value or Schedule()).segments
        for order in orders:
            first = next((s for s in segments if s.generation == order.generation), None)
            if first is not None and first.sample <= self.status.sample:
                yield Applied(order.generation, first.sample, first.step)

    def newly_rejected(self) -> dict[int, str]:
        """Published orders that the trainer refused, with its reason, unknown to the journal."""
        if self.status is None:
            return {}
        refused = {
            (entry.fence, entry.generation): entry.reason
            for entry in self.status.rejected
            if entry.generation is not None
        }
        keys = (
            (order.published_fence, order.generation)
            for order in queries.pending_orders(self._journal)
            if order.published_at and order.generation > self.status.accepted.generation
        )
        return {key[1]: refused[key] for key in keys if key in refused}
