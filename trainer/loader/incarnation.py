"""An incarnation in a loop that is not ours: reports, changes, states, whoever draws batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.common.log import say
from mixloop.contract import SCALE, Phase, Segment
from mixloop.trainer.run import Switch

from .begin import BegunIncarnation, RankPlace
from .loader_state import LoaderState
from .loop_metrics import Reports
from .saved_state import write_saved_state


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
        drawn: samples of each source so far, over all ranks; asked when a status is due.
        on_change: told of each new mixture before its first sample; its exceptions are the loop's.
    """

    def __init__(
        self,
        begun: BegunIncarnation,
        place: RankPlace,
        reports: Reports,
        drawn: Callable[[], Mapping[str, int]],
        on_change: Callable[[Change], None] | None,
    ) -> None:
        self.steering = begun.steering
        self.job = begun.steering.job
        self.position = begun.steering.position
        self._names = tuple(self.job.sources)
        self._place = place
        self._reports = reports
        self._drawn = drawn
        self._on_change = on_change
        self._told = -1
        self._finished = False
        self.publish()

    @property
    def leads(self) -> bool:
        """Whether this rank has the run's files."""
        return self.steering.lead is not None

    @property
    def weights(self) -> dict[str, float]:
        """The mixture being handed out."""
        return self._shares(self.steering.in_force)

    def _shares(self, switch: Switch) -> dict[str, float]:
        return {n: w / SCALE for n, w in zip(self._names, switch.weights, strict=True)}

    # --- between steps -------------------------------------------------------------------------

    def between_steps(self) -> Segment | None:
        """At every step's beginning: a heartbeat, and at a poll step what is heard. Collective."""
        step, settings = self.position.step, self.job.settings
        if step - self._told >= settings.status_every:
            self.publish()  # a loop that doesn't report is alive all the same
        if step % settings.poll_every:
            return None
        heard = self.steering.poll()
        return None if heard is None else self.steering.segment(heard)

    def tell(self) -> None:
        """Tell of the mixtures that begin with the step about to be drawn."""
        end = self.position.sample + self.steering.step_samples
        if not self.steering.ahead or self.steering.ahead[0].sample >= end:
            return  # at nearly every step
        before = self.weights
        for switch in self.steering.begins(end):
            weights = self._shares(switch)
            if self._on_change is not None:
                at = (self.position.step, switch.sample, weights, before)
                self._on_change(Change(*at, switch.generation, switch.fence))
            before = weights

    def advance(self) -> None:
        """A step is handed out in full."""
        switch = self.steering.advance(self.steering.step_samples)
        if switch is not None:
            say(f"step {switch.step}: generation {switch.generation} is in force", "mixloop")

    # --- reports -------------------------------------------------------------------------------

    def report(
        self,
        whole: bool,
        step: int | None,
        loss: Any,
        lr: float | None,
        phase: Phase | None,
        grad_norm: Any,
        losses: Any,
        source: npt.NDArray[np.int64] | None,
    ) -> None:
        """See :meth:`mixloop.trainer.MixtureLoader.report`; `whole`: between two steps."""
        if not self.leads:
            return
        self._reports.take(loss, lr, phase, grad_norm)
        if losses is not None and source is not None:
            self._reports.add(source, losses)
        at = self.position.step
        if step is not None and self._reports.odd(step, at):
            say(
                f"report: step {step}, but {at} steps were handed out; status.json counts those",
                "mixloop",
            )
        every = self.job.settings.status_every
        if whole and (at // every > self._told // every or self.steering.spent):
            self.publish()

    def publish(self) -> None:
        """Rank 0: have the status written, unless the end is told already."""
        step, finished = self.position.step, self.steering.spent
        again = finished and self._finished and self._told == step
        self._told, self._finished = step, finished
        if not self.leads or again:
            return
        try:
            moment = self._reports.moment(step, self.position.sample, finished)
            self.steering.publish(moment, self._drawn())
        except Exception as error:
            say(f"status not written: {type(error).__name__}: {error}", "mixloop")

    # --- states --------------------------------------------------------------------------------

    def state(self, micro: int = 0) -> LoaderState:
        """The place after `micro` micro-batches of the step at hand."""
        settings, steering = self.job.settings, self.steering
        switches = (*steering.begun, *steering.ahead)
        return LoaderState(
            run=self.job.run,
            step=self.position.step,
            sample=self.position.sample,
            micro=micro,
            begun=micro * settings.micro_batch * self._place.world,
            quantum=steering.step_samples,
            sequence_length=self.job.sequence_length,
            seed=self.job.seed,
            incarnation=steering.incarnation,
            switches=tuple((switch.sample, switch.generation) for switch in switches),
        )

    def saved(self, folder: str | Path, files: Sequence[str], micro: int) -> bool:
        """See :meth:`mixloop.trainer.MixtureLoader.saved`."""
        if not self.leads:
            return False
        try:
            position = self.position
            moment = self._reports.moment(position.step, position.sample, self.steering.spent)
            manifest = self.steering.manifest(moment, self._drawn())
            if manifest is None:
                return False
            write_saved_state(Path(folder), self.state(micro), manifest, files)
        except Exception as error:
            say(f"{folder}: mixloop.json not written: {error}", "mixloop")
            return False
        return True

    def close(self, last_word: bool = True) -> None:
        """End the side thread; with a last word, the status says where it ended."""
        if last_word and self.position.step != self._told:
            self.publish()
        if not self.steering.close():
            say("the disk did not take the last status in time", "mixloop")
