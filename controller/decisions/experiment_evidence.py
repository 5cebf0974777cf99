"""Experiments of the journal as policies see them, and what they say in figures. Reads only."""

from __future__ import annotations

from collections.abc import Mapping

from mixloop.common.types import Json
from mixloop.controller.core import ExperimentOutcome, ExperimentRow
from mixloop.controller.journal import Journal, queries
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    ExperimentResult,
    ExperimentState,
    MissingScore,
    ScoredBranch,
    moved_by,
    score_difference,
)


def experiments(journal: Journal, *, before: int, known: int) -> tuple[ExperimentResult, ...]:
    """Experiments of decisions of a lower number than ``before``, oldest first.

    Only the first ``known`` that ended have done so: those that ended later still ran. Those that
    were given up, or began on a branch that the trainer has left, are not among them.
    """
    rows = queries.experiments_on_branch(journal, before=before)
    return tuple(experiment_result(row, known) for row in rows)


def experiment_result(row: ExperimentOutcome, known: int = queries.ALL) -> ExperimentResult:
    """One experiment as policies see it when ``known`` have ended."""
    asked, state = row.request, _state(row, known)
    result = row.result if state == "done" and row.result is not None else {}
    scored = ("control", "halfway", "branches", "merges", "fits", "mixmin")
    return ExperimentResult.model_validate(
        {
            "id": row.id,
            "decision": row.decision,
            "step": row.step,
            "tokens": row.tokens,
            "phase": row.phase,
            "weights": row.weights,
            "branch_tokens": asked.tokens,
            "schedule": asked.schedule,
            "design": asked.merge,
            "receipt": row.receipt,
            "state": state,
            "reason": asked.reason if state in ("running", "done") else row.reason or "",
            "cost": row.cost if state != "running" else 0,
            "branches": [{"weights": weights} for weights in asked.branches],
            **{name: result[name] for name in scored if name in result},
        }
    )


def _state(row: ExperimentRow, known: int) -> ExperimentState:
    """Its state when ``known`` had ended; one that hadn't was still to come, begun or not."""
    if row.state == "refused":
        return "refused"
    if row.ended is None or row.ended > known:
        return "running"
    return "done" if row.state == "done" else "failed"


def without_items(result: ExperimentResult) -> ExperimentResult:
    """The same, each benchmark with its metrics alone."""
    control = None if result.control is None else _bare(result.control)
    halfway = None if result.halfway is None else _bare(result.halfway)
    branches, merges = (tuple(map(_bare, side)) for side in (result.branches, result.merges))
    sides = {"control": control, "halfway": halfway, "branches": branches, "merges": merges}
    return result.model_copy(update=sides)


def _bare(branch: ScoredBranch) -> ScoredBranch:
    scores = branch.benchmarks.items()
    bare = {name: score.model_copy(update={"items": {}}) for name, score in scores}
    return branch.model_copy(update={"benchmarks": bare})


def experiment_effects(result: ExperimentResult) -> Json:
    """What an experiment tells, in figures: gains, positive is better.

    Returns:
        ``branches``, against the control, and ``merges``, against that at the present mixture, each
        with ``weights``, ``moved`` (per source, against the control's) and per benchmark the paired
        ``gain`` in bits per byte, its ``stderr`` over ``n`` items (none for what has no score on
        both sides); ``fits`` (``part``, ``weights``, ``gains``) and ``mixmin`` as in the result.
    """
    present = result.merges[0] if result.merges else None
    now = result.weights
    return {
        "branches": [_effects(branch, result.control, now) for branch in result.branches],
        "merges": [_effects(branch, present, now) for branch in result.merges[1:]],
        "fits": [
            {
                "part": fit.part,
                "weights": dict(fit.weights),
                "gains": {n: {"gain": g, "stderr": e} for n, (g, e) in fit.gains.items()},
            }
            for fit in result.fits
        ],
        "mixmin": result.mixmin,
    }


def _effects(
    branch: ScoredBranch, against: ScoredBranch | None, control: Mapping[str, float]
) -> Json:
    gains: dict[str, Mapping[str, float]] = {}
    before = against.benchmarks if against is not None else {}
    for name in (name for name in branch.benchmarks if name in before):
        try:
            found = score_difference(before[name], branch.benchmarks[name], BITS_PER_BYTE, name)
        except MissingScore:
            continue
        gains[name] = {"gain": found.gain, "stderr": found.stderr, "n": found.n}
    moved = moved_by(branch, control)
    return {"weights": dict(branch.weights), "moved": moved, "benchmarks": gains}
