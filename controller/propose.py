"""From a policy's answer to a decision and, if it changes the mixture, an order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any

from mixloop.controller import approvals
from mixloop.controller.children import Answer
from mixloop.controller.config import RunConfig
from mixloop.evals.scorecard import Scorecard
from mixloop.policies import Evaluation, Observation, load_policy
from mixloop.policies.evidence import claims_of
from mixloop.policies.guards import (
    GuardContext,
    GuardResult,
    GuardSettings,
    GuardSource,
    apply_guards,
    project,
    total_variation,
)
from mixloop.policies.vetoes import Veto
from mixloop.trainer.batching import quanta_of
from mixloop.trainer.contract import Stage
from mixloop.trainer.job import JobError
from mixloop.trainer.quanta import Quanta

Json = dict[str, Any]
Weights = Mapping[str, float]

NOTHING = 1e-6  # total variation below which two mixtures are the same order
RECENT = 8  # checkpoints whose training loss is "recent"
ENDED = "training has ended, nothing can be changed any more"
HEADLINES = ("accuracy", "exact_match", "pass_at_1")


@dataclass(frozen=True)
class Made:
    """A decision's columns in the journal, and the order it asks for, if any."""

    fields: Json
    order: Json | None = None
    approval: str | None = None  # why a person has to approve it first


@dataclass(frozen=True)
class _Asked:
    """What the policy asked for, whatever form its answer had."""

    weights: dict[str, float]
    reason: str
    verdict: str
    plan: Sequence[tuple[int, dict[str, float]]] = ()
    evidence: Json = field(default_factory=dict)
    proposed: bool = False
    declared: bool = False


