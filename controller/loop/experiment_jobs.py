"""Experiments that policies ask for, and receipts: started, looked after, their results journaled.

They never delay the run: nothing here waits, and whatever goes wrong costs that experiment.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.errors import BadInput, one_line
from mixloop.common.units import format_tokens
from mixloop.controller.core import ExperimentOutcome, RunState
from mixloop.controller.decisions import experiment_evidence
from mixloop.controller.experiments import ExperimentRunner, ExperimentSpec, discard, spec_of
from mixloop.controller.journal import experiment_records, queries
from mixloop.evals.workers import Failure
from mixloop.policies.interface import ExperimentResult
from mixloop.trainer.config import JobError

from .scoring import Scoring
from .takeover import OwnedRun

EXPERIMENT_ATTEMPTS = 2
FOLDER = "experiments"  # of the run's


@dataclass
class ExperimentJobs:
    """One experiment at a time; a receipt yields to a policy's own, and goes on after it.

    Attributes:
        id: The one that is under way, or None.
        result: How that ended, once it has.
    """

    run: OwnedRun
    scoring: Scoring

    def __post_init__(self) -> None:
        log = self.run.paths.dir / "experiments.log"
        self.runner = ExperimentRunner(log, self.run.config.experiments.launcher)
        self.id: str | None = None
        self.result: ExperimentResult | Failure | None = None
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a controller that was killed has left of experiments that have ended."""
        with contextlib.suppress(OSError):
            for folder in sorted((self.run.paths.dir / FOLDER).iterdir()):
                if not self._is_open(folder.name):
                    discard(folder)

    def _is_open(self, name: str) -> bool:
        return any(row.id == name for row in queries.open_experiments(self.run.journal))

    def poll(self) -> None:
        """Look whether it has ended, without waiting."""
        if self.id is not None and self.result is None:
            self.result = self.runner.poll()

    def start(self, state: RunState) -> None:
        """Begin the experiment that is planned, or go on with one that was begun before."""
        name = state.experiment
        if self.id is not None:
            self.run.say(f"{self.id} yields to {name}, and goes on after it")
            self._forget()
        self.scoring.hold(state)  # before all else: what fails here is done again
        experiment_records.started(self.run.journal, name)
        self.id, self.result = name, None
        try:
            self.runner.start(self._spec(name))
        except (OSError, ValueError, BadInput, JobError) as error:
            self.result = Failure(f"it can't be started: {one_line(error)}")
            return
        self.run.say(f"experiment {name} begins at the checkpoint of step {self._row().step}")

    def _row(self) -> ExperimentOutcome:
        assert self.id is not None
        row = queries.experiment(self.run.journal, self.id)
        assert row is not None
        return row

    def _spec(self, name: str) -> ExperimentSpec:
        row, journal = self._row(), self.run.journal
        checkpoint = queries.checkpoint(journal, row.step)
        if checkpoint is None or not Path(checkpoint.path).is_dir():
            raise OSError(f"the checkpoint of step {row.step} is gone")
        scored = next(queries.scored(journal, since=row.step, until=row.step), None)
        scored = scored or next(queries.scored(journal, newest=1), None)
        benchmarks = scored.scorecard["benchmarks"] if scored is not None else {}
        return spec_of(
            self.run.config,
            row.request,
            checkpoint,
            self.scoring.planner.settings,
            id=name,
            decision=row.decision,
            weights=row.weights,
            shots={name: score["shots"] for name, score in benchmarks.items() if "shots" in score},
            learning_rate=row.learning_rate,
            receipt=row.receipt,
        )

    def take(self, state: RunState) -> None:
        """What came of it into the journal, or why nothing did."""
        row, result, journal = self._row(), self.result, self.run.journal
        assert result is not None
        if isinstance(result, ExperimentResult) and result.state == "done":
            kept = finite(result.model_dump(mode="json"))
            effects = experiment_evidence.experiment_effects(ExperimentResult.model_validate(kept))
            experiment_records.done(journal, row, kept, cost=result.cost, effects=effects)
            self.scoring.note_receipts()
            self.run.say(f"experiment {row.id} is done: {_told(result)}")
        elif row.attempts < EXPERIMENT_ATTEMPTS and isinstance(result, Failure):
            experiment_records.retried(journal, row.id, result.reason)
            self.run.say(f"experiment {row.id} failed: {result.reason}; once more")
            self._forget()
            return
        else:
            cost = result.cost if isinstance(result, ExperimentResult) else 0
            experiment_records.failed(journal, row, result.reason, cost=cost)
            self.run.say(f"experiment {row.id} failed: {result.reason}")
        self._end(row.id)
        self.scoring.hold(state)

    def abandon(self, state: RunState) -> None:
        """Nothing is to come of it any more."""
        name = state.experiment
        experiment_records.abandoned(self.run.journal, name, state.experiment_over)
        self._end(name)
        self.scoring.hold(state)
        self.run.say(f"experiment {name} is given up: {state.experiment_over}")

    def leave(self) -> None:
        """End those that are no longer to be made: the trainer has left their branch."""
        if self.id is not None and not self._is_open(self.id):
            self.run.say(f"experiment {self.id} is given up: {self._row().reason}")
            self._forget()
        self._sweep()

    def _end(self, name: str) -> None:
        self._forget()
        discard(self.run.paths.dir / FOLDER / name)

    def _forget(self) -> None:
        self.runner.stop()
        self.id = self.result = None

    def close(self) -> None:
        """End the child; what it has on the disk stays for the next controller."""
        self.runner.stop()


def _told(result: ExperimentResult) -> str:
    scored = sum(bool(branch.benchmarks) for branch in result.branches)
    told = f"{scored} of {len(result.branches)} branches, {format_tokens(result.cost)} tokens"
    fit = result.fit()
    return told + (f", {len(result.fits)} merge fits" if fit is not None else "")


_NO_NUMBER = object()


def finite(value: Any) -> Any:
    """JSON data without numbers that are none: a metric, item or pair that has one is left out."""
    kept = _finite(value)
    return None if kept is _NO_NUMBER else kept


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else _NO_NUMBER
    if isinstance(value, dict):
        entries = {name: _finite(entry) for name, entry in value.items()}
        if entries.get("value") is _NO_NUMBER:
            return _NO_NUMBER
        return {name: entry for name, entry in entries.items() if entry is not _NO_NUMBER}
    if isinstance(value, list | tuple):
        parts = [_finite(part) for part in value]
        return _NO_NUMBER if _NO_NUMBER in parts else parts
    return value
