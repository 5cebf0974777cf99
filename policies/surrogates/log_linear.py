"""The log-linear mixing law: ``y = c + exp(t · p)``, fitted to runs on constant mixtures.

(Ye et al. 2024, *Data Mixing Laws*, arXiv 2403.16952; per benchmark on bits per byte as in Olmix.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHRINK = 0.02
"""Weight of the pull of every coefficient towards their mean, against one run's squared error (in
units of the values' spread): with fewer runs than sources it alone decides."""

LOOSE = 0.01
"""Precision of every parameter before any run, in one run's; the offset's in the values' spread."""

STEPS = 200  # of the descent, at most
FLAT = 1e-9  # a step that lowers the cost by less than this part of it is the last


@dataclass(frozen=True)
class LogLinear:
    """A fitted law; ``coefficients`` (k,), values as they were given.

    ``slopes`` (n, k + 1) are the runs' rows of the fit's Jacobian and ``error`` its sum of squares
    in parts of the values' ``scale``; ``known`` the mean squared error that the values are known to
    have, in the same unit.
    """

    offset: float
    coefficients: Array
    slopes: Array
    error: float
    scale: float
    known: float = 0.0

    @cached_property
    def covariance(self) -> Array:
        """(k + 1, k + 1): the parameters' under the fit's residual variance, the offset last."""
        k = len(self.coefficients)
        inner = self.slopes.T @ self.slopes
        normal = inner + _pull_matrix(k)
        # effective number of parameters: the trace of the smoother over the runs' rows
        used = float(np.trace(np.linalg.pinv(normal, hermitian=True) @ inner))
        variance = max(self.error / max(1.0, len(self.slopes) - used), self.known)
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


def fit_log_linear(
    mixtures: Array,
    values: Array,
    weights: Array | None = None,
    stderr: Array | None = None,
) -> LogLinear:
    """Least squares, coefficients shrunk towards one another (Levenberg 1944, Marquardt 1963).

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
    precision = np.ones(len(values)) if weights is None else weights / weights.mean()
    scale = float(values.std()) or 1.0
    root = np.sqrt(precision) / scale
    law = _descend(mixtures, values, root, _start(mixtures, values, scale))
    slope = root[:, None] * _slopes(mixtures, law[:-1])
    off = root * (law[-1] + _grown(mixtures, law[:-1]) - values)
    known = 0.0 if stderr is None else float(np.mean(stderr**2)) / scale**2
    return LogLinear(float(law[-1]), law[:-1], slope, float(off @ off), scale, known)


def _descend(mixtures: Array, values: Array, root: Array, law: Array) -> Array:
    """The law (coefficients, offset) of least cost near ``law``."""
    pull = _pull_matrix(mixtures.shape[1])

    def cost(at: Array) -> tuple[float, Array, Array]:
        grown = _grown(mixtures, at[:-1])
        off = root * (at[-1] + grown - values)
        return float(off @ off + at @ pull @ at), off, grown

    now, off, grown = cost(law)
    damping = 1e-3
    for _ in range(STEPS):
        slope = np.empty((len(values), len(law)))
        slope[:, :-1] = (root * grown)[:, None] * mixtures
        slope[:, -1] = root
        normal = slope.T @ slope + pull
        gradient = slope.T @ off + pull @ law
        size = np.maximum(np.diag(normal), 1e-9)
        while True:
            step = np.linalg.solve(normal + np.diag(damping * size), -gradient)
            after, new_off, new_grown = cost(law + step)
            if after <= now or damping > 1e9:
                break
            damping *= 4
        if after > now:
            break
        gained, law, off, grown = now - after, law + step, new_off, new_grown
        now, damping = after, max(damping / 5, 1e-12)
        if gained <= FLAT * now:
            break
    return law


def _start(mixtures: Array, values: Array, scale: float) -> Array:
    """The law's linear form around an offset somewhat below the lowest value."""
    offset = float(values.min()) - 2 * scale
    pull = _pull_matrix(mixtures.shape[1])[:-1, :-1]
    inner = mixtures.T @ mixtures + pull
    logs = np.log(values - offset)
    coefficients = np.linalg.lstsq(inner, mixtures.T @ logs, rcond=None)[0]
    return np.concatenate([coefficients, [offset]])


def _pull_matrix(k: int) -> Array:
    """Quadratic form (k + 1, k + 1) of the pull to the coefficients' mean; the offset is free."""
    pull = np.zeros((k + 1, k + 1))
    pull[:k, :k] = SHRINK * (np.eye(k) - 1 / k)
    return pull


def _grown(mixtures: Array, coefficients: Array) -> Array:
    return np.asarray(np.exp(np.minimum(mixtures @ coefficients, 50.0)))


def _slopes(mixtures: Array, coefficients: Array) -> Array:
    """Derivatives (n, k + 1) of the value by the parameters."""
    grown = _grown(mixtures, coefficients)
    return np.concatenate([grown[:, None] * mixtures, np.ones((len(mixtures), 1))], axis=1)
