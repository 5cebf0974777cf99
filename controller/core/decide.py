"""From a policy's answer to a decision and, if it changes the mixture, an order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from mixloop.common.errors import one_line
from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.contract import MOST_STAGES, Status
from mixloop.controller.config import ApprovalSection, RunConfig
from mixloop.policies.evidence import PolicyStanding, Veto, claims_of
from mixloop.policies.guards import GuardContext, GuardNote, GuardResult, apply_guards
from mixloop.policies.interface import Experiment, Observation, jsonable, load_policy
from mixloop.policies.mixture import total_variation

from .decision_record import DecisionRecord, OrderRecord, Plan, Weights, shortened
from .experiment_plans import with_experiment, with_receipt
from .guard_context import guard_context, guard_settings, remaining
from .journal_rows import DecisionRow
from .way_back import GUARDS, way_back

NOTHING = 1e-6  # total variation below which two mixtures are the same order
ENDED = "training has ended, nothing can be changed any more"
KINDS = ("proposal", "hold", "experiment", "failed", "unread")


@dataclass(frozen=True)
class Answer:
    """What the policy's child said.

    Attributes:
        kind: One of :data:`KINDS`. ``unread``: the history could not be read, so the policy was
            not asked; that says nothing of it.
        payload: What belongs to the kind.
        digest: The policy's.
        observed: What the child had said of the observation, if it came to it.
    """

    kind: str
    payload: Mapping[str, Any]
    digest: str | None = None
    observed: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PolicyAnswer:
    """What the policy asked for, whatever form its answer had."""

    weights: dict[str, float]
    reason: str
    verdict: str
    plan: Plan = ()
    evidence: Json = field(default_factory=dict)
    proposed: bool = False
    declared: bool = False
    experiment: Experiment | None = None

    @property
    def acts(self) -> bool:
        """Whether anything is to be done."""
        return self.proposed or self.experiment is not None


def make_decision(
    answer: Answer,
    observation: Observation,
    config: RunConfig,
    *,
    status: Status,
    last_intervention: int | None,
    generation: int,
    vetoes: Sequence[Veto],
    standing: PolicyStanding | None = None,
    pins: Weights | None = None,
    overtaken: str = "",
    forced: bool = False,
    waiting: DecisionRow | None = None,
) -> DecisionRecord:
    """Guard the answer and name the verdict.

    Args:
        answer: The policy child's.
        observation: The one it answered to; of the evaluations the newest :data:`RECENT` will do,
            and no decisions are looked at.
        config: The run.
        status: The trainer's newest heartbeat: the ledger's past is *now*, not the checkpoint's.
        last_intervention: Tokens at which the last intervention came into force, or None.
        generation: The number an order would get.
        vetoes: Those of this observation.
        standing: How the policy stands with the regression guard. Where that says that the run has
            become worse, the mixture goes back, whatever the answer.
        pins: Shares that a person holds fixed.
        overtaken: Why the answer no longer counts (an operator acted meanwhile); empty if it does.
        forced: The mixture in force is one that a person forced past the hard guards: a hold
            keeps it, only a proposal ends it.
        waiting: The decision that waits for a person's approval. What asks for nearly the same
            leaves it waiting.
    """
    asked = _asked(answer, observation)
    unchanged = _unchanged(asked, observation, status)
    late, why = _late(observation, config, status, overtaken)
    if late and (asked.acts or late == "expired"):
        reason = f"{asked.reason}; {why}"
        # a hold stays one
        return replace(unchanged, verdict=late, reason=reason) if asked.acts else unchanged
    if forced and not asked.proposed:
        kept = "a person forced the mixture in force past the hard guards; it is kept"
        unchanged = replace(unchanged, guards=(GuardNote("operator", "flagged", kept),))
        return with_experiment(asked.experiment, unchanged, observation, config, status.lr)
    context = replace(
        guard_context(observation, config, status, last_intervention),
        pins=pins or {},
        standing=standing or PolicyStanding(),
    )
    if not late and not forced:
        back = way_back(context, config, unchanged, generation)
        if back is not None:
            return back
    asked, context = _wanted(asked, context, observation, config, vetoes)
    result = apply_guards(asked.weights, asked.plan, context, guard_settings(config))
    unchanged = replace(unchanged, guards=result.notes)
    if result.verdict != "pass" or result.weights is None:
        stays = _kept(asked, result, unchanged)
        return with_experiment(asked.experiment, stays, observation, config, status.lr)
    if asked.proposed and not context.declared:
        for_a_person = _for_a_person(asked, unchanged, waiting, context, config, observation)
        if for_a_person is not None:
            return for_a_person
    maker = config.policy.use if asked.proposed else GUARDS
    changed = _intervention(
        asked, result, unchanged, OrderRecord(generation, maker), declared=context.declared
    )
    return with_receipt(changed, observation, config, status.lr) if asked.proposed else changed


def _unchanged(asked: PolicyAnswer, observation: Observation, status: Status) -> DecisionRecord:
    """The decision that keeps what is in force, with the policy's own verdict and reason."""
    before = dict(status.in_force.weights)
    return DecisionRecord(
        verdict=asked.verdict,
        reason=asked.reason,
        evidence=asked.evidence,
        weights_before=before,
        weights_proposed=asked.weights if asked.proposed else None,
        weights_after=before,
        against_generation=observation.generation,
    )


