"""The run's evaluation plan: made once by trial evaluations of the first checkpoint, then kept.

The plan is journaled before its file is written and read back from either, so that a controller
killed anywhere goes on with the same numbers of items, or repeats trials that left nothing behind.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mixloop.common.errors import BadInput
from mixloop.common.files import write_atomic
from mixloop.controller.config import RunConfig
from mixloop.controller.journal import Journal, queries
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.planning import (
    FILE_NAME,
    EvalPlan,
    Pilot,
    fallback_plan,
    make_plan,
    measure,
    next_pilot,
)
from mixloop.evals.workers import EvaluationError, Failure, evaluate

ATTEMPTS = 3  # trials that may fail before the run takes the stated default

NO_SPEED = "the trainer does not say how many tokens per second it takes"


class Scoring(Protocol):
    """What trials need of an :class:`~mixloop.evals.workers.Evaluator`."""

    def start(self, checkpoint: Path, out: Path) -> None:
        """Begin scoring a checkpoint."""

    def poll(self) -> Scorecard | Failure | None:
        """The result, once there is one."""

    def stop(self) -> None:
        """End the worker."""


def interval(config: RunConfig) -> int:
    """Training tokens between two evaluations."""
    trainer = config.trainer.checkpoint_every or 0
    return max(config.evals.every or 0, trainer) or config.budget


def read_plan(config: RunConfig) -> EvalPlan | None:
    """The plan in the run folder; None without one, or when run.yaml gives no budget.

    Raises:
        BadInput: when the file holds no plan.
    """
    if config.evals.budget is None:
        return None
    try:
        return EvalPlan.read(config.run.dir / FILE_NAME)
    except ValueError as error:
        raise BadInput(f"{error}; remove it to plan anew, with other items than so far") from None


def measured_plan(config: RunConfig, checkpoint: Path, speed: float) -> EvalPlan:
    """The plan as it would be made from this checkpoint at ``speed`` tokens per second.

    Raises:
        BadInput: when the checkpoint can't be scored, or its scores give no plan.
    """

    def score(asked: EvalSettings) -> Scorecard:
        return evaluate(checkpoint, asked)

    try:
        trials = measure(config.evals, score, time.monotonic)
        return make_plan(
            config.evals,
            trials,
            training_seconds=interval(config) / speed,
            tokens_per_second=speed,
        )
    except (EvaluationError, ValueError) as error:
        raise BadInput(f"{checkpoint}: no evaluation plan: {error}") from None


class Planner:
    """Makes the plan where one is needed and missing, through trials that never block.

    Args:
        config: The run, paths absolute.
        journal: Its journal, claimed.
        settings: The run's evaluation settings so far, item sources pinned.
        evaluator: Makes what runs trials under the settings it is given.
        clock: Monotonic seconds.

    Attributes:
        settings: How checkpoints are to be scored: with the plan's numbers once there is a plan.
        needed: A budget is given and there is no plan yet.
    """

    def __init__(
        self,
        config: RunConfig,
        journal: Journal,
        settings: EvalSettings,
        evaluator: Callable[[EvalSettings], Scoring],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._journal = journal
        self._make = evaluator
        self._clock = clock
        self._path = config.run.dir / FILE_NAME
        self._out = config.run.dir / "trials" / "scorecard.json"
        self._trials: list[Pilot] = []
        self._running: Scoring | None = None
        self._checkpoint = ""
        self._began = self._speed = 0.0
        self._result: Scorecard | Failure | None = None
        self.settings = settings
        self.needed = settings.budget is not None
        plan = self._found()
        if plan is not None:
            self._adopt(plan)

    def _found(self) -> EvalPlan | None:
        """The plan made earlier; a file that was lost is written again from the journal."""
        if not self.needed:
            return None
        plan = read_plan(self._config)
        if plan is None and (plan := self._journaled()) is not None:
            write_atomic(self._path, plan.to_json().encode())
        return plan

    def _journaled(self) -> EvalPlan | None:
        events = queries.events(self._journal, "evals-planned")
        return EvalPlan.model_validate(events[0].detail["plan"]) if events else None

    def _adopt(self, plan: EvalPlan) -> None:
        self.needed = False
        self.settings = plan.pin(self.settings)

    # -- trials ------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """A trial is under way, or its result waits to be taken."""
        return self._running is not None

    @property
    def ended(self) -> bool:
        """The trial's result waits to be taken."""
        return self._result is not None

    def start(self, checkpoint: Path, speed: float | None) -> None:
        """Begin the next trial; ``speed`` is the training rate now, tokens per second."""
        asked = next_pilot(self.settings, self._trials)
        if asked is None:  # the plan they led to could not be kept: once more from the start
            self._trials = []
            return self.start(checkpoint, speed)
        # the greater rate: the trials themselves may slow the trainer down
        self._speed = max(self._speed, speed or 0.0)
        self._checkpoint, self._began = str(checkpoint), self._clock()
        self._out.parent.mkdir(exist_ok=True)
        self._running = self._make(asked)
        try:
            self._running.start(checkpoint, self._out)
        except OSError as error:
            self._result = Failure(f"no worker can be started: {error}")

    def poll(self) -> None:
        """Look whether the trial has ended, without waiting."""
        if self._running is not None and self._result is None:
            self._result = self._running.poll()

    def take(self) -> str:
        """Take the trial's result, make the plan if it was the last. Returns a line to say."""
        result, took = self._result, self._clock() - self._began
        assert result is not None
        self.stop()
        if isinstance(result, Failure):
            return self._failed(result.reason)
        self._trials.append(Pilot(result, took))
        self.settings = self.settings.pinned(result.data_kinds())
        if next_pilot(self.settings, self._trials) is not None:
            return f"trial evaluation {len(self._trials)} took {took:.3g} s"
        if self._speed <= 0:
            return self._keep(fallback_plan(self.settings, self._checkpoint, NO_SPEED))
        try:
            return self._keep(self._plan())
        except ValueError as error:
            return self._failed(str(error))

    def stop(self) -> None:
        """End a trial that is under way; nothing of it is kept."""
        if self._running is not None:
            self._running.stop()
        self._running = self._result = None
        shutil.rmtree(self._out.parent, ignore_errors=True)

    def _plan(self) -> EvalPlan:
        return make_plan(
            self.settings,
            self._trials,
            training_seconds=interval(self._config) / self._speed,
            tokens_per_second=self._speed,
        )

    def _failed(self, reason: str) -> str:
        self._trials = []
        self._journal.event("trial-failed", reason=reason)
        if len(queries.events(self._journal, "trial-failed")) >= ATTEMPTS:
            return self._keep(fallback_plan(self.settings, self._checkpoint, reason))
        return f"a trial evaluation failed: {reason}; once more"

    def _keep(self, plan: EvalPlan) -> str:
        earlier = self._journaled()
        if earlier is None:
            self._journal.event("evals-planned", plan=plan.model_dump(mode="json", by_alias=True))
        plan = earlier or plan
        write_atomic(self._path, plan.to_json().encode())
        self._adopt(plan)
        return plan_line(plan)


def plan_line(plan: EvalPlan) -> str:
    """A plan in one line for a person."""
    counts = ", ".join(
        f"{name} {one.items}" + (f" ({one.generate_items} written)" if one.generate_items else "")
        for name, one in plan.benchmarks.items()
    )
    cost = (
        "" if plan.share is None else f", about {plan.seconds:.3g} s, {plan.share:.2%} of training"
    )
    notes = "".join(f"; {note}" for note in plan.notes)
    return f"evaluations planned for the whole run: {counts}{cost}{notes}"
