"""What becomes of an operator's request. Pure: the shell journals and publishes what is said here.

A person's order passes over the soft guards (noted) and meets the hard ones, which never alter it:
either it is legal, or the answer names the nearest legal mixture, or it is forced. Whatever order
was pending is superseded by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixloop.common.types import Json
from mixloop.contract import Request
from mixloop.controller.config import RunConfig
from mixloop.policies.evidence import claims_of
from mixloop.policies.guards import GuardNote, apply_guards
from mixloop.policies.interface import Observation
from mixloop.policies.mixture import total_variation

from . import decide, guard_context
from .decision_record import DecisionRecord, OrderRecord, Plan, Weights

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RequestContext:
    """The run when a request is taken.

    ``asked`` is the mixture last asked for, in force or not. ``decision`` is the row that the
    request speaks of, ``approval`` its approval's; None where there is none. ``generation`` is the
    number an order would get.
    """

    seen: Observation
    config: RunConfig
    status: Any
    last_intervention: int | None
    generation: int
    asked: Weights
    pins: Weights = field(default_factory=dict)
    paused: bool = False
    decision: Json | None = None
    approval: Json | None = None
    newest: int = 0  # generation of the newest order


@dataclass(frozen=True)
class RequestOutcome:
    """The answer to a request, and what it does.

    ``made``: the decision it makes. ``pins``: what is pinned from now on, ``paused`` likewise;
    None: as before. ``approval``: the state of the decision that it speaks of.
    """

    text: str
    done: bool = True
    made: DecisionRecord | None = None
    pins: dict[str, float] | None = None
    paused: bool | None = None
    approval: str | None = None
    nearest: dict[str, float] | None = None


def reply_to(request: Request, scene: RequestContext) -> RequestOutcome:
    """Deal with one request."""
    reply = _VERBS[request.verb](request, scene)
    if reply.made is not None:
        evidence = {**reply.made.evidence, "operator": _who(request)}
        reply = replace(reply, made=replace(reply.made, evidence=evidence))
    return reply


def _who(request: Request) -> Json:
    said = {"request": request.id, "verb": request.verb, "by": request.by, "at": request.at}
    return said | ({"reason": request.reason} if request.reason else {})


# -- pause and resume ------------------------------------------------------------------------------


def _pause(request: Request, scene: RequestContext) -> RequestOutcome:
    if scene.paused:
        return RequestOutcome("paused already")
    return RequestOutcome(
        "paused: checkpoints are scored, nothing is decided until resume", paused=True
    )


def _resume(request: Request, scene: RequestContext) -> RequestOutcome:
    if not scene.paused:
        return RequestOutcome("not paused")
    return RequestOutcome("resumed: the newest scored checkpoint is decided on next", paused=False)


def _sync(request: Request, scene: RequestContext) -> RequestOutcome:
    return RequestOutcome("MLflow is told now")


# -- orders ----------------------------------------------------------------------------------------


def _set(request: Request, scene: RequestContext) -> RequestOutcome:
    filled, problem = completed(request.weights, scene.asked, scene.config.sources)
    if filled is None:
        return RequestOutcome(problem, done=False)
    unpinned = {n: w for n, w in scene.pins.items() if abs(filled.get(n, 0.0) - w) > 1e-9}
    if unpinned and not request.force:
        names = ", ".join(f"{name} at {share:g}" for name, share in unpinned.items())
        return RequestOutcome(f"{names} is pinned; unpin it first, or --force", done=False)
    return _order(request, scene, filled, f"set by {request.by}", pins={})


def _pin(request: Request, scene: RequestContext) -> RequestOutcome:
    held = {**scene.pins, **request.weights}
    filled, problem = completed(held, scene.asked, scene.config.sources)
    if filled is None:
        return RequestOutcome(problem, done=False)
    shown = ", ".join(f"{name} at {share:g}" for name, share in request.weights.items())
    reply = _order(request, scene, filled, f"{shown} pinned by {request.by}", pins={})
    return replace(reply, pins=held) if reply.done else reply


def _unpin(request: Request, scene: RequestContext) -> RequestOutcome:
    names = request.sources or tuple(scene.pins)
    strange = [name for name in names if name not in scene.pins]
    if strange:
        pinned = ", ".join(scene.pins) or "nothing"
        return RequestOutcome(f"{strange[0]} is not pinned ({pinned} is)", done=False)
    left = {name: share for name, share in scene.pins.items() if name not in names}
    return RequestOutcome(f"{', '.join(names) or 'nothing'} unpinned; the mixture stays", pins=left)


def _rollback(request: Request, scene: RequestContext) -> RequestOutcome:
    row = scene.decision
    if row is None:
        return RequestOutcome(f"no decision is called {request.decision}", done=False)
    if row["generation"] is None:
        return RequestOutcome(
            f"{row['id']} changed nothing, there is nothing to go back from", done=False
        )
    before = dict.fromkeys(scene.config.sources, 0.0) | {
        name: share for name, share in row["weights_before"].items() if name in scene.config.sources
    }
    why = f"back to the mixture before {row['id']}, by {request.by}"
    return _order(request, scene, before, why, pins=scene.pins)


def completed(
    given: Weights, base: Weights, known: Sequence[str] | Mapping[str, Any]
) -> tuple[dict[str, float] | None, str]:
    """A whole mixture from some shares: the sources not named share the rest as they do now.

    Returns:
        The mixture, or None and what is wrong with what was given.
    """
    strange = [name for name in given if name not in known]
    if strange:
        return None, f"no source is called {strange[0]!r} (known: {', '.join(known)})"
    total = math.fsum(given.values())
    rest = {name: base.get(name, 0.0) for name in known if name not in given}
    left = 1 - total
    if abs(left) <= SUM_TOLERANCE:
        whole = {name: given.get(name, 0.0) / total for name in known}
        return whole, ""
    share = math.fsum(rest.values())
    if left < 0:
        return None, f"the shares sum to {total:g}, more than 1"
    if share <= 0:
        return None, f"the shares sum to {total:g}, and no other source has weight to take the rest"
    return {n: given[n] if n in given else rest[n] * left / share for n in known}, ""


def _order(
    request: Request, scene: RequestContext, weights: dict[str, float], what: str, *, pins: Weights
) -> RequestOutcome:
    """An operator's order: hard guards only, unless forced."""
    if scene.status.finished:
        return RequestOutcome(decide.ENDED, done=False)
    reason = f"{what}: {request.reason}" if request.reason else what
    context = replace(_context(scene), operator=True, order_pending=False, pins=pins)
    result = apply_guards(weights, [], context, guard_context.guard_settings(scene.config))
    settled = _settled(scene, weights)
    if result.verdict == "pass" or (result.verdict == "hold" and not settled):
        return _issue(scene, result.weights or weights, reason, result.notes)
    if result.verdict == "hold":
        made = _record(scene, weights, "hold", f"{reason}; in force", result.notes)
        return RequestOutcome("that mixture is in force already", made=made)
    why = "; ".join(n.detail for n in result.notes if n.action in ("changed", "blocked"))
    legal_names = set(weights) <= set(scene.config.sources)
    if request.force and legal_names:
        note = GuardNote("operator", "flagged", f"forced by {request.by} past: {why}")
        forced = f"{reason} (forced past the hard guards)"
        return _issue(scene, weights, forced, (*result.notes, note), {"forced": True})
    made = _record(scene, weights, "refused", f"{reason}; refused: {why}", result.notes)
    return RequestOutcome(f"refused: {why}", done=False, made=made, nearest=result.nearest)


