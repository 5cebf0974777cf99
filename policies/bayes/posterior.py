"""A Gaussian process per benchmark: how mixtures move its loss off the run's own trend.

Each segment is a noisy trial. What it removed of the reducible loss is set against what the
run's own power law in tokens predicts, and the rest is credited to what the segment's mixture did
to the effective shares s of the data so far:

    log(L - eps) = c - alpha log(T + T0) + r(log T) + t . (s - s0) + q(s) + noise

c, alpha, t, r (a smooth departure from the power law) and q (one from linear effects; it keeps
the errors honest and isn't extrapolated) are Gaussian a priori, so given eps and
the scale of t all of it is one Gaussian process with a kernel that is a sum (Rasmussen & Williams
2006, ch. 2); these two are averaged over by their marginal likelihood. The differences between
segments, which are the rewards, share an evaluation's noise with the segment before; fitting
levels is the same as fitting the differences with that correlation. A power law times an
exponential in the shares is the mixing law of Ye et al. 2024 (arXiv 2403.16952).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.mixture import Array

from .trial_data import TrialData, TrialScores

REDUCIBLE = (0.03, 0.08, 0.17, 0.3, 0.45, 0.65, 0.9)
"""What may be left to reduce, in parts of the least loss seen."""
SCALES = (0.0, 0.3, 1.0, 3.0)
"""Standard deviations of t; under 0 no mixture makes a difference."""
OFFSET = 0.3  # T0, units
ALPHA = (0.3, 0.3)  # mean and standard deviation
LEVEL = 3.0  # standard deviation of c
BEND = (0.05, 1.0)  # amplitude of r, its length in log T
CURVE = (0.15, 0.5)  # an effect's departure from linear: amplitude in parts of its scale, length
NEGLIGIBLE = 1e-3  # probability of a hypothesis that is not worth carrying on


@dataclass(frozen=True)
class Posterior:
    """What is believed of the benchmarks: h hypotheses, each about one of them.

    ``owner`` (h,) is the benchmark's index, ``weight`` (h,) its part in the objective times the
    hypothesis's probability (they sum to 1), ``floor`` eps (h,), ``level`` log(L - eps) at the end
    of the budget under the shares s0 (h,), ``slope`` t (h, k) and its ``covariance`` (h, k, k).
    ``evidence`` is the log Bayes factor of "mixtures matter" over "they don't", all benchmarks
    together.
    """

    owner: NDArray[np.int64]
    weight: Array
    floor: Array
    level: Array
    slope: Array
    covariance: Array
    evidence: float

    @property
    def reducible(self) -> Array:
        """What each hypothesis adds to the objective's reducible part, (h,)."""
        return np.asarray(self.weight * np.exp(self.level))


@dataclass(frozen=True)
class _Hypotheses:
    """One benchmark's: as in ``Posterior``, with probabilities that sum to 1."""

    probability: Array
    floor: Array
    level: Array
    slope: Array
    covariance: Array
    evidence: float


def fit(
    data: TrialData, centre: Array, until: float, expected: Mapping[str, Array]
) -> Posterior | None:
    """The effect of the mixture on every benchmark with at least two scores; None without any.

    Args:
        data: the run so far.
        centre: the effective shares s0, (k,).
        until: where the levels are wanted, in units of tokens.
        expected: slope (k,) of the logarithm of a benchmark's loss by the shares, as it is
            expected before the run; none where it isn't given.
    """
    none = np.zeros(len(data.names))
    usable = [scores for scores in data.scores if len(scores.rows) > 1]
    if not usable:
        return None
    about = [_hypotheses(data, s, centre, until, expected.get(s.name, none)) for s in usable]
    whole = sum(scores.weight for scores in usable)
    parts = [s.weight / whole * h.probability for s, h in zip(usable, about, strict=True)]
    return Posterior(
        owner=np.repeat(np.arange(len(about)), [len(h.floor) for h in about]),
        weight=np.concatenate(parts),
        floor=np.concatenate([h.floor for h in about]),
        level=np.concatenate([h.level for h in about]),
        slope=np.concatenate([h.slope for h in about]),
        covariance=np.concatenate([h.covariance for h in about]),
        evidence=float(sum(h.evidence for h in about)),
    )


