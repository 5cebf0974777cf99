"""A running mixture, whoever trains: where it stands, its switches, and rank 0's files.

The reference loop (`trainer.reference`) and a foreign one (`trainer.loader`) drive it alike: `poll`
at a poll step, `advance` after a step, `publish` when it is time to report.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

import numpy as np

from mixloop.common.log import say
from mixloop.contract import (
    FileEntry,
    Limits,
    Manifest,
    RunPaths,
    ScheduleWriter,
    Segment,
    Status,
    key_for,
    write_status,
)

from .collectives import Collectives
from .order_inbox import OrderInbox, StepClock, Switch
from .resume import Incarnation, ResumePlan
from .status_writer import StatusBuilder, StepMetrics

_GLANCE_SECONDS = 0.05  # at least, between two: a glance takes 30 us of the processor


class SideThread:
    """Looks for orders and writes the newest status, so that training waits for neither."""

    def __init__(self, inbox: OrderInbox) -> None:
        self._inbox = inbox
        self._wake = threading.Event()
        self._polls = self._glances = False
        self._glanced_at = -math.inf
        self._write: Callable[[], None] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mixloop-side", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Ask for one look; returns at once."""
        self._polls = True
        self._wake.set()

    def glance(self) -> None:
        """Ask for a look if there is a new order, unless one was asked for just now."""
        now = monotonic()
        if now - self._glanced_at >= _GLANCE_SECONDS:
            self._glanced_at, self._glances = now, True
            self._wake.set()

    def write(self, action: Callable[[], None]) -> None:
        """Ask for a file to be written; a newer request replaces one not yet begun."""
        self._write = action
        self._wake.set()

    def close(self, timeout: float = 10.0) -> bool:
        """Finish what was asked; False if a hanging disk did not let it in time."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing
            if self._polls:
                self._polls = False
                self._attempt(self._inbox.look, "no look for orders")
            if self._glances:
                self._glances = False
                self._attempt(self._inbox.glance, "no look for orders")
            action, self._write = self._write, None
            if action is not None:
                self._attempt(action, "status not written")
            if closing:
                self._attempt(self._inbox.end, "the schedule may name a switch that never was")
                return

    def _attempt(self, action: Callable[[], None], failed: str) -> None:
        try:
            action()
        except Exception as error:
            # whatever fails here fails once: without this thread no order is heard of
            say(f"{failed}: {error}", "mixloop")


@dataclass
class Position:
    """Where training stands: optimizer steps done and samples consumed."""

    step: int
    sample: int


@dataclass(frozen=True)
class LeaderFiles:
    """What only rank 0 has."""

    inbox: OrderInbox
    status: StatusBuilder
    side: SideThread


class LiveMixture:
    """Position and switches of one incarnation on every rank; on rank 0 the run's files too.

    Only `poll` is collective.
    """

    def __init__(self, plan: ResumePlan, start: Incarnation, peers: Collectives) -> None:
        self.job = plan.job
        self.peers = peers
        self.batch_schedule = start.batch_schedule
        self.incarnation = start.incarnation
        self.position = Position(plan.step, plan.sample)
        self.announced = {(switch.sample, switch.generation) for switch in start.switches}
        self.lead: LeaderFiles | None = None
        # one whose first sample is the next is still to be told
        begun = [switch for switch in start.switches if switch.sample < max(1, plan.sample)]
        self.begun = deque(begun, maxlen=4)  # enough to say what was in force a step ago
        self.ahead = deque(start.switches[len(begun) :])
        self._paths = RunPaths(plan.job.dir)

    @property
    def step_samples(self) -> int:
        """Samples of the step at hand, over all ranks."""
        return self.batch_schedule.at(self.position.sample)

    @property
    def spent(self) -> bool:
        """Whether the budget is consumed."""
        return self.position.sample * self.job.sequence_length >= self.job.budget

    def take_lead(
        self,
        plan: ResumePlan,
        start: Incarnation,
        writer: ScheduleWriter,
    ) -> None:
        """Take on rank 0's part: the files of the run."""
        job, position, settings = self.job, self.position, self.job.settings
        inbox = OrderInbox(
            self._paths,
            job.run,
            tuple(job.sources),
            writer,
            start.incarnation,
            StepClock(
                plan.step,
                plan.sample,
                self.batch_schedule,
                job.sequence_length,
                settings.poll_every,
                settings.prefetch,
            ),
            start.switches,
            now=lambda: position.step,
            limits=Limits(**job.limits.model_dump()),
            accept_uid=settings.accept_uid,
            retired=[name for name in start.sizes if name not in job.sources],
            key=key_for(settings.key_file),
            uid=start.uid,
        )
        self.lead = LeaderFiles(inbox, StatusBuilder(plan, start), SideThread(inbox))

    def poll(self) -> Switch | None:
        """At a poll step: what every rank now hears, while rank 0 looks for more. Collective."""
        offer = None
        if self.lead is not None:
            offer = self.lead.inbox.take(self.position.step)
            self.lead.side.poll()
        nothing = np.zeros(4 + len(self.job.sources), np.int64)
        heard = Switch.unpack(self.peers.broadcast(offer.pack() if offer else nothing))
        if heard is not None:
            self.announced.add((heard.sample, heard.generation))
            self.ahead.append(heard)
        return heard

    def segment(self, switch: Switch) -> Segment:
        """A switch as the data order takes it."""
        weights = dict(zip(self.job.sources, switch.weights, strict=True))
        return Segment(switch.sample, weights, self.batch_schedule.at(switch.sample))

    @property
    def in_force(self) -> Switch:
        """The switch whose samples are being handed out."""
        return self.begun[-1]

    def begins(self, end: int) -> list[Switch]:
        """The switches not yet told whose first sample lies below `end`, oldest first."""
        fresh = []
        while self.ahead and self.ahead[0].sample < end:
            fresh.append(self.ahead.popleft())
        self.begun.extend(fresh)
        return fresh

    def advance(self, samples: int) -> Switch | None:
        """One step more; on rank 0 the switch that this brought into force, if any."""
        self.position.step += 1
        self.position.sample += samples
        if self.lead is not None:
            self.lead.side.glance()
        if self.lead is not None and self.lead.inbox.consumed(self.position.sample):
            return self.lead.inbox.state().in_force
        return None

    def publish(self, metrics: StepMetrics, drawn: Mapping[str, int]) -> Status:
        """Rank 0: word the status and have the side thread write it, unless it is superseded."""
        lead = self._leading()
        orders = lead.inbox.state()
        status = lead.status.status(metrics, drawn, orders)
        if not orders.superseded:
            lead.side.write(lambda: write_status(self._paths.status, status))
        return status

    def manifest(
        self, metrics: StepMetrics, drawn: Mapping[str, int]
    ) -> Callable[[Mapping[str, FileEntry]], Manifest] | None:
        """Rank 0: makes the manifest of a checkpoint of now; None for a superseded trainer."""
        lead = self._leading()
        orders = lead.inbox.state()
        if orders.superseded:
            return None
        return lambda files: lead.status.manifest(metrics, drawn, orders, files)

    def close(self) -> bool:
        """End the side thread; False if what was to be written hangs."""
        return self.lead is None or self.lead.side.close()

    def _leading(self) -> LeaderFiles:
        if self.lead is None:
            raise RuntimeError("only rank 0 tells what is in the files")
        return self.lead
