"""The mixture within bounds that is nearest to a given one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import fsum

# float dust: far below the 2^-24 that weights are quantised to
DUST = 1e-12


def within(weights: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> bool:
    """Whether every weight lies in its (lowest, highest)."""
    return all(low - DUST <= weights[n] <= high + DUST for n, (low, high) in bounds.items())


def water_fill(
    weights: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]
) -> dict[str, float] | None:
    """The mixture nearest to ``weights`` with every source inside its (lowest, highest).

    Nearest in Kullback-Leibler divergence: ``clip(s * w, lowest, highest)`` with the one scale
    ``s`` that makes the sum 1. Excess goes to the sources with room in proportion to their
    weights, and a source without weight never gets any. Exact: ``s`` is found between the
    breakpoints where a source reaches a bound.

    Returns:
        The mixture; ``weights`` itself where it is already inside; None when nothing is legal.
    """
    if within(weights, bounds) and abs(fsum(weights.values()) - 1) <= 1e-9:
        return dict(weights)
    live = {name: weight for name, weight in weights.items() if weight > 0}
    if any(bounds[name][0] > DUST for name in weights if name not in live):
        return None
    if not _feasible([bounds[name] for name in live]):
        return None
    scale = _scale(live, bounds)
    filled = {name: _clip(scale * weight, bounds[name]) for name, weight in live.items()}
    return {name: filled.get(name, 0.0) for name in weights}


def _feasible(bounds: list[tuple[float, float]]) -> bool:
    if any(low > high for low, high in bounds):
        return False
    least, most = fsum(low for low, _ in bounds), fsum(high for _, high in bounds)
    return least <= 1 + DUST and most >= 1 - DUST


def _clip(weight: float, bound: tuple[float, float]) -> float:
    return min(max(weight, bound[0]), bound[1])


def _scale(live: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> float:
    """The scale at which the clipped weights sum to 1: the sum is piecewise linear and rising."""

    def total(scale: float) -> float:
        return fsum(_clip(scale * weight, bounds[name]) for name, weight in live.items())

    breaks = {bound / weight for name, weight in live.items() for bound in bounds[name]}
    finite = sorted(scale for scale in breaks | {0.0} if math.isfinite(scale))
    below = max((scale for scale in finite if total(scale) <= 1), default=0.0)
    above = next((scale for scale in finite if scale > below), math.inf)
    missing = 1 - total(below)
    # between two neighbouring breakpoints the same sources are free; look half-way
    middle = (below + above) / 2 if math.isfinite(above) else below + 1
    free = fsum(w for n, w in live.items() if bounds[n][0] < middle * w < bounds[n][1])
    if missing <= 0 or free <= 0:
        return below
    return min(below + missing / free, above)