def _late(
    observation: Observation, config: RunConfig, status: Status, overtaken: str
) -> tuple[str, str]:
    """The verdict on an answer that no longer counts, and why; empty where it does."""
    if status.finished or status.tokens >= config.budget:
        return "expired", ENDED
    if status.in_force.generation != observation.generation:
        overtaken = "another mixture came into force meanwhile, decided anew next time"
    return ("superseded", overtaken) if overtaken else ("", "")


def _wanted(
    asked: PolicyAnswer,
    context: GuardContext,
    observation: Observation,
    config: RunConfig,
    vetoes: Sequence[Veto],
) -> tuple[PolicyAnswer, GuardContext]:
    """What is asked for from where an order could take effect, and what the guards judge it by."""
    if not asked.proposed:
        # A hold keeps what is in force *now*; what the policy saw may be over already.
        return replace(asked, weights=dict(context.weights), plan=context.plan), context
    declared = _declared(asked, observation, config)
    claims, tests = claims_of(asked.evidence)
    weights, plan = remaining(asked.weights, asked.plan, context.tokens)
    return replace(asked, weights=weights, plan=plan), replace(
        context, declared=declared, claims=claims, tests=tests, vetoes=tuple(vetoes)
    )


def _intervention(
    asked: PolicyAnswer,
    result: GuardResult,
    unchanged: DecisionRecord,
    order: OrderRecord,
    *,
    declared: bool,
) -> DecisionRecord:
    """The decision that orders what the guards let through."""
    assert result.weights is not None
    reason = asked.reason
    if not asked.proposed:
        # Going on as before would break a hard guard: that alone is a reason to change.
        reason = f"{asked.reason}; but {details(result, 'changed')}"
    return replace(
        unchanged,
        verdict="intervene",
        reason=reason,
        evidence=asked.evidence | ({"declared": True} if declared else {}),
        weights_after=result.weights,
        plan=result.plan,
        order=order,
    )


def _for_a_person(
    asked: PolicyAnswer,
    unchanged: DecisionRecord,
    waiting: DecisionRow | None,
    context: GuardContext,
    config: RunConfig,
    seen: Observation,
) -> DecisionRecord | None:
    """A decision that leaves the change to a person; None where none is needed."""
    rule, against = config.approval, unchanged.against_generation
    ruled = rule.above is not None or bool(rule.sources)  # no more since the run was let go: free
    if ruled and waiting is not None and waiting.against_generation == against:
        apart = _apart(asked, waiting, context, config.budget)
        if apart <= max(config.guards.dead_band, NOTHING) and waiting.abandoned_by is None:
            kept = f"as {waiting.id}, which waits for approval, to within guards.dead_band"
            return replace(unchanged, verdict="hold", reason=f"{asked.reason}; {kept}")
    why = needed(rule, unchanged.weights_before, asked.weights)
    if why is None:
        return None
    until = ""
    if rule.timeout is not None:
        expires = seen.evaluations[-1].tokens + rule.timeout
        until = f"; until {format_tokens(expires)} tokens"
    return replace(
        unchanged,
        verdict="awaiting-approval",
        reason=f"{asked.reason}; waits for approval: {why}{until}",
        plan=asked.plan,
        approval=why,
    )


