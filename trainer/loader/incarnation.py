"""An incarnation in a loop that is not ours: its batches, changes, reports and states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.common.errors import one_line
from mixloop.common.log import say
from mixloop.contract import SCALE, Phase
from mixloop.trainer.batches import Batch, BatchLayout, RankBatches, tensors
from mixloop.trainer.mixing import passes
from mixloop.trainer.run import CheckpointRetry, StepMetrics, Switch
from mixloop.trainer.sources import Store

from .begin import BegunIncarnation, RankPlace
from .loader_state import LoaderState
from .loop_metrics import LoopMetrics
from .run_tokenizer import RunTokenizer
from .saved_state import write_saved_state


@dataclass(frozen=True)
class _Unmarked:
    """A checkpoint that lacks its `mixloop.json`, which `write` leaves there."""

    folder: Path
    step: int
    write: Callable[[], None]


@dataclass(frozen=True)
class Change:
    """A new mixture whose first sample, at the first position of `step`, is about to be drawn."""

    step: int
    sample: int
    weights: Mapping[str, float]
    before: Mapping[str, float]
    generation: int
    fence: int


class LoopIncarnation:
    """One begun incarnation on one rank.

    Args:
        dtype: of the token ids.
        pinned: batches in page-locked memory.
        eos_id: ends a document, if document and position ids are wanted.
        on_change: told of each new mixture before its first sample; its exceptions are the loop's.
    """

    def __init__(
        self,
        begun: BegunIncarnation,
        place: RankPlace,
        stores: Mapping[str, Store],
        dtype: npt.DTypeLike,
        pinned: bool,
        eos_id: int | None,
        on_change: Callable[[Change], None],
    ) -> None:
        self.live = begun.live
        self.job = begun.live.job
        self.position = begun.live.position
        self._eos_id = eos_id
        self._on_change = on_change
        self._metrics = LoopMetrics(self.job)
        self._tokenizer = RunTokenizer(self.job, stores)
        self._unscorable: str | None = None  # why, as it was said
        self._micro_samples = self.job.settings.micro_batch * place.world
        order = begun.start.order(self.job.seed)
        self._versions = order.versions
        settings, length = self.job.settings, self.job.sequence_length
        self._batches = RankBatches(
            stores, order, BatchLayout(settings.micro_batch, place.rank, place.world, length),
            self.live.batch_schedule, settings.prefetch, begun.plan.sample, dtype, pinned,
        )  # fmt: skip
        self._micro = begun.micro  # micro-batches of the step at hand that are handed out
        self._micros = 0  # of the step that the last one handed out is of
        self._batch: Batch | None = None  # the step at hand
        self._rows: npt.NDArray[np.int64] | None = None  # sources of the last micro-batch
        if begun.micro:
            self._batch = self._batches.batch(begun.plan.sample)
            self.live.begins(begun.plan.sample + 1)  # was told before its first micro-batch
        self._published = (-1, False)  # step, and whether the budget was spent
        self._resumable = begun.plan.parent is not None
        self._unmarked: _Unmarked | None = None
        self._retry = CheckpointRetry(begun.plan.step if self._resumable else None)
        self._given_out = False  # a state, which the loop may still be writing
        self._publish()

    # --- where it stands -----------------------------------------------------------------------

    @property
    def accumulation(self) -> int:
        """Micro-batches, on each rank, of the step that the last one handed out is of."""
        return self._micros or self.live.step_samples // self._micro_samples

    @property
    def step_ends(self) -> bool:
        """Whether the micro-batch handed out last is the last of its step."""
        return self._batch is None

    @property
    def weights(self) -> dict[str, float]:
        """The mixture being handed out."""
        return self._shares(self.live.in_force)

    def _shares(self, switch: Switch) -> dict[str, float]:
        return {n: w / SCALE for n, w in zip(self.job.sources, switch.weights, strict=True)}

    def drawn(self) -> dict[str, int]:
        """Samples of each source so far, over all ranks, the step being handed out included."""
        return self._batches.drawn()

    def epochs(self) -> dict[str, float]:
        """Passes over each source so far."""
        return {name: passes(self._versions[name], count) for name, count in self.drawn().items()}

    def _ledger(self) -> dict[str, int]:
        """Samples of each source in whole steps: what the files tell beside the place."""
        drawn = self.drawn()
        if self._batch is None:
            return drawn
        handed_out = zip(drawn, self._batch.counts.tolist(), strict=True)
        return {name: drawn[name] - count for name, count in handed_out}

    def state(self) -> LoaderState:
        """The place after the micro-batch handed out last."""
        live = self.live
        return LoaderState(
            run=self.job.run,
            step=self.position.step,
            sample=self.position.sample,
            micro=self._micro,
            begun=self._micro * self._micro_samples,
            quantum=live.step_samples,
            sequence_length=self.job.sequence_length,
            seed=self.job.seed,
            incarnation=live.incarnation,
            switches=tuple((s.sample, s.generation) for s in (*live.begun, *live.ahead)),
        )

    def give_out(self) -> None:
        """The loop takes a state; it has kept it once it asks for the next micro-batch."""
        self._given_out = bool(self.position.sample + self._micro)

    def _keep(self) -> None:
        """There is a place to go on from: from now on the run isn't begun again unasked."""
        if not self._resumable and self.position.sample + self._micro:
            self._resumable = True
            self._publish()

    # --- batches -------------------------------------------------------------------------------

    def draw(self) -> dict[str, Any] | None:
        """The next micro-batch; None when the budget is spent. Collective at poll steps."""
        if self._given_out:
            self._keep()
        if self._batch is None:
            if self.live.spent:
                self.report()
                return None
            self._batch = self._begin_step()
        batch, micro = self._batch, self._micro
        self._micros = len(batch.ids)
        self._micro += 1
        if self._micro == self._micros:
            self._batch, self._micro = None, 0
            switch = self.live.advance(self.live.step_samples)
            if switch is not None:
                say(f"step {switch.step}: generation {switch.generation} is in force", "mixloop")
        self._rows = batch.source[micro]
        ids = None if batch.tensor is None else batch.tensor[micro]
        return tensors(batch.ids[micro], self._rows, self._eos_id, ids)

    def _begin_step(self) -> Batch:
        step, settings = self.position.step, self.job.settings
        if step - self._published[0] >= settings.status_every:
            self._publish()  # a loop that doesn't report is alive all the same
        if step % settings.poll_every == 0:
            switch = self.live.poll()
            if switch is not None:
                self._batches.switch(self.live.segment(switch))
        self._tell_changes()
        return self._batches.batch(self.position.sample)

    def _tell_changes(self) -> None:
        """Tell of the mixtures that begin with the step about to be drawn."""
        end = self.position.sample + self.live.step_samples
        if not self.live.ahead or self.live.ahead[0].sample >= end:
            return  # at nearly every step
        before = self.weights
        for switch in self.live.begins(end):
            weights = self._shares(switch)
            place = (self.position.step, switch.sample)
            self._on_change(Change(*place, weights, before, switch.generation, switch.fence))
            before = weights

    # --- reports -------------------------------------------------------------------------------

    def report(
        self,
        step: int | None = None,
        loss: Any = None,
        lr: float | None = None,
        phase: Phase | None = None,
        grad_norm: Any = None,
        losses: Any = None,
        source: Any = None,
    ) -> None:
        """See :meth:`mixloop.trainer.MixtureLoader.report`."""
        if self.live.lead is None:
            return
        self._metrics.update(loss, lr, phase, grad_norm)
        rows = self._rows if source is None else np.asarray(_on_cpu(source))
        if losses is not None and rows is not None:
            self._metrics.add_losses(rows.reshape(-1), losses)
        here = self.position.step
        if step is not None and self._metrics.miscounts(step, here):
            say(
                f"report: step {step}, but {here} steps were handed out; status.json counts those",
                "mixloop",
            )
        self._mark_again()
        every = self.job.settings.status_every
        due = here // every > self._published[0] // every or self.live.spent
        if due and self._micro == 0:
            self._publish()

    def _publish(self) -> None:
        """Rank 0: have the status written, unless the end is told already."""
        before, self._published = self._published, (self.position.step, self.live.spent)
        if self.live.lead is None or (self.live.spent and self._published == before):
            return
        try:
            self.live.publish(self._step_metrics(), self._ledger())
        except Exception as error:
            say(f"status not written: {type(error).__name__}: {error}", "mixloop")

    def _step_metrics(self) -> StepMetrics:
        position, spent = self.position, self.live.spent
        metrics = self._metrics.at(position.step, position.sample, spent, self._resumable)
        return replace(metrics, failed_checkpoint=self._retry.failure)

    def mark_checkpoint(self, folder: Path, files: Sequence[str]) -> bool:
        """See :meth:`mixloop.trainer.MixtureLoader.mark_checkpoint`."""
        if self.live.lead is None:
            return False
        trouble = self._tokenizer.complete(folder)
        if trouble is not None and trouble != self._unscorable:
            say(f"{folder}: can't be scored: {trouble}", "mixloop")
        self._unscorable = trouble
        try:
            manifest = self.live.manifest(self._step_metrics(), self._ledger())
        except Exception as error:
            say(f"{folder}: mixloop.json not written: {error}", "mixloop")
            return False
        if manifest is None:
            return False
        write = partial(write_saved_state, folder, self.state(), manifest, files)
        self._unmarked = _Unmarked(folder, self.position.step, write)
        return self._mark(self._unmarked)

    def _mark(self, checkpoint: _Unmarked) -> bool:
        """Leave the file in a checkpoint; if the disk does not take it, at a later report."""
        try:
            checkpoint.write()
        except Exception as error:
            self._retry.failed(checkpoint.step, f"{checkpoint.folder}: {one_line(error)}", 0.0)
            say(f"{checkpoint.folder}: mixloop.json not written: {error}", "mixloop")
            return False
        self._retry.succeeded(checkpoint.step)
        self._unmarked = None
        self._keep()
        return True

    def _mark_again(self) -> None:
        checkpoint = self._unmarked
        if checkpoint is None or not self._retry.due():
            return
        if checkpoint.folder.is_dir():
            self._mark(checkpoint)
        else:  # it was removed since: the next one's turn
            self._unmarked = None

    def close(self, publish: bool, *, in_order: bool = False) -> None:
        """End the threads.

        Args:
            publish: have the status say where it ended.
            in_order: nothing went wrong, so that what follows is another part of the run.
        """
        self._batches.close()
        if in_order:
            self._keep()
        if publish and self.position.step != self._published[0]:
            self._publish()
        if not self.live.close():
            say("the disk did not take the last status in time", "mixloop")


def _on_cpu(source: Any) -> Any:
    return source.cpu() if hasattr(source, "cpu") else source
