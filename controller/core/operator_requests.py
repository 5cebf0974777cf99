"""What becomes of an operator's request. Pure: the shell journals and publishes what is said here.

A person's order passes over the soft guards (noted) and meets the hard ones, which never alter it:
either it is legal, or the answer names the nearest legal mixture, or it is forced. Whatever order
was pending is superseded by it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from mixloop.common.types import Json
from mixloop.contract import Request, Status
from mixloop.controller.config import RunConfig
from mixloop.policies.evidence import claims_of
from mixloop.policies.guards import GuardContext, GuardNote, apply_guards
from mixloop.policies.interface import Observation
from mixloop.policies.mixture import total_variation

from .decide import ENDED, NOTHING, details
from .decision_record import DecisionRecord, OrderRecord, Weights, bounded
from .experiment_plans import with_receipt
from .guard_context import guard_context, guard_settings, remaining
from .journal_rows import DecisionRow
from .wording import moves, would_order

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RequestContext:
    """The run when a request is taken.

    Attributes:
        config: The run.
        status: The trainer's newest heartbeat, and ``observation`` at it; a request that changes
            the mixture waits for both.
        last_intervention: Tokens at which the last intervention came into force, or None.
        generation: The number an order would get.
        newest: The generation of the newest order; 0 for none.
        asked: The mixture last asked for, in force or not.
        pins: Shares that are held fixed.
        paused: Whether nothing is decided.
        decision: The decision that the request speaks of, if there is one of this id.
        approval: The state of its approval; empty if it asked for none.
        held: The decision that the policy is held since; empty when it isn't.
        trusted_since: Decisions under lower fences may be anybody's.
    """

    config: RunConfig
    status: Status | None
    observation: Observation | None
    last_intervention: int | None
    generation: int
    newest: int
    asked: Weights
    pins: Weights
    paused: bool
    decision: DecisionRow | None
    approval: str
    held: str = ""
    trusted_since: int = 0


@dataclass(frozen=True)
class RequestOutcome:
    """The answer to a request, and what it does.

    Attributes:
        text: The answer.
        done: Whether what was asked for is done.
        decision: The one it makes.
        pins: What is pinned from now on, and ``paused`` likewise; None: as before.
        approval: The state that the approval of the decision it speaks of comes to.
        nearest: The legal mixture nearest to a refused one.
    """

    text: str
    done: bool = True
    decision: DecisionRecord | None = None
    pins: dict[str, float] | None = None
    paused: bool | None = None
    approval: str | None = None
    nearest: dict[str, float] | None = None


def reply_to(request: Request, context: RequestContext) -> RequestOutcome:
    """Deal with one request."""
    outcome = _VERBS[request.verb](request, context)
    decision = outcome.decision
    if decision is None:
        return outcome
    decision = replace(decision, evidence={**decision.evidence, "operator": _who(request)})
    if decision.order is not None:
        status, observation = _trainer(context)
        decision = with_receipt(decision, observation, context.config, status.lr)
    kept = bounded(decision, context.config.run.id)
    if decision.order is not None and kept.order is None:
        return replace(outcome, text=kept.reason, done=False, decision=kept, pins=None)
    return replace(outcome, decision=kept)


def _who(request: Request) -> Json:
    who = {"request": request.id, "verb": request.verb, "by": request.by, "at": request.at}
    return who | ({"reason": request.reason} if request.reason else {})


# -- pause and resume ------------------------------------------------------------------------------


def _pause(request: Request, context: RequestContext) -> RequestOutcome:
    if context.paused:
        return RequestOutcome("paused already")
    return RequestOutcome(
        "paused: checkpoints are scored, nothing is decided until resume", paused=True
    )


def _resume(request: Request, context: RequestContext) -> RequestOutcome:
    if not context.paused and not context.held:
        return RequestOutcome("not paused")
    resumed = "resumed: the newest scored checkpoint is decided on next"
    if not context.held:
        return RequestOutcome(resumed, paused=False)
    freed = f"{context.config.policy.use}, held since {context.held}, decides again"
    text = f"{resumed}; {freed}" if context.paused else freed
    return RequestOutcome(text, decision=_released(request, context, freed), paused=False)


def _released(request: Request, context: RequestContext, freed: str) -> DecisionRecord:
    """A person's word that the policy may decide again; the mixture stays."""
    status = context.status
    stays = status.in_force.weights if status is not None else context.asked
    return DecisionRecord(
        verdict="hold",
        reason=f"{freed}, by {request.by}" + (f": {request.reason}" if request.reason else ""),
        weights_before=stays,
        weights_after=stays,
        against_generation=status.in_force.generation if status is not None else context.newest,
        asked_by="operator",
        policy="operator",
        step=status.step if status is not None else 0,
        tokens=status.tokens if status is not None else 0,
    )


