"""The way back to the last good mixture, when the run has become significantly worse. Pure."""

from __future__ import annotations

from dataclasses import replace

from mixloop.controller.config import RunConfig
from mixloop.policies.guards import GuardContext, GuardNote, apply_guards
from mixloop.policies.mixture import DUST, total_variation

from .decision_record import DecisionRecord, OrderRecord
from .guard_context import guard_settings

GUARDS = "guards"  # who made a mixture that no policy and no person asked for


def way_back(
    context: GuardContext, config: RunConfig, unchanged: DecisionRecord, generation: int
) -> DecisionRecord | None:
    """The decision that goes back; None where nothing is to be undone, or nothing legal is left.

    It passes over the soft guards and the policy's plan, and needs nobody's approval: it goes to a
    mixture that was in force already. It replaces an order that is not in force yet.

    Args:
        context: The run as the guards see it, the policy's standing included.
        config: The run.
        unchanged: The decision that would keep the mixture, with the policy's own reason.
        generation: The number of the order.
    """
    standing, limit = context.standing, config.trainer.limits.max_change
    if standing.back_to is None:
        return None
    target, notes, evidence = standing.back_to, (), dict(standing.evidence or {})
    apart = total_variation(target, context.weights)
    if apart > limit + DUST:  # the trainer would refuse it as a whole
        evidence["back_to"], part = target, limit / apart
        target = {
            name: (1 - part) * context.weights.get(name, 0.0) + part * weight
            for name, weight in target.items()
        }
        cut = f"cut to trainer.limits.max_change {limit:g}; the rest follows"
        notes = (GuardNote("regression", "flagged", cut),)
    bounds = replace(context, way_back=True, order_pending=False)
    result = apply_guards(target, (), bounds, guard_settings(config))
    if result.verdict != "pass" or result.weights is None:
        return None
    if unchanged.weights_proposed is not None:
        evidence["instead of"] = unchanged.reason
    return replace(
        unchanged,
        verdict="intervene",
        reason=standing.why,
        evidence=evidence,
        weights_proposed=target,
        weights_after=result.weights,
        guards=(*notes, *result.notes),
        order=OrderRecord(generation, GUARDS),
        asked_by="controller",
        policy=GUARDS,
    )
