"""A Gaussian process over mixtures in plain numpy: Matérn 5/2, a length scale per source.

(Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*, sections 2.2 and 5.4.)
Distances are between square roots of shares (Hellinger): the step from nothing to one per cent of
a source changes a model more than that from 50 to 51.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JITTER = 1e-8
ROOT5 = 5**0.5
LENGTH = (0.5, 1.0)
"""Median of a length scale before any data, and its standard deviation on the log scale."""


@dataclass(frozen=True)
class Process:
    """A fitted process; ``inputs`` (n, k) are square roots, values standardised by ``scale``."""

    inputs: Array
    lengths: Array
    signal: float
    cholesky: Array
    weights: Array
    centre: float
    scale: float

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (n,) of the noise-free value at mixtures (n, k)."""
        from scipy.linalg import solve_triangular

        cross = self.signal * _matern(_distance(np.sqrt(mixtures), self.inputs, self.lengths))
        mean = self.centre + self.scale * (cross @ self.weights)
        solved = solve_triangular(self.cholesky, cross.T, lower=True)
        variance = np.maximum(self.signal - (solved**2).sum(axis=0), 0.0)
        return mean, self.scale * np.sqrt(variance)

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Joint draws (draws, n) of the noise-free value at mixtures (n, k)."""
        from scipy.linalg import solve_triangular

        roots = np.sqrt(mixtures)
        cross = self.signal * _matern(_distance(roots, self.inputs, self.lengths))
        own = self.signal * _matern(_distance(roots, roots, self.lengths))
        solved = solve_triangular(self.cholesky, cross.T, lower=True)
        left = np.linalg.cholesky(own - solved.T @ solved + 1e-6 * self.signal * np.eye(len(own)))
        noise = drawing.standard_normal((len(own), draws))
        drawn = (cross @ self.weights)[:, None] + left @ noise
        return np.asarray(self.centre + self.scale * drawn.T)


def fit_process(
    mixtures: Array, values: Array, stderr: Array | None = None, iterations: int = 60
) -> Process:
    """Hyperparameters by maximum a posteriori, from one start.

    Args:
        mixtures: (n, k).
        values: (n,).
        stderr: (n,) known standard errors, added to the noise that is found.
        iterations: most steps of L-BFGS.
    """
    from scipy import optimize

    minimize: Any = optimize.minimize
    centre, scale = float(values.mean()), float(values.std()) or 1.0
    target, inputs = (values - centre) / scale, np.sqrt(mixtures)
    known = np.zeros(len(values)) if stderr is None else (stderr / scale) ** 2
    gaps = (inputs[:, None, :] - inputs[None, :, :]) ** 2
    k = mixtures.shape[1]
    start = np.concatenate([np.full(k, np.log(LENGTH[0])), [0.0, np.log(0.05)]])
    bounds = [(-3.0, 4.0)] * k + [(-8.0, 4.0), (-12.0, 2.0)]
    found = minimize(
        _cost,
        start,
        args=(gaps, target, known),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations},
    )
    lengths, signal, noise = np.exp(found.x[:k]), np.exp(found.x[k]), np.exp(found.x[k + 1])
    radius = np.sqrt(gaps @ lengths**-2)
    covariance = signal * _matern(radius) + np.diag(known + noise + JITTER)
    cholesky = np.linalg.cholesky(covariance)
    weights = _solve(cholesky, target)
    return Process(inputs, lengths, float(signal), cholesky, weights, centre, scale)


def _distance(one: Array, other: Array, lengths: Array) -> Array:
    a, b = one / lengths, other / lengths
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _matern(radius: Array) -> Array:
    return np.asarray((1 + ROOT5 * radius + 5 / 3 * radius**2) * np.exp(-ROOT5 * radius))


def _solve(cholesky: NDArray[Any], right: Array) -> Array:
    from scipy.linalg import cho_solve

    return np.asarray(cho_solve((cholesky, True), right))


def _cost(theta: Array, gaps: Array, target: Array, known: Array) -> tuple[float, Array]:
    """Negative log posterior of the log hyperparameters, and its gradient."""
    k = gaps.shape[2]
    lengths, signal, noise = np.exp(theta[:k]), np.exp(theta[k]), np.exp(theta[k + 1])
    radius = np.sqrt(gaps @ lengths**-2)
    correlation = _matern(radius)
    covariance = signal * correlation + np.diag(known + noise + JITTER)
    try:
        cholesky = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = _solve(cholesky, np.eye(len(target)))
    weights = inverse @ target
    cost = 0.5 * float(target @ weights) + float(np.log(np.diag(cholesky)).sum())
    sensitivity = 0.5 * (inverse - np.outer(weights, weights))  # of the cost by the covariance
    falling = signal * 5 / 3 * (1 + ROOT5 * radius) * np.exp(-ROOT5 * radius) * sensitivity
    by_length = np.einsum("ij,ijd->d", falling, gaps) / lengths**2
    by_signal = signal * float((sensitivity * correlation).sum())
    by_noise = noise * float(np.trace(sensitivity))
    gradient = np.concatenate([by_length, [by_signal, by_noise]])
    prior, slope = _prior(theta, k)
    return cost + prior, gradient + slope


def _prior(theta: Array, k: int) -> tuple[float, Array]:
    """Log-normal priors: lengths about LENGTH, the signal about 1, the noise about 0.02."""
    centre = np.concatenate([np.full(k, np.log(LENGTH[0])), [0.0, np.log(0.02)]])
    width = np.concatenate([np.full(k, LENGTH[1]), [1.0, 2.0]])
    off = (theta - centre) / width
    return 0.5 * float(off @ off), off / width
