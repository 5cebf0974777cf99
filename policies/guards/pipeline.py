"""Guards: pure checks that bound a proposal and say what they changed.

Soft guards come first (regression, learning-rate phase, loss spike, vetoes, significance,
dead-band, dwell, trust region), hard ones last (simplex and names, floor and cap, epoch ledger);
between them those of other packages that ``guards.use`` names. The hard guards' bounds are
cumulative, so what leaves the last one satisfies all of them, and a second pass changes nothing.
Declared stages, operator's orders and the way back of the regression guard meet only the hard
guards; an operator's order is never altered, it is refused with the nearest legal mixture.

A mixture that stays as it is can be passed through too (a policy's hold): the ledger then speaks
up when merely going on would break the cap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from mixloop.policies.interface import PolicyError, raised
from mixloop.policies.mixture import Stretch, total_variation

from .guard_registry import Guard, load_guard
from .guard_state import TOLERANCE, Blocked, GuardState, named, same_plan
from .guard_types import GuardContext, GuardResult, GuardSettings
from .hard import FIRST, LAST
from .soft import SOFT


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
    state = GuardState(context, settings, named(weights, context), stretches)
    further = [_further(name) for name in settings.use]
    try:
        for guard in (*FIRST, *SOFT, *(guard for guard in further if guard.soft)):
            _meet(guard, state)
        requested = state.weights
        for guard in (*(guard for guard in further if not guard.soft), *LAST):
            _meet(guard, state)
        return _conclude(state, requested)
    except Blocked as blocked:
        return GuardResult(blocked.verdict, None, tuple(state.notes))


def _meet(guard: Guard, state: GuardState) -> None:
    context, state.guard = state.context, guard.name
    whose = {
        "an operator's order": context.operator,
        "a declared stage": context.declared,
        "the way back": context.way_back,
    }
    if guard.soft and any(whose.values()):
        why = next(name for name, true in whose.items() if true)
        if guard.always:
            state.note("passed", f"skipped for {why}")
    elif not guard.soft or guard.always or state.change > TOLERANCE:
        guard.apply(state)


def _further(name: str) -> Guard:
    """An installed guard, held so that what it does wrong costs one decision and no more."""

    def apply(state: GuardState) -> None:
        try:
            guard.apply(state)
            state.weights = named(state.weights, state.context)
            problem = state.problem
        except Blocked:
            raise
        except (Exception, SystemExit) as error:
            problem = raised(error, guard.apply)
        if problem:
            raise state.blocked(f"the guard failed: {problem}; the mixture stays")

    try:
        guard = load_guard(name)
    except PolicyError as error:
        guard = Guard(name, partial(_missing, error))
    return Guard(guard.name, apply, guard.soft, guard.always)


def _missing(error: PolicyError, state: GuardState) -> None:
    raise error


def _conclude(state: GuardState, requested: dict[str, float]) -> GuardResult:
    context, settings = state.context, state.settings
    altered = total_variation(state.weights, requested)
    if context.operator and altered > TOLERANCE:
        # the notes of the changes stay: they say what is illegal about the order
        state.guard = "operator"
        detail = "an operator's order isn't altered; force it, or take the nearest legal mixture"
        state.note("blocked", detail)
        return GuardResult("refused", None, tuple(state.notes), nearest=state.weights)
    planned = context.declared and not same_plan(state.plan, context.plan)
    if state.change <= TOLERANCE and not planned:
        state.guard = "result"
        if total_variation(requested, context.weights) <= TOLERANCE:
            state.note("passed", "nothing to change")
        else:
            state.note("blocked", "nothing is left to change")
        return GuardResult("hold", None, tuple(state.notes))
    if altered > TOLERANCE and state.change > settings.max_change and not context.declared:
        state.guard = "trust region"
        limit = f"beyond max_change {settings.max_change:g}"
        state.note("flagged", f"hard guards moved it {state.change:.4g}, {limit}")
    return GuardResult("pass", state.weights, tuple(state.notes), tuple(state.plan))
