"""Hard guards: simplex and names, pins, floor and cap, epoch ledger. Nothing may break them.

Their bounds are cumulative, so what leaves the last one satisfies all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from math import fsum

from mixloop.common.errors import suggest
from mixloop.common.units import format_tokens
from mixloop.policies.mixture import (
    describe_overruns,
    draw,
    project,
    total_variation,
    water_fill,
    within,
)

from .guard_state import SAME, GuardState, bounds_of, first_length, moves
from .guard_types import GuardContext


def simplex(going: GuardState) -> None:
    """Names and simplex. Nothing else can be computed on a mixture that is none, so it is looked
    at first; it keeps holding because every later guard stays on the simplex."""
    for label, weights in [("", going.weights), *((f"plan to {u}: ", w) for u, w in going.plan)]:
        problem = _simplex_problem(weights, going.context)
        if problem:
            raise going.stop("simplex", label + problem, "refused")
    problem = _plan_problem(going)
    if problem:
        raise going.stop("simplex", problem, "refused")
    total = fsum(going.weights.values())
    if abs(total - 1) > 1e-9:
        scaled = {name: weight / total for name, weight in going.weights.items()}
        going.change("simplex", scaled, f"the weights sum to {total:.9g}: scaled to 1")
    else:
        going.note("simplex", "passed", "known sources, shares that sum to 1")


def _simplex_problem(weights: Mapping[str, float], context: GuardContext) -> str:
    for name, weight in weights.items():
        if name not in context.sources:
            return f"no source is called {name!r}{suggest(name, context.sources)}"
        if not math.isfinite(weight) or weight < 0:
            return f"{name} has weight {weight}, which is no share"
    total = fsum(weights.values())
    return "" if abs(total - 1) <= SAME else f"the weights sum to {total:g}, not 1"


def _plan_problem(going: GuardState) -> str:
    ends = [going.context.tokens, *(until for until, _ in going.plan)]
    if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
        return "the plan's stretches must end one after another, all in the future"
    if going.plan and total_variation(going.plan[0][1], going.weights) > SAME:
        return "the plan's first stretch starts now and must hold the proposed weights"
    return ""


def pins(going: GuardState) -> None:
    """Shares that a person holds fixed; the other sources share the rest in proportion."""
    held = going.context.pins
    if not held:
        return
    going.plan = [(until, _pinned(weights, held)) for until, weights in going.plan]
    weights = _pinned(going.weights, held)
    if total_variation(weights, going.weights) > SAME:
        shown = ", ".join(f"{name} at {share:g}" for name, share in held.items())
        going.change("pins", weights, f"{shown}: {moves(going.weights, weights)}")
    else:
        going.note("pins", "passed", f"{len(held)} pinned shares are kept")


def _pinned(weights: Mapping[str, float], held: Mapping[str, float]) -> dict[str, float]:
    free = {name: weight for name, weight in weights.items() if name not in held}
    rest, total = 1 - fsum(held.values()), fsum(free.values())
    if rest > SAME and total <= 0:  # only pinned sources had weight: the others share evenly
        free, total = dict.fromkeys(free, 1.0), float(len(free))
    scaled = {name: weight * rest / total if total else 0.0 for name, weight in free.items()}
    return {name: held.get(name, scaled.get(name, 0.0)) for name in weights}


def floor_and_cap(going: GuardState) -> None:
    context, floor, cap = going.context, going.settings.floor, going.settings.cap
    length = first_length(context, going.plan)
    hard = bounds_of(going.weights, context, going.settings, context.drawn, length)
    # the floors as the ledger leaves them, or the two would push a scarce source to and fro
    bounds = {name: (low, low if name in context.pins else cap) for name, (low, _) in hard.items()}
    if within(going.weights, bounds):
        going.note("floor and cap", "passed", f"every share from {floor:g} to {cap:g}")
        return
    filled = water_fill(going.weights, bounds)
    if filled is None:
        live = sum(weight > 0 for weight in going.weights.values())
        detail = f"nothing legal left: {live} sources can't share 1 from {floor:g} to {cap:g}; keep"
        raise going.stop("floor and cap", detail, "refused")
    detail = f"shares held from {floor:g} to {cap:g}: {moves(going.weights, filled)}"
    going.change("floor and cap", filled, detail)


def epoch_ledger(going: GuardState) -> None:
    """The first stretch here decides; the later ones follow on what it leaves."""
    context, settings = going.context, going.settings
    length = first_length(context, going.plan)
    bounds = bounds_of(going.weights, context, settings, context.drawn, length)
    if within(going.weights, bounds):
        limit = "none" if settings.max_epochs is None else f"{settings.max_epochs:g} epochs"
        ahead = format_tokens(context.tokens + length)
        going.note("epoch ledger", "passed", f"limit {limit}, projected to {ahead}")
    else:
        _fill_ledger(going, bounds, length)
    _follow_plan(going, length)


def _fill_ledger(going: GuardState, bounds: dict[str, tuple[float, float]], length: float) -> None:
    context, limit = going.context, going.settings.max_epochs
    end = context.tokens + int(length)
    stretch = (end, going.weights)
    over = ""
    if limit is not None:
        over = describe_overruns(context.sources, context.drawn, context.tokens, stretch, limit)
    filled = water_fill(going.weights, bounds)
    if filled is None:
        detail = f"nothing legal left: {over}, and no other source has room; keep"
        raise going.stop("epoch ledger", detail, "refused")
    going.change("epoch ledger", filled, f"{over}: {moves(going.weights, filled)}")


def _follow_plan(going: GuardState, length: float) -> None:
    """The plan with its first stretch as decided and the later ones cut to what is left."""
    if not going.plan:
        return
    context = going.context
    drawn = draw(context.drawn, going.weights, length)
    kept = [(going.plan[0][0], going.weights)]
    start = context.tokens + length
    for until, weights in going.plan[1:]:
        size = max(0.0, min(until, context.budget) - start)
        filled = water_fill(weights, bounds_of(weights, context, going.settings, drawn, size))
        if filled is None:
            going.note("epoch ledger", "flagged", f"the plan to {format_tokens(until)} isn't legal")
            break
        if total_variation(filled, weights) > SAME:
            detail = f"the plan to {format_tokens(until)}: {moves(weights, filled)}"
            going.note("epoch ledger", "flagged", detail)
        kept.append((until, filled))
        drawn, start = draw(drawn, filled, size), max(start, until)
    going.plan = kept


def horizon(going: GuardState) -> None:
    """Flags what holding the last mixture to the end of the budget would exceed."""
    context, limit = going.context, going.settings.max_epochs
    if limit is None:
        return
    plan = [(min(until, context.budget), weights) for until, weights in going.plan]
    start, weights = plan[-1] if plan else (context.tokens, going.weights)
    drawn = project(context.drawn, context.tokens, plan)
    last = (context.budget, weights)
    over = describe_overruns(context.sources, drawn, start, last, limit)
    if over:
        going.note("epoch ledger", "flagged", f"held to the end of the budget, {over}")


def recheck(going: GuardState) -> None:
    """The result against all hard guards at once: nothing leaves here that breaks one."""
    context = going.context
    length = first_length(context, going.plan)
    bounds = bounds_of(going.weights, context, going.settings, context.drawn, length)
    problem = _simplex_problem(going.weights, context)
    if problem or not within(going.weights, bounds):
        raise going.stop("re-check", problem or "a bound is broken; keep", "refused")
