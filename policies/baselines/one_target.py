"""A policy that moves to one mixture, and then holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixloop.policies.interface import Hold, Observation, Proposal
from mixloop.policies.mixture import in_force, still_reaching, total_variation


def move_once(
    observation: Observation,
    target: Mapping[str, float],
    rule: str,
    *,
    moving: str,
    reached: str,
    evidence: Mapping[str, Any] | None = None,
) -> Proposal | Hold:
    """The target mixture until it was in force once under ``rule``; else hold."""
    facts = {"rule": rule, **(evidence or {})}
    if not still_reaching(observation, target, rule):
        return Hold(f"{rule}: {reached}", facts)
    left = total_variation(in_force(observation), target)
    weights = {name: target.get(name, 0.0) for name in observation.sources}
    reason = f"{rule}: {moving}, {left:.3g} of the tokens to move"
    return Proposal(weights, reason, evidence={**facts, "distance": left})
