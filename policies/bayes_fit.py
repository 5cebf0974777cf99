"""A Gaussian process per benchmark: how mixtures move its loss off the run's own trend.

Each segment is a noisy trial. What it removed of the reducible loss is set against what the
run's own power law in tokens predicts, and the rest is credited to what the segment's mixture did
to the effective shares s of the data so far:

    log(L - eps) = c - alpha log(T + T0) + r(log T) + t . (s - s0) + noise

c, alpha, r (a smooth departure from the power law) and t are Gaussian a priori, so given eps and
the scale of t all of it is one Gaussian process with a kernel that is a sum (Rasmussen & Williams
2006, ch. 2); these two are averaged over by their marginal likelihood. The differences between
segments, which are the rewards, share an evaluation's noise with the segment before; fitting
levels is the same as fitting the differences with that correlation. A power law times an
exponential in the shares is the mixing law of Ye et al. 2024 (arXiv 2403.16952).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bayes_history import History, Series

Array = NDArray[np.float64]

REDUCIBLE = (0.03, 0.08, 0.17, 0.3, 0.45, 0.65, 0.9)
"""What may be left to reduce, in parts of the least loss seen."""
SCALES = (0.0, 0.3, 1.0, 3.0)
"""Standard deviations of t; under 0 no mixture makes a difference."""
OFFSET = 0.3  # T0, units
ALPHA = (0.3, 0.3)  # mean and standard deviation
LEVEL = 3.0  # standard deviation of c
BEND = (0.05, 1.0)  # amplitude of r, its length in log T
NEGLIGIBLE = 1e-3  # probability of a hypothesis that is not worth carrying on


@dataclass(frozen=True)
class Effect:
    """What is believed of one benchmark: h hypotheses about eps and the scale of t.

    ``probability`` (h,), ``floor`` eps (h,), ``level`` log(L - eps) at the end of the budget under
    the shares s0 (h,), ``slope`` t (h, k) and its covariance (h, k, k). ``evidence`` is the log
    Bayes factor of "mixtures matter" over "they don't".
    """

    name: str
    weight: float
    probability: Array
    floor: Array
    level: Array
    slope: Array
    covariance: Array
    evidence: float


def fit(
    history: History, centre: Array, until: float, slope: Array | None = None
) -> tuple[Effect, ...]:
    """The effect of the mixture on every benchmark with at least two scores.

    Args:
        history: the run so far.
        centre: the effective shares s0, (k,).
        until: where the levels are wanted, in units of tokens.
        slope: what is expected of t before the run, (k,); nothing if not given.
    """
    expected = np.zeros(len(history.names)) if slope is None else slope
    return tuple(
        _effect(history, series, centre, until, expected)
        for series in history.series
        if len(series.rows) > 1
    )


def _effect(
    history: History, series: Series, centre: Array, until: float, expected: Array
) -> Effect:
    least = series.loss.min()
    parts = np.maximum(np.array(REDUCIBLE) * max(abs(least), 1e-6), 4 * series.noise.max())
    floors = np.unique(least - parts)
    moved = history.shares[series.rows] - centre
    found = [
        _given(history.tokens[series.rows], moved, series, float(floor), scale, until, expected)
        for floor in floors
        for scale in SCALES
    ]
    log_likelihood = np.array([f[0] for f in found])
    null = np.array([scale == 0 for _ in floors for scale in SCALES])
    evidence = _log_mean(log_likelihood[~null]) - _log_mean(log_likelihood[null])
    probability = np.exp(log_likelihood - log_likelihood.max())
    probability /= probability.sum()
    kept = probability > NEGLIGIBLE
    probability = probability[kept] / probability[kept].sum()
    _, floor, level, slope, covariance = (
        np.array([f[part] for f, keep in zip(found, kept, strict=True) if keep])
        for part in range(5)
    )
    return Effect(
        series.name, series.weight, probability, floor, level, slope, covariance, evidence
    )


def _given(
    tokens: Array,
    moved: Array,
    series: Series,
    floor: float,
    scale: float,
    until: float,
    expected: Array,
) -> tuple[float, float, float, Array, Array]:
    """Log marginal likelihood, floor, level at the end, slope and its covariance given eps and the
    scale of t."""
    reducible = series.loss - floor
    trend = np.log((tokens + OFFSET) / (until + OFFSET))
    mean = expected * (scale > 0)
    # c has a broad prior about the first level, to be indifferent to the unit of the loss
    about = np.log(reducible[0])
    rest = np.log(reducible) - about + ALPHA[0] * trend - moved @ mean
    smooth = LEVEL**2 + ALPHA[1] ** 2 * np.outer(trend, trend)
    smooth = smooth + _bend(np.log(tokens), np.log(tokens))
    linear = scale**2 * moved @ moved.T
    lower = np.linalg.cholesky(smooth + linear + np.diag((series.noise / reducible) ** 2))
    white = np.linalg.solve(lower, rest)
    log_likelihood = -0.5 * white @ white - np.log(np.diag(lower)).sum() - np.log(reducible).sum()
    cross = np.linalg.solve(lower, scale**2 * moved)
    slope = mean + cross.T @ white
    covariance = scale**2 * np.eye(len(mean)) - cross.T @ cross
    ahead = LEVEL**2 + _bend(np.log(tokens), np.log([until]))[:, 0]
    level = about + np.linalg.solve(lower, ahead) @ white
    return float(log_likelihood), floor, float(level), slope, covariance


def _bend(one: Array, other: Array | list[float]) -> Array:
    distance = (one[:, None] - np.asarray(other)[None, :]) / BEND[1]
    return np.asarray(BEND[0] ** 2 * np.exp(-0.5 * distance**2))


def _log_mean(logs: Array) -> float:
    top = logs.max()
    return float(top + np.log(np.exp(logs - top).mean()))


def total_evidence(effects: Sequence[Effect]) -> float:
    """Log Bayes factor, over all benchmarks together, of "mixtures matter"."""
    return float(sum(effect.evidence for effect in effects))
