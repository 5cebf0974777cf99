"""Conditions on the run itself: tokens, learning-rate phase, the epoch ledger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mixloop.common.errors import suggest
from mixloop.common.units import Tokens, format_tokens
from mixloop.policies.interface import Names, Observation, OptionsModel, PolicyError
from mixloop.policies.mixture import consumed, epochs, in_force, project

from .condition_result import ConditionResult


class TokenSpan(OptionsModel):
    """The run has consumed at least ``above`` and fewer than ``below`` training tokens."""

    above: Tokens | None = None
    below: Tokens | None = None

    @model_validator(mode="after")
    def _some_side(self) -> TokenSpan:
        if self.above is None and self.below is None:
            raise ValueError("give above, below or both")
        return self

    def check(self, observation: Observation) -> ConditionResult:
        """Is the run within the span of tokens?"""
        now = observation.tokens
        evidence = {"condition": "tokens", "tokens": [now]}
        if self.above is not None and now < self.above:
            text = f"{format_tokens(now)} tokens, below {format_tokens(self.above)}"
            return ConditionResult("fails", text, math.inf, evidence)
        if self.below is not None and now >= self.below:
            text = f"{format_tokens(now)} tokens, past {format_tokens(self.below)}"
            return ConditionResult("fails", text, math.inf, evidence)
        return ConditionResult("holds", f"at {format_tokens(now)} tokens", 0.0, evidence)


@dataclass(frozen=True)
class PhaseIn:
    """The learning rate is in one of these phases."""

    phases: tuple[str, ...]

    def check(self, observation: Observation) -> ConditionResult:
        """Is the learning rate in one of these phases?"""
        phase = observation.phase
        evidence = {"condition": "phase", "phase": phase}
        if phase is None:
            text = "the learning-rate phase is unknown"
            return ConditionResult("inconclusive", text, math.inf, evidence)
        if phase in self.phases:
            return ConditionResult("holds", f"in {phase}", 0.0, evidence)
        text = f"in {phase}, not {' or '.join(self.phases)}"
        return ConditionResult("fails", text, math.inf, evidence)


class LedgerSpan(OptionsModel):
    """The epochs of a source (of the tags' sources: the most of any) are above or below a number.

    ``at: now`` counts what was drawn; ``at: end`` what the mixture in force and its plan would have
    drawn by the end of the budget.
    """

    source: Names
    above: Annotated[float, Field(ge=0)] | None = None
    below: Annotated[float, Field(gt=0)] | None = None
    at: Literal["now", "end"] = "now"

    @model_validator(mode="after")
    def _some_side(self) -> LedgerSpan:
        if self.above is None and self.below is None:
            raise ValueError("give above, below or both, in epochs")
        return self

    def check(self, observation: Observation) -> ConditionResult:
        """Are a source's epochs, now or at the end of the budget, within the span?"""
        sources = observation.sources
        drawn = {n: consumed(s.drawn, s.epochs, s.unique_tokens) for n, s in sources.items()}
        if self.at == "end":
            plan = [*observation.plan]
            last = plan[-1][1] if plan else in_force(observation)
            drawn = project(drawn, observation.tokens, [*plan, (observation.budget, last)])
        reached = epochs(sources, drawn)
        names = [n for n, s in sources.items() if {n, *s.tags} & set(self.source)]
        if not names:
            places = {*sources, *(tag for source in sources.values() for tag in source.tags)}
            mend = suggest(self.source[0], places)
            raise PolicyError(f"ledger.source: no source or tag {self.source[0]!r}{mend}")
        name = max(names, key=lambda name: reached[name])
        value = reached[name]
        when = "now" if self.at == "now" else "at the end of the budget"
        evidence: dict[str, Any] = {"condition": "ledger", "source": name, "epochs": value}
        text = f"{name} at {value:.3g} epochs {when}"
        if self.above is not None and value <= self.above:
            return ConditionResult("fails", f"{text}, not above {self.above:g}", math.inf, evidence)
        if self.below is not None and value >= self.below:
            return ConditionResult("fails", f"{text}, not below {self.below:g}", math.inf, evidence)
        return ConditionResult("holds", text, 0.0, evidence)