def _sync(request: Request, context: RequestContext) -> RequestOutcome:
    return RequestOutcome("MLflow is told now")


# -- orders ----------------------------------------------------------------------------------------


def _set(request: Request, context: RequestContext) -> RequestOutcome:
    weights, problem = completed(request.weights, context.asked, context.config.sources)
    if weights is None:
        return RequestOutcome(problem, done=False)
    moved = {n: w for n, w in context.pins.items() if abs(weights.get(n, 0.0) - w) > 1e-9}
    if moved and not request.force:
        names = ", ".join(f"{name} at {share:g}" for name, share in moved.items())
        return RequestOutcome(f"{names} is pinned; unpin it first, or --force", done=False)
    return _order(request, context, weights, f"set by {request.by}", pins={})


def _pin(request: Request, context: RequestContext) -> RequestOutcome:
    pins = {**context.pins, **request.weights}
    weights, problem = completed(pins, context.asked, context.config.sources)
    if weights is None:
        return RequestOutcome(problem, done=False)
    shown = ", ".join(f"{name} at {share:g}" for name, share in request.weights.items())
    outcome = _order(request, context, weights, f"{shown} pinned by {request.by}", pins={})
    return replace(outcome, pins=pins) if outcome.done else outcome


def _unpin(request: Request, context: RequestContext) -> RequestOutcome:
    names = request.sources or tuple(context.pins)
    unpinned = [name for name in names if name not in context.pins]
    if unpinned:
        pinned = ", ".join(context.pins) or "nothing"
        return RequestOutcome(f"{unpinned[0]} is not pinned ({pinned} is)", done=False)
    left = {name: share for name, share in context.pins.items() if name not in names}
    return RequestOutcome(f"{', '.join(names) or 'nothing'} unpinned; the mixture stays", pins=left)


def _rollback(request: Request, context: RequestContext) -> RequestOutcome:
    decision = context.decision
    if decision is None:
        return RequestOutcome(f"no decision is called {request.decision}", done=False)
    if decision.generation is None:
        return RequestOutcome(
            f"{decision.id} changed nothing, there is nothing to go back from", done=False
        )
    if decision.fence < context.trusted_since:
        return RequestOutcome(
            f"{decision.id} was made before the journal was lost or changed by something else: "
            "`mixloop set` the mixture that you want",
            done=False,
        )
    before = {name: decision.weights_before.get(name, 0.0) for name in context.config.sources}
    what = f"back to the mixture before {decision.id}, by {request.by}"
    return _order(request, context, before, what, pins=context.pins)


def completed(
    shares: Weights, base: Weights, sources: Collection[str]
) -> tuple[dict[str, float] | None, str]:
    """A whole mixture from some shares: the sources not named share the rest as they do now.

    Args:
        shares: Of some sources.
        base: The mixture now.
        sources: The names of all.

    Returns:
        The mixture, or None and what is wrong with the shares.
    """
    unknown = [name for name in shares if name not in sources]
    if unknown:
        return None, f"no source is called {unknown[0]!r} (known: {', '.join(sources)})"
    total = math.fsum(shares.values())
    rest = {name: base.get(name, 0.0) for name in sources if name not in shares}
    left = 1 - total
    if abs(left) <= SUM_TOLERANCE:
        return {name: shares.get(name, 0.0) / total for name in sources}, ""
    free = math.fsum(rest.values())
    if left < 0:
        return None, f"the shares sum to {total:g}, more than 1"
    if free <= 0:
        return None, f"the shares sum to {total:g}, and no other source has weight to take the rest"
    return {n: shares[n] if n in shares else rest[n] * left / free for n in sources}, ""


def _order(
    request: Request,
    context: RequestContext,
    weights: dict[str, float],
    what: str,
    *,
    pins: Weights,
) -> RequestOutcome:
    """An operator's order: hard guards only, unless forced."""
    status, observation = _trainer(context)
    if status.finished:
        return RequestOutcome(ENDED, done=False)
    reason = f"{what}: {request.reason}" if request.reason else what
    bounds = replace(_bounds(context), operator=True, order_pending=False, pins=pins)
    result = apply_guards(weights, [], bounds, guard_settings(context.config))
    # nothing else was asked for meanwhile, so that the mixture stays by itself
    settled = total_variation(dict(context.asked), weights) <= NOTHING and not observation.plan
    if result.verdict == "pass" or (result.verdict == "hold" and not settled):
        return _issue(context, result.weights or weights, reason, result.notes)
    if result.verdict == "hold":
        decision = _unchanged(context, weights, "hold", f"{reason}; in force", result.notes)
        return RequestOutcome("that mixture is in force already", decision=decision)
    why = details(result, "changed", "blocked")
    legal_names = set(weights) <= set(context.config.sources)
    if request.force and legal_names:
        note = GuardNote("operator", "flagged", f"forced by {request.by} past: {why}")
        forced = f"{reason} (forced past the hard guards)"
        return _issue(context, weights, forced, (*result.notes, note), {"forced": True})
    refused = _unchanged(context, weights, "refused", f"{reason}; refused: {why}", result.notes)
    return RequestOutcome(f"refused: {why}", done=False, decision=refused, nearest=result.nearest)


