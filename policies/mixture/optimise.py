"""Best mixtures by sequential quadratic programming (Kraft 1988), as scipy has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import Array
from .projection import confine

Cost = Callable[[Array], tuple[float, Array]]
"""A point (n,) to the value there and its gradient (n,)."""

STEP = 1e-6  # of a central difference


def minimise(
    cost: Cost,
    begin: Array,
    bounds: tuple[Array, Array],
    constraints: Sequence[dict[str, Any]],
    iterations: int,
    tolerance: float,
) -> Array:
    """The point (n,) of least cost near ``begin``, within bounds (lowest, highest) and constraints.

    It may miss them by the solver's tolerance. ``begin`` where the solver loses its way.
    """
    from scipy import optimize

    solve: Any = optimize.minimize  # its published overloads refuse plain arrays
    solution = solve(
        cost,
        begin,
        jac=True,
        method="SLSQP",
        bounds=list(zip(*bounds, strict=True)),
        constraints=constraints,
        options={"maxiter": iterations, "ftol": tolerance},
    )
    return np.asarray(solution.x) if np.isfinite(solution.x).all() else begin


def best_static(final: Callable[[Array], Array], most: Array, starts: int = 6) -> Array:
    """The mixture (k,) with the least final loss, no share above ``most`` (k,).

    From several seeded starts; the gradient is a batch of central differences.

    Args:
        final: mean losses (n,) of mixtures (n, k).
        most: greatest share per source; must sum to at least 1.
        starts: how many starting mixtures.

    Raises:
        ValueError: when the bounds leave no mixture.
    """
    if most.sum() < 1 - 1e-9:
        raise ValueError(f"the caps leave no mixture: they sum to {most.sum():.3g}")
    k = len(most)
    drawing = np.random.default_rng(k)
    begin = [np.full(k, 1 / k), *drawing.dirichlet(np.full(k, 0.5), starts - 1)]
    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}

    def cost(mixture: Array) -> tuple[float, Array]:
        return float(final(mixture[None])[0]), _gradient(final, mixture)

    bounds = (np.zeros(k), most)
    ends = [minimise(cost, confine(w, most), bounds, [sums], 200, 1e-10) for w in begin]
    legal = confine(np.clip(ends, 0, most), most)
    return np.asarray(legal[int(final(legal).argmin())])


def _gradient(final: Callable[[Array], Array], mixture: Array) -> Array:
    steps = STEP * np.eye(len(mixture))
    # one-sided at the edge: some laws end there
    down = np.maximum(mixture - steps, 0)
    above, below = np.split(final(np.concatenate([mixture + steps, down])), 2)
    return np.asarray((above - below) / (STEP + mixture - np.diag(down)))