def _settled(scene: RequestContext, weights: Weights) -> bool:
    """Whether nothing else was asked for meanwhile, so that the mixture stays by itself."""
    return (
        total_variation(dict(scene.asked), dict(weights)) <= decide.NOTHING and not scene.seen.plan
    )


def _context(scene: RequestContext) -> Any:
    return guard_context.guard_context(
        scene.seen, scene.config, scene.status, scene.last_intervention
    )


def _issue(
    scene: RequestContext,
    weights: dict[str, float],
    reason: str,
    notes: tuple[GuardNote, ...],
    evidence: Json | None = None,
) -> RequestOutcome:
    made = _record(
        scene,
        weights,
        "intervene",
        reason,
        notes,
        after=weights,
        evidence=evidence,
        order=OrderRecord(scene.generation, "operator"),
    )
    return RequestOutcome(f"generation {scene.generation} is ordered", made=made)


def _record(
    scene: RequestContext,
    asked: Weights,
    verdict: str,
    reason: str,
    notes: tuple[GuardNote, ...],
    *,
    after: Weights | None = None,
    plan: Plan = (),
    evidence: Json | None = None,
    order: OrderRecord | None = None,
) -> DecisionRecord:
    in_force = scene.status.in_force
    return DecisionRecord(
        verdict=verdict,
        reason=reason,
        evidence=evidence or {},
        weights_before=dict(in_force.weights),
        weights_proposed=dict(asked),
        weights_after=dict(in_force.weights if after is None else after),
        plan=plan,
        guards=notes,
        against_generation=in_force.generation,
        order=order,
        asked_by="operator",
        policy="operator",
        step=scene.status.step,
        tokens=scene.status.tokens,
    )


