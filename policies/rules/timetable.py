"""What ``rules`` does by schedule: late introductions, and annealing in the decay phase.

A small source of high quality that starts with the run is used up before the end, when it does
most; SmolLM2 brought its maths in late and raised it in the decay (Allal et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from mixloop.common.units import format_tokens
from mixloop.policies.interface import Observation, PastDecision, Proposal
from mixloop.policies.mixture import REACHED, check_names, in_force, rules_of

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
        due.append(_annealed(f"anneal {place}", annealing, observation))
    return next((proposal for proposal in due if proposal is not None), None)


def _introduction_share(spec: Introduction, observation: Observation) -> float:
    """The share at which the source lasts to the end of the budget:
    ``max_epochs * unique - drawn`` over the tokens left, at most ``share``."""
    source = observation.sources[spec.source]
    limit = spec.max_epochs or observation.limits.max_epochs
    left = max(1, observation.budget - observation.tokens)
    if limit is None:
        return spec.share
    return min(spec.share, max(0.0, limit * source.unique_tokens - source.drawn) / left)


def _introduced(spec: Introduction, observation: Observation) -> Proposal | None:
    rule = f"introduce {spec.source}"
    if observation.tokens < spec.after:
        return None
    share = _introduction_share(spec, observation)
    why = f"{spec.source} enters after {format_tokens(spec.after)}, to last to the end"
    return _raised(rule, (spec.source,), share, spec.from_, 0.0, observation, why)


def _annealed(rule: str, spec: Annealing, observation: Observation) -> Proposal | None:
    if observation.phase != "decay":
        return None
    fired = _firings(rule, observation)
    start = fired[0].weights_before if fired else in_force(observation)
    base = _together(spec.to, start, observation)
    share = spec.share if spec.share is not None else min(spec.cap, base * (spec.by or 1.0))
    why = f"the learning rate decays: {', '.join(spec.to)} to {share:.3g}"
    return _raised(rule, spec.to, share, spec.from_, spec.floor, observation, why)


def _raised(
    rule: str,
    to: tuple[str, ...],
    share: float,
    from_: tuple[str, ...],
    floor: float,
    observation: Observation,
    why: str,
) -> Proposal | None:
    """The sources raised to a share in steps as large as the guards let through; never lowered."""
    weights, fired = in_force(observation), _firings(rule, observation)
    missing = share - _together(to, weights, observation)
    if missing <= max(REACHED, MIN_STEP) or _given_up(fired, to, observation):
        return None
    move = Move(to=to, from_=from_, step=min(1.0, missing), floor=floor)
    done = move.carry_out(weights, observation.sources)
    if isinstance(done, CannotMove):
        return None
    evidence = {"rule": rule, "rules": [rule], "share": share}
    return Proposal(done.weights, f"{why}: {done}", evidence=evidence)


def _given_up(fired: Sequence[PastDecision], to: tuple[str, ...], observation: Observation) -> bool:
    """The last step brought nothing, the share was there once, or somebody turned it down."""
    if not fired:
        return False
    last = fired[-1]
    if last.verdict != "intervene":
        return True
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