def _trainer(context: RequestContext) -> tuple[Status, Observation]:
    """Where the trainer is; a request that asks for it has waited for a heartbeat."""
    assert context.status is not None
    assert context.observation is not None
    return context.status, context.observation


def _bounds(context: RequestContext) -> GuardContext:
    status, observation = _trainer(context)
    return guard_context(observation, context.config, status, context.last_intervention)


def _issue(
    context: RequestContext,
    weights: dict[str, float],
    reason: str,
    notes: tuple[GuardNote, ...],
    evidence: Json | None = None,
) -> RequestOutcome:
    decision = replace(
        _unchanged(context, weights, "intervene", reason, notes),
        weights_after=weights,
        evidence=evidence or {},
        order=OrderRecord(context.generation, "operator"),
    )
    return RequestOutcome(f"generation {context.generation} is ordered", decision=decision)


def _unchanged(
    context: RequestContext,
    asked: Weights,
    verdict: str,
    reason: str,
    notes: tuple[GuardNote, ...],
) -> DecisionRecord:
    """A decision of an operator that leaves the mixture as it is."""
    status, _ = _trainer(context)
    return DecisionRecord(
        verdict=verdict,
        reason=reason,
        weights_before=status.in_force.weights,
        weights_proposed=asked,
        weights_after=status.in_force.weights,
        guards=notes,
        against_generation=status.in_force.generation,
        asked_by="operator",
        policy="operator",
        step=status.step,
        tokens=status.tokens,
    )


# -- approvals -------------------------------------------------------------------------------------


def _approve(request: Request, context: RequestContext) -> RequestOutcome:
    proposed, problem = _awaiting(request, context)
    if proposed is None:
        return RequestOutcome(problem, done=False)
    status, _ = _trainer(context)
    if status.finished:
        return RequestOutcome(ENDED, done=False, approval="expired")
    against, in_force = proposed.against_generation, status.in_force.generation
    if against != in_force or context.newest > in_force:
        text = f"superseded: another order was given since {proposed.id} was proposed"
        return RequestOutcome(text, done=False, approval="superseded")
    bounds = _bounds(context)
    weights, plan = remaining(proposed.weights_proposed or {}, proposed.plan, bounds.tokens)
    claims, tests = claims_of(proposed.evidence)
    bounds = replace(bounds, pins=context.pins, claims=claims, tests=tests)
    result = apply_guards(weights, plan, bounds, guard_settings(context.config))
    why = f": {request.reason}" if request.reason else ""
    reason = f"{proposed.id} approved by {request.by}{why}"
    if result.verdict != "pass" or result.weights is None:
        blocked = details(result, "blocked")
        kept = _unchanged(
            context, weights, result.verdict, f"{reason}; kept: {blocked}", result.notes
        )
        text = f"approved, but the guards now say: {blocked}"
        return RequestOutcome(text, done=False, decision=kept, approval="approved")
    decision = replace(
        _unchanged(context, weights, "intervene", reason, result.notes),
        weights_after=result.weights,
        plan=result.plan,
        evidence={"approves": proposed.id, "rule": proposed.evidence.get("rule")},
        order=OrderRecord(context.generation, proposed.policy),
    )
    moved = moves(decision.weights_before, result.weights)
    shown = moves(decision.weights_before, would_order(proposed.to_json()))
    text = f"{proposed.id} is approved: generation {context.generation} is ordered: {moved}"
    text += "" if moved == shown else f", as the guards are now; it was shown as {shown}"
    return RequestOutcome(text, decision=decision, approval="approved")


def _reject(request: Request, context: RequestContext) -> RequestOutcome:
    proposed, problem = _awaiting(request, context)
    if proposed is None:
        return RequestOutcome(problem, done=False)
    return RequestOutcome(f"{proposed.id} is rejected; the mixture stays", approval="rejected")


def _awaiting(request: Request, context: RequestContext) -> tuple[DecisionRow | None, str]:
    """The decision that waits for this person's word, or None and why it doesn't."""
    decision, approval = context.decision, context.approval
    if decision is None:
        return None, f"no decision is called {request.decision}"
    if not approval:
        return None, f"{decision.id} did not ask for approval (its verdict: {decision.verdict})"
    if approval != "waiting":
        return None, f"{decision.id} is {approval} already"
    return decision, ""


_VERBS = {
    "pause": _pause,
    "resume": _resume,
    "set": _set,
    "pin": _pin,
    "unpin": _unpin,
    "approve": _approve,
    "reject": _reject,
    "rollback": _rollback,
    "sync": _sync,
}
