"""The log-linear mixing law: ``y = c + exp(t · p)``, fitted to runs on constant mixtures.

(Ye et al. 2024, *Data Mixing Laws*, arXiv 2403.16952; per benchmark on bits per byte as in Olmix.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixloop.policies.mixture import Array

SHRINK = 0.02
"""Weight of the pull of every coefficient towards their mean, against one run's squared error (in
units of the values' spread): with fewer runs than sources it alone decides."""

LOOSE = 0.01
"""Precision of every parameter before any run, in one run's; the offset's in the values' spread."""

TOLERANCE = 1e-9  # a step that lowers the cost by less than this part of it is the last


@dataclass(frozen=True)
class LogLinear:
    """A fitted law; ``coefficients`` (k,), values as they were given.

    ``slopes`` (n, k + 1) are the runs' rows of the fit's Jacobian and ``error`` its sum of squares
    in parts of the values' ``scale``; ``stated`` the mean squared error that the values are known
    to have, in the same unit.
    """

    offset: float
    coefficients: Array
    slopes: Array
    error: float
    scale: float
    stated: float = 0.0

    @cached_property
    def covariance(self) -> Array:
        """(k + 1, k + 1): the parameters' under the fit's residual variance, the offset last."""
        k = len(self.coefficients)
        inner = self.slopes.T @ self.slopes
        normal = inner.copy()
        normal[:k, :k] += SHRINK * _centring(k)
        # effective number of parameters: the trace of the smoother over the runs' rows
        used = float(np.trace(np.linalg.pinv(normal, hermitian=True) @ inner))
        variance = max(self.error / max(1.0, len(self.slopes) - used), self.stated)
        # offset and coefficients can trade places without end where runs are few
        normal[np.diag_indices(k + 1)] += [*np.full(k, LOOSE), LOOSE / self.scale**2]
        return np.asarray(np.linalg.inv(normal) * variance)

    def mean(self, mixtures: Array) -> Array:
        """Values (n,) at mixtures (n, k)."""
        return np.asarray(self.offset + np.exp(mixtures @ self.coefficients))

    def spread(self, mixtures: Array) -> Array:
        """Standard error (n,) of the law's own value, by the delta method."""
        slope = _slopes(mixtures, self.coefficients)
        return np.asarray(np.sqrt(np.einsum("ni,ij,nj->n", slope, self.covariance, slope)))

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Values (draws, n) of laws drawn around this one, linear in what they differ by."""
        slope = _slopes(mixtures, self.coefficients)
        off = drawing.multivariate_normal(np.zeros(slope.shape[1]), self.covariance, draws)
        return np.asarray(self.mean(mixtures) + off @ slope.T)


def fit_log_linear(mixtures: Array, values: Array, stderr: Array | None = None) -> LogLinear:
    """Least squares, coefficients shrunk towards one another.

    Args:
        mixtures: (n, k), each row on the simplex.
        values: (n,), a loss.
        stderr: (n,) known errors of the values; the law is held no surer than they allow.

    Raises:
        ValueError: no run at all.
    """
    from scipy import optimize

    if not len(values):
        raise ValueError("a law needs at least one run")
    scale = float(values.std()) or 1.0
    k = mixtures.shape[1]
    # the pull to the mean as further rows: the centring matrix is its own square
    pull = np.zeros((k, k + 1))
    pull[:, :k] = np.sqrt(SHRINK) * _centring(k)

    def residual(law: Array) -> Array:
        off = (law[-1] + _grown(mixtures, law[:-1]) - values) / scale
        return np.concatenate([off, pull @ law])

    def jacobian(law: Array) -> Array:
        return np.concatenate([_slopes(mixtures, law[:-1]) / scale, pull])

    start = _start(mixtures, values, scale)
    solution = optimize.least_squares(
        residual, start, jacobian, method="lm", ftol=TOLERANCE, x_scale="jac", max_nfev=200
    )
    law = solution.x
    slopes, off = _slopes(mixtures, law[:-1]) / scale, solution.fun[: len(values)]
    stated = 0.0 if stderr is None else float(np.mean(stderr**2)) / scale**2
    return LogLinear(float(law[-1]), law[:-1], slopes, float(off @ off), scale, stated)


def _start(mixtures: Array, values: Array, scale: float) -> Array:
    """The law's linear form around an offset somewhat below the lowest value."""
    offset = float(values.min()) - 2 * scale
    inner = mixtures.T @ mixtures + SHRINK * _centring(mixtures.shape[1])
    logs = np.log(values - offset)
    coefficients = np.linalg.lstsq(inner, mixtures.T @ logs, rcond=None)[0]
    return np.concatenate([coefficients, [offset]])


def _centring(k: int) -> Array:
    """Takes the mean off (k, k)."""
    return np.asarray(np.eye(k) - 1 / k)


def _grown(mixtures: Array, coefficients: Array) -> Array:
    return np.asarray(np.exp(np.minimum(mixtures @ coefficients, 50.0)))


def _slopes(mixtures: Array, coefficients: Array) -> Array:
    """Derivatives (n, k + 1) of the value by the parameters."""
    grown = _grown(mixtures, coefficients)
    return np.concatenate([grown[:, None] * mixtures, np.ones((len(mixtures), 1))], axis=1)
