"""What mixtures measured elsewhere let one expect of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .bayes_options import Point, Prior

Array = NDArray[np.float64]

SPREAD = 1.0  # standard deviation of the slopes before any point is seen


def expected_slopes(
    prior: Prior, names: Sequence[str], benchmarks: Sequence[str]
) -> dict[str, Array]:
    """Per benchmark, the slope (k,) of log loss by the shares of the sources ``names``.

    Bayesian linear regression on the points, times the prior's strength. Nothing with fewer than
    two points, or for losses that aren't positive: they have no logarithm.
    """
    if len(prior.points) < 2:
        return {}
    mixtures = np.array([[p.weights.get(name, 0.0) for name in names] for p in prior.points])
    slopes = {name: _slope(mixtures, prior.points, name) for name in benchmarks}
    return {name: prior.strength * slope for name, slope in slopes.items() if slope is not None}


def _slope(mixtures: Array, points: Sequence[Point], benchmark: str) -> Array | None:
    scores = [point.score(benchmark) for point in points]
    value = np.array([score.value for score in scores])
    if (value <= 0).any():
        return None
    noise = np.array([score.stderr for score in scores]) / value
    precision = 1 / noise**2
    share = precision / precision.sum()
    moved, rest = mixtures - share @ mixtures, np.log(value) - share @ np.log(value)
    kernel = SPREAD**2 * moved @ moved.T + np.diag(noise**2)
    return np.asarray(SPREAD**2 * moved.T @ np.linalg.solve(kernel, rest))
