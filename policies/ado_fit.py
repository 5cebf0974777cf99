"""The scaling laws of ``ado`` and what follows from them (Jiang et al. 2024, arXiv 2410.11820).

Arrays are (evaluations, sources) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .ado import AdoOptions

Array = NDArray[np.float64]

EXPONENTS = np.linspace(0.05, 0.8, 16)
"""The authors hold alpha between 0.05 and 0.8."""
RECENT = 0.9  # what the average of a source's recent shares keeps


@dataclass(frozen=True)
class Laws:
    """``L = floor + scale n^-alpha`` of each source, shape (k,); ``known``: fitted at all."""

    floor: Array
    scale: Array
    alpha: Array
    known: NDArray[np.bool_]

    def slopes(self, spent: Array) -> Array:
        """``alpha (L - floor) / n``, how fast the loss falls per token at n tokens, (…, k).

        A source whose law isn't known gets the mean of the others.
        """
        tokens = np.maximum(spent, 1.0)
        found = self.alpha * self.scale * tokens ** (-self.alpha - 1)
        others = (found * self.known).sum(axis=-1, keepdims=True) / max(1, self.known.sum())
        return np.where(self.known, found, others)


def fit_laws(spent: Array, losses: Array, least: int) -> Laws:
    """The law of every source, by least squares of the relative error.

    For each exponent the law is linear in floor and scale; the best exponent of the grid wins.
    Neither may be negative: a loss that rises has scale 0. A source with fewer than ``least``
    losses isn't fitted.
    """
    usable = np.isfinite(losses) & (losses > 0) & (spent > 0)
    values = np.where(usable, losses, 1.0)
    tokens = np.where(usable, spent, 1.0)
    weight = np.where(usable, 1 / values**2, 0.0)
    # powers relative to the newest count: else they underflow beside the floor
    newest = tokens.max(axis=0)
    powers = (tokens / newest)[None] ** -EXPONENTS[:, None, None]  # (exponents, evaluations, k)
    floor, scale = _two_terms(powers, values, weight)
    error = (weight * (floor[:, None] + scale[:, None] * powers - values) ** 2).sum(axis=1)
    best = error.argmin(axis=0)
    pick = (best, np.arange(losses.shape[1]))
    alpha = EXPONENTS[best]
    return Laws(floor[pick], scale[pick] * newest**alpha, alpha, usable.sum(axis=0) >= least)


def _two_terms(powers: Array, values: Array, weight: Array) -> tuple[Array, Array]:
    """Floor and scale, (exponents, k), not negative, of weighted least squares."""
    total = np.maximum(weight.sum(axis=0), 1e-300)
    mean_power = (weight * powers).sum(axis=1) / total
    mean_value = (weight * values).sum(axis=0) / total
    off = powers - mean_power[:, None]
    spread = (weight * off**2).sum(axis=1)
    scale = (weight * off * (values - mean_value)).sum(axis=1) / np.maximum(spread, 1e-300)
    scale = np.where(spread > 1e-12 * total, np.maximum(scale, 0.0), 0.0)
    floor = mean_value - scale * mean_power
    alone = (weight * powers * values).sum(axis=1) / np.maximum(
        (weight * powers**2).sum(axis=1), 1e-300
    )
    return np.maximum(floor, 0.0), np.where(floor < 0, alone, scale)


def mixture(law: Laws, spent: Array, shares: Array, prior: Array, options: AdoOptions) -> Array:
    """The mixture (k,) after all evaluations: the newest preference into the running mean."""
    recent, mean = prior, prior
    chosen = prior
    speeds = law.slopes(spent)
    least = min(options.floor, 0.5 / len(prior))
    for step, (speed, used) in enumerate(zip(speeds, shares, strict=True), start=1):
        recent = RECENT * recent + (1 - RECENT) * used if used.any() else recent
        preferred = prior * recent**options.credit * speed
        if not preferred.sum() > 0:
            continue
        preferred = np.maximum(preferred / preferred.sum(), least)
        preferred = preferred / preferred.sum()
        chosen = options.smoothing * mean + (1 - options.smoothing) * preferred
        mean = mean + (preferred - mean) / (step + 1)
    return np.asarray(chosen / chosen.sum())
