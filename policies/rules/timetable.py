"""What ``rules`` does by schedule: late introductions, and annealing in the decay phase.

A small source of high quality that starts with the run is used up before the end, when it does
most; SmolLM2 brought its maths in late and raised it in the decay (Allal et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from mixloop.common.units import format_tokens
from mixloop.policies.interface import Observation, PastDecision, Proposal
from mixloop.policies.mixture import check_names, in_force, lasting_shares, rules_of

from .interventions import FIRED
from .moves import CannotMove, Move, Tags, check_places, resolve
from .options import Annealing, Introduction, RulesOptions

# a step that moved less than this met a hard limit: the rest isn't asked for again
MIN_STEP = 1e-3


def check_schedule(options: RulesOptions, sources: Tags) -> None:
    """Raise ``PolicyError`` for a source or tag (name to tags) that the run doesn't have."""
    for index, entry in enumerate(options.introduce):
        where = f"policy.with.introduce.{index}"
        check_names("source", [entry.source], sources, f"{where}.source")
        check_places(sources, where, from_=entry.from_)
    for index, anneal in enumerate(options.anneal):
        check_places(sources, f"policy.with.anneal.{index}", to=anneal.to, from_=anneal.from_)


def scheduled(options: RulesOptions, observation: Observation) -> Proposal | None:
    """The first thing that is due by schedule and isn't there yet."""
    due = [_introduced(entry, observation) for entry in options.introduce]
    for place, annealing in enumerate(options.anneal, 1):
        rule = f"anneal {place}"
        due.append(_annealed(rule, annealing, observation, options.lasting(observation)))
    return next((proposal for proposal in due if proposal is not None), None)


def _introduced(spec: Introduction, observation: Observation) -> Proposal | None:
    if observation.tokens < spec.after:
        return None
    share, source = spec.share, observation.sources[spec.source]
    limit = spec.max_epochs or observation.limits.max_epochs
    left = observation.budget - observation.tokens
    share = min(share, lasting_shares({spec.source: source}, limit, left)[spec.source])
    why = f"{spec.source} enters after {format_tokens(spec.after)}, to last to the end"
    move = Move(to=(spec.source,), from_=spec.from_)
    return _raised(f"introduce {spec.source}", move, share, observation, why, None)


def _annealed(
    rule: str, spec: Annealing, observation: Observation, lasting: Mapping[str, float] | None
) -> Proposal | None:
    if observation.phase != "decay":
        return None
    fired = _firings(rule, observation)
    start = fired[0].weights_before if fired else in_force(observation)
    base = _together(spec.to, start, observation)
    share = spec.share if spec.share is not None else min(spec.cap, base * (spec.by or 1.0))
    why = f"the learning rate decays: {', '.join(spec.to)} to {share:.3g}"
    move = Move(to=spec.to, from_=spec.from_, floor=spec.floor)
    return _raised(rule, move, share, observation, why, lasting)


def _raised(
    rule: str,
    move: Move,
    share: float,
    observation: Observation,
    why: str,
    lasting: Mapping[str, float] | None,
) -> Proposal | None:
    """The move's sources raised to a share, in steps as large as the guards let through."""
    weights = in_force(observation)
    missing = share - _together(move.to, weights, observation)
    if missing <= MIN_STEP or _given_up(rule, move.to, observation):
        return None
    step = move.model_copy(update={"step": min(1.0, missing)})
    moved = step.carry_out(weights, observation.sources, lasting=lasting)
    if isinstance(moved, CannotMove):
        return None
    evidence = {"rule": rule, "rules": [rule], "share": share}
    return Proposal(moved.weights, f"{why}: {moved}", evidence=evidence)


def _given_up(rule: str, to: Sequence[str], observation: Observation) -> bool:
    """The last step brought nothing, the share was there once, or somebody turned it down."""
    fired = _firings(rule, observation)
    if not fired or fired[-1].verdict != "intervene":
        return bool(fired)
    last = fired[-1]
    reached = float(last.evidence.get("share") or 0.0)
    before = _together(to, last.weights_before, observation)
    after = _together(to, last.weights_after or {}, observation)
    return after - before < MIN_STEP or after >= reached - MIN_STEP


def _firings(rule: str, observation: Observation) -> list[PastDecision]:
    return [d for d in observation.decisions if rule in rules_of(d) and d.verdict in FIRED]


def _together(
    names: Sequence[str], weights: Mapping[str, float], observation: Observation
) -> float:
    full = {name: weights.get(name, 0.0) for name in observation.sources}
    return fsum(full[name] for name in resolve(names, full, observation.sources))
