"""Conditions on the run itself: tokens, learning-rate phase, the epoch ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixloop.common.errors import suggest
from mixloop.common.units import format_tokens
from mixloop.policies.interface import MissingScore, Observation, PolicyError
from mixloop.policies.mixture import GuardSource, epochs, in_force, project

from .condition_options import LedgerSpan, Plateau, TokenSpan
from .condition_result import ConditionResult, tokens_of


def check_tokens(spec: TokenSpan, observation: Observation) -> ConditionResult:
    """Is the run within the span of tokens?"""
    now = observation.tokens
    evidence = {"condition": "tokens", "tokens": [now]}
    if spec.above is not None and now < spec.above:
        text = f"{format_tokens(now)} tokens, below {format_tokens(spec.above)}"
        return ConditionResult("fails", text, math.inf, evidence)
    if spec.below is not None and now >= spec.below:
        text = f"{format_tokens(now)} tokens, past {format_tokens(spec.below)}"
        return ConditionResult("fails", text, math.inf, evidence)
    return ConditionResult("holds", f"at {format_tokens(now)} tokens", 0.0, evidence)


def check_phase(spec: Sequence[str], observation: Observation) -> ConditionResult:
    """Is the learning rate in one of these phases?"""
    evidence = {"condition": "phase", "phase": observation.phase}
    if observation.phase is None:
        return ConditionResult(
            "inconclusive", "the learning-rate phase is unknown", math.inf, evidence
        )
    if observation.phase in spec:
        return ConditionResult("holds", f"in {observation.phase}", 0.0, evidence)
    text = f"in {observation.phase}, not {' or '.join(spec)}"
    return ConditionResult("fails", text, math.inf, evidence)


def check_ledger(spec: LedgerSpan, observation: Observation) -> ConditionResult:
    """Are a source's epochs, now or at the end of the budget, within the span?"""
    sources = {n: GuardSource(s.unique_tokens) for n, s in observation.sources.items()}
    drawn: dict[str, float] = {name: float(s.drawn) for name, s in observation.sources.items()}
    if spec.at == "end":
        plan = [*observation.plan]
        last = plan[-1][1] if plan else in_force(observation)
        drawn = project(drawn, observation.tokens, [*plan, (observation.budget, last)])
    reached = epochs(sources, drawn)
    names = [n for n, s in observation.sources.items() if {n, *s.tags} & set(spec.source)]
    if not names:
        known = {*observation.sources, *(t for s in observation.sources.values() for t in s.tags)}
        raise PolicyError(f"ledger.source: no source or tag {spec.source[0]!r}"
                          f"{suggest(spec.source[0], known)}")  # fmt: skip
    name = max(names, key=lambda one: reached[one])
    value = reached[name]
    when = "now" if spec.at == "now" else "at the end of the budget"
    evidence: dict[str, Any] = {"condition": "ledger", "source": name, "epochs": value}
    text = f"{name} at {value:.3g} epochs {when}"
    if spec.above is not None and value <= spec.above:
        return ConditionResult("fails", f"{text}, not above {spec.above:g}", math.inf, evidence)
    if spec.below is not None and value >= spec.below:
        return ConditionResult("fails", f"{text}, not below {spec.below:g}", math.inf, evidence)
    return ConditionResult("holds", text, 0.0, evidence)


def _pace(
    observation: Observation, spec: Plateau, older: int, newer: int, metric: str
) -> tuple[float, float]:
    """Gain per doubling of the tokens, and its standard error."""
    if len(spec.benchmark) == 1:
        found = observation.difference(spec.benchmark[0], older, newer, metric)
    else:
        found = observation.pooled_difference(spec.benchmark, older, newer, metric)
    before, after = tokens_of(observation, older, newer)
    if not 0 < before < after:
        raise MissingScore("two evaluations at the same tokens have no pace")
    doublings = math.log2(after / before)
    return found.gain / doublings, found.stderr / doublings
