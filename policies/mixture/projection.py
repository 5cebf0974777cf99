"""The mixture within bounds that is nearest to a given one.

Nearest in Kullback-Leibler divergence: ``clip(s * w, low, high)`` with the one scale ``s`` that
makes the sum 1. Excess goes to the sources with room in proportion to their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .arrays import Array

# float dust: far below the 2^-24 that weights are quantised to
DUST = 1e-12
# stands for a share of nothing, so that it has a logarithm
NOTHING = 1e-300


def within(weights: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> bool:
    """Whether every weight lies in its (lowest, highest)."""
    return all(low - DUST <= weights[n] <= high + DUST for n, (low, high) in bounds.items())


def water_fill(
    weights: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]
) -> dict[str, float] | None:
    """The mixture nearest to ``weights`` with every source inside its (lowest, highest).

    A source without weight never gets any.

    Returns:
        The mixture; ``weights`` itself where it is already inside; None when nothing is legal.
    """
    if within(weights, bounds) and abs(fsum(weights.values()) - 1) <= 1e-9:
        return dict(weights)
    live = [name for name, weight in weights.items() if weight > 0]
    if any(bounds[name][0] > DUST for name in weights if name not in live):
        return None
    low, high = ([bounds[name][side] for name in live] for side in (0, 1))
    ordered = all(least <= most for least, most in zip(low, high, strict=True))
    if not ordered or fsum(low) > 1 + DUST or fsum(high) < 1 - DUST:
        return None
    import numpy as np

    logs = np.log([weights[name] for name in live])
    shares = map(float, fill(logs, np.array(low), np.array(high)))
    return dict.fromkeys(weights, 0.0) | dict(zip(live, shares, strict=True))


def confine(weights: Array, high: Array, low: Array | float = 0.0) -> Array:
    """The mixtures nearest to ``weights`` (…, k), up to scale, with shares in ``low`` to ``high``.

    Sources without a share get one only where the others can't hold all of it. Caps (k,) that hold
    less than 1 together are scaled up; floors give way to caps.
    """
    import numpy as np

    high = np.minimum(high, 1.0)
    most = float(high.sum())
    if most <= 1:
        return np.broadcast_to(high / max(most, NOTHING), weights.shape).copy()
    low, weights = np.minimum(low, high), np.maximum(weights, NOTHING)
    shares = weights / weights.sum(axis=-1, keepdims=True)
    if (shares < low).any() or (shares > high).any():
        shares = fill(np.log(weights), low, high)
    return np.where(shares > DUST * DUST, shares, 0.0)


def fill(logs: Array, low: Array, high: Array) -> Array:
    """``clip(exp(s + logs), low, high)``, (…, k), with the s that makes each row sum to 1.

    In logarithms, because the heaviest sources may be full and the order among the others counts.
    Exact: s is found between the breakpoints where a source leaves a bound or reaches one, by
    bisection over them. Caps that hold less than 1 are the answer.
    """
    import numpy as np

    def at(scale: Array) -> Array:
        return np.clip(np.exp(np.minimum(scale + logs, 0.0)), low, high)

    with np.errstate(divide="ignore"):
        leaves, reaches = np.log(low) - logs, np.log(high) - logs
    breaks = np.sort(np.concatenate([leaves, reaches], axis=-1), axis=-1)
    first = np.zeros((*logs.shape[:-1], 1), dtype=np.intp)
    last = first + breaks.shape[-1] - 1
    for _ in range(breaks.shape[-1].bit_length()):
        middle = (first + last + 1) // 2
        room = at(np.take_along_axis(breaks, middle, -1)).sum(axis=-1, keepdims=True) <= 1
        first, last = np.where(room, middle, first), np.where(room, last, middle - 1)
    below = np.take_along_axis(breaks, first, -1)
    above = np.take_along_axis(breaks, np.minimum(first + 1, breaks.shape[-1] - 1), -1)
    # between two neighbouring breakpoints the same sources are free
    free = (leaves <= below) & (reaches >= above) & (below < above)
    missing = 1 - np.where(free, 0.0, at(below)).sum(axis=-1, keepdims=True)
    total = np.logaddexp.reduce(np.where(free, logs, -np.inf), axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.log(np.maximum(missing, 0.0)) - total
    return at(np.where(free.any(axis=-1, keepdims=True), np.clip(scale, below, above), below))


def towards(start: Array, aim: Array, limit: float) -> Array:
    """The aims (…, k), or the points on the way there within total variation ``limit``."""
    import numpy as np

    change = np.abs(aim - start).sum(axis=-1, keepdims=True) / 2
    return np.where(
        change <= limit, aim, start + (aim - start) * (limit / np.maximum(change, DUST))
    )
