"""Estimates and standard errors over items. Pure, standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample deviation / sqrt n; None for one value).

    For 0/1 outcomes this is the binomial standard error with n - 1 in the denominator, which is
    what lm-eval's `mean_stderr` reports. Raises ValueError on no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("mean of no values")
    centre = math.fsum(values) / n
    if n == 1:
        return centre, None
    spread = math.fsum((v - centre) ** 2 for v in values)
    return centre, math.sqrt(spread / (n - 1) / n)


def ratio(totals: Sequence[float], weights: Sequence[float]) -> tuple[float, float | None]:
    """sum(totals) / sum(weights) and its standard error by the ratio estimator.

    SE = sqrt(n / (n - 1) * sum((t_i - R w_i)^2)) / sum(w), Cochran (1977) section 6.4 without a
    finite-population correction. Raises ValueError on no items or no weight.
    """
    n, weight = len(totals), math.fsum(weights)
    if n == 0 or weight <= 0:
        raise ValueError("ratio over no weight")
    value = math.fsum(totals) / weight
    if n == 1:
        return value, None
    residuals = math.fsum((t - value * w) ** 2 for t, w in zip(totals, weights, strict=True))
    return value, math.sqrt(n / (n - 1) * residuals) / weight
