"""Guards: pure checks that bound a proposal and say what they changed.

Soft guards come first (dwell, trust region), hard ones last (simplex and names, floor and cap,
epoch ledger). The hard guards' bounds are cumulative, so what leaves the last one satisfies all of
them, and a second pass changes nothing. Declared stages and operator's orders meet only the hard
guards; an operator's order is never altered, it is refused with the nearest legal mixture.

A mixture that stays as it is can be passed through too (a policy's hold): the ledger then speaks
up when merely going on would break the cap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Literal

from .errors import suggest
from .guard_types import Action, GuardContext, GuardNote, GuardResult, GuardSettings
from .ledger import GuardSource, Stretch, describe_overruns, draw, epochs, headroom, project
from .mixtures import total_variation
from .units import format_tokens
from .waterfill import DUST, water_fill, within

__all__ = [
    "GuardContext",
    "GuardNote",
    "GuardResult",
    "GuardSettings",
    "GuardSource",
    "apply_guards",
    "epochs",
    "nearest_legal",
    "project",
    "total_variation",
]

# two mixtures this close quantise to the same order, or nearly: no reason for a new one
SAME = 1e-6


class _Stop(Exception):  # noqa: N818 (a control signal inside this module, not an error)
    """Ends the pass through the guards with a verdict."""

    def __init__(self, verdict: Literal["hold", "refused"]) -> None:
        self.verdict: Literal["hold", "refused"] = verdict


@dataclass
class _Pass:
    """One proposal on its way through the guards."""

    context: GuardContext
    settings: GuardSettings
    weights: dict[str, float]
    plan: list[tuple[int, dict[str, float]]]
    notes: list[GuardNote] = field(default_factory=list)

    def note(self, guard: str, action: Action, detail: str) -> None:
        self.notes.append(GuardNote(guard, action, detail))

    def change(self, guard: str, weights: dict[str, float], detail: str) -> None:
        self.notes.append(GuardNote(guard, "changed", detail, self.weights, weights))
        self.weights = weights

    def stop(self, guard: str, detail: str, verdict: Literal["hold", "refused"]) -> _Stop:
        self.note(guard, "blocked", detail)
        return _Stop(verdict)


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
    stretches = [(until, _named(w, context)) for until, w in plan]
    going = _Pass(context, settings, _named(weights, context), stretches)
    try:
        _simplex(going)
        _soft(going)
        requested = going.weights
        _floor_and_cap(going)
        _epoch_ledger(going)
        _horizon(going)
        _recheck(going)
        return _conclude(going, requested)
    except _Stop as stop:
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
    named = _named({n: w / total for n, w in sound.items()}, context)
    bounds = _bounds(named, context, settings, context.drawn, _first_length(context, plan))
    return water_fill(named, bounds)


def _named(weights: Mapping[str, float], context: GuardContext) -> dict[str, float]:
    """Every source named, in the run's order; strangers kept at the end for the simplex guard."""
    return dict.fromkeys(context.sources, 0.0) | dict(weights)


def _first_length(context: GuardContext, plan: Sequence[Stretch]) -> float:
    """Tokens of the first stretch, within the budget: to its end, at least to the next decision.

    Only a declared plan, or the one in force, is sure to be followed: only its first stretch may
    be shorter than that.
    """
    end: float = plan[0][0] if plan else context.tokens
    sure = context.declared or _same_plan(plan, context.plan)
    if not (sure and len(plan) > 1):
        end = max(end, context.tokens + context.horizon)
    return max(0.0, min(end, context.budget) - context.tokens)


def _same_plan(one: Sequence[Stretch], other: Sequence[Stretch]) -> bool:
    """Whether two plans are the same order."""
    if [until for until, _ in one] != [until for until, _ in other]:
        return False
    pairs = zip(one, other, strict=True)
    return all(total_variation(mine, theirs) <= SAME for (_, mine), (_, theirs) in pairs)


# --- the order of the guards ------------------------------------------------------------------


def _simplex(going: _Pass) -> None:
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


def _plan_problem(going: _Pass) -> str:
    ends = [going.context.tokens, *(until for until, _ in going.plan)]
    if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
        return "the plan's stretches must end one after another, all in the future"
    if going.plan and total_variation(going.plan[0][1], going.weights) > SAME:
        return "the plan's first stretch starts now and must hold the proposed weights"
    return ""


def _soft(going: _Pass) -> None:
    context = going.context
    if context.operator or context.declared:
        why = "an operator's order" if context.operator else "a declared stage"
        for guard in ("dwell", "trust region"):
            going.note(guard, "passed", f"skipped for {why}")
        return
    _dwell(going)
    _trust_region(going)


def _dwell(going: _Pass) -> None:
    context, dwell = going.context, going.settings.dwell
    if context.order_pending:
        raise going.stop("dwell", "the last order is not yet in force", "hold")
    if total_variation(going.weights, context.weights) <= SAME:
        going.note("dwell", "passed", "nothing to change")
        return
    last = context.last_intervention_tokens
    if last is not None and context.tokens - last < dwell:
        since, least = format_tokens(context.tokens - last), format_tokens(dwell)
        detail = f"{since} tokens since the last intervention, dwell is {least}"
        raise going.stop("dwell", detail, "hold")
    going.note("dwell", "passed", "no intervention within the dwell")


def _trust_region(going: _Pass) -> None:
    current, limit = going.context.weights, going.settings.max_change
    change = total_variation(going.weights, current)
    if change <= limit + DUST:
        going.note("trust region", "passed", f"total variation {change:.4g} of {limit:g}")
        return
    part = limit / change
    trimmed = {
        name: (1 - part) * current.get(name, 0.0) + part * weight
        for name, weight in going.weights.items()
    }
    detail = f"total variation {change:.4g} cut to {limit:g}: {_moves(going.weights, trimmed)}"
    going.change("trust region", trimmed, detail)


