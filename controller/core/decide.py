"""From a policy's answer to a decision and, if it changes the mixture, an order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from mixloop.common.errors import one_line
from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.contract import Status
from mixloop.controller.config import ApprovalSection, RunConfig
from mixloop.evals import Scorecard
from mixloop.policies.evidence import PolicyStanding, Veto, claims_of
from mixloop.policies.guards import (
    NONE_ALLOWED,
    GuardContext,
    GuardNote,
    GuardResult,
    apply_guards,
    bound_experiment,
    planned_cost,
)
from mixloop.policies.interface import (
    Evaluation,
    Experiment,
    Observation,
    PolicyError,
    jsonable,
    load_policy,
)
from mixloop.policies.mixture import total_variation

from .decision_record import DecisionRecord, ExperimentRecord, OrderRecord, Plan, Weights
from .guard_context import guard_context, guard_settings, remaining, step_tokens
from .journal_rows import DecisionRow
from .steering_metric import HEADLINES
from .way_back import way_back

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
    before = dict(status.in_force.weights)
    unchanged = DecisionRecord(
        verdict=asked.verdict,
        reason=asked.reason,
        evidence=asked.evidence,
        weights_before=before,
        weights_proposed=asked.weights if asked.proposed else None,
        weights_after=before,
        against_generation=observation.generation,
    )
    verdict = "superseded"
    if status.finished or status.tokens >= config.budget:
        overtaken, verdict = ENDED, "expired"
    elif status.in_force.generation != observation.generation:
        overtaken = "another mixture came into force meanwhile, decided anew next time"
    if asked.acts and overtaken:
        return replace(unchanged, verdict=verdict, reason=f"{asked.reason}; {overtaken}")
    if not asked.proposed and verdict == "expired":
        return unchanged
    if not asked.proposed and forced:
        kept = "a person forced the mixture in force past the hard guards; it is kept"
        unchanged = replace(unchanged, guards=(GuardNote("operator", "flagged", kept),))
        return _experiment(asked, unchanged, observation, config, status.lr)
    context = replace(
        guard_context(observation, config, status, last_intervention),
        pins=pins or {},
        standing=standing or PolicyStanding(),
    )
    if not overtaken and not forced:
        back = way_back(context, config, unchanged, generation)
        if back is not None:
            return back
    # A hold keeps what is in force *now*; what the policy saw may be over already.
    weights, plan = dict(context.weights), context.plan
    if asked.proposed:
        weights, plan = remaining(asked.weights, asked.plan, context.tokens)
        claims, tests = claims_of(asked.evidence)
        context = replace(
            context,
            declared=_declared(asked, observation, config),
            claims=claims,
            tests=tests,
            vetoes=tuple(vetoes),
        )
    result = apply_guards(weights, plan, context, guard_settings(config))
    unchanged = replace(unchanged, guards=result.notes)
    if result.verdict != "pass" or result.weights is None:
        stays = _kept(asked, result, unchanged)
        return _experiment(asked, stays, observation, config, status.lr)
    if asked.proposed and not context.declared:
        asked = replace(asked, weights=weights, plan=plan)
        for_a_person = _for_a_person(asked, unchanged, waiting, context, config, observation)
        if for_a_person is not None:
            return for_a_person
    reason = asked.reason
    if not asked.proposed:
        # Going on as before would break a hard guard: that alone is a reason to change.
        reason = f"{asked.reason}; but {details(result, 'changed')}"
    return replace(
        unchanged,
        verdict="intervene",
        reason=reason,
        evidence=asked.evidence | ({"declared": True} if context.declared else {}),
        weights_after=result.weights,
        plan=result.plan,
        order=OrderRecord(generation, config.policy.use if asked.proposed else "guards"),
    )


def _experiment(
    answer: PolicyAnswer,
    unchanged: DecisionRecord,
    seen: Observation,
    config: RunConfig,
    learning_rate: float | None,
) -> DecisionRecord:
    """A decision that keeps the mixture, with the experiment as it may be made, or why it isn't."""
    asked, refused = answer.experiment, None
    if asked is None:
        return unchanged
    scored = seen.evaluations[-1]
    try:
        if not config.experiment_tokens:
            raise PolicyError(NONE_ALLOWED)
        if before := next((e for e in seen.experiments if not e.ended), None):
            raise PolicyError(f"{before.id} has not ended: one at a time")
        if failed := [e for e in seen.experiments if e.state == "failed" and e.step == scored.step]:
            raise PolicyError(f"{failed[-1].id} from this checkpoint failed: not before the next")
        asked = bound_experiment(
            asked,
            seen.sources,
            left=seen.experiment_tokens,
            step_tokens=step_tokens(config, scored.tokens),
        )
    except PolicyError as error:
        refused = str(error)
    detail = f"{len(asked.branches)} branches and a control of {format_tokens(asked.tokens)} tokens"
    note = GuardNote("experiments", "blocked" if refused else "passed", refused or detail)
    given: Json = {"weights": dict(unchanged.weights_before), "phase": scored.phase}
    given["learning_rate"] = learning_rate
    return replace(
        unchanged,
        verdict="refused" if refused else "experiment",
        reason=f"{asked.reason}; refused: {refused}" if refused else f"{asked.reason}; {detail}",
        guards=(*unchanged.guards, note),
        experiment=ExperimentRecord(
            jsonable(asked.model_dump(exclude={"kind", "evidence"}) | given),
            planned_cost(asked),
            refused,
        ),
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
    payload = answer.payload
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
            wanted = Experiment(**payload)
        except (TypeError, ValueError) as error:
            return _asked(Answer("failed", {"reason": one_line(error)}), observation)
        return PolicyAnswer(
            current, wanted.reason, "experiment", evidence=wanted.evidence, experiment=wanted
        )
    return PolicyAnswer(
        dict.fromkeys(observation.sources, 0.0) | payload["weights"],
        payload["reason"],
        "intervene",
        tuple((until, weights) for until, weights in payload["plan"]),
        payload["evidence"],
        proposed=True,
        declared=payload.get("declared", False),
    )


def scores(scored: Evaluation) -> Json:
    """The metrics of one checkpoint without its items, to show beside a decision."""
    return {
        name: {
            key: {"value": metric.value, "stderr": metric.stderr, "n": metric.n}
            for key, metric in score.metrics.items()
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
        for metric in dict.fromkeys(HEADLINES.values()):
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
