"""A played trainer with the real order inbox: real acceptance rules, schedule and heartbeat."""

from __future__ import annotations

import random
from typing import Any

from mixloop.contract import (
    SCALE,
    AcceptedOrder,
    BatchSchedule,
    FailedCheckpoint,
    Limits,
    Manifest,
    OpenLine,
    OrderInForce,
    RunPaths,
    ScheduleError,
    ScheduleTaken,
    ScheduleWriter,
    SegmentLine,
    SourceEntry,
    SourceLedger,
    SourceStatus,
    Status,
    quantise,
    read_manifest,
    read_schedule,
    write_manifest,
    write_status,
)
from mixloop.trainer.run import Switch
from mixloop.trainer.run.order_inbox import OrderInbox, StepClock

QUANTUM, LENGTH = 8, 10
STRIDE = 5  # steps between two polls
EVERY = 20  # steps between checkpoints
STEP_TOKENS = QUANTUM * LENGTH


class Trainer:
    """One training run. What it must remember over a restart is in its files.

    Args:
        start: the first mixture.
        sizes: unique tokens by source.
    """

    def __init__(
        self, paths: RunPaths, config: Any, start: dict[str, float], sizes: dict[str, int]
    ) -> None:
        self.paths, self.config, self.start, self.sizes = paths, config, start, sizes
        self.names = list(config.sources)
        self.budget_steps = config.budget // STEP_TOKENS
        self.step = 0
        self.drawn = dict.fromkeys(self.names, 0.0)
        self.incarnation = 0
        self.beat = 0
        self.failed: FailedCheckpoint | None = None
        self.deaf = False
        self.highest = (0, 0)  # accepted, over the life of this branch
        self.made: dict[int, dict[str, float]] = {}  # checkpoints that lie there: their ledgers
        self.begin(0, None, rewind=False)

    def begin(self, step: int, parent: str | None, *, rewind: bool) -> None:
        """An incarnation opens, at the step of the checkpoint it goes on from."""
        self.incarnation += 1
        self.step = step
        sample = step * QUANTUM
        entries = tuple(SourceEntry(n, self.sizes[n] // LENGTH, "f") for n in self.names)
        writer = ScheduleWriter(self.paths.schedule)
        opened = OpenLine(
            self.incarnation, parent, sample, step, 0, entries, LENGTH, QUANTUM, 1, QUANTUM, 1
        )
        if rewind:
            opened = OpenLine(**{**vars(opened), "rewind": True})
        writer.append(opened)
        if self.incarnation == 1:
            writer.append(SegmentLine(1, 0, 0, quantise(self.start), 0, 0))
        past = [
            Switch(s.sample, s.fence, s.generation, tuple(s.weights[n] for n in self.names), s.step)
            for s in read_schedule(self.paths.schedule).segments
        ]
        limits = self.config.trainer.limits
        self.inbox = OrderInbox(
            self.paths,
            self.config.run.id,
            self.names,
            writer,
            self.incarnation,
            StepClock(step, sample, BatchSchedule(((0, QUANTUM),)), LENGTH, STRIDE, 0),
            past,
            lambda: self.step,
            limits=Limits(floor=limits.floor, cap=limits.cap, max_change=limits.max_change),
        )
        self.highest = self.inbox.state().accepted

    @property
    def finished(self) -> bool:
        return self.step >= self.budget_steps

    def advance(self) -> None:
        """A few steps: a poll, batches, a heartbeat, a checkpoint when due."""
        if not self.deaf:
            self.inbox.look()
        self.inbox.take(self.step)
        size = 0 if self.beat == 0 else min(STRIDE, self.budget_steps - self.step)
        for _ in range(size):
            self.inbox.consumed((self.step + 1) * QUANTUM)
            weights = self.inbox.state().in_force.weights
            for name, units in zip(self.names, weights, strict=True):
                self.drawn[name] += STEP_TOKENS * units / SCALE
            self.step += 1
        self.heartbeat()

    def heartbeat(self) -> None:
        view = self.inbox.state()
        self.beat += 1
        switch = view.in_force
        force = OrderInForce(
            switch.fence,
            switch.generation,
            switch.sample,
            switch.step,
            {n: units / SCALE for n, units in zip(self.names, switch.weights, strict=True)},
        )
        tokens = self.step * STEP_TOKENS
        write_status(
            self.paths.status,
            Status(
                run=self.config.run.id,
                incarnation=self.incarnation,
                pid=1,
                host="h",
                step=self.step,
                sample=self.step * QUANTUM,
                tokens=tokens,
                budget=self.config.budget,
                lr=0.1,
                phase="stable",
                loss=2.0 - self.step / 1000,
                grad_norm=1.0,
                tokens_per_second=100.0,
                sources={
                    n: SourceStatus(round(d), d / self.sizes[n], self.sizes[n], 1.0)
                    for n, d in self.drawn.items()
                },
                accepted=AcceptedOrder(*view.accepted),
                in_force=force,
                rejected=view.rejected,
                heartbeat=self.beat,
                finished=self.finished,
                failed_checkpoint=self.failed,
            ),
        )

    def due(self) -> bool:
        late = self.failed is not None
        return self.step > 0 and (self.step % EVERY == 0 or late) and self.step not in self.made

    def fail(self) -> None:
        """No checkpoint is written; the next is, a few steps on, where none would be due."""
        newest = max(self.made, default=None)
        self.failed = FailedCheckpoint(self.step, "No space left on device", 1, newest)

    def checkpoint(self, *, whole: bool = True) -> None:
        """Leave a checkpoint; not whole: its manifest is missing."""
        self.failed = None
        folder = self.paths.checkpoints / f"step-{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        if not whole:
            return
        switch = self.inbox.state().in_force
        weights = {n: units / SCALE for n, units in zip(self.names, switch.weights, strict=True)}
        manifest = Manifest(
            self.config.run.id,
            self.step,
            self.step * QUANTUM,
            self.step * STEP_TOKENS,
            "stable",
            OrderInForce(switch.fence, switch.generation, switch.sample, switch.step, weights),
            {n: SourceLedger(round(d), d / self.sizes[n]) for n, d in self.drawn.items()},
            self.incarnation,
            LENGTH,
            QUANTUM,
            {},
        )
        write_manifest(folder, manifest)
        self.made[self.step] = dict(self.drawn)

    def restart(self, rng: random.Random, *, rewind: bool) -> bool:
        """Go on from one of the last checkpoints. Returns whether there was one."""
        usable = [s for s in self.made if read_manifest(self.folder(s)).value is not None]
        usable = [s for s in usable if s <= self.step][-3:]
        if not usable:
            return False
        step = rng.choice(usable)
        before = self.drawn
        self.drawn = dict(self.made[step])
        try:
            self.begin(step, f"step-{step:08d}", rewind=rewind)
        except (OSError, ScheduleTaken, ScheduleError):
            self.drawn = before
            raise
        self.made = {s: d for s, d in self.made.items() if s <= step}
        return True

    def folder(self, step: int) -> Any:
        return self.paths.checkpoints / f"step-{step:08d}"
