"""One incarnation at work: polls for switches, reports, saves. Rank 0 leads, the others follow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixloop.common.errors import one_line
from mixloop.common.log import say
from mixloop.contract import FailedCheckpoint, FileEntry, Manifest, RunPaths, read_holds
from mixloop.trainer.batches import Batch, RankBatches
from mixloop.trainer.run import (
    CheckpointRetry,
    Incarnation,
    LiveMixture,
    ResumePlan,
    SpikeDetector,
    StepMetrics,
    checkpoint_store,
)

if TYPE_CHECKING:
    from .trainer import Trainer

LAST_SECONDS = 30.0
"""For which a run's last checkpoint is tried."""
_LONGEST = 300  # characters of why a checkpoint could not be written


class DivergenceError(RuntimeError):
    """Too many steps in a row whose gradient was not finite; the message is for a person."""


class Session:
    """A trainer and its batches, in step with the files of the run.

    Methods marked collective are called by every rank at the same step.

    Args:
        plan: what the incarnation began from.
        start: the incarnation.
        trainer: the model.
        batches: this rank's.
        tokenizer: where its folder is now; it is copied into checkpoints.
        kept: what the checkpoint's state file holds besides the model.
    """

    def __init__(
        self,
        plan: ResumePlan,
        start: Incarnation,
        trainer: Trainer,
        batches: RankBatches,
        tokenizer: Callable[[], Path],
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.job = plan.job
        self.peers = trainer.peers
        self.live = LiveMixture(plan, start, trainer.peers)
        self.position = self.live.position
        self._length = plan.job.sequence_length
        self._paths = RunPaths(plan.job.dir)
        self._trainer = trainer
        self._batches = batches
        self._tokenizer = tokenizer
        self._saved = plan.step if plan.parent else -1
        self._retry = CheckpointRetry(plan.step if plan.parent else None)
        self._last = plan.batch_schedule.at(plan.sample)  # samples of the last step
        self._loss: float | None = None
        self._logged = plan.step
        settings = plan.job.settings
        self._spikes = SpikeDetector(settings.spike_threshold, settings.spike_window)
        if kept is not None:
            self._spikes.load(kept["watch"])
        self._examined = plan.step
        self._switched: set[int] = set()
        self._limit = settings.nan_limit if settings.on_nan == "skip" else 1

    def poll(self) -> None:
        """At a poll step: hear of a switch, and have rank 0 look for the next. Collective."""
        switch = self.live.poll()
        if switch is not None:
            self._batches.switch(self.live.segment(switch))

    def advance(self) -> Batch:
        """Train one step, and acknowledge a switch whose first sample it consumed."""
        batch = self._batches.batch(self.position.sample)
        start = self.position.sample * self._length
        self._trainer.step(batch, start, start + batch.samples * self._length)
        self._last = batch.samples
        switch = self.live.advance(batch.samples)
        if self.live.begins(self.position.sample):
            self._switched.add(self.position.step)
        if switch is not None:
            say(f"step {switch.step}: the mixture of generation {switch.generation} is in force")
        return batch

    def report(self, finished: bool = False) -> None:
        """Gather losses from all ranks; rank 0 has the status written. Collective."""
        self._examine()
        sums, counts = self._trainer.losses.take(self.peers)
        if counts.sum():
            mean = float(sums.sum() / counts.sum())
            self._loss = mean if math.isfinite(mean) else None
        if self.live.lead is None:
            return
        names = list(self.job.sources)
        losses = {names[i]: float(sums[i] / counts[i]) for i in np.flatnonzero(counts)}
        status = self.live.publish(self._metrics(losses, finished), self._batches.drawn())
        since = status.step - self._logged
        if since >= self.job.settings.log_every or (finished and since):
            self._logged = status.step
            loss = "-" if self._loss is None else f"{self._loss:.4f}"
            say(
                f"step {status.step} tokens {status.tokens:,}/{status.budget:,} loss {loss} "
                f"lr {status.lr:.3g} {status.tokens_per_second or 0:,.0f} tokens/s"
            )

    def _examine(self) -> None:
        """Look for bad steps among those since the last time. Collective, alike on every rank."""
        for loss, skipped in self._trainer.recent():
            self._examined += 1
            if self._examined in self._switched:
                self._spikes.forget()
            note = self._spikes.add(self._examined, float(loss), bool(skipped))
            if note is not None and self.peers.rank == 0:
                say(note)
        self._switched.clear()

    def check(self) -> None:
        """Raise, on every rank, once there is no point in going on.

        Raises:
            DivergenceError: as many steps in a row as are tolerated were without a finite gradient.
        """
        if not self._broken:
            return
        saved = f"the checkpoint of step {self._saved} is" if self._saved >= 0 else "none is"
        raise DivergenceError(
            f"step {self.position.step}: {self._spikes.streak} gradients in a row were not finite, "
            f"nan_limit is {self._limit}; no checkpoint is made now, {saved} the newest of this "
            "run. Resume from it with a lower learning_rate or grad_clip, or look at the data"
        )

    @property
    def _broken(self) -> bool:
        return self._spikes.streak >= self._limit

    def _metrics(self, losses: Mapping[str, float], finished: bool = False) -> StepMetrics:
        tokens = self.position.sample * self._length
        before = max(0, tokens - self._last * self._length)
        schedule = self._trainer.schedule
        grad_norm = float(self._trainer.grad_norm)
        return StepMetrics(
            step=self.position.step,
            sample=self.position.sample,
            lr=schedule.rate(before, tokens) if tokens else 0.0,
            phase=schedule.phase(tokens),
            loss=self._loss,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
            losses={name: loss for name, loss in losses.items() if math.isfinite(loss)},
            finished=finished,
            health=self._spikes.health,
            failed_checkpoint=self._retry.failure,
            system=self._trainer.meter.read,
        )

    def due(self, before: int) -> bool:
        """Whether a checkpoint is to be made now: one that failed is tried again. Collective.

        They are due when the step since sample `before` crossed a multiple of `checkpoint_every`.
        """
        every = self.job.settings.checkpoint_every
        if every and self.position.sample * self._length // every > before * self._length // every:
            return True
        if self._retry.failure is None:  # alike on every rank
            return False
        return self.peers.any(self.live.lead is not None and self._retry.due())

    @property
    def failure(self) -> FailedCheckpoint | None:
        """What keeps checkpoints from being written; None where nothing does."""
        return self._retry.failure

    def save(self) -> bool:
        """Write a checkpoint; False on every rank if there is none. Collective.

        There is none when the disk did not take it (:attr:`failure`), when a newer incarnation
        writes, and when the run has diverged: the checkpoints from before are worth more.
        """
        if self._saved == self.position.step:
            return True
        self._examine()
        manifest = None
        if self.live.lead is not None:
            manifest = self.live.manifest(self._metrics({}), self._batches.drawn())
        superseded = self.live.lead is not None and manifest is None
        if self.peers.any(superseded or self._broken):
            return False
        began, step = time.monotonic(), self.position.step
        trouble = self._write(manifest)
        # all ranks agree: what one holds saved and another not, only one would save again
        if self.peers.any(trouble is not None):
            reason = trouble or "another rank could not write its part"
            self._retry.failed(step, reason, time.monotonic() - began)
            if self.live.lead is not None:
                pause = f"{self._retry.pause:.0f} s"
                say(f"step {step}: checkpoint not written: {reason}; tried again in {pause}")
            return False
        if self._retry.failure is not None and self.live.lead is not None:
            say(f"step {step}: checkpoints are written again")
        self._retry.succeeded(step)
        self._saved = step
        if not self._spikes.streak:  # the model may be broken: older ones stay until it goes on
            self._retire()
        return True

    def save_last(self, stopped: Callable[[], bool]) -> bool:
        """Save at the run's end, when there is no later step to try at again. Collective.

        Args:
            stopped: whether somebody asked to stop, who is not kept waiting.
        """
        deadline, pause = time.monotonic() + LAST_SECONDS, 1.0
        while not self.save():
            late = self.live.lead is not None and time.monotonic() + pause > deadline
            if self.failure is None or self.peers.any(late or stopped()):
                return False
            time.sleep(pause)
            pause *= 2
        return True

    def _write(self, manifest: Callable[[Mapping[str, FileEntry]], Manifest] | None) -> str | None:
        """Write a checkpoint: why that failed, as far as this rank can tell. Collective."""
        trainer, step = self._trainer, self.position.step
        try:
            state = trainer.state() | {
                "switches": sorted(self.live.announced),
                "watch": self._spikes.state(),
            }
            if manifest is not None:
                checkpoint_store.save(
                    self._paths.checkpoints,
                    step,
                    lambda folder: trainer.save(folder, state, self._tokenizer()),
                    manifest,
                    trainer.written(),
                )
        except Exception as error:
            # a full disk costs a checkpoint, not the run
            return one_line(error)[:_LONGEST]
        finally:
            trainer.release()
        return None

    def _retire(self) -> None:
        """Remove old checkpoints; one that stays is no reason to call the new one failed."""
        keep, step = self.job.settings.keep, self.position.step
        if self.live.lead is None or keep is None:
            return
        try:
            held = read_holds(self._paths.holds).value
            if held is None:
                say(f"step {step}: {self._paths.holds} is unreadable: no checkpoint is retired")
            else:
                checkpoint_store.retire(self._paths.checkpoints, keep, held, step)
        except Exception as error:
            say(f"step {step}: old checkpoints not retired: {error}")

    def close(self) -> None:
        """End the threads; what was to be written is."""
        self._batches.close()
        if not self.live.close():
            say("the disk did not take the last status in time")