@dataclass(frozen=True)
class _Regression:
    """One benchmark under h pairs of eps and scale of t.

    ``kernel`` (h, n, n), ``weighed`` (h, n) its inverse times what the prior mean leaves of the log
    loss, ``about`` (h,) the level that the prior of c is about.
    """

    floor: Array
    scale: Array
    mean: Array
    about: Array
    kernel: Array
    weighed: Array
    log_likelihood: Array


def _hypotheses(
    data: TrialData, scores: TrialScores, centre: Array, until: float, expected: Array
) -> _Hypotheses:
    """Every pair of eps and scale of t that is not negligible, given one benchmark's scores."""
    tokens, moved = data.tokens[scores.rows], data.shares[scores.rows] - centre
    fits = _regress(tokens, moved, scores, until, expected)
    probability, kept = _weigh(fits.log_likelihood)
    weighed, scale = fits.weighed[kept], fits.scale[kept]
    variance = (scale**2)[:, None, None]
    crossed = np.linalg.solve(fits.kernel[kept], moved[None].repeat(len(kept), axis=0))
    ahead = LEVEL**2 + _bend(tokens, np.array([until]))[:, 0]
    matters = fits.scale > 0
    likelihood = fits.log_likelihood
    return _Hypotheses(
        probability=probability,
        floor=fits.floor[kept],
        level=fits.about[kept] + weighed @ ahead,
        slope=fits.mean[kept] + variance[:, :, 0] * (weighed @ moved),
        covariance=variance * np.eye(len(expected)) - variance**2 * (moved.T @ crossed),
        evidence=_log_mean(likelihood[matters]) - _log_mean(likelihood[~matters]),
    )


def _regress(
    tokens: Array, moved: Array, scores: TrialScores, until: float, expected: Array
) -> _Regression:
    """All pairs in one batch. ``moved`` (n, k) are the shares from s0."""
    floor, scale = (part.ravel() for part in np.meshgrid(_floors(scores), SCALES, indexing="ij"))
    reducible = scores.loss - floor[:, None]
    # the same change of the loss is a greater part of a smaller reducible loss
    part = abs(float(scores.loss.min())) / (scores.loss.min() - floor)
    mean = np.where(scale > 0, part, 0.0)[:, None] * expected
    trend = np.log((tokens + OFFSET) / (until + OFFSET))
    about = np.log(reducible[:, 0])  # c's prior is about the first score: no unit matters
    rest = np.log(reducible) - about[:, None] + ALPHA[0] * trend - mean @ moved.T
    smooth = LEVEL**2 + ALPHA[1] ** 2 * np.outer(trend, trend) + _bend(tokens, tokens)
    noise = np.eye(len(tokens)) * ((scores.noise / reducible) ** 2)[:, None, :]
    effects = moved @ moved.T + CURVE[0] ** 2 * _curve(moved)
    kernel = smooth + (scale**2)[:, None, None] * effects + noise
    weighed = np.asarray(np.linalg.solve(kernel, rest[:, :, None])[:, :, 0], dtype=np.float64)
    lower = np.linalg.cholesky(kernel)
    determinant = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    # the density of L, not of its logarithm
    jacobian = np.log(reducible).sum(axis=1)
    likelihood = -0.5 * (rest * weighed).sum(axis=1) - determinant - jacobian
    return _Regression(floor, scale, mean, about, kernel, weighed, likelihood)


def _floors(scores: TrialScores) -> Array:
    least = scores.loss.min()
    left = np.array(REDUCIBLE) * max(abs(float(least)), 1e-6)
    return np.unique(least - np.maximum(left, 4 * scores.noise.max()))


def _weigh(log_likelihood: Array) -> tuple[Array, NDArray[np.int64]]:
    """Probabilities of the hypotheses worth carrying on, and their indices."""
    probability = np.exp(log_likelihood - log_likelihood.max())
    kept = np.flatnonzero(probability > NEGLIGIBLE * probability.sum())
    return probability[kept] / probability[kept].sum(), kept


def _bend(tokens: Array, others: Array) -> Array:
    distance = np.log(tokens[:, None] / others[None, :]) / BEND[1]
    return np.asarray(BEND[0] ** 2 * np.exp(-0.5 * distance**2))


def _curve(moved: Array) -> Array:
    """Matern 5/2 over the shares."""
    distance = np.sqrt(((moved[:, None] - moved[None]) ** 2).sum(axis=-1))
    scaled = np.sqrt(5) * distance / CURVE[1]
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))


def _log_mean(logs: Array) -> float:
    top = logs.max()
    return float(top + np.log(np.exp(logs - top).mean()))
