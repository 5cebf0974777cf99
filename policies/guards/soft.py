"""Soft guards: what speaks against a change now, though it would be legal."""

from __future__ import annotations

from mixloop.common.units import format_tokens
from mixloop.policies.evidence import holm
from mixloop.policies.mixture import DUST

from .guard_registry import Guard
from .guard_state import TOLERANCE, GuardState, moves


def phase(state: GuardState) -> None:
    """In warm-up nothing has settled; inside decay every benchmark gains, whatever the mixture."""
    context, settings = state.context, state.settings
    if context.phase == "warmup" and settings.warmup == "hold":
        raise state.blocked("the learning rate still warms up")
    if context.phase != "decay" or settings.decay == "allow":
        return
    if settings.decay == "hold":
        raise state.blocked("the learning rate decays, guards.decay is hold")
    if context.claims:
        claimed = ", ".join(claim.what for claim in context.claims)
        detail = f"no credit inside decay, where the learning rate moves all scores: {claimed}"
        raise state.blocked(detail, "inconclusive")
    state.note("passed", "in decay, but it rests on no gain or loss")


def loss_spike(state: GuardState) -> None:
    """The training loss is what it lately was."""
    ratio, limit = state.context.loss_ratio, state.settings.loss_spike
    if limit is None or ratio is None:
        return
    said = f"the training loss is {ratio:.3g} times its recent median"
    if ratio > 1 + limit:
        raise state.blocked(f"{said}, limit {1 + limit:.3g}")
    state.note("passed", said)


def veto(state: GuardState) -> None:
    """Under a veto only the way back is open."""
    for against in state.context.vetoes:
        if not against.retreats(dict(state.context.weights), state.weights):
            raise state.blocked(f"{against.why}; only a way back is open")
        state.note("passed", f"{against.why}; this goes back")


def significance(state: GuardState) -> None:
    """Every claim must stand, corrected for all that were looked for (Holm)."""
    context, level = state.context, state.settings.significance
    if not context.claims:
        return
    tests = max(context.tests, len(context.claims))
    stands = holm([claim.z for claim in context.claims], level, tests)
    weak = [claim for claim, good in zip(context.claims, stands, strict=True) if not good]
    shown = ", ".join(f"{claim.what} (z {claim.z:.2g})" for claim in weak or context.claims)
    said = f"at {level:g} over {tests} test{'s' if tests != 1 else ''}"
    if weak:
        raise state.blocked(f"may be chance {said}: {shown}", "inconclusive")
    state.note("passed", f"stands {said}: {shown}")


def dead_band(state: GuardState) -> None:
    """The change is worth an order."""
    change, least = state.change, state.settings.dead_band
    if change < least - DUST:
        raise state.blocked(f"total variation {change:.2g} is below {least:g}: not worth an order")


def dwell(state: GuardState) -> None:
    """The last order is in force, and was for long enough."""
    context, least = state.context, state.settings.dwell
    if context.order_pending:
        raise state.blocked("the last order is not yet in force")
    if state.change <= TOLERANCE:
        state.note("passed", "nothing to change")
        return
    last = context.last_intervention_tokens
    if last is not None and context.tokens - last < least:
        since = format_tokens(context.tokens - last)
        detail = f"{since} tokens since the last intervention, dwell is {format_tokens(least)}"
        raise state.blocked(detail)
    state.note("passed", "no intervention within the dwell")


def regression(state: GuardState) -> None:
    """The policy isn't held because the run became worse twice under its changes."""
    standing = state.context.standing
    if standing.flagged:
        state.note("flagged", f"{standing.flagged}; a person's order, so it stays")
    if standing.state == "held":
        detail = (
            f"held since {standing.since}, when the run had become worse a second time, until "
            "`mixloop resume`, an order of a person's or a new experiment"
        )
        if state.change > TOLERANCE:
            raise state.blocked(detail)
        state.note("flagged", detail)
    elif standing.state == "probation":
        state.note("flagged", f"on probation since {standing.since}: the run had become worse")


def trust_region(state: GuardState) -> None:
    """As much of the change as one decision may make."""
    current, change = state.context.weights, state.change
    limit = state.settings.max_change * state.context.standing.step
    if change <= limit + DUST:
        state.note("passed", f"total variation {change:.4g} of {limit:g}")
        return
    part = limit / change
    trimmed = {
        name: (1 - part) * current.get(name, 0.0) + part * weight
        for name, weight in state.weights.items()
    }
    detail = f"total variation {change:.4g} cut to {limit:g}: {moves(state.weights, trimmed)}"
    state.replace(trimmed, detail)


SOFT = (
    Guard("regression", regression, always=True),
    Guard("phase", phase),
    Guard("loss spike", loss_spike),
    Guard("veto", veto),
    Guard("significance", significance),
    Guard("dead-band", dead_band),
    Guard("dwell", dwell, always=True),
    Guard("trust region", trust_region, always=True),
)
