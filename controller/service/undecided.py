"""What a run can't decide, however its scores turn out: it sees too little, or too late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mixloop.common.text import tokens
from mixloop.controller.config import RunConfig
from mixloop.controller.core import switching_lead
from mixloop.evals.planning import EvalPlan

from .feasibility import LATE, evaluation_interval, usable_evaluations

EXPLORES = {"law": 0.5, "bayes": 0.3}
"""Policies that find out by trying mixtures: the part of the budget in which they do."""
STEADY = 8  # evaluations that tell the jitter of a run's scores to about a third


def undecided(
    config: RunConfig, weights: Mapping[str, float], needs: Mapping[str, int], plan: EvalPlan | None
) -> list[str]:
    """What can't be decided, each in a line with the numbers and the mend.

    Args:
        config: The run.
        weights: Its first mixture; sources without a share aren't counted.
        needs: Evaluations before each thing that the policy may do.
        plan: Of the evaluations, where one was made: it knows how long scoring takes.
    """
    interval = evaluation_interval(config)
    if interval is None or not any(needs.values()):
        return []
    return [
        *_contrasts(config, sum(weight > 0 for weight in weights.values()), interval),
        *_jitter(config, interval),
        *_late(config, interval, plan),
    ]


def _contrasts(config: RunConfig, sources: int, interval: int) -> Iterator[str]:
    """Each source's effect beside the others' takes a contrast, and its opposite against drift."""
    policy = config.policy
    part = EXPLORES.get(policy.use)
    if part is None or sources < 2:
        return
    stated = policy.options.get("explore") if policy.use == "law" else None
    part = float(stated) if isinstance(stated, int | float) else part
    seen = min(int(part * config.budget / interval), usable_evaluations(config, interval))
    needed = 2 * (sources - 1)
    if seen >= needed:
        return
    often = int(part * config.budget / needed)
    hint = f"evaluate every {tokens(often)} tokens, or " if often > 0 else ""
    yield (
        f"{sources} sources can't be told apart by {policy.use}: {seen} evaluations lie in the "
        f"part of the budget in which it tries mixtures, {sources - 1} contrasts with their "
        f"opposites take {needed}; {hint}put sources together, or start from `mixloop search`"
    )


def _jitter(config: RunConfig, interval: int) -> Iterator[str]:
    count = usable_evaluations(config, interval)
    if count < STEADY:
        yield (
            f"{count} evaluations to decide after hardly tell how far the scores jitter between "
            f"checkpoints ({STEADY} do, to about a third): only large changes will count"
        )


def _late(config: RunConfig, interval: int, plan: EvalPlan | None) -> Iterator[str]:
    share = plan.share if plan is not None else config.evals.budget
    lead = switching_lead(config, interval)
    # of the lead alone another line tells
    if share is None or lead > LATE * interval or lead + share * interval <= LATE * interval:
        return
    late = lead + int(share * interval)
    yield (
        f"an order comes into force up to {tokens(late)} tokens after its checkpoint "
        f"({tokens(int(share * interval))} while it is scored, {tokens(lead)} by "
        f"trainer.poll_every and trainer.prefetch), {late / interval:.0%} of the "
        f"{tokens(interval)} between two evaluations: the next one says little of what "
        "it did; score less (evals.budget), lower "
        "trainer.poll_every, or evaluate less often"
    )
