"""Hot reload: an order in `mixture.json` becomes a switch at an exact, durable sample.

Rank 0 has a side thread. It alone touches files: it looks at `mixture.json` once per poll, appends
and fsyncs a `segment` line whose first sample lies at least two polls (and the prefetch) ahead,
and only then offers the switch. The training thread takes the offer at a poll step, announces it
to every rank, and acknowledges it once its first sample has been consumed. The training thread
never waits for a disk, and nothing that goes wrong here reaches it: the mixture stays.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixloop.common.log import say
from mixloop.contract import (
    SCALE,
    BatchSchedule,
    Limits,
    Order,
    RejectedOrder,
    Rejection,
    RunPaths,
    ScheduleError,
    ScheduleTaken,
    ScheduleWriter,
    SegmentLine,
    Stage,
    VoidLine,
    quantise,
    read_order,
    read_schedule,
    write_order,
)

ACCEPTED_FILE = "accepted.json"
"""The trainer's own copy of the order it follows: fence and plan survive a restart."""

_MOST_PATIENCE = 64
_ROUNDING = 2  # units of 1/SCALE that a weight may be off its integer


@dataclass(frozen=True)
class Switch:
    """From `sample` on, draw by `weights` (integers in source order, summing to SCALE)."""

    sample: int
    fence: int
    generation: int
    weights: tuple[int, ...]
    step: int = 0
    stage: Stage | None = None

    def pack(self) -> npt.NDArray[np.int64]:
        """The few bytes announced to the ranks."""
        return np.array([1, self.sample, self.fence, self.generation, *self.weights], np.int64)

    @staticmethod
    def unpack(values: npt.NDArray[np.int64]) -> Switch | None:
        """What was announced; None when there was nothing."""
        flag, sample, fence, generation, *weights = (int(value) for value in values)
        return Switch(sample, fence, generation, tuple(weights)) if flag else None


