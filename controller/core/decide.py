"""From a policy's answer to a decision and, if it changes the mixture, an order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixloop.common.types import Json
from mixloop.controller.config import ApprovalSection, RunConfig
from mixloop.evals import Scorecard
from mixloop.policies.evidence import Veto, claims_of
from mixloop.policies.guards import GuardNote, GuardResult, apply_guards
from mixloop.policies.interface import Evaluation, Observation, load_policy
from mixloop.policies.mixture import total_variation

from .decision_record import DecisionRecord, OrderRecord, Plan, Weights
from .guard_context import guard_context, guard_settings, remaining

NOTHING = 1e-6  # total variation below which two mixtures are the same order
ENDED = "training has ended, nothing can be changed any more"
HEADLINES = ("accuracy", "exact_match", "pass_at_1")


@dataclass(frozen=True)
class PolicyAnswer:
    """What the policy asked for, whatever form its answer had."""

    weights: dict[str, float]
    reason: str
    verdict: str
    plan: Sequence[tuple[int, dict[str, float]]] = ()
    evidence: Json = field(default_factory=dict)
    proposed: bool = False
    declared: bool = False


def make_decision(
    answer: Answer,
    seen: Observation,
    config: RunConfig,
    *,
    status: Any,
    last_intervention: int | None,
    generation: int,
    vetoes: Sequence[Veto],
    pins: Weights | None = None,
    overtaken: str = "",
    forced: bool = False,
) -> DecisionRecord:
    """Guard the answer and name the verdict.

    Args:
        answer: The policy child's.
        seen: The observation it answered to; of the evaluations the newest :data:`RECENT` will do,
            and no decisions are looked at.
        config: The run.
        status: The trainer's newest heartbeat: the ledger's past is *now*, not the checkpoint's.
        last_intervention: Tokens at which the last intervention came into force, or None.
        generation: The number an order would get.
        vetoes: Those of this observation.
        pins: Shares that a person holds fixed.
        overtaken: Why the answer no longer counts (an operator acted meanwhile); empty if it does.
        forced: The mixture in force is one that a person forced past the hard guards: a hold
            keeps it, only a proposal ends it.
    """
    asked = _asked(answer, seen)
    before = dict(status.in_force.weights)
    if status.finished or status.tokens >= config.budget:
        verdict = "expired" if asked.proposed else asked.verdict
        reason = f"{asked.reason}; {ENDED}" if asked.proposed else asked.reason
        return _record(asked, seen, before, verdict=verdict, reason=reason)
    if asked.proposed and status.in_force.generation != seen.generation:
        reason = (
            f"{asked.reason}; another mixture came into force meanwhile, decided anew next time"
        )
        return _record(asked, seen, before, verdict="superseded", reason=reason)
    if asked.proposed and overtaken:
        reason = f"{asked.reason}; {overtaken}"
        return _record(asked, seen, before, verdict="superseded", reason=reason)
    if forced and not asked.proposed:
        said = "a person forced the mixture in force past the hard guards; it is kept"
        note = GuardNote("operator", "flagged", said)
        return _record(asked, seen, before, guards=(note,))
    context = replace(guard_context(seen, config, status, last_intervention), pins=pins or {})
    # A hold keeps what is in force *now*; what the policy saw may be over already.
    weights, plan = dict(context.weights), [(u, dict(w)) for u, w in context.plan]
    if asked.proposed:
        weights, plan = _from_then_on(asked, context.tokens)
        claims, tests = claims_of(asked.evidence)
        context = replace(
            context,
            declared=_declared(asked, seen, config),
            claims=claims,
            tests=tests,
            vetoes=tuple(vetoes),
        )
    result = apply_guards(weights, plan, context, guard_settings(config))
    if result.verdict == "pass" and asked.proposed and not context.declared:
        why = needed(config.approval, before, weights)
        if why is not None:
            return _record(
                asked,
                seen,
                before,
                verdict="awaiting-approval",
                reason=f"{asked.reason}; waits for approval: {why}",
                guards=result.notes,
                plan=tuple(plan),  # the one asked for
                approval=why,
            )
    return _guarded(asked, seen, before, result, generation, config.policy.use)


def _from_then_on(asked: PolicyAnswer, tokens: int) -> tuple[dict[str, float], list[Any]]:
    """What was asked for, from where an order could take effect."""
    weights, left = remaining(asked.weights, asked.plan, tokens)
    return weights, [(until, stretch) for until, stretch in left]


def _declared(asked: PolicyAnswer, seen: Observation, config: RunConfig) -> bool:
    """Whether this is a stage of the configuration. A policy's word for it isn't enough."""
    if not asked.declared or config.policy.use != "rules":
        return False
    from mixloop.policies.rules import RulesPolicy

    policy = load_policy("rules", config.policy.options)
    assert isinstance(policy, RulesPolicy)
    return policy.declares(seen, asked.weights, asked.plan)


def _asked(answer: Answer, seen: Observation) -> PolicyAnswer:
    payload = answer.payload
    current = dict(seen.weights)
    if answer.kind == "failed":
        reason = f"the policy failed: {payload['reason']}; the mixture stays"
        return PolicyAnswer(current, reason, "hold", evidence={"error": payload["reason"]})
    if answer.kind == "hold":
        return PolicyAnswer(
            current, payload["reason"], payload["verdict"], evidence=payload["evidence"]
        )
    weights = dict.fromkeys(seen.sources, 0.0) | payload["weights"]
    plan = [(until, dict(w)) for until, w in payload["plan"]]
    return PolicyAnswer(
        weights,
        payload["reason"],
        "intervene",
        plan,
        payload["evidence"],
        proposed=True,
        declared=payload.get("declared", False),
    )


def _guarded(
    asked: PolicyAnswer,
    seen: Observation,
    before: dict[str, float],
    result: GuardResult,
    generation: int,
    config_policy: str,
) -> DecisionRecord:
    if result.verdict != "pass" or result.weights is None:
        return _kept(asked, seen, before, result)
    reason = asked.reason
    if not asked.proposed:
        # Going on as before would break a hard guard: that alone is a reason to change.
        changed = [note.detail for note in result.notes if note.action == "changed"]
        reason = f"{asked.reason}; but {'; '.join(changed)}"
    return _record(
        asked,
        seen,
        before,
        result.weights,
        verdict="intervene",
        reason=reason,
        guards=result.notes,
        plan=result.plan,
        order=OrderRecord(generation, config_policy if asked.proposed else "guards"),
    )


def _kept(
    asked: PolicyAnswer, seen: Observation, before: Weights, result: GuardResult
) -> DecisionRecord:
    """A decision that changes nothing, and whether policy or guard said so."""
    if not asked.proposed and result.verdict == "hold":
        return _record(asked, seen, before, guards=result.notes)
    blocked = [note.detail for note in result.notes if note.action == "blocked"]
    reason = f"{asked.reason}; kept: {'; '.join(blocked)}"
    return _record(asked, seen, before, verdict=result.verdict, reason=reason, guards=result.notes)


def _record(
    asked: PolicyAnswer,
    seen: Observation,
    before: Weights,
    after: Weights | None = None,
    *,
    verdict: str = "",
    reason: str = "",
    guards: tuple[GuardNote, ...] = (),
    plan: Plan = (),
    order: OrderRecord | None = None,
    approval: str | None = None,
) -> DecisionRecord:
    """The record; ``after``, ``verdict`` and ``reason`` where they aren't those that were asked."""
    return DecisionRecord(
        verdict=verdict or asked.verdict,
        reason=reason or asked.reason,
        evidence=asked.evidence,
        weights_before=dict(before),
        weights_proposed=asked.weights if asked.proposed else None,
        weights_after=dict(before if after is None else after),
        plan=plan,
        guards=guards,
        against_generation=seen.generation,
        order=order,
        approval=approval,
    )


