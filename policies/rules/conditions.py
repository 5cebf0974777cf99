"""Testing one condition of ``rules`` on an observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mixloop.policies.interface import MissingScore, Observation

from .condition_options import Condition
from .condition_result import ConditionResult
from .run_conditions import check_ledger, check_phase, check_tokens
from .score_conditions import (
    check_lag,
    check_level,
    check_plateau,
    check_ratio,
    check_regression,
    check_trend,
)


def run_checks(condition: Condition, observation: Observation) -> list[ConditionResult]:
    """The outcome of each test in a condition, in a fixed order."""
    tests: list[tuple[Any, Callable[[Any, Observation], ConditionResult]]] = [
        (condition.level, check_level),
        (condition.trend, check_trend),
        (condition.lag, check_lag),
        (condition.tokens, check_tokens),
        (condition.phase, check_phase),
        (condition.plateau, check_plateau),
        (condition.regression, check_regression),
        (condition.ratio, check_ratio),
        (condition.ledger, check_ledger),
    ]
    return [_guarded(test, spec, observation) for spec, test in tests if spec is not None]


def _guarded(
    test: Callable[[Any, Observation], ConditionResult], spec: Any, seen: Observation
) -> ConditionResult:
    try:
        return test(spec, seen)
    except MissingScore as missing:
        return ConditionResult("inconclusive", str(missing), math.inf, {"missing": str(missing)})
