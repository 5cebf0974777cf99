"""The log-linear mixing law: ``y = c + exp(t · p)``, fitted to runs on constant mixtures.

(Ye et al. 2024, *Data Mixing Laws*, arXiv 2403.16952; per benchmark on bits per byte as in Olmix.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHRINK = 0.02
"""Weight of the pull of every coefficient towards their mean, against one run's squared error (in
units of the values' spread): with fewer runs than sources it alone decides."""

LOOSE = 0.01
"""Precision of every parameter before any run, in one run's; the offset's in the values' spread."""


@dataclass(frozen=True)
class LogLinear:
    """A fitted law; ``coefficients`` (k,), values as they were given, errors of the fit beside.

    ``covariance`` (k + 1, k + 1) is the parameters' under the fit's residual variance, the offset
    last.
    """

    offset: float
    coefficients: Array
    covariance: Array

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


def fit_log_linear(
    mixtures: Array,
    values: Array,
    weights: Array | None = None,
    stderr: Array | None = None,
) -> LogLinear:
    """Least squares, coefficients shrunk towards one another.

    Args:
        mixtures: (n, k), each row on the simplex.
        values: (n,), a loss.
        weights: (n,) relative precision of each value; equal without.
        stderr: (n,) known errors of the values; the law is held no surer than they allow.

    Raises:
        ValueError: no run at all.
    """
    if not len(values):
        raise ValueError("a law needs at least one run")
    from scipy import optimize

    solve: Any = optimize.least_squares
    precision = np.ones(len(values)) if weights is None else weights / weights.mean()
    scale = float(values.std()) or 1.0
    start = _start(mixtures, values, scale)
    root = np.sqrt(precision)[:, None]
    pull = _pull(mixtures.shape[1], scale)

    def residuals(law: Array) -> Array:
        fitted = law[-1] + np.exp(np.minimum(mixtures @ law[:-1], 50.0))
        return np.concatenate([(root[:, 0] * (fitted - values)) / scale, pull @ law])

    def jacobian(law: Array) -> Array:
        return np.concatenate([root * _slopes(mixtures, law[:-1]) / scale, pull])

    found = solve(residuals, start, jac=jacobian, method="trf", max_nfev=200)
    slope = jacobian(found.x)
    fitted = residuals(found.x)[: len(values)]
    free = max(1.0, len(values) - _parameters(slope, len(values)))
    # offset and coefficients can trade places without end where runs are few
    loose = np.diag([*np.full(mixtures.shape[1], LOOSE), LOOSE / scale**2])
    known = 0.0 if stderr is None else float(np.mean(stderr**2)) / scale**2
    variance = max(float(fitted @ fitted) / free, known)
    covariance = np.asarray(np.linalg.pinv(slope.T @ slope + loose) * variance, float)
    return LogLinear(float(found.x[-1]), found.x[:-1], covariance)


def _start(mixtures: Array, values: Array, scale: float) -> Array:
    """The law's linear form around an offset somewhat below the lowest value."""
    offset = float(values.min()) - 2 * scale
    logs = np.log(values - offset)
    pull = _pull(mixtures.shape[1], 1.0)[:, :-1]
    design = np.concatenate([mixtures, pull])
    target = np.concatenate([logs, np.zeros(len(pull))])
    coefficients = np.linalg.lstsq(design, target, rcond=None)[0]
    return np.concatenate([coefficients, [offset]])


def _pull(k: int, scale: float) -> Array:
    """Rows that pull the coefficients to their mean; the offset is free."""
    centre = np.eye(k) - 1 / k
    return np.concatenate([np.sqrt(SHRINK) * centre, np.zeros((k, 1))], axis=1)


def _slopes(mixtures: Array, coefficients: Array) -> Array:
    """Derivatives (n, k + 1) of the value by the parameters."""
    grown = np.exp(np.minimum(mixtures @ coefficients, 50.0))
    return np.concatenate([grown[:, None] * mixtures, np.ones((len(mixtures), 1))], axis=1)


def _parameters(slope: Array, runs: int) -> float:
    """Effective number of parameters: the trace of the smoother over the runs' rows."""
    inner = np.linalg.pinv(slope.T @ slope)
    own = slope[:runs]
    return float(np.einsum("ni,ij,nj->", own, inner, own))
