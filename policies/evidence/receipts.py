"""Receipts among a run's experiments: branches that went on without an intervention.

A branch is a twin of the run when it starts at the checkpoint that was decided on, goes on at the
mixture from before the decision, and with the learning rate as the run's own. Each such branch
gives one point: the run's own evaluation at as many tokens, paired with the branch's scores.
A receipt that the controller made gives two, at half of its tokens and at its end, and starts at
the last checkpoint before the change came into force.
"""

from __future__ import annotations

import math
from math import fsum

from mixloop.policies.interface import (
    Evaluation,
    ExperimentResult,
    MissingScore,
    Observation,
    PastDecision,
    ScoredBranch,
    score_difference,
)
from mixloop.policies.mixture import REACHED, total_variation

from .confidence_sequence import Receipt, ReceiptPoint, receipts
from .objective import objective_metric, objective_weights
from .score_courses import objective_jitter

NEAR = 0.1  # part of a branch's length by which the run's evaluation may lie off its end


def receipts_of(observation: Observation, decision: PastDecision) -> list[Receipt]:
    """What the twins of an intervention said, after each of their points; empty without one."""
    points = receipt_points(observation, decision)
    return receipts(points, objective_jitter(observation)) if points else []


def receipt_points(observation: Observation, decision: PastDecision) -> list[ReceiptPoint]:
    """The objective's paired differences of run and twins, shortest branch first."""
    found: dict[int, ReceiptPoint] = {}
    for result in (*observation.experiments, *observation.receipts):
        for tokens, twin in _twins(result, decision):
            end = result.tokens + tokens
            evaluation = _evaluation_at(observation, decision, end, NEAR * tokens)
            point = None if evaluation is None else _point(observation, twin, evaluation)
            if point is not None:
                found[end] = point
    return [found[end] for end in sorted(found)]


def _twins(result: ExperimentResult, decision: PastDecision) -> list[tuple[int, ScoredBranch]]:
    """What went on as before the decision, and for how many tokens."""
    twin = _twin(result, decision)
    found = [] if twin is None else [(result.branch_tokens, twin)]
    if twin is not None and result.receipt and result.halfway is not None:
        found.append((result.branch_tokens // 2, result.halfway))
    return found


def _twin(result: ExperimentResult, decision: PastDecision) -> ScoredBranch | None:
    """The branch of an experiment that goes on as before the decision."""
    same = result.decision == decision.id if result.receipt else result.tokens == decision.tokens
    if not same or result.schedule != "as the run" or result.state != "done":
        return None
    branches = (*result.branches, *([result.control] if result.control else []))
    for branch in branches:
        apart = total_variation(branch.weights, decision.weights_before)
        if branch.benchmarks and apart <= REACHED:
            return branch
    return None


def _evaluation_at(
    observation: Observation, decision: PastDecision, tokens: int, near: float
) -> Evaluation | None:
    """The run's evaluation nearest to this many tokens, under the decision's order."""
    since = decision.generation
    under = (e for e in observation.evaluations if since is not None and e.generation >= since)
    best = min(under, key=lambda evaluation: abs(evaluation.tokens - tokens), default=None)
    return best if best is not None and abs(best.tokens - tokens) <= near else None


def _point(
    observation: Observation, twin: ScoredBranch, evaluation: Evaluation
) -> ReceiptPoint | None:
    """None unless every part of the objective is scored on both sides."""
    metric = objective_metric(observation)
    gains, errors = [], []
    for benchmark, part in objective_weights(observation).items():
        if not part:
            continue
        sides = (twin.benchmarks.get(benchmark), evaluation.benchmarks.get(benchmark))
        if sides[0] is None or sides[1] is None:
            return None
        try:
            difference = score_difference(sides[0], sides[1], metric, benchmark)
        except MissingScore:
            return None
        gains.append(part * difference.gain)
        errors.append(part * difference.stderr)
    if not gains:
        return None
    stderr = math.sqrt(fsum(error**2 for error in errors))
    return ReceiptPoint(fsum(gains), stderr, evaluation.step, metric)
