"""A Gaussian process over mixtures: scikit-learn's, Matérn 5/2 with a length scale per source.

(Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*, sections 2.2 and 5.4.)
Distances are between square roots of shares (Hellinger): the step from nothing to one per cent of
a source changes a model more than that from 50 to 51.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array

JITTER = 1e-8
SIGNAL, LENGTH, NOISE = (1.0, 1.0), (0.5, 1.0), (0.02, 2.0)
"""Median of each hyperparameter before any data, and its standard deviation on the log scale."""
FIRST_NOISE = 0.05  # where the fit begins
REACH = ((-8.0, 4.0), (-3.0, 4.0), (-12.0, 2.0))
"""Bounds of the logarithms of signal, lengths and noise."""


@dataclass(frozen=True)
class Process:
    """A fitted process of the noise-free value; ``jitter`` keeps joint draws possible."""

    regressor: Any
    jitter: float

    def predict(self, mixtures: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (n,) of the noise-free value at mixtures (n, k)."""
        mean, spread = self.regressor.predict(np.sqrt(mixtures), return_std=True)
        return mean, spread

    def sample(self, mixtures: Array, draws: int, drawing: np.random.Generator) -> Array:
        """Joint draws (draws, n) of the noise-free value at mixtures (n, k)."""
        mean, covariance = self.regressor.predict(np.sqrt(mixtures), return_cov=True)
        lower = np.linalg.cholesky(covariance + self.jitter * np.eye(len(mean)))
        return np.asarray(mean + (lower @ drawing.standard_normal((len(mean), draws))).T)


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
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    k, scale = mixtures.shape[1], float(values.std()) or 1.0
    anywhere = (1e-9, 1e9)  # the optimiser has bounds of its own
    lengths = Matern(np.full(k, LENGTH[0]), anywhere, nu=2.5)
    kernel = ConstantKernel(SIGNAL[0], anywhere) * lengths + WhiteKernel(FIRST_NOISE, anywhere)
    regressor = GaussianProcessRegressor(
        kernel,
        alpha=JITTER + (0.0 if stderr is None else (stderr / scale) ** 2),
        optimizer=_most_probable(k, iterations),
        normalize_y=True,
    )
    regressor.fit(np.sqrt(mixtures), values)
    # what is predicted from now on is the value without its noise
    regressor.kernel_ = regressor.kernel_.k1
    signal = float(regressor.kernel_.k1.constant_value)
    return Process(regressor, 1e-6 * signal * scale**2)


def _most_probable(k: int, iterations: int) -> Callable[..., tuple[Array, float]]:
    """The optimiser of the log hyperparameters: signal, k lengths, noise, each with its prior."""
    parts = [SIGNAL, *[LENGTH] * k, NOISE]
    centre, width = np.log([median for median, _ in parts]), np.array([wide for _, wide in parts])
    bounds = [REACH[0], *[REACH[1]] * k, REACH[2]]

    def optimiser(
        cost: Callable[[Array], tuple[float, Array]], start: Array, **_: Any
    ) -> tuple[Array, float]:
        from scipy import optimize

        def penalised(theta: Array) -> tuple[float, Array]:
            value, slope = cost(theta)
            off = (theta - centre) / width
            return min(value, 1e10) + 0.5 * float(off @ off), slope + off / width

        minimize: Any = optimize.minimize  # its published overloads refuse plain arrays
        options = {"maxiter": iterations}
        best = minimize(
            penalised, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        return best.x, best.fun

    return optimiser