@dataclass(frozen=True)
class StepClock:
    """Steps and samples of this incarnation, and how far ahead a switch must lie.

    `step` begins at `sample`. `quanta` are the samples of a step over the whole run where they
    change; None: always `quantum`.
    """

    step: int
    sample: int
    quantum: int
    sequence_length: int
    poll_every: int
    prefetch: int
    quanta: BatchSchedule | None = None

    @cached_property
    def _grid(self) -> BatchSchedule:
        return self.quanta or BatchSchedule(((self.sample, self.quantum),))

    @cached_property
    def _zero(self) -> int:
        """What our step count is ahead of the grid's."""
        return self.step - self._grid.index(self.sample)

    def sample_at(self, step: int) -> int:
        """First sample of a step."""
        return self._grid.first(step - self._zero)

    def step_of(self, sample: int) -> int:
        """The step that consumes a sample."""
        return self._zero + self._grid.index(sample)

    def undrawn(self, step: int) -> int:
        """First sample that no rank has drawn, at the start of a step."""
        return self.sample_at(step + self.prefetch)

    def lead(self, step: int, polls: int) -> int:
        """First sample a switch decided during `step` may have."""
        return self.sample_at(step + polls * self.poll_every + self.prefetch)

    def boundary(self, tokens: int) -> int:
        """First sample of the first step that starts at `tokens` or later."""
        return self._grid.boundary(-(-tokens // self.sequence_length))


@dataclass(frozen=True)
class OrderState:
    """What `status.json` says of orders: a copy, safe to read from any thread."""

    accepted: tuple[int, int]
    in_force: Switch
    pending: Switch | None
    rejected: tuple[RejectedOrder, ...] = ()
    superseded: bool = False


class OrderInbox:
    """Decides what becomes of orders; one thread calls `look`, another the rest.

    Args:
        past: switches of the effective schedule, by sample, the first in force at `clock.sample`
            or before.
        now: tells the step the training thread is at.
        retired: sources of the run that this job no longer has. The order that was followed before
            may still name them; what it plans for them later is dropped, with a word.
    """

    def __init__(
        self,
        paths: RunPaths,
        run: str,
        sources: Sequence[str],
        writer: ScheduleWriter,
        incarnation: int,
        clock: StepClock,
        past: Sequence[Switch],
        now: Callable[[], int],
        limits: Limits | None = None,
        accept_uid: int | None = None,
        retired: Sequence[str] = (),
        key: bytes | None = None,
    ) -> None:
        self._paths = paths
        self._run = run
        self._sources = tuple(sources)
        self._retired = tuple(retired)
        self._writer = writer
        self._incarnation = incarnation
        self._clock = clock
        self._now = now
        self._limits = limits
        self._uid = accept_uid
        self._key = key
        self._lock = threading.Lock()
        started = [switch for switch in past if switch.sample <= clock.sample]
        self._in_force = started[-1]
        self._announced = deque(switch for switch in past if switch.sample > clock.sample)
        self._offer: Switch | None = None
        self._late: Switch | None = None
        self._stale: Switch | None = None
        self._patience = 2
        self._rejected: deque[RejectedOrder] = deque(maxlen=8)
        self._superseded = False
        self._accepted = (past[-1].fence, past[-1].generation)
        self._plan: list[Stage] = []
        self._recover(past)

    # --- the training thread -------------------------------------------------------------

    def take(self, step: int) -> Switch | None:
        """At a poll step: a durable switch to announce now, if one is there in time."""
        with self._lock:
            switch, self._offer = self._offer, None
            if switch is None:
                return None
            if switch.sample < self._clock.undrawn(step):
                self._late = switch
                self._patience = min(2 * self._patience, _MOST_PATIENCE)
                return None
            self._announced.append(switch)
            self._patience = 2
            return switch

    def consumed(self, sample: int) -> bool:
        """Every sample below `sample` is consumed; True when a switch came into force."""
        came = False
        with self._lock:
            while self._announced and self._announced[0].sample < sample:
                switch = self._announced.popleft()
                self._in_force = switch
                came = True
        return came

    def view(self) -> OrderState:
        """The state of things."""
        with self._lock:
            pending = self._offer or self._late or next(iter(self._announced), None)
            return OrderState(
                self._accepted, self._in_force, pending, tuple(self._rejected), self._superseded
            )

    # --- the side thread -----------------------------------------------------------------

    def look(self) -> None:
        """Read `mixture.json` and do the next thing; never raises."""
        try:
            self._look()
        except ScheduleTaken as error:
            with self._lock:
                self._superseded = True
            self._say(f"{error}; this trainer goes on but writes nothing more")
        except ScheduleError as error:
            # lost or damaged: opening it again mends nothing, and must not make a new one
            self._note(f"{error}; the mixture in force is kept")
        except Exception as error:
            # whatever it is (a full disk, a vanished folder), training goes on as it was
            self._note(f"{type(error).__name__}: {error}; the mixture in force is kept")
            self._reopen()

    def _look(self) -> None:
        if self._superseded:
            return
        self._writer.check()
        self._void_stale()
        with self._lock:
            late = self._late
            busy = self._offer is not None or bool(self._announced)
        if late is not None:
            self._again(late)
        elif not busy and not self._follow(self._read()):
            self._due_stage()

    def _read(self) -> Order | Rejection | None:
        """What `mixture.json` says against the mixture in force."""
        return read_order(
            self._paths.mixture,
            run=self._run,
            sources=self._sources,
            after=self._accepted,
            limits=self._limits,
            in_force=self._weights(self._in_force),
            accept_uid=self._uid,
            retired=self._retired,
            key=self._key,
        )

    def _follow(self, news: Order | Rejection | None) -> bool:
        """Act on what was read; True if it began a switch."""
        if isinstance(news, Rejection):
            self._reject(news)
        if not isinstance(news, Order):
            return False
        changes = news.generation != self._accepted[1]
        if changes:
            switch = Switch(0, news.fence, news.generation, self._shares(news.weights))
            self._record(switch, decision=news.decision)
            self._plan = list(news.then)
        with self._lock:
            self._accepted = (news.fence, news.generation)
        write_order(self._paths.dir / ACCEPTED_FILE, news, self._key)
        return changes

    def _due_stage(self) -> None:
        """Carry out the plan's next stage when the next look could be too late for it."""
        clock = self._clock
        horizon = clock.lead(self._now(), self._patience + 1)
        due = [s for s in self._plan if clock.boundary(s.from_tokens) <= horizon]
        if not due:
            return
        stage = due[-1]  # of several overdue ones only the last still matters
        fence, generation = self._accepted
        switch = Switch(0, fence, generation, self._shares(stage.weights), stage=stage)
        self._record(switch, decision=f"then from {stage.from_tokens} tokens")
        self._plan = [s for s in self._plan if s.from_tokens > stage.from_tokens]

    def _record(self, switch: Switch, decision: str = "") -> None:
        """Give the switch a sample, make it durable, offer it."""
        sample = self._clock.lead(self._now(), self._patience)
        if switch.stage is not None:
            sample = max(sample, self._clock.boundary(switch.stage.from_tokens))
        placed = replace(switch, sample=sample, step=self._clock.step_of(sample))
        line = SegmentLine(
            incarnation=self._incarnation,
            sample=sample,
            step=placed.step,
            weights=dict(zip(self._sources, switch.weights, strict=True)),
            fence=switch.fence,
            generation=switch.generation,
            decision=decision,
        )
        self._stale = placed  # until the disk has taken it, it may be there or not
        self._writer.append(line)
        self._stale = None
        with self._lock:
            if self._late is switch:
                self._late = None  # with the offer: once that is out, the next may be late
            self._offer = placed

    def _again(self, late: Switch) -> None:
        """The switch was durable too late: void it, and try again further ahead."""
        self._void(late, "durable too late")
        self._record(late, decision="again, further ahead")

    def _void_stale(self) -> None:
        """After a failed append: a line that reached the disk all the same doesn't count."""
        if self._stale is not None:
            self._void(self._stale, "not durable in time")
            self._stale = None

    def _void(self, switch: Switch, reason: str) -> None:
        """Void the segment recorded for a switch, if it is there."""
        wanted = (switch.sample, switch.fence, switch.generation)
        recorded = read_schedule(self._paths.schedule).segments
        if wanted not in {(s.sample, s.fence, s.generation) for s in recorded}:
            return
        self._writer.append(
            VoidLine(self._incarnation, switch.sample, switch.fence, switch.generation, reason)
        )

    def _recover(self, past: Sequence[Switch]) -> None:
        """After a restart: the fence and the plan of the order that was being followed."""
        known = (*self._sources, *self._retired)
        for path in (self._paths.mixture, self._paths.dir / ACCEPTED_FILE):
            order = read_order(path, run=self._run, sources=known, after=(0, 0), key=self._key)
            if not isinstance(order, Order) or order.generation != self._accepted[1]:
                continue
            if order.fence < self._accepted[0]:
                continue
            own = [s for s in past if s.generation == order.generation]
            if not self._asks_for(order.weights, own[0]):
                continue  # not the order that was accepted under this number
            self._accepted = (order.fence, order.generation)
            reached = max((s.sample for s in own[1:]), default=-1)
            plan = [s for s in order.then if self._clock.boundary(s.from_tokens) > reached]
            self._plan = [stage for stage in plan if self._feasible(stage)]

    def _asks_for(self, weights: Mapping[str, float], switch: Switch) -> bool:
        """Whether a switch has these weights, but for rounding, which goes by the sources' order
        in the job of its time."""
        shares = zip(self._sources, switch.weights, strict=True)
        return all(
            abs(weights.get(name, 0.0) * SCALE - units) <= _ROUNDING for name, units in shares
        )

    def _feasible(self, stage: Stage) -> bool:
        """Whether a planned stage can do without the retired sources; says so if not."""
        lost = [name for name in self._retired if stage.weights.get(name)]
        if lost:
            self._note(
                f"the plan's stage from {stage.from_tokens} tokens draws from {lost[0]}, which is "
                "no longer in the job; the stage is dropped"
            )
        return not lost

    def _reject(self, rejection: Rejection) -> None:
        entry = RejectedOrder(
            reason=rejection.reason,
            digest=rejection.digest,
            fence=rejection.fence,
            generation=rejection.generation,
            at_step=self._now(),
        )
        with self._lock:
            known = {(old.reason, old.digest) for old in self._rejected}
            fresh = (entry.reason, entry.digest) not in known
            if fresh:
                self._rejected.append(entry)
        if fresh:
            self._say(f"{'order rejected' if rejection.digest else 'trouble'}: {rejection.reason}")

    def _note(self, trouble: str) -> None:
        self._reject(Rejection(reason=trouble, digest=""))

    def _reopen(self) -> None:
        """A failed append may have left half a line: opening again cuts it."""
        try:
            self._writer.reopen()
        except Exception as error:
            self._say(f"schedule: {error}")

    def _shares(self, weights: Mapping[str, float]) -> tuple[int, ...]:
        return tuple(quantise({n: weights.get(n, 0.0) for n in self._sources}).values())

    def _weights(self, switch: Switch) -> Mapping[str, float]:
        return {n: w / SCALE for n, w in zip(self._sources, switch.weights, strict=True)}

    def _say(self, text: str) -> None:
        say(text, "mixloop")