def scores(scored: Evaluation) -> Json:
    """The metrics of one checkpoint without its items, to show beside a decision."""
    return {
        name: {
            metric: {"value": found.value, "stderr": found.stderr, "n": found.n}
            for metric, found in score.metrics.items()
        }
        for name, score in scored.benchmarks.items()
    }


def headline(card: Scorecard) -> str:
    """A scorecard in one line: each benchmark, or why it is missing."""
    parts = []
    for name, score in card.benchmarks.items():
        if score.status != "ok":
            parts.append(f"{name} missing ({score.reason})")
            continue
        shown = []
        if "bits_per_byte" in score.metrics:
            shown.append(f"{score.metrics['bits_per_byte'].value:.3f} bits/byte")
        for metric in HEADLINES:
            if metric in score.metrics:
                shown.append(f"{metric} {score.metrics[metric].value:.2f}")
        parts.append(f"{name} {', '.join(shown)}")
    return " | ".join(parts)


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


KINDS = ("proposal", "hold", "failed", "unread")


@dataclass(frozen=True)
class Answer:
    """What the policy child said: ``kind`` is ``proposal``, ``hold``, ``failed`` or ``unread``.

    ``unread``: the history could not be read, so the policy was not asked; that says nothing of it.
    ``digest`` is the policy's; ``observed`` what it had said of the observation, if it came to it.
    """

    kind: str
    payload: Mapping[str, Any]
    digest: str | None = None
    observed: Mapping[str, Any] | None = None
