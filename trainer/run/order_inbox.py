"""Hot reload: an order in `mixture.json` becomes a switch at an exact, durable sample.

Rank 0 has a side thread. It alone touches files: it looks at `mixture.json` when that has changed
and at every poll, appends and fsyncs a `segment` line whose first sample is the first that no rank
will have drawn at a coming poll step, and only then offers the switch. The training thread takes
the offer at that poll step, announces it to every rank, and acknowledges it once its first sample
has been consumed. A line that is not on the disk by then is void, and a later sample is tried. The
training thread never waits for a disk, and nothing that goes wrong here reaches it: the mixture
stays.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixloop.common.files import Content, read_regular
from mixloop.common.log import say
from mixloop.contract import (
    LARGEST_ORDER,
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
from mixloop.trainer.config import durable_steps

_POLLS_AHEAD, _MAX_POLLS_AHEAD = 1, 64
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

    `step` begins at `sample`; `batch_schedule` has the samples of every step of the run.
    """

    step: int
    sample: int
    batch_schedule: BatchSchedule
    sequence_length: int
    poll_every: int
    prefetch: int

    @cached_property
    def _offset(self) -> int:
        """What our step count is ahead of the batch schedule's."""
        return self.step - self.batch_schedule.index(self.sample)

    def step_of(self, sample: int) -> int:
        """The step that consumes a sample."""
        return self._offset + self.batch_schedule.index(sample)

    def sample_of(self, step: int) -> int:
        """The first sample of a step."""
        return self.batch_schedule.first(step - self._offset)

    def undrawn(self, step: int) -> int:
        """First sample that no rank has drawn, at the start of a step."""
        return self.sample_of(step + self.prefetch)

    def lead(self, step: int, polls: int) -> int:
        """First sample of a switch recorded during `step` and announced at the `polls`-th poll.

        Those are counted that leave the disk its time.
        """
        durable = step + durable_steps(self.poll_every)
        return self.undrawn((-(-durable // self.poll_every) + polls - 1) * self.poll_every)

    def boundary(self, tokens: int) -> int:
        """First sample of the first step that starts at `tokens` or later."""
        return self.batch_schedule.boundary(-(-tokens // self.sequence_length))


@dataclass(frozen=True)
class OrderState:
    """What `status.json` says of orders: a copy, safe to read from any thread."""

    accepted: tuple[int, int]
    in_force: Switch
    pending: Switch | None
    rejected: tuple[RejectedOrder, ...] = ()
    superseded: bool = False


@dataclass
class OrderInbox:
    """Decides what becomes of orders; one thread calls `look`, another the rest.

    Attributes:
        sources: the job's, in its order.
        past: switches of the effective schedule, by sample, the first in force at `clock.sample`
            or before.
        now: tells the step the training thread is at.
        limits: the trainer's own bounds on any order.
        accept_uid: a user whose orders count besides those of the run folder's owner.
        retired: sources of the run that this job no longer has. The order that was followed before
            may still name them; what it plans for them later is dropped, with a word.
        key: what an order must be signed with; None: anything, signed or not.
        uid: of the run, which a signed order must name.
    """

    paths: RunPaths
    run: str
    sources: Sequence[str]
    writer: ScheduleWriter
    incarnation: int
    clock: StepClock
    past: Sequence[Switch]
    now: Callable[[], int]
    limits: Limits | None = None
    accept_uid: int | None = None
    retired: Sequence[str] = ()
    key: bytes | None = None
    uid: str = ""

    def __post_init__(self) -> None:
        begun = [switch for switch in self.past if switch.sample <= self.clock.sample]
        self._lock = threading.Lock()
        self._in_force = begun[-1]
        self._announced = deque(self.past[len(begun) :])
        self._offer: Switch | None = None
        self._late: Switch | None = None
        self._unsure: Switch | None = None  # the disk failed: its line may be there or not
        self._polls_ahead = _POLLS_AHEAD
        self._rejected: deque[RejectedOrder] = deque(maxlen=8)
        self._superseded = False
        self._accepted = (self.past[-1].fence, self.past[-1].generation)
        self._glanced = b""
        self._no_news: tuple[Content | None, tuple[int, int]] | None = None  # as it was read last
        self._plan: list[Stage] = []
        self._recover()

    # --- the training thread -------------------------------------------------------------

    def take(self, step: int) -> Switch | None:
        """At a poll step: a durable switch to announce now, if one is there in time."""
        with self._lock:
            switch, self._offer = self._offer, None
            if switch is None:
                return None
            if switch.sample < self.clock.undrawn(step):
                self._late = switch
                self._polls_ahead = min(2 * self._polls_ahead, _MAX_POLLS_AHEAD)
                return None
            self._announced.append(switch)
            self._polls_ahead = _POLLS_AHEAD
            return switch

    def consumed(self, sample: int) -> bool:
        """Every sample below `sample` is consumed; True when a switch came into force."""
        before = self._in_force
        with self._lock:
            while self._announced and self._announced[0].sample < sample:
                self._in_force = self._announced.popleft()
        return self._in_force is not before

    def state(self) -> OrderState:
        """How things stand."""
        with self._lock:
            pending = self._offer or self._late or next(iter(self._announced), None)
            return OrderState(
                self._accepted, self._in_force, pending, tuple(self._rejected), self._superseded
            )

    # --- the side thread -----------------------------------------------------------------

    def glance(self) -> None:
        """Look if `mixture.json` holds something else than at the last glance; never raises."""
        try:
            content = read_regular(self.paths.mixture, LARGEST_ORDER).data
        except OSError:
            return  # no news; what is wrong with it, the next poll tells
        if content != self._glanced:
            self._glanced = content
            self.look()

    def look(self) -> None:
        """Read `mixture.json` and do the next thing; never raises."""
        try:
            if not self._superseded:
                self._look()
        except ScheduleTaken as error:
            with self._lock:
                self._superseded = True
            say(f"{error}; this trainer goes on but writes nothing more", "mixloop")
        except ScheduleError as error:
            # lost or damaged: opening it again mends nothing, and must not make a new one
            self._note(f"{error}; the mixture in force is kept")
        except Exception as error:
            # whatever it is (a full disk, a vanished folder), training goes on as it was
            self._note(f"{type(error).__name__}: {error}; the mixture in force is kept")
            self._reopen()

    def end(self) -> None:
        """Training is over: void what was recorded too late for the ranks to hear of it.

        Otherwise the schedule would say that samples were drawn by a mixture which never came into
        force. One whose first sample is still to come is the next incarnation's.
        """
        with self._lock:
            unheard = (self._offer, self._late, self._unsure)
        for switch in unheard:
            if self._superseded or switch is None:
                continue
            if switch.sample < self.clock.sample_of(self.now()):
                self._void(switch, "the trainer ended before it came into force")

    def _look(self) -> None:
        self.writer.check()
        if self._unsure is not None:  # a line that reached the disk all the same doesn't count
            self._void(self._unsure, "not durable in time")
            self._unsure = None
        with self._lock:
            late = self._late
            busy = self._offer is not None or bool(self._announced)
        if late is not None:
            self._void(late, "durable too late")
            self._record(late, decision="again, further ahead")
        elif not busy and not self._follow(self._read()):
            self._due_stage()

    def _read(self) -> Order | Rejection | None:
        """What `mixture.json` says against the mixture in force."""
        content: Content | None
        try:
            content = read_regular(self.paths.mixture, LARGEST_ORDER)
        except OSError:
            content = None  # what is wrong with it, the reader tells
        if content is not None and (content, self._accepted) == self._no_news:
            return None  # a plan for thousands of sources takes long to parse
        news = self._read_anew()
        self._no_news = None if news is not None else (content, self._accepted)
        return news

    def _read_anew(self) -> Order | Rejection | None:
        weights = zip(self.sources, self._in_force.weights, strict=True)
        return read_order(
            self.paths.mixture,
            run=self.run,
            sources=self.sources,
            after=self._accepted,
            limits=self.limits,
            in_force={name: units / SCALE for name, units in weights},
            accept_uid=self.accept_uid,
            retired=self.retired,
            key=self.key,
            uid=self.uid,
        )

    def _follow(self, news: Order | Rejection | None) -> bool:
        """Act on what was read; True if it began a switch."""
        if isinstance(news, Rejection):
            self._reject(news)
        if not isinstance(news, Order):
            return False
        changes = news.generation != self._accepted[1]
        if changes:
            switch = Switch(0, news.fence, news.generation, self._units(news.weights))
            self._record(switch, decision=news.decision)
            self._plan = list(news.then)
        with self._lock:
            self._accepted = (news.fence, news.generation)
        write_order(self.paths.accepted, news, self.key)
        return changes

    def _due_stage(self) -> None:
        """Carry out the plan's next stage when the next look could be too late for it."""
        horizon = self.clock.lead(self.now(), self._polls_ahead + 1)
        due = [s for s in self._plan if self.clock.boundary(s.from_tokens) <= horizon]
        if not due:
            return
        stage = due[-1]  # of several overdue ones only the last still matters
        switch = Switch(0, *self._accepted, self._units(stage.weights), stage=stage)
        self._record(switch, decision=f"then from {stage.from_tokens} tokens")
        self._plan = [s for s in self._plan if s.from_tokens > stage.from_tokens]

    def _record(self, switch: Switch, decision: str) -> None:
        """Give the switch a sample, make it durable, offer it."""
        sample = self.clock.lead(self.now(), self._polls_ahead)
        if switch.stage is not None:
            sample = max(sample, self.clock.boundary(switch.stage.from_tokens))
        placed = replace(switch, sample=sample, step=self.clock.step_of(sample))
        line = SegmentLine(
            incarnation=self.incarnation,
            sample=sample,
            step=placed.step,
            weights=dict(zip(self.sources, switch.weights, strict=True)),
            fence=switch.fence,
            generation=switch.generation,
            decision=decision,
        )
        self._unsure = placed
        self.writer.append(line)
        self._unsure = None
        with self._lock:
            if self._late is switch:
                self._late = None  # with the offer: once that is out, the next may be late
            self._offer = placed

    def _void(self, switch: Switch, reason: str) -> None:
        """Void the segment recorded for a switch, if it is there."""
        place = (switch.sample, switch.fence, switch.generation)
        recorded = read_schedule(self.paths.schedule).segments
        if place in {(line.sample, line.fence, line.generation) for line in recorded}:
            self.writer.append(VoidLine(self.incarnation, *place, reason))

    def _recover(self) -> None:
        """After a restart: the fence and the plan of the order that was being followed."""
        names = (*self.sources, *self.retired)
        generation, refused = self._accepted[1], ""
        for path in (self.paths.mixture, self.paths.accepted):
            after = (self._accepted[0], generation - 1)
            order = read_order(path, run=self.run, sources=names, after=after, key=self.key)
            if isinstance(order, Rejection) and order.generation == generation:
                refused = order.reason
            if not isinstance(order, Order) or order.generation != generation:
                continue
            if self.key is not None and order.uid not in ("", self.uid):
                continue  # "": accepted before this run had a uid
            first, *stages = (s for s in self.past if s.generation == order.generation)
            if not self._asks_for(order.weights, first):
                continue  # not the order that was accepted under this number
            self._accepted = (order.fence, order.generation)
            reached = max((switch.sample for switch in stages), default=-1)
            plan = [s for s in order.then if self.clock.boundary(s.from_tokens) > reached]
            self._plan = [stage for stage in plan if self._feasible(stage)]
            refused = ""
        if refused and self.key is not None:
            self._note(
                f"the mixture of generation {generation} stays, and nothing that its order plans "
                f"for later: {refused}"
            )

    def _asks_for(self, weights: Mapping[str, float], switch: Switch) -> bool:
        """Whether a switch has these weights, but for rounding.

        That goes by the sources' order in the job of its time.
        """
        return all(
            abs(weights.get(name, 0.0) * SCALE - units) <= _ROUNDING
            for name, units in zip(self.sources, switch.weights, strict=True)
        )

    def _feasible(self, stage: Stage) -> bool:
        """Whether a planned stage can do without the retired sources; says so if not."""
        lost = [name for name in self.retired if stage.weights.get(name)]
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
            at_step=self.now(),
        )
        with self._lock:
            if any((e.reason, e.digest) == (entry.reason, entry.digest) for e in self._rejected):
                return
            self._rejected.append(entry)
        kind = "order rejected" if rejection.digest else "trouble"
        say(f"{kind}: {rejection.reason}", "mixloop")

    def _note(self, trouble: str) -> None:
        self._reject(Rejection(reason=trouble, digest=""))

    def _reopen(self) -> None:
        """A failed append may have left half a line: opening again cuts it."""
        try:
            self.writer.reopen()
        except Exception as error:
            say(f"schedule: {error}", "mixloop")

    def _units(self, weights: Mapping[str, float]) -> tuple[int, ...]:
        return tuple(quantise({name: weights.get(name, 0.0) for name in self.sources}).values())
