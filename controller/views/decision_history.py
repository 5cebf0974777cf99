"""What was decided and what came of it: history, one decision explained, mixtures, scores."""

from __future__ import annotations

from collections.abc import Sequence

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.contract import SCALE, RunPaths, Schedule, decision_id, schedule_of
from mixloop.controller.core import ApprovalRow, DecisionRow, EventRow, OrderRow, would_order
from mixloop.controller.decisions import Outcomes, observation_builder
from mixloop.controller.journal import Journal, queries

from .experiment_history import experiments_by_decision


def history(journal: Journal) -> list[Json]:
    """Every decision, oldest first, as ``mixloop history --json`` prints it."""
    outcomes = Outcomes(journal)
    orders = {order.generation: order for order in queries.orders(journal)}
    approvals = {row.decision: row for row in queries.approvals(journal)}
    timeout = queries.start_params(journal).get("approval_timeout")
    changes = queries.events(journal, "steering")
    assessments: dict[str, list[Json]] = {}
    for row in queries.assessments(journal):
        assessments.setdefault(row.decision, []).append(row.to_json())
    experiments = experiments_by_decision(journal)
    entries = []
    for decision in queries.decisions(journal):
        order = orders.get(decision.generation or 0)
        approval = approvals.get(decision.id)
        entries.append(
            _entry(decision, order, outcomes)
            | {
                "steering": steering_at(changes, decision.step),
                "approval": approval and approval_json(decision, approval, timeout),
                "assessments": assessments.get(decision.id, []),
                "experiment": experiments.get(decision.id),
            }
        )
    return entries


def approval_json(decision: DecisionRow, approval: ApprovalRow, timeout: int | None) -> Json:
    """An approval, and what it is about: ``before``, ``after`` and ``until_tokens``.

    ``after`` is what approving it would order; ``timeout`` the run's, in tokens.
    """
    return approval.to_json(but=("decision",)) | {
        "before": dict(decision.weights_before),
        "after": dict(would_order(decision.to_json())),
        "until_tokens": None if timeout is None else decision.tokens + timeout,
    }


def _entry(decision: DecisionRow, order: OrderRow | None, outcomes: Outcomes) -> Json:
    return decision.to_json(but=("seq",)) | {
        "applied_step": order.applied_step if order else None,
        "outcome": _outcome(order, outcomes),
        "applied_tokens": order.applied_tokens if order else None,
        "applied_sample": order.applied_sample if order else None,
        "applied_at": order.applied_at if order else None,
    }


def steering_at(changes: Sequence[EventRow], step: int) -> Json:
    """What steered each benchmark at a step; empty before the first decision.

    ``since`` is the step of the evaluation from which a headline steers, None for a metric that
    has steered from the start; ``changes`` are the events of kind ``steering``, oldest first.
    """
    earlier = [event.detail["benchmarks"] for event in changes if event.detail["step"] <= step]
    return dict(earlier[-1]) if earlier else {}


def _outcome(order: OrderRow | None, outcomes: Outcomes) -> Json | None:
    """What became of an intervention; None for a decision that changed nothing."""
    if order is None:
        return None
    if order.rejected:
        return {"state": "never in force", "detail": order.rejected, "benchmarks": {}}
    if order.applied_step is None:
        return {"state": "not in force yet", "benchmarks": {}}
    outcome = outcomes.of(order)
    if outcome is None:
        return {"state": "in force, not scored since", "benchmarks": {}}
    return {"state": "scored", **outcome}


def find_decision(journal: Journal, name: str) -> Json:
    """One decision of :func:`history` by its id (``d-000003``, or just ``3``).

    Raises:
        BadInput: when there is none.
    """
    wanted = decision_id(name)
    entries = history(journal)
    for entry in entries:
        if entry["id"] == wanted:
            return entry
    there = f"this run has d-000001 to {entries[-1]['id']}" if entries else "this run has none yet"
    raise BadInput(f"{name}: no such decision; {there}")


def segments(paths: RunPaths, sequence_length: int) -> list[Json]:
    """The mixtures as applied, each with its first token, from the trainer's own schedule."""
    return [
        {
            "tokens": segment.sample * sequence_length,
            "sample": segment.sample,
            "step": segment.step,
            "generation": segment.generation,
            "weights": {name: units / SCALE for name, units in segment.weights.items()},
        }
        for segment in (schedule_of(paths.schedule).value or Schedule()).segments
    ]


def benchmarks(journal: Journal) -> list[Json]:
    """Every scored checkpoint's metrics, oldest first, without the items."""
    return [
        {
            "step": evaluation.step,
            "tokens": evaluation.tokens,
            "benchmarks": {
                name: {metric: value.model_dump() for metric, value in score.metrics.items()}
                for name, score in evaluation.benchmarks.items()
            },
        }
        for evaluation in observation_builder.evaluations(journal)
    ]
