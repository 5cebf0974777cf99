"""One incarnation at work: polls for switches, reports, saves. Rank 0 leads, the others follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixloop.trainer import checkpoint
from mixloop.trainer.contract import Limits, RunPaths, ScheduleWriter, read_holds, write_status
from mixloop.trainer.feed import Batch, Feed
from mixloop.trainer.hotreload import Clock, Desk, Switch
from mixloop.trainer.incarnation import Plan, Start
from mixloop.trainer.narrator import Moment, Narrator
from mixloop.trainer.order import Segment
from mixloop.trainer.sidethread import SideThread
from mixloop.trainer.store import Store
from mixloop.trainer.voice import say

if TYPE_CHECKING:
    from mixloop.trainer.train import Trainer


@dataclass
class Position:
    """Where training stands: optimizer steps done and samples consumed."""

    step: int
    sample: int


@dataclass(frozen=True)
class Lead:
    """What only rank 0 has."""

    desk: Desk
    narrator: Narrator
    side: SideThread


class Session:
    """A trainer and its feed, in step with the files of the run.

    Methods marked collective are called by every rank at the same step.
    """

    def __init__(
        self, plan: Plan, start: Start, trainer: Trainer, feed: Feed, tokenizer: Path
    ) -> None:
        self.job = plan.job
        self.position = Position(plan.step, plan.sample)
        self.length = plan.job.sequence_length
        self._paths = RunPaths(plan.job.dir)
        self._trainer = trainer
        self.peers = trainer.peers
        self._feed = feed
        self._tokenizer = tokenizer
        self._switches = {(s.sample, s.generation) for s in start.switches}
        self._saved = plan.step if plan.parent else -1
        self._loss: float | None = None
        self._logged = plan.step
        self.lead: Lead | None = None

    @property
    def spent(self) -> bool:
        """Whether the budget is consumed."""
        return self.position.sample * self.length >= self.job.budget

    def take_lead(
        self, plan: Plan, start: Start, writer: ScheduleWriter, stores: Mapping[str, Store]
    ) -> None:
        """Take on rank 0's part: the files of the run."""
        settings = self.job.settings
        position = self.position
        clock = Clock(
            plan.step, plan.sample, plan.quantum, self.length, settings.poll_every,
            settings.prefetch,
        )  # fmt: skip
        desk = Desk(
            self._paths,
            self.job.run,
            tuple(self.job.sources),
            writer,
            start.incarnation,
            clock,
            start.switches,
            now=lambda: position.step,
            limits=Limits(**self.job.limits.model_dump()),
            accept_uid=settings.accept_uid,
        )
        narrator = Narrator(
            run=self.job.run,
            budget=self.job.budget,
            incarnation=start.incarnation,
            sequence_length=self.length,
            quantum=plan.quantum,
            world=plan.world,
            sizes={name: store.samples(self.length) for name, store in stores.items()},
            unique={name: store.info.tokens for name, store in stores.items()},
            sample=plan.sample,
        )
        self.lead = Lead(desk, narrator, SideThread(desk))

    def poll(self) -> None:
        """At a poll step: hear of a switch, and have rank 0 look for the next. Collective."""
        offer = None
        if self.lead is not None:
            offer = self.lead.desk.take(self.position.step)
            self.lead.side.poll()
        nothing = np.zeros(4 + len(self.job.sources), np.int64)
        heard = Switch.unpack(self.peers.broadcast(offer.pack() if offer else nothing))
        if heard is None:
            return
        weights = dict(zip(self.job.sources, heard.weights, strict=True))
        self._feed.switch(Segment(heard.sample, weights, self._feed.layout.quantum))
        self._switches.add((heard.sample, heard.generation))

    def advance(self) -> Batch:
        """Train one step, and acknowledge a switch whose first sample it consumed."""
        position, quantum = self.position, self._feed.layout.quantum
        batch = self._feed.batch(position.sample)
        start = position.sample * self.length
        self._trainer.step(batch, start, start + quantum * self.length)
        position.step += 1
        position.sample += quantum
        if self.lead is not None and self.lead.desk.consumed(position.sample):
            switch = self.lead.desk.view().in_force
            say(f"step {switch.step}: the mixture of generation {switch.generation} is in force")
        return batch

    def report(self, finished: bool = False) -> None:
        """Gather losses from all ranks; rank 0 has the status written. Collective."""
        sums, counts = self._trainer.totals.take(self.peers)
        if counts.sum():
            self._loss = float(sums.sum() / counts.sum())
        if self.lead is None:
            return
        names = list(self.job.sources)
        losses = {names[i]: float(sums[i] / counts[i]) for i in np.flatnonzero(counts)}
        drawn = self._feed.drawn()
        moment = self._moment(losses, finished)
        view = self.lead.desk.view()
        status = self.lead.narrator.status(moment, drawn, view)
        if not view.superseded:
            self.lead.side.write(lambda: write_status(self._paths.status, status))
        since = status.step - self._logged
        if since >= self.job.settings.log_every or (finished and since):
            self._logged = status.step
            loss = "-" if self._loss is None else f"{self._loss:.4f}"
            say(
                f"step {status.step} tokens {status.tokens:,}/{status.budget:,} loss {loss} "
                f"lr {status.lr:.3g} {status.tokens_per_second or 0:,.0f} tokens/s"
            )

    def _moment(self, losses: Mapping[str, float], finished: bool = False) -> Moment:
        tokens = self.position.sample * self.length
        before = max(0, tokens - self._feed.layout.quantum * self.length)
        schedule = self._trainer.schedule
        grad_norm = float(self._trainer.grad_norm)
        return Moment(
            step=self.position.step,
            sample=self.position.sample,
            lr=schedule.rate(before, tokens) if tokens else 0.0,
            phase=schedule.phase(tokens),
            loss=self._loss,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
            losses=losses,
            finished=finished,
        )

    def due(self, before: int) -> bool:
        """Whether the step since sample `before` crossed a multiple of `checkpoint_every`."""
        every = self.job.settings.checkpoint_every
        if not every:
            return False
        return self.position.sample * self.length // every > before * self.length // every

    def save(self) -> bool:
        """Write a checkpoint; False on every rank if the disk did not take it. Collective."""
        if self._saved == self.position.step:
            return True
        state = self._trainer.state() | {"switches": sorted(self._switches)}
        # all ranks agree: what one holds saved and another not, only one would save again
        if self.peers.any(not self._written(state)):
            return False
        self._saved = self.position.step
        self._retire()
        return True

    def _written(self, state: Mapping[str, Any]) -> bool:
        """Rank 0's part of `save`: whether the checkpoint is on the disk."""
        if self.lead is None:
            return True
        view = self.lead.desk.view()
        if view.superseded:
            return False
        narrator = self.lead.narrator
        try:
            moment, drawn = self._moment({}), self._feed.drawn()
            checkpoint.save(
                self._paths.checkpoints,
                self.position.step,
                lambda folder: self._trainer.save(folder, state, self._tokenizer),
                lambda files: narrator.manifest(moment, drawn, view, files),
            )
        except Exception as error:
            # a full disk costs a checkpoint, not the run
            say(f"step {self.position.step}: checkpoint not written: {error}")
            return False
        return True

    def _retire(self) -> None:
        """Remove old checkpoints; one that stays is no reason to call the new one failed."""
        keep, step = self.job.settings.keep, self.position.step
        if self.lead is None or keep is None:
            return
        try:
            held = read_holds(self._paths.holds)
            if held is None:
                say(f"step {step}: {self._paths.holds} is unreadable: no checkpoint is retired")
            else:
                checkpoint.retire(self._paths.checkpoints, keep, held, step)
        except Exception as error:
            say(f"step {step}: old checkpoints not retired: {error}")

    def close(self) -> None:
        """End the threads; what was to be written is."""
        self._feed.close()
        if self.lead is not None and not self.lead.side.close():
            say("the disk did not take the last status in time")