def _floor_and_cap(going: _Pass) -> None:
    context, floor, cap = going.context, going.settings.floor, going.settings.cap
    length = _first_length(context, going.plan)
    hard = _bounds(going.weights, context, going.settings, context.drawn, length)
    # the floors as the ledger leaves them, or the two would push a scarce source to and fro
    bounds = {name: (low, cap) for name, (low, _) in hard.items()}
    if within(going.weights, bounds):
        going.note("floor and cap", "passed", f"every share from {floor:g} to {cap:g}")
        return
    filled = water_fill(going.weights, bounds)
    if filled is None:
        live = sum(weight > 0 for weight in going.weights.values())
        detail = f"nothing legal left: {live} sources can't share 1 from {floor:g} to {cap:g}; keep"
        raise going.stop("floor and cap", detail, "refused")
    detail = f"shares held from {floor:g} to {cap:g}: {_moves(going.weights, filled)}"
    going.change("floor and cap", filled, detail)


def _epoch_ledger(going: _Pass) -> None:
    """The first stretch here decides; the later ones follow on what it leaves."""
    context, settings = going.context, going.settings
    length = _first_length(context, going.plan)
    bounds = _bounds(going.weights, context, settings, context.drawn, length)
    if within(going.weights, bounds):
        limit = "none" if settings.max_epochs is None else f"{settings.max_epochs:g} epochs"
        ahead = format_tokens(context.tokens + length)
        going.note("epoch ledger", "passed", f"limit {limit}, projected to {ahead}")
    else:
        _fill_ledger(going, bounds, length)
    _follow_plan(going, length)


def _fill_ledger(going: _Pass, bounds: dict[str, tuple[float, float]], length: float) -> None:
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
    going.change("epoch ledger", filled, f"{over}: {_moves(going.weights, filled)}")


def _follow_plan(going: _Pass, length: float) -> None:
    """The plan with its first stretch as decided and the later ones cut to what is left."""
    if not going.plan:
        return
    context = going.context
    drawn = draw(context.drawn, going.weights, length)
    kept = [(going.plan[0][0], going.weights)]
    start = context.tokens + length
    for until, weights in going.plan[1:]:
        size = max(0.0, min(until, context.budget) - start)
        filled = water_fill(weights, _bounds(weights, context, going.settings, drawn, size))
        if filled is None:
            going.note("epoch ledger", "flagged", f"the plan to {format_tokens(until)} isn't legal")
            break
        if total_variation(filled, weights) > SAME:
            detail = f"the plan to {format_tokens(until)}: {_moves(weights, filled)}"
            going.note("epoch ledger", "flagged", detail)
        kept.append((until, filled))
        drawn, start = draw(drawn, filled, size), max(start, until)
    going.plan = kept


def _horizon(going: _Pass) -> None:
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


def _recheck(going: _Pass) -> None:
    """The result against all hard guards at once: nothing leaves here that breaks one."""
    context = going.context
    length = _first_length(context, going.plan)
    bounds = _bounds(going.weights, context, going.settings, context.drawn, length)
    problem = _simplex_problem(going.weights, context)
    if problem or not within(going.weights, bounds):
        raise going.stop("re-check", problem or "a bound is broken; keep", "refused")


def _conclude(going: _Pass, requested: dict[str, float]) -> GuardResult:
    context, settings = going.context, going.settings
    altered = total_variation(going.weights, requested)
    if context.operator and altered > SAME:
        nearest = going.weights
        # the notes of the changes stay: they say what is illegal about the order
        detail = "an operator's order isn't altered; force it, or take the nearest legal mixture"
        going.note("operator", "blocked", detail)
        return GuardResult("refused", None, tuple(going.notes), nearest=nearest)
    change = total_variation(going.weights, context.weights)
    planned = context.declared and not _same_plan(going.plan, context.plan)
    if change <= SAME and not planned:
        going.note("result", "blocked", "nothing is left to change")
        return GuardResult("hold", None, tuple(going.notes))
    if altered > SAME and change > settings.max_change and not context.declared:
        detail = f"hard guards moved it {change:.4g}, beyond max_change {settings.max_change:g}"
        going.note("trust region", "flagged", detail)
    return GuardResult("pass", going.weights, tuple(going.notes), tuple(going.plan))


# --- bounds -----------------------------------------------------------------------------------


def _bounds(
    weights: Mapping[str, float],
    context: GuardContext,
    settings: GuardSettings,
    drawn: Mapping[str, float],
    length: float,
) -> dict[str, tuple[float, float]]:
    """What every hard guard together allows over the next ``length`` tokens.

    A source without weight gets none, and has no floor, as one on standby; an exhausted source
    loses its floor: the ledger is the harder limit.
    """
    left = headroom(context.sources, drawn, settings.max_epochs)
    bounds = {}
    for name, source in context.sources.items():
        live = weights[name] > 0
        most = settings.cap if live else 0.0
        if length > 0:
            most = min(most, left[name] / length)
        low = settings.floor if live and not source.standby else 0.0
        bounds[name] = (min(low, most), most)
    return bounds


def _moves(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """``owm 0.05 -> 0.03, web 0.6 -> 0.62``: the largest moves first, at most six."""
    moved = [n for n in after if abs(after[n] - before.get(n, 0.0)) > SAME]
    moved.sort(key=lambda name: -abs(after[name] - before.get(name, 0.0)))
    shown = [f"{n} {before.get(n, 0.0):.4g} -> {after[n]:.4g}" for n in moved[:6]]
    more = [f"{len(moved) - 6} more"] if len(moved) > 6 else []
    return ", ".join(shown + more) or "less than 1e-6"
