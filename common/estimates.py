"""Estimates, standard errors and intervals over items. Pure; scipy's quantiles load when needed.

Items that share a passage, a subject or an author tend to be right or wrong together, so they say
less than as many independent ones. `clusters` names each item's group; the standard error is then
the cluster-robust one: residuals are summed within each of the G clusters before they are squared
(Liang & Zeger 1986, Biometrika 73; for evaluations Miller 2024, "Adding error bars to evals",
arXiv 2411.00640), with the small-sample factor G / (G - 1). One item per cluster gives the plain
formula. When all items are of one cluster, nothing is known of how clusters differ: the plain
formula then speaks of that cluster alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Clusters = Sequence[str] | None
"""The cluster of each item, in the items' order; None where every item is its own."""

CONFIDENCE = 0.95


def mean(values: Sequence[float], clusters: Clusters = None) -> tuple[float, float | None]:
    """Mean and its standard error (sample deviation / sqrt n; None for one value).

    For unclustered 0/1 outcomes this is the binomial standard error with n - 1 in the denominator,
    which is what lm-eval's `mean_stderr` reports. Raises ValueError on no values.
    """
    if not values:
        raise ValueError("mean of no values")
    return ratio_of_totals(values, [1.0] * len(values), clusters)


def ratio_of_totals(
    totals: Sequence[float], weights: Sequence[float], clusters: Clusters = None
) -> tuple[float, float | None]:
    """sum(totals) / sum(weights) and its standard error by the ratio estimator (None for one item).

    SE = sqrt(n / (n - 1) * sum((t_i - R w_i)^2)) / sum(w), Cochran (1977) section 6.4 without a
    finite-population correction. Raises ValueError on no items or no weight.
    """
    n, weight = len(totals), math.fsum(weights)
    if n == 0 or weight <= 0:
        raise ValueError("ratio over no weight")
    value = math.fsum(totals) / weight
    if n == 1:
        return value, None
    residuals = [t - value * w for t, w in zip(totals, weights, strict=True)]
    return value, _deviation(residuals, clusters) / weight


def degrees_of_freedom(n: int, clusters: Clusters = None) -> int:
    """What a t statistic over `n` items rests on: clusters (or items) - 1."""
    return _units(n, clusters) - 1


def t_interval(value: float, stderr: float, df: int) -> tuple[float, float]:
    """The 95% interval of an estimate whose standard error has `df` >= 1 degrees of freedom."""
    half = t_quantile(0.5 + CONFIDENCE / 2, df) * stderr
    return value - half, value + half


def proportion_interval(values: Sequence[float], clusters: Clusters = None) -> tuple[float, float]:
    """The 95% interval of the mean of 0/1 outcomes, inside [0, 1] and never empty.

    Unclustered: exact (Clopper & Pearson 1934), so it covers at least 95% at any size. Clustered:
    the same at the effective number of items, p (1 - p) / SE^2 with Korn & Graubard's correction
    for the degrees of freedom (1998, Survey Methodology 24), at most n; where all outcomes agree,
    which hides how alike a cluster's items are, every cluster counts as one item.
    """
    p, stderr = mean(values, clusters)
    n, units = len(values), _units(len(values), clusters)
    size = float(n)
    if p in (0.0, 1.0):
        size = units
    elif units < n and stderr:
        upper = 0.5 + CONFIDENCE / 2
        shrink = t_quantile(upper, n - 1) / t_quantile(upper, units - 1)
        size = min(size, p * (1 - p) * (shrink / stderr) ** 2)
    return clopper_pearson(p * size, size)


def clopper_pearson(successes: float, n: float) -> tuple[float, float]:
    """The exact 95% interval of a probability after `successes` of `n` trials."""
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def _deviation(residuals: Sequence[float], clusters: Clusters) -> float:
    """sqrt(G / (G - 1) * sum over clusters of (sum of residuals)^2)."""
    units = _units(len(residuals), clusters)
    if clusters is None or units == len(residuals):
        return math.sqrt(units / (units - 1) * math.fsum(r**2 for r in residuals))
    members: dict[str, list[float]] = {}
    for residual, cluster in zip(residuals, clusters, strict=True):
        members.setdefault(cluster, []).append(residual)
    return math.sqrt(units / (units - 1) * math.fsum(math.fsum(m) ** 2 for m in members.values()))


def _units(n: int, clusters: Clusters) -> int:
    """How many independent draws there are: clusters, or items where those are all of one."""
    distinct = len(set(clusters)) if clusters is not None else n
    return distinct if distinct > 1 else n


def t_quantile(probability: float, df: float) -> float:
    """Student's t quantile; infinite without degrees of freedom."""
    if df <= 0:
        return math.inf
    # scipy.special loads in a tenth of the time of scipy.stats
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))
