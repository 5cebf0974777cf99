"""Experiments and what came of them: all of a run's, one in full, and how one under way stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from mixloop.common.types import Json
from mixloop.contract import RunPaths
from mixloop.controller.core import ExperimentRow
from mixloop.controller.experiments import ExperimentProgress, read_progress
from mixloop.controller.journal import Journal, queries


@dataclass(frozen=True, slots=True)
class ExperimentsStanding:
    """How a run's experiments stand.

    Attributes:
        budget: training tokens that all may take; 0: none are made.
        charged: those that were taken, or may yet be.
        states: experiments by what became of them.
        open: the one that is planned or runs, a policy's before a receipt, and ``progress``, how
            far that is, once it tells.
    """

    budget: int = 0
    charged: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    open: ExperimentRow | None = None
    progress: ExperimentProgress | None = None

    @property
    def left(self) -> int:
        """Tokens that further ones may take."""
        return max(0, self.budget - self.charged)

    @property
    def in_words(self) -> str:
        """``e-000003 runs, from step 400 (d-000012): 4 of 15 branches, training``; or empty."""
        if self.open is None:
            return ""
        runs = "runs" if self.open.state == "running" else "is planned"
        of = f"receipt of {self.open.decision}" if self.open.receipt else self.open.decision
        told = f"{self.open.id} {runs}, from step {self.open.step} ({of})"
        if self.progress is None:
            return told
        done = f"{self.progress.done} of {self.progress.branches} branches"
        return f"{told}: {done}, {self.progress.doing}"

    def to_json(self) -> Json:
        """As in ``mixloop status --json``."""
        return {
            "budget": self.budget,
            "charged": self.charged,
            "left": self.left,
            "states": dict(self.states),
            "open": None if self.open is None else experiment_json(self.open),
            "progress": None if self.progress is None else asdict(self.progress),
        }


def experiments_standing(paths: RunPaths, journal: Journal, budget: int) -> ExperimentsStanding:
    """How they stand now; ``budget`` in training tokens."""
    rows = queries.experiments(journal)
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    begun = next(iter(queries.open_experiments(journal)), None)
    progress = None
    if begun is not None and begun.state == "running":
        progress = read_progress(paths.dir / "experiments" / begun.id)
    return ExperimentsStanding(budget, sum(row.charged for row in rows), states, begun, progress)


def experiment_json(row: ExperimentRow) -> Json:
    """One experiment as ``history --json`` has it: what was asked for, and what came of it."""
    asked = row.request.model_dump(mode="json")
    return row.to_json(but=("asked", "ended", "effects")) | {
        "why": asked["reason"],
        "weights": row.weights,
        "phase": row.phase,
        "branches": asked["branches"],
        "branch_tokens": asked["tokens"],
        "schedule": asked["schedule"],
        "merge": asked["merge"],
        "receipt": row.receipt,
        "effects": row.effects,
    }


def experiments_by_decision(journal: Journal) -> dict[str, Json]:
    """All of a run's, by the decision that asked for each."""
    return {row.decision: experiment_json(row) for row in queries.experiments(journal)}
