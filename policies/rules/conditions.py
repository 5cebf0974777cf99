"""What must hold before an intervention of ``rules`` is made."""

from __future__ import annotations

import math
from typing import Any

from pydantic import model_validator

from mixloop.policies.interface import MissingScore, Observation, OptionsModel, Phases, listed

from .condition_result import ConditionResult
from .run_conditions import LedgerSpan, PhaseIn, TokenSpan
from .score_conditions import Lag, Level, Plateau, Ratio, Regression, Trend

_SCORED = (Level, Trend, Lag, Plateau, Regression, Ratio)
_SPANS: dict[type, int] = {Trend: 1, Lag: 1, Plateau: 2, Regression: 1}  # of `over` evaluations


class Condition(OptionsModel):
    """One or more tests; all must hold."""

    level: Level | None = None
    trend: Trend | None = None
    lag: Lag | None = None
    plateau: Plateau | None = None
    regression: Regression | None = None
    ratio: Ratio | None = None
    ledger: LedgerSpan | None = None
    tokens: TokenSpan | None = None
    phase: Phases | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Condition:
        if not self.model_fields_set:
            raise ValueError(
                f"an empty condition; give one of {', '.join(type(self).model_fields)}"
            )
        return self

    def _tests(self) -> list[Any]:
        phase = PhaseIn(self.phase) if self.phase is not None else None
        tests = (
            *(self.level, self.trend, self.lag, self.tokens, phase),
            *(self.plateau, self.regression, self.ratio, self.ledger),
        )
        return [test for test in tests if test is not None]

    def benchmarks(self) -> list[str]:
        """Every benchmark that a test names."""
        keys = ("benchmark", "than", "to")
        named = [listed(getattr(test, key, ())) for test in self._tests() for key in keys]
        return [name for names in named for name in names]

    def evaluations_needed(self) -> int:
        """How many evaluations the tests look at; 0 where none looks at scores."""
        scored = (test for test in self._tests() if isinstance(test, _SCORED))
        return max((1 + _SPANS.get(type(test), 0) * getattr(test, "over", 1) for test in scored),
                   default=0)  # fmt: skip

    def check(self, observation: Observation) -> list[ConditionResult]:
        """The outcome of each test; inconclusive where a score is missing."""
        return [_checked(test, observation) for test in self._tests()]


def _checked(test: Any, observation: Observation) -> ConditionResult:
    try:
        result: ConditionResult = test.check(observation)
    except MissingScore as missing:
        evidence = {"missing": str(missing)}
        return ConditionResult("inconclusive", str(missing), math.inf, evidence)
    return result
