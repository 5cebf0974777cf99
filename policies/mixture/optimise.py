"""The best constant mixture of a world, for scoring only: no policy may look at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEP = 1e-6


def best_static(final: Callable[[Array], Array], most: Array, starts: int = 6) -> Array:
    """The mixture (k,) with the least final loss, no share above ``most`` (k,).

    Sequential quadratic programming from several seeded starts; its gradient is a batch of central
    differences.

    Args:
        final: mean losses (n,) of mixtures (n, k).
        most: greatest share per source; must sum to at least 1.
        starts: how many starting mixtures.

    Raises:
        ValueError: when the bounds leave no mixture.
    """
    from scipy import optimize

    minimize: Any = optimize.minimize  # its published overloads refuse plain arrays
    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}

    if most.sum() < 1 - 1e-9:
        raise ValueError(f"the caps leave no mixture: they sum to {most.sum():.3g}")
    k = len(most)
    drawing = np.random.default_rng(k)
    begin = [np.full(k, 1 / k), *drawing.dirichlet(np.full(k, 0.5), starts - 1)]
    found = []
    for mixture in begin:
        result = minimize(
            lambda w: float(final(w[None])[0]),
            _inside(mixture, most),
            jac=lambda w: _gradient(final, w),
            method="SLSQP",
            bounds=[(0.0, float(high)) for high in most],
            constraints=[sums],
            options={"maxiter": 200, "ftol": 1e-10},
        )
        legal = _inside(np.clip(result.x, 0, most), most)
        found.append((float(final(legal[None])[0]), tuple(legal)))
    return np.array(min(found)[1])


def _gradient(final: Callable[[Array], Array], mixture: Array) -> Array:
    steps = STEP * np.eye(len(mixture))
    # one-sided at the edge: some laws end there
    down = np.maximum(mixture - steps, 0)
    values = final(np.concatenate([mixture + steps, down]))
    up, below = np.split(values, 2)
    return np.asarray((up - below) / (STEP + mixture - np.diag(down)))


def _inside(mixture: Array, most: Array) -> Array:
    """The nearest mixture to scale that respects the caps: excess goes to those with room."""
    low, high = 0.0, 1.0
    base = np.maximum(mixture, 1e-12)
    while np.minimum(high * base, most).sum() < 1 - 1e-12 and high < 1e15:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * base, most).sum() < 1 else (low, middle)
    return np.asarray(np.minimum(high * base, most))
