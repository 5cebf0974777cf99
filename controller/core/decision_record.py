"""A decision and the order it asks for, as the journal keeps them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from mixloop.common.errors import shown
from mixloop.common.types import Json
from mixloop.contract import Order, Stage, unpublishable
from mixloop.policies.guards import GuardNote

Weights = Mapping[str, float]
Plan = tuple[tuple[int, Weights], ...]
"""Stretches ``(until_tokens, weights)``, one after the other."""
AskedBy = Literal["policy", "controller", "operator"]

LONGEST_REASON = 2000  # characters of a policy's
LONGEST_IN_ALL = 2 * LONGEST_REASON  # with what is said of it
LARGEST_EVIDENCE = 2**20  # characters of JSON: every later decision and view reads it


@dataclass(frozen=True, slots=True)
class OrderRecord:
    """The order of a decision: its ``weights_after`` and its ``plan``, under a number of its own.

    Attributes:
        policy: who made the mixture; not who decided, where guards or an approval did.
    """

    generation: int
    policy: str


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """The experiment of a decision, or the receipt of one that changes the mixture.

    Attributes:
        asked: the policy's request as it may be made, with ``weights``, the control's mixture,
            ``phase``, that of the checkpoint, and the ``learning_rate``; of a refused one, as it
            was asked for. ``receipt``: whether it is one.
        step, tokens: of the checkpoint that its branches start from.
        planned: training tokens of all its branches.
        refused: why it isn't made; None: it is.
    """

    asked: Json
    step: int
    tokens: int
    planned: int
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision.

    Attributes:
        weights_before: the mixture in force; ``weights_proposed``: the one that was asked for, None
            where nothing was; ``weights_after``: the one that is asked for now.
        plan: what the order does later, or, of a decision that waits for approval, would do.
        against_generation: of the order in force when it was made.
        order: None for a decision that changes nothing.
        experiment: that it asks for, and the mixture stays; of an order, its receipt.
        experiments_known: how many experiments had ended when the policy was asked.
        approval: why a person has to approve it first; None: nobody has to.
        step: of the checkpoint that was decided on, or the trainer's; ``tokens`` likewise.
    """

    verdict: str
    reason: str
    weights_before: Weights
    weights_after: Weights
    against_generation: int
    weights_proposed: Weights | None = None
    evidence: Json = field(default_factory=dict)
    plan: Plan = ()
    guards: tuple[GuardNote, ...] = ()
    order: OrderRecord | None = None
    experiment: ExperimentRecord | None = None
    experiments_known: int = 0
    approval: str | None = None
    asked_by: AskedBy = "policy"
    policy: str = ""
    step: int = 0
    tokens: int = 0
    observation_digest: str | None = None
    policy_digest: str | None = None
    scored_at: str | None = None


def bounded(record: DecisionRecord, run: str) -> DecisionRecord:
    """The decision, reason and evidence cut, and refused where no trainer could read its order.

    An order that can't be read back would be taken for a stranger's, and replaced by itself for
    ever.
    """
    record = replace(
        record,
        reason=shortened(record.reason, LONGEST_IN_ALL),
        evidence=small_evidence(record.evidence),
    )
    why = _unpublishable(record, run)
    if why is None:
        return record
    return replace(
        record,
        verdict="refused",
        reason=shortened(f"it can't be published: {why}; {record.reason}", LONGEST_IN_ALL),
        weights_after=record.weights_before,
        plan=(),
        order=None,
        experiment=None,
        approval=None,
    )


def _unpublishable(record: DecisionRecord, run: str) -> str | None:
    """Why what a decision orders, or would order if a person approved it, can't be published."""
    weights = record.weights_after if record.order is not None else record.weights_proposed
    if weights is None or (record.order is None and record.approval is None):
        return None
    generation = 1 if record.order is None else record.order.generation
    return unpublishable(Order(run, 0, generation, weights, tuple(stages(record.plan))))


def shortened(reason: str, longest: int = LONGEST_REASON) -> str:
    """A reason as people can read it: it stands in lines of logs and tables."""
    if len(reason) <= longest:
        return reason
    return f"{reason[:longest]}… (cut: {len(reason):,} characters)"


def small_evidence(evidence: Json) -> Json:
    """The evidence as far as it fits, its small entries first; it says which are left out."""
    sizes = {name: len(json.dumps({name: value})) for name, value in evidence.items()}
    if sum(sizes.values()) <= LARGEST_EVIDENCE:
        return evidence
    left, kept = LARGEST_EVIDENCE, set()
    for name in sorted(sizes, key=sizes.__getitem__):
        left -= sizes[name]
        if left < 0:
            break
        kept.add(name)
    cut = f"{sum(sizes.values()):,} characters of evidence, {LARGEST_EVIDENCE:,} at most; without "
    named = ", ".join(shown(name) for name in sizes if name not in kept)
    return {name: value for name, value in evidence.items() if name in kept} | {
        "left out": shortened(cut + named, 500)
    }


def stages(plan: Plan) -> list[Stage]:
    """A guarded plan (stretches ``until``) as an order's ``then`` (stages ``from``)."""
    return [
        Stage(from_tokens=until, weights=dict(weights))
        for (until, _), (_, weights) in pairwise(plan)
    ]
