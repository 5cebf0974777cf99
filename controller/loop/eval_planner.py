"""The run's evaluation plan: made once by pilots on the first checkpoint, then kept.

A pilot is an evaluation on a few items, which people are told of as a trial evaluation. The plan is
journaled before its file is written and read back from either, so that a controller killed anywhere
goes on with the same numbers of items, or repeats pilots that left nothing behind.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

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
from mixloop.evals.workers import EvaluationError, Evaluator, Failure, evaluate
from mixloop.trainer.sources import trained_probe, trained_tokenizer

ATTEMPTS = 3  # pilots that may fail before the run takes the stated default

NO_SPEED = "the trainer does not say how many tokens per second it takes"


def eval_settings(config: RunConfig) -> EvalSettings:
    """run.yaml's ``evals:``, with its data's tokenizer and the ids by which that is known."""
    stores = [source.path for source in config.sources.values()]
    probe = trained_probe(stores, config.trainer.tokenizer)
    # without the ids nothing tells whether it is the one
    folder = trained_tokenizer(stores, config.trainer.tokenizer) if probe is not None else None
    return config.evals.model_copy(update={"trained_probe": probe, "trained_tokenizer": folder})


def read_plan(config: RunConfig) -> EvalPlan | None:
    """The plan in the run folder; None without one, or when run.yaml gives no budget for it.

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

    def score(settings: EvalSettings) -> Scorecard:
        return evaluate(checkpoint, settings)

    try:
        pilots = measure(config.evals, score, time.monotonic)
        return _plan(config, config.evals, pilots, speed)
    except (EvaluationError, ValueError) as error:
        raise BadInput(f"{checkpoint}: no evaluation plan: {error}") from None


def _plan(
    config: RunConfig, settings: EvalSettings, pilots: Sequence[Pilot], speed: float
) -> EvalPlan:
    every = max(config.evals.every or 0, config.trainer.checkpoint_every or 0)
    return make_plan(
        settings,
        pilots,
        training_seconds=(every or config.budget) / speed,
        tokens_per_second=speed,
    )


class Planner:
    """Makes the plan where one is needed and missing, through pilots that never block.

    Args:
        config: The run, paths absolute.
        journal: Its journal, claimed.
        settings: The run's evaluation settings so far, item sources pinned.
        evaluator: Makes what runs pilots under the settings it is given.
        clock: Monotonic seconds.

    Attributes:
        settings: How checkpoints are to be scored: with the plan's numbers once there is a plan.
        needed: Whether a budget is given and there is no plan yet.
    """

    def __init__(
        self,
        config: RunConfig,
        journal: Journal,
        settings: EvalSettings,
        evaluator: Callable[[EvalSettings], Evaluator],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._journal = journal
        self._make_evaluator = evaluator
        self._clock = clock
        self._path = config.run.dir / FILE_NAME
        self._out = config.run.dir / "trials" / "scorecard.json"
        self._pilots: list[Pilot] = []
        self._evaluator: Evaluator | None = None  # of the pilot that is under way
        self._checkpoint = ""
        self._began = self._speed = 0.0
        self._result: Scorecard | Failure | None = None
        self.settings = settings
        self.needed = settings.budget is not None
        if self.needed and (plan := self._made_earlier()) is not None:
            self._adopt(plan)

    def _made_earlier(self) -> EvalPlan | None:
        """The plan there is; a file that was lost is written again from the journal."""
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

    # -- pilots ------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a pilot is under way, or its result waits to be taken."""
        return self._evaluator is not None

    @property
    def ended(self) -> bool:
        """Whether the pilot's result waits to be taken."""
        # the samples are part of what an evaluation takes
        writing = self._evaluator is not None and self._evaluator.writing
        return self._result is not None and not writing

    def start(self, checkpoint: Path, speed: float | None) -> None:
        """Begin the next pilot; ``speed`` is the training rate now, tokens per second."""
        settings = next_pilot(self.settings, self._pilots)
        if settings is None:  # the plan they led to could not be kept: once more from the start
            self._pilots = []
            return self.start(checkpoint, speed)
        # the greater rate: the pilots themselves may slow the trainer down
        self._speed = max(self._speed, speed or 0.0)
        self._checkpoint, self._began = str(checkpoint), self._clock()
        self._out.parent.mkdir(exist_ok=True)
        self._evaluator = self._make_evaluator(settings)
        try:
            self._evaluator.start(checkpoint, self._out)
        except OSError as error:
            self._result = Failure(f"no worker can be started: {error}")

    def poll(self) -> None:
        """Look whether the pilot has ended, without waiting."""
        if self._evaluator is not None and not self.ended:
            self._result = self._evaluator.poll() or self._result

    def take(self) -> str:
        """Take the pilot's result, make the plan if it was the last. Returns a line to say."""
        result, took = self._result, self._clock() - self._began
        assert result is not None
        self.stop()
        if isinstance(result, Failure):
            return self._failed(result.reason)
        self._pilots.append(Pilot(result, took))
        self.settings = self.settings.pinned(result.data_kinds())
        if next_pilot(self.settings, self._pilots) is not None:
            return f"trial evaluation {len(self._pilots)} took {took:.3g} s"
        if self._speed <= 0:
            return self._keep(fallback_plan(self.settings, self._checkpoint, NO_SPEED))
        try:
            return self._keep(_plan(self._config, self.settings, self._pilots, self._speed))
        except ValueError as error:
            return self._failed(str(error))

    def stop(self) -> None:
        """End a pilot that is under way; nothing of it is kept."""
        if self._evaluator is not None:
            self._evaluator.stop()
        self._evaluator = self._result = None
        shutil.rmtree(self._out.parent, ignore_errors=True)

    def _failed(self, reason: str) -> str:
        self._pilots = []
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
    benchmarks = ", ".join(
        f"{name} {counts.items}"
        + (f" ({counts.generate_items} written)" if counts.generate_items else "")
        for name, counts in plan.benchmarks.items()
    )
    cost = (
        "" if plan.share is None else f", about {plan.seconds:.3g} s, {plan.share:.2%} of training"
    )
    notes = "".join(f"; {note}" for note in plan.notes)
    return f"evaluations planned for the whole run: {benchmarks}{cost}{notes}"