def _apart(asked: PolicyAnswer, waiting: DecisionRow, context: GuardContext, budget: int) -> float:
    """How far two proposals are apart, in total variation, each with its plan.

    What they ask for now, or on average over the tokens left, whichever is more.
    """
    plans = [(asked.weights, asked.plan), (waiting.weights_proposed or {}, waiting.plan)]
    switches = {until for _, plan in plans for until, _ in plan}
    now, end = context.tokens, max(budget, context.tokens + 1)
    edges = [now, *sorted(until for until in switches if now < until < end), end]
    apart = [
        total_variation(*(remaining(weights, plan, start)[0] for weights, plan in plans))
        for start in edges[:-1]
    ]
    lengths = [until - start for start, until in pairwise(edges)]
    mean = sum(a * length for a, length in zip(apart, lengths, strict=True)) / (end - now)
    return max(apart[0], mean)


def _kept(asked: PolicyAnswer, result: GuardResult, unchanged: DecisionRecord) -> DecisionRecord:
    """A decision that changes nothing, and whether policy or guard said so."""
    if not asked.proposed and result.verdict == "hold":
        return unchanged
    reason = f"{asked.reason}; kept: {details(result, 'blocked')}"
    return replace(unchanged, verdict=result.verdict, reason=reason)


def details(result: GuardResult, *actions: str) -> str:
    """What the guards say of what they did, those of these actions."""
    return "; ".join(note.detail for note in result.notes if note.action in actions)


def _declared(asked: PolicyAnswer, observation: Observation, config: RunConfig) -> bool:
    """Whether this is a stage of the configuration. A policy's word for it isn't enough."""
    if not asked.declared or config.policy.use != "rules":
        return False
    from mixloop.policies.rules import RulesPolicy

    policy = load_policy("rules", config.policy.options)
    assert isinstance(policy, RulesPolicy)
    return policy.declares(observation, asked.weights, asked.plan)


def _asked(answer: Answer, observation: Observation) -> PolicyAnswer:
    payload = {**answer.payload, "reason": shortened(answer.payload["reason"])}
    current = dict(observation.weights)
    if answer.kind == "failed":
        reason = f"the policy failed: {payload['reason']}; the mixture stays"
        return PolicyAnswer(current, reason, "hold", evidence={"error": payload["reason"]})
    if answer.kind == "hold":
        return PolicyAnswer(
            current, payload["reason"], payload["verdict"], evidence=payload["evidence"]
        )
    if answer.kind == "experiment":
        try:
            # as the journal will have it: a share that is no number is null there
            wanted = Experiment(**jsonable(payload))
        except (TypeError, ValueError) as error:
            return _asked(Answer("failed", {"reason": one_line(error)}), observation)
        return PolicyAnswer(
            current, wanted.reason, "experiment", evidence=wanted.evidence, experiment=wanted
        )
    if len(payload["plan"]) > MOST_STAGES:
        many = f"its plan has {len(payload['plan']):,} stretches: the most is {MOST_STAGES:,}"
        return _asked(Answer("failed", {"reason": many}), observation)
    return PolicyAnswer(
        dict.fromkeys(observation.sources, 0.0) | payload["weights"],
        payload["reason"],
        "intervene",
        tuple((until, weights) for until, weights in payload["plan"]),
        payload["evidence"],
        proposed=True,
        declared=payload.get("declared", False),
    )


def needed(
    rule: ApprovalSection, before: Mapping[str, float], asked: Mapping[str, float]
) -> str | None:
    """Why this change needs a person, or None."""
    change = total_variation(dict(before), dict(asked))
    if rule.above is not None and change > rule.above:
        return f"it asks for a change of {change:.3g}, above {rule.above:g}"
    for name, limit in rule.sources.items():
        moved = asked.get(name, 0.0) - before.get(name, 0.0)
        if abs(moved) > limit:
            return f"it moves {name} by {moved:+.3g}, above {limit:g}"
    return None
