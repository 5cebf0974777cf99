"""The mixture that ``olmix`` moves to: a convex problem, solved in its dual.

    minimise  sum_b i_b exp(A_b · p) + kl KL(p, start)   over mixtures p with p_j <= most_j

With the conjugate of the exponential, ``i exp(u) = max_y (y u - y log(y / i) + y)``, what is left
to maximise has one variable per benchmark, and its inner minimum is water-filling (Boyd and
Vandenberghe 2004, sections 3.3 and 5.1): Newton's method in as many dimensions as there are
benchmarks, whatever the number of sources.
"""

from __future__ import annotations

import numpy as np

from mixloop.policies.mixture import Array, fill

MAX_ITERATIONS = 100
TOLERANCE = 1e-12  # Newton decrement, against the dual's value, at which it ends
MIN_KL = 1e-4
"""Divergence weights below this are taken for it: the problem without one has corners only."""


def best_mixture(laws: Array, importance: Array, start: Array, most: Array, kl: float) -> Array:
    """The mixture (k,) that solves the problem above.

    Args:
        laws: A, (benchmarks, k).
        importance: i, (benchmarks,); one of 0 doesn't count.
        start: (k,), a mixture without zeros.
        most: (k,), caps with a sum of 1 or more.
        kl: weight of the divergence, bits per byte.
    """
    kl = max(kl, MIN_KL)
    laws, importance = laws[importance > 0], importance[importance > 0]
    near = fill(np.log(start), np.zeros(len(most)), most)
    if not len(laws):
        return near
    dual = importance * np.exp(np.minimum(laws @ near, 50.0))
    value, mixture, gradient = _dual(dual, laws, importance, start, most, kl)
    for _ in range(MAX_ITERATIONS):
        free = np.where(mixture < most - 1e-15, mixture, 0.0)
        moved = laws * free
        spread = moved @ laws.T
        if free.sum() > 0:
            spread -= np.outer(moved.sum(axis=1), moved.sum(axis=1)) / free.sum()
        step = np.linalg.solve(np.diag(1 / dual) + spread / kl, gradient)
        decrement = float(gradient @ step)
        if decrement <= TOLERANCE * max(1.0, abs(value)):
            break
        down = step < 0  # the dual stays positive
        length = min([1.0, *(0.9 * -dual[down] / step[down])])
        for _ in range(60):
            after = _dual(dual + length * step, laws, importance, start, most, kl)
            if after[0] >= value + 0.1 * length * decrement - 1e-15 * abs(value):
                break
            length /= 2
        else:
            break
        dual = dual + length * step
        value, mixture, gradient = after
    return mixture


def _dual(
    dual: Array, laws: Array, importance: Array, start: Array, most: Array, kl: float
) -> tuple[float, Array, Array]:
    """The dual's value, the mixture that belongs to it, and its gradient."""
    price = dual @ laws
    mixture = fill(np.log(start) - price / kl, np.zeros(len(most)), most)
    logs = np.log(dual / importance)
    ratio = np.log(np.maximum(mixture, 1e-300) / start)
    value = float((dual - dual * logs).sum() + price @ mixture + kl * (mixture @ ratio))
    return value, mixture, laws @ mixture - logs
