"""Guards: pure checks that bound a proposal and say what they changed.

Soft guards come first (learning-rate phase, loss spike, vetoes, significance, dead-band, dwell,
trust region), hard ones last (simplex and names, floor and cap, epoch ledger). The hard guards'
bounds are cumulative, so what leaves the last one satisfies all of them, and a second pass changes
nothing. Declared stages and operator's orders meet only the hard guards; an operator's order is
never altered, it is refused with the nearest legal mixture.

A mixture that stays as it is can be passed through too (a policy's hold): the ledger then speaks
up when merely going on would break the cap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import fsum

from mixloop.policies.mixture import Stretch, total_variation, water_fill

from .guard_state import SAME, GuardState, Stop, bounds_of, first_length, named, same_plan
from .guard_types import GuardContext, GuardResult, GuardSettings
from .hard import epoch_ledger, floor_and_cap, horizon, pins, recheck, simplex
from .soft import soft_guards


def apply_guards(
    weights: Mapping[str, float],
    plan: Sequence[Stretch],
    context: GuardContext,
    settings: GuardSettings,
) -> GuardResult:
    """The proposal as the guards let it through, with a note from each.

    ``plan`` is a proposal's: stretches ``(until_tokens, weights)`` in order, the first starting now
    at ``weights``. The ledger is projected along it, at least to the next decision; earlier
    stretches take precedence over later ones for what is left of a source.
    """
    stretches = [(until, named(w, context)) for until, w in plan]
    going = GuardState(context, settings, named(weights, context), stretches)
    try:
        simplex(going)
        pins(going)
        soft_guards(going)
        requested = going.weights
        floor_and_cap(going)
        epoch_ledger(going)
        horizon(going)
        recheck(going)
        return _conclude(going, requested)
    except Stop as stop:
        return GuardResult(stop.verdict, None, tuple(going.notes))


def nearest_legal(
    weights: Mapping[str, float],
    context: GuardContext,
    settings: GuardSettings,
    plan: Sequence[Stretch] = (),
) -> dict[str, float] | None:
    """The mixture nearest to ``weights`` that every hard guard accepts; None when there is none.

    Negative, infinite and unknown weights count as zero, and the sum is scaled to 1 first.
    """
    sound = {n: w for n, w in weights.items() if n in context.sources and 0 < w < math.inf}
    total = fsum(sound.values())
    if total <= 0:
        return None
    scaled = named({n: w / total for n, w in sound.items()}, context)
    bounds = bounds_of(scaled, context, settings, context.drawn, first_length(context, plan))
    return water_fill(scaled, bounds)


def _conclude(going: GuardState, requested: dict[str, float]) -> GuardResult:
    context, settings = going.context, going.settings
    altered = total_variation(going.weights, requested)
    if context.operator and altered > SAME:
        nearest = going.weights
        # the notes of the changes stay: they say what is illegal about the order
        detail = "an operator's order isn't altered; force it, or take the nearest legal mixture"
        going.note("operator", "blocked", detail)
        return GuardResult("refused", None, tuple(going.notes), nearest=nearest)
    change = total_variation(going.weights, context.weights)
    planned = context.declared and not same_plan(going.plan, context.plan)
    if change <= SAME and not planned:
        going.note("result", "blocked", "nothing is left to change")
        return GuardResult("hold", None, tuple(going.notes))
    if altered > SAME and change > settings.max_change and not context.declared:
        detail = f"hard guards moved it {change:.4g}, beyond max_change {settings.max_change:g}"
        going.note("trust region", "flagged", detail)
    return GuardResult("pass", going.weights, tuple(going.notes), tuple(going.plan))
