"""Hard guards: simplex and names, pins, floor and cap, re-check; `epoch_cap` is one of them.

Nothing may break them. Their bounds are cumulative, so what leaves the last one satisfies all.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum

from mixloop.policies.mixture import total_variation, water_fill, within

from .epoch_cap import epoch_ledger, horizon
from .guard_registry import Guard
from .guard_state import TOLERANCE, GuardState, first_length, moves


def simplex(state: GuardState) -> None:
    """Names and simplex: nothing else can be computed on a mixture that is none.

    It keeps holding because every later guard stays on the simplex.
    """
    problem = state.problem
    if not problem and state.plan and total_variation(state.plan[0][1], state.weights) > TOLERANCE:
        problem = "the plan's first stretch starts now and must hold the proposed weights"
    if problem:
        raise state.blocked(problem, "refused")
    total = fsum(state.weights.values())
    if abs(total - 1) > 1e-9:
        scaled = {name: weight / total for name, weight in state.weights.items()}
        state.replace(scaled, f"the weights sum to {total:.9g}: scaled to 1")
    else:
        state.note("passed", "known sources, shares that sum to 1")


def pins(state: GuardState) -> None:
    """Shares that a person holds fixed; the other sources share the rest in proportion."""
    held = state.context.pins
    if not held:
        return
    state.plan = [(until, _pinned(weights, held)) for until, weights in state.plan]
    weights = _pinned(state.weights, held)
    if total_variation(weights, state.weights) > TOLERANCE:
        shown = ", ".join(f"{name} at {share:g}" for name, share in held.items())
        state.replace(weights, f"{shown}: {moves(state.weights, weights)}")
    else:
        state.note("passed", f"{len(held)} pinned shares are kept")


def _pinned(weights: Mapping[str, float], held: Mapping[str, float]) -> dict[str, float]:
    free = {name: weight for name, weight in weights.items() if name not in held}
    rest, total = 1 - fsum(held.values()), fsum(free.values())
    if rest > TOLERANCE and total <= 0:  # only pinned sources had weight: the others share evenly
        free, total = dict.fromkeys(free, 1.0), float(len(free))
    scaled = {name: weight * rest / total if total else 0.0 for name, weight in free.items()}
    return {name: held.get(name, scaled.get(name, 0.0)) for name in weights}


def floor_and_cap(state: GuardState) -> None:
    """Every share within its bounds."""
    context, floor, cap = state.context, state.settings.floor, state.settings.cap
    hard = state.bounds(first_length(context, state.plan))
    # the floors as the ledger leaves them, or the two would push a scarce source to and fro
    bounds = {name: (low, low if name in context.pins else cap) for name, (low, _) in hard.items()}
    if within(state.weights, bounds):
        state.note("passed", f"every share from {floor:g} to {cap:g}")
        return
    filled = water_fill(state.weights, bounds)
    if filled is None:
        live = sum(weight > 0 for weight in state.weights.values())
        detail = f"nothing legal left: {live} sources can't share 1 from {floor:g} to {cap:g}; keep"
        raise state.blocked(detail, "refused")
    detail = f"shares held from {floor:g} to {cap:g}: {moves(state.weights, filled)}"
    state.replace(filled, detail)


def recheck(state: GuardState) -> None:
    """The result against all hard guards at once: nothing leaves here that breaks one."""
    bounds = state.bounds(first_length(state.context, state.plan))
    if state.problem or not within(state.weights, bounds):
        raise state.blocked(state.problem or "a bound is broken; keep", "refused")


FIRST = (Guard("simplex", simplex, soft=False), Guard("pins", pins, soft=False))
LAST = (
    Guard("floor and cap", floor_and_cap, soft=False),
    Guard("epoch ledger", epoch_ledger, soft=False),
    Guard("epoch ledger", horizon, soft=False),
    Guard("re-check", recheck, soft=False),
)
