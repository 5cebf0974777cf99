"""The epoch ledger: past plus planned tokens of every source stay at or below `max_epochs`."""

from __future__ import annotations

from mixloop.common.units import format_tokens
from mixloop.policies.mixture import (
    describe_overruns,
    draw,
    project,
    total_variation,
    water_fill,
    within,
)

from .guard_state import GuardState, bounds_of, first_length, moves

SHOWN = 5e-4  # total variation below which a cut of a later stretch is rounding


def epoch_ledger(state: GuardState) -> None:
    """The first stretch here decides; the later ones follow on what it leaves."""
    context, limit = state.context, state.settings.max_epochs
    length = first_length(context, state.plan)
    bounds = state.bounds(length)
    if within(state.weights, bounds):
        shown = "none" if limit is None else f"{limit:g} epochs"
        state.note(
            "passed", f"limit {shown}, projected to {format_tokens(context.tokens + length)}"
        )
    else:
        _fill_ledger(state, bounds, length)
    _follow_plan(state, length)


def _fill_ledger(state: GuardState, bounds: dict[str, tuple[float, float]], length: float) -> None:
    context, limit = state.context, state.settings.max_epochs
    stretch = (context.tokens + int(length), state.weights)
    over = ""
    if limit is not None:
        over = describe_overruns(context.sources, context.drawn, context.tokens, stretch, limit)
    filled = water_fill(state.weights, bounds)
    if filled is None:
        detail = f"nothing legal left: {over}, and no other source has room; keep"
        raise state.blocked(detail, "refused")
    state.replace(filled, f"{over}: {moves(state.weights, filled)}")


def _follow_plan(state: GuardState, length: float) -> None:
    """The plan with its first stretch as decided and the later ones cut to what is left."""
    if not state.plan:
        return
    context = state.context
    drawn = draw(context.drawn, state.weights, length)
    kept = [(state.plan[0][0], state.weights)]
    start = context.tokens + length
    for until, weights in state.plan[1:]:
        size = max(0.0, min(until, context.budget) - start)
        filled = water_fill(weights, bounds_of(weights, context, state.settings, drawn, size))
        if filled is None:
            state.note("flagged", f"the plan to {format_tokens(until)} isn't legal")
            break
        if total_variation(filled, weights) > SHOWN:
            state.note("flagged", f"the plan to {format_tokens(until)}: {moves(weights, filled)}")
        kept.append((until, filled))
        drawn, start = draw(drawn, filled, size), max(start, until)
    state.plan = kept


def horizon(state: GuardState) -> None:
    """Flags what holding the last mixture to the end of the budget would exceed."""
    context, limit = state.context, state.settings.max_epochs
    if limit is None:
        return
    plan = [(min(until, context.budget), weights) for until, weights in state.plan]
    start, weights = plan[-1] if plan else (context.tokens, state.weights)
    drawn = project(context.drawn, context.tokens, plan)
    last = (context.budget, weights)
    over = describe_overruns(context.sources, drawn, start, last, limit)
    if over:
        state.note("flagged", f"held to the end of the budget, {over}")