# -- approvals -------------------------------------------------------------------------------------


def _approve(request: Request, scene: RequestContext) -> RequestOutcome:
    row, problem = _awaiting(request, scene)
    if row is None:
        return RequestOutcome(problem, done=False)
    if scene.status.finished:
        return RequestOutcome(decide.ENDED, done=False, approval="expired")
    if row["against_generation"] != scene.status.in_force.generation or scene.newest > max(
        row["against_generation"], scene.status.in_force.generation
    ):
        text = f"superseded: another order was given since {row['id']} was proposed"
        return RequestOutcome(text, done=False, approval="superseded")
    context = _context(scene)
    weights, plan = guard_context.remaining(row["weights_proposed"], row["plan"], context.tokens)
    claims, tests = claims_of(row["evidence"])
    context = replace(context, pins=scene.pins, claims=claims, tests=tests)
    stretches = [(until, dict(w)) for until, w in plan]
    result = apply_guards(weights, stretches, context, guard_context.guard_settings(scene.config))
    said = f": {request.reason}" if request.reason else ""
    reason = f"{row['id']} approved by {request.by}{said}"
    if result.verdict != "pass" or result.weights is None:
        blocked = "; ".join(n.detail for n in result.notes if n.action == "blocked")
        made = _record(scene, weights, result.verdict, f"{reason}; kept: {blocked}", result.notes)
        text = f"approved, but the guards now say: {blocked}"
        return RequestOutcome(text, done=False, made=made, approval="approved")
    made = _record(
        scene,
        weights,
        "intervene",
        reason,
        result.notes,
        after=result.weights,
        plan=result.plan,
        evidence={"approves": row["id"], "rule": row["evidence"].get("rule")},
        order=OrderRecord(scene.generation, row["policy"]),
    )
    text = f"{row['id']} is approved: generation {scene.generation} is ordered"
    return RequestOutcome(text, made=made, approval="approved")


def _reject(request: Request, scene: RequestContext) -> RequestOutcome:
    row, problem = _awaiting(request, scene)
    if row is None:
        return RequestOutcome(problem, done=False)
    return RequestOutcome(f"{row['id']} is rejected; the mixture stays", approval="rejected")


def _awaiting(request: Request, scene: RequestContext) -> tuple[Json | None, str]:
    row, approval = scene.decision, scene.approval
    if row is None:
        return None, f"no decision is called {request.decision}"
    if approval is None:
        return None, f"{row['id']} did not ask for approval (its verdict: {row['verdict']})"
    if approval["state"] != "waiting":
        return None, f"{row['id']} is {approval['state']} already"
    return row, ""


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
