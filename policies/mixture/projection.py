"""The mixture within bounds that is nearest to a given one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import fsum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


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


def towards(start: Array, aim: Array, limit: float) -> Array:
    """The aim, or the point on the way there at total variation ``limit`` from the start."""
    import numpy as np

    change = float(np.abs(aim - start).sum()) / 2
    return aim if change <= limit else np.asarray(start + (aim - start) * (limit / change))


def confine(weights: Array, most: Array) -> Array:
    """The mixture within the caps ``most`` (k,) that is nearest to ``weights`` up to scale.

    ``min(s w, most)`` with the one s that makes the sum 1, as water-filling does. Sources without
    a share get one only where the others can't hold all of it; caps that hold less than 1
    together are scaled up.
    """
    import numpy as np

    most = np.minimum(most, 1.0)
    weights = np.where(most > 0, np.maximum(weights, 0), 0.0)
    if most.sum() <= 1:
        return np.asarray(most / most.sum()) if most.sum() > 0 else weights
    if most[weights > 0].sum() <= 1:
        weights = weights + 1e-9 * (most > 0)
    full = np.zeros(len(weights), dtype=bool)
    for _ in range(len(weights)):
        scale = (1 - most[full].sum()) / weights[~full].sum()
        over = ~full & (scale * weights > most)
        if not over.any():
            break
        full |= over
    return np.where(full, most, scale * weights)


def scaled(mixture: Array, lowest: Array, most: Array) -> Array:
    """``clip(scale * mixture, lowest, most)`` that sums to 1, or as near as the bounds allow."""
    import numpy as np

    base = np.where(most > 0, np.maximum(mixture, 1e-9), 0.0)
    low, high = 0.0, 1.0
    lowest = np.minimum(lowest, most)
    while np.clip(high * base, lowest, most).sum() < 1 - 1e-12 and high < 1e12:
        high *= 4
    for _ in range(80):
        middle = (low + high) / 2
        short = np.clip(middle * base, lowest, most).sum() < 1
        low, high = (middle, high) if short else (low, middle)
    return np.asarray(np.clip(high * base, lowest, most))


def filled(logs: Array, most: Array) -> Array:
    """``min(exp(s + logs), most)`` with the one s that makes the sum 1; logs of weights (k,).

    In logarithms, because the cheapest sources may be full and the order among the others counts.
    """
    import numpy as np

    total = float(most.sum())
    if total <= 1:
        return np.asarray(most / total)
    bounds = np.log(most)
    order = np.argsort(bounds - logs, kind="stable")
    caps, rest = most[order], logs[order]
    before = np.concatenate([[0.0], np.cumsum(caps)[:-1]])  # held by those that are full
    left = np.logaddexp.accumulate(rest[::-1])[::-1]  # weights of those that are not
    scale = np.log(np.maximum(1 - before, 1e-300)) - left
    # the first place whose source isn't filled by the scale it would need
    fits = scale + rest <= bounds[order]
    full = int(np.argmax(fits)) if fits.any() else len(caps) - 1
    return np.asarray(np.exp(np.minimum(scale[full] + logs, bounds)))


def capped(mixtures: Array, most: Array) -> Array:
    import numpy as np

    return np.array([within_caps(mixture, most) for mixture in mixtures])


def within_caps(mixture: Array, most: Array) -> Array:
    """The mixture nearest to this one (k,) with no share above ``most`` (k,).

    Raises:
        ValueError: when the caps leave no mixture.
    """
    import numpy as np

    shares = np.maximum(mixture, 1e-9)  # a source of nothing may take an excess too
    shares = shares / shares.sum()
    bounds = {str(i): (0.0, float(top)) for i, top in enumerate(most)}
    filled = water_fill({str(i): float(w) for i, w in enumerate(shares)}, bounds)
    if filled is None:
        raise ValueError(f"the caps leave no mixture: they sum to {most.sum():.3g}")
    return np.array(list(filled.values()))