def decide(
    answer: Answer,
    seen: Observation,
    config: RunConfig,
    *,
    status: Any,
    last_intervention: int | None,
    generation: int,
    against: Sequence[Veto],
    pins: Weights | None = None,
    overtaken: str = "",
    forced: bool = False,
) -> Made:
    """Guard the answer and name the verdict.

    Args:
        answer: The policy child's.
        seen: The observation it answered to; of the evaluations the newest :data:`RECENT` will do,
            and no decisions are looked at.
        config: The run.
        status: The trainer's newest heartbeat: the ledger's past is *now*, not the checkpoint's.
        last_intervention: Tokens at which the last intervention came into force, or None.
        generation: The number an order would get.
        against: The vetoes of this observation.
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
        return Made(_fields(asked, seen, before, before, [], verdict=verdict, reason=reason))
    if asked.proposed and status.in_force.generation != seen.generation:
        reason = (
            f"{asked.reason}; another mixture came into force meanwhile, decided anew next time"
        )
        return Made(_fields(asked, seen, before, before, [], verdict="superseded", reason=reason))
    if asked.proposed and overtaken:
        reason = f"{asked.reason}; {overtaken}"
        return Made(_fields(asked, seen, before, before, [], verdict="superseded", reason=reason))
    if forced and not asked.proposed:
        said = "a person forced the mixture in force past the hard guards; it is kept"
        note = {"guard": "operator", "action": "flagged", "detail": said}
        return Made(_fields(asked, seen, before, before, [note]))
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
            vetoes=tuple(against),
        )
    result = apply_guards(weights, plan, context, guard_settings(config))
    if result.verdict == "pass" and asked.proposed and not context.declared:
        why = approvals.needed(config.approval, before, weights)
        if why is not None:
            return Made(_awaiting(asked, seen, before, result, plan, why), approval=why)
    return _guarded(asked, seen, before, result, generation, config.policy.use)


def _awaiting(
    asked: _Asked, seen: Observation, before: Weights, result: GuardResult, plan: Any, why: str
) -> Json:
    """The columns of a decision that waits for a person; its plan is the one asked for."""
    reason = f"{asked.reason}; waits for approval: {why}"
    notes = result.notes_json()
    fields = _fields(asked, seen, before, before, notes, verdict="awaiting-approval", reason=reason)
    fields["plan"] = [[until, dict(weights)] for until, weights in plan]
    return fields


def _from_then_on(asked: _Asked, tokens: int) -> tuple[dict[str, float], list[Any]]:
    """What was asked for, from where an order could take effect."""
    weights, left = remaining(asked.weights, asked.plan, tokens)
    return weights, [(until, stretch) for until, stretch in left]


def _declared(asked: _Asked, seen: Observation, config: RunConfig) -> bool:
    """Whether this is a stage of the configuration. A policy's word for it isn't enough."""
    if not asked.declared or config.policy.use != "rules":
        return False
    from mixloop.policies.rules import Rules

    policy = load_policy("rules", config.policy.options)
    assert isinstance(policy, Rules)
    return policy.declares(seen, asked.weights, asked.plan)


def _asked(answer: Answer, seen: Observation) -> _Asked:
    payload = answer.payload
    current = dict(seen.weights)
    if answer.kind == "failed":
        reason = f"the policy failed: {payload['reason']}; the mixture stays"
        return _Asked(current, reason, "hold", evidence={"error": payload["reason"]})
    if answer.kind == "hold":
        return _Asked(current, payload["reason"], payload["verdict"], evidence=payload["evidence"])
    weights = dict.fromkeys(seen.sources, 0.0) | payload["weights"]
    plan = [(until, dict(w)) for until, w in payload["plan"]]
    return _Asked(
        weights,
        payload["reason"],
        "intervene",
        plan,
        payload["evidence"],
        proposed=True,
        declared=payload.get("declared", False),
    )


def _guarded(
    asked: _Asked,
    seen: Observation,
    before: dict[str, float],
    result: GuardResult,
    generation: int,
    config_policy: str,
) -> Made:
    notes = result.notes_json()
    if result.verdict != "pass" or result.weights is None:
        return Made(_kept(asked, seen, before, result, notes))
    reason = asked.reason
    if not asked.proposed:
        # Going on as before would break a hard guard: that alone is a reason to change.
        changed = [note["detail"] for note in notes if note["action"] == "changed"]
        reason = f"{asked.reason}; but {'; '.join(changed)}"
    fields = _fields(asked, seen, before, result.weights, notes, verdict="intervene", reason=reason)
    fields["plan"] = [[until, weights] for until, weights in result.plan]
    order = {
        "generation": generation,
        "policy": config_policy if asked.proposed else "guards",
        "reason": reason,
        "weights": result.weights,
        "plan": fields["plan"],
    }
    return Made(fields, order)


def _kept(
    asked: _Asked, seen: Observation, before: Weights, result: GuardResult, notes: list[Json]
) -> Json:
    """The columns of a decision that changes nothing, and whether policy or guard said so."""
    if not asked.proposed and result.verdict == "hold":
        return _fields(asked, seen, before, before, notes)
    blocked = [note["detail"] for note in notes if note["action"] == "blocked"]
    reason = f"{asked.reason}; kept: {'; '.join(blocked)}"
    return _fields(asked, seen, before, before, notes, verdict=result.verdict, reason=reason)


def _fields(
    asked: _Asked,
    seen: Observation,
    before: Weights,
    after: Weights,
    notes: list[Json],
    *,
    verdict: str | None = None,
    reason: str | None = None,
) -> Json:
    return {
        "verdict": verdict or asked.verdict,
        "reason": reason or asked.reason,
        "evidence": asked.evidence,
        "weights_before": dict(before),
        "weights_proposed": asked.weights if asked.proposed else None,
        "weights_after": dict(after),
        "plan": [],
        "guards": notes,
        "against_generation": seen.generation,
    }


def guard_settings(config: RunConfig) -> GuardSettings:
    """The guards, no wider than the trainer's own limits: it would refuse what they let through."""
    guards, limits = config.guards, config.trainer.limits
    return guards.model_copy(
        update={
            "floor": max(guards.floor, limits.floor),
            "cap": min(guards.cap, limits.cap),
            "max_change": min(guards.max_change, limits.max_change),
        }
    )


