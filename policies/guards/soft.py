"""Soft guards: what speaks against a change now, though it would be legal.

Declared stages and operator's orders meet none of them. A mixture that stays as it is meets only
the dwell's question whether an order is still pending.
"""

from __future__ import annotations

from mixloop.common.units import format_tokens
from mixloop.policies.evidence import holm
from mixloop.policies.mixture import DUST, total_variation

from .guard_state import SAME, GuardState, moves


def soft_guards(going: GuardState) -> None:
    """All of them in order; the first that blocks ends the pass."""
    context = going.context
    if context.operator or context.declared:
        why = "an operator's order" if context.operator else "a declared stage"
        for guard in ("dwell", "trust region"):
            going.note(guard, "passed", f"skipped for {why}")
        return
    if total_variation(going.weights, context.weights) > SAME:
        for check in (_phase, _spike, _vetoed, _significance, _dead_band):
            check(going)
    _dwell(going)
    _trust_region(going)


def _phase(going: GuardState) -> None:
    """In warm-up nothing has settled; inside decay every benchmark gains, whatever the mixture."""
    context, settings = going.context, going.settings
    if context.phase == "warmup" and settings.warmup == "hold":
        raise going.stop("phase", "the learning rate still warms up", "hold")
    if context.phase != "decay" or settings.decay == "allow":
        return
    if settings.decay == "hold":
        raise going.stop("phase", "the learning rate decays, guards.decay is hold", "hold")
    if context.claims:
        claimed = ", ".join(claim.what for claim in context.claims)
        detail = f"no credit inside decay, where the learning rate moves all scores: {claimed}"
        raise going.stop("phase", detail, "inconclusive")
    going.note("phase", "passed", "in decay, but it rests on no gain or loss")


def _spike(going: GuardState) -> None:
    ratio, limit = going.context.loss_ratio, going.settings.loss_spike
    if limit is None or ratio is None:
        return
    if ratio > 1 + limit:
        detail = f"the training loss is {ratio:.3g} times its recent median, limit {1 + limit:.3g}"
        raise going.stop("loss spike", detail, "hold")
    going.note("loss spike", "passed", f"the training loss is {ratio:.3g} times its recent median")


def _vetoed(going: GuardState) -> None:
    current = dict(going.context.weights)
    for veto in going.context.vetoes:
        if not veto.retreats(current, going.weights):
            raise going.stop("veto", f"{veto.why}; only a way back is open", "hold")
        going.note("veto", "passed", f"{veto.why}; this goes back")


def _significance(going: GuardState) -> None:
    """Every claim must stand, corrected for all that were looked for (Holm)."""
    context, level = going.context, going.settings.significance
    if not context.claims:
        return
    tests = max(context.tests, len(context.claims))
    stands = holm([claim.z for claim in context.claims], level, tests)
    weak = [claim for claim, good in zip(context.claims, stands, strict=True) if not good]
    shown = ", ".join(f"{claim.what} (z {claim.z:.2g})" for claim in weak or context.claims)
    said = f"at {level:g} over {tests} test{'s' if tests != 1 else ''}"
    if weak:
        raise going.stop("significance", f"may be chance {said}: {shown}", "inconclusive")
    going.note("significance", "passed", f"stands {said}: {shown}")


def _dead_band(going: GuardState) -> None:
    change, least = total_variation(going.weights, going.context.weights), going.settings.dead_band
    if change < least - DUST:
        detail = f"total variation {change:.2g} is below {least:g}: not worth an order"
        raise going.stop("dead-band", detail, "hold")


def _dwell(going: GuardState) -> None:
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


def _trust_region(going: GuardState) -> None:
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
    detail = f"total variation {change:.4g} cut to {limit:g}: {moves(going.weights, trimmed)}"
    going.change("trust region", trimmed, detail)
