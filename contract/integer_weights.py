"""Weights as integers over 2^24, and the stretches of training that have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

SHIFT = 24
SCALE = 2**SHIFT
"""What integer weights sum to."""

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Segment:
    """From `sample` on, draw by `weights`, `step_samples` samples a step.

    `weights` are shares by source name summing to 1 (an absent name has none), or integers summing
    to `SCALE`. A segment lasts until the next one begins.
    """

    sample: int
    weights: Mapping[str, float] | Mapping[str, int]
    step_samples: int


def quantise(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as integers that sum to `SCALE`, by largest remainders, ties in the order given.

    Integers that sum to `SCALE` already, and their exact quotients, come back as they are. A
    positive weight of 1e-6 or more never becomes 0.

    Raises:
        ValueError: a weight is negative or not finite, or they don't sum to 1 within 1e-6.
    """
    values = list(weights.values())
    if all(isinstance(v, int) for v in values) and sum(values) == SCALE and min(values) >= 0:
        return {name: int(value) for name, value in weights.items()}
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"weight of {name!r} is {value}: give a share from 0 to 1")
    total = sum((Fraction(value) for value in values), Fraction())
    if abs(total - 1) > _TOLERANCE:
        raise ValueError(f"weights sum to {float(total):.9g}, not to 1")
    exact = [Fraction(value) * SCALE / total for value in values]
    units = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(units)), key=lambda i: units[i] - exact[i])
    for index in by_remainder[: SCALE - sum(units)]:
        units[index] += 1
    return dict(zip(weights, units, strict=True))