def switching_lead(config: RunConfig, tokens: int) -> int:
    """Tokens that pass before an order published at ``tokens`` is consumed, at most.

    The trainer polls, and starts the segment at least two polls later: three polls in all.
    """
    trainer = config.trainer
    try:
        quanta = quanta_of(trainer, trainer.processes)
    except JobError:  # another loop's ranks, which only it knows
        quanta = Quanta([(0, trainer.micro_batch * trainer.accumulation * trainer.processes)])
    step = quanta.index(tokens // trainer.sequence_length)
    samples = quanta.first(step + 3 * trainer.poll_every) - quanta.first(step)
    return samples * trainer.sequence_length


def guard_context(
    seen: Observation, config: RunConfig, status: Any, last_intervention: int | None
) -> GuardContext:
    """The run as the guards see it, moved on to where an order could take effect."""
    trainer = config.trainer
    lead = min(switching_lead(config, status.tokens), max(0, config.budget - status.tokens))
    tokens = status.tokens + lead
    in_force = status.in_force
    ahead = list(seen.plan) if in_force.generation == seen.generation else []
    weights, left = remaining(in_force.weights, ahead, tokens)
    if len(left) == len(ahead):  # no switch of its own meanwhile: exactly what is consumed now
        weights = dict(in_force.weights)
        left = [[until, weights if i == 0 else w] for i, (until, w) in enumerate(left)]
    by_then = project(
        {
            name: consumed(status.sources[name], source.unique_tokens)
            for name, source in seen.sources.items()
            if name in status.sources
        },
        status.tokens,
        [*((min(until, tokens), w) for until, w in ahead), (tokens, weights)],
    )
    every = config.evals.every or trainer.checkpoint_every or config.budget
    return GuardContext(
        sources={
            name: GuardSource(unique_tokens=source.unique_tokens, standby=source.standby)
            for name, source in seen.sources.items()
        },
        weights=weights,
        drawn={name: by_then[name] if name in status.sources else 0.0 for name in seen.sources},
        tokens=tokens,
        budget=config.budget,
        horizon=every + lead,
        last_intervention_tokens=last_intervention,
        order_pending=not seen.in_force,
        plan=tuple((until, dict(w)) for until, w in left),
        phase=status.phase,
        loss_ratio=_loss_ratio(seen, status),
    )


def consumed(entry: Any, unique: int) -> int:
    """Tokens drawn of a source, by its present size: one that has grown was passed over more often
    than its tokens say."""
    return int(max(entry.tokens, round(entry.epochs * unique)))


def _loss_ratio(seen: Observation, status: Any) -> float | None:
    """The training loss now over its median at recent checkpoints, source by source and weighed by
    the mixture, so that a change of the mixture is no spike; None where it isn't recorded."""
    ratios = []
    for name, entry in status.sources.items():
        past = [e.losses[name] for e in seen.evaluations[-RECENT:] if name in e.losses]
        weight = status.in_force.weights.get(name, 0.0)
        if entry.loss is not None and len(past) >= 3 and weight > 0 and median(past) > 0:
            ratios.append((weight, entry.loss / median(past)))
    total = sum(weight for weight, _ in ratios)
    return sum(weight * ratio for weight, ratio in ratios) / total if total > 0 else None


def remaining(
    weights: Weights, plan: Sequence[tuple[int, Weights]], tokens: int
) -> tuple[dict[str, float], list[list[Any]]]:
    """What an order with a plan asks for from ``tokens`` on: the weights now, the plan from now."""
    if not plan:
        return dict(weights), []
    left: list[list[Any]] = [[until, dict(stretch)] for until, stretch in plan if until > tokens]
    now = left[0][1] if left else plan[-1][1]
    return dict(now), left


def stages(plan: Sequence[tuple[int, Weights]]) -> list[Stage]:
    """A guarded plan (stretches ``until``) as an order's ``then`` (stages ``from``)."""
    return [
        Stage(from_tokens=until, weights=dict(weights))
        for (until, _), (_, weights) in pairwise(plan)
    ]


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


__all__ = [
    "NOTHING",
    "Made",
    "decide",
    "guard_context",
    "guard_settings",
    "headline",
    "scores",
    "stages",
    "total_variation",
]
