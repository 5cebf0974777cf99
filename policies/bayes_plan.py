"""What the beliefs are worth: the mixture for the rest of the budget with the best posterior mean.

The objective of a mixture w is the expected mean loss at the end of the budget if w is held from
now on, plus ``caution`` standard errors of its difference to holding the centre. It is minimised
over the simplex within the caps by exponentiated gradient (Kivinen & Warmuth 1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bayes_fit import Effect
from .bayes_history import History, effective, worth

Array = NDArray[np.float64]

STEPS = 150
LIMIT = 3.0  # no share makes more than exp(3) of a loss, as far as a linear law is believed


@dataclass(frozen=True)
class Outlook:
    """The rest of the budget: ``left`` units from ``history`` on, at most ``most`` (k,) of each
    source; ``centre`` (k,) the mixture gains are counted from."""

    history: History
    effects: tuple[Effect, ...]
    left: float
    most: Array
    centre: Array
    shares: Array  # s0 of the effects, (k,)

    @property
    def until(self) -> float:
        """The end of the budget, in units."""
        return float(self.history.drawn.sum() + self.left)

    def ahead(self, weights: Array) -> Array:
        """Effective shares at the end of the budget, from s0, if ``weights`` are held."""
        drawn = self.history.drawn + self.left * weights
        return np.asarray(effective(drawn, self.history.unique) / self.until - self.shares)

    def loss(self, weights: Array) -> tuple[float, Array]:
        """Expected objective at the end of the budget, and its gradient by the weights (k,)."""
        moved = self.ahead(weights)
        total, gradient = 0.0, np.zeros_like(moved)
        for effect in self.effects:
            risk = effect.covariance @ moved
            shift = effect.slope @ moved + 0.5 * risk @ moved
            parts = effect.probability * np.exp(effect.level + np.clip(shift, -LIMIT, LIMIT))
            free = np.abs(shift) < LIMIT
            total += effect.weight * float(parts.sum() + effect.probability @ effect.floor)
            gradient += effect.weight * (parts * free) @ (effect.slope + risk)
        by_weights = self.left / self.until * self._fresh(weights)
        scale = self.scale()
        return total / scale, gradient * by_weights / scale

    def _fresh(self, weights: Array) -> Array:
        return worth(self.history.drawn + self.left * weights, self.history.unique)

    def scale(self) -> float:
        """Sum of the objective's weights."""
        return sum(effect.weight for effect in self.effects)

    def doubt(self) -> Array:
        """Covariance of the objective's slope by the shares, (k, k)."""
        total = np.zeros((len(self.centre), len(self.centre)))
        for effect in self.effects:
            level = float(effect.probability @ np.exp(effect.level))
            mean = effect.probability @ effect.slope
            off = effect.slope - mean
            spread = np.einsum("h,hij->ij", effect.probability, effect.covariance)
            spread += np.einsum("h,hi,hj->ij", effect.probability, off, off)
            total += (effect.weight * level) ** 2 * spread
        return total / self.scale() ** 2

    def slope(self) -> Array:
        """Expected slope of the objective by the shares, (k,), at s0."""
        total = np.zeros(len(self.centre))
        for effect in self.effects:
            parts = effect.probability * np.exp(effect.level)
            total += effect.weight * parts @ effect.slope
        return total / self.scale()


def best_mixture(outlook: Outlook, caution: float, begin: Array) -> tuple[Array, float, float]:
    """The mixture for the rest of the budget, the gain expected from it over the centre, and the
    gain's standard error (bits per byte)."""
    doubt, base = outlook.doubt(), outlook.ahead(outlook.centre)
    from_centre = outlook.loss(outlook.centre)[0]

    def cost(weights: Array) -> tuple[float, Array]:
        value, gradient = outlook.loss(weights)
        off = outlook.ahead(weights) - base
        pull = doubt @ off
        error = float(np.sqrt(max(off @ pull, 1e-18)))
        by_weights = outlook.left / outlook.until * outlook._fresh(weights)
        return value + caution * error, gradient + caution * pull / error * by_weights

    starts = [begin, outlook.centre]
    found = [_descend(cost, confine(start, outlook.most), outlook.most) for start in starts]
    weights = min(found, key=lambda pair: pair[1])[0]
    off = outlook.ahead(weights) - base
    error = float(np.sqrt(max(off @ doubt @ off, 0.0)))
    return weights, from_centre - outlook.loss(weights)[0], error


def _descend(cost, weights: Array, most: Array) -> tuple[Array, float]:  # type: ignore[no-untyped-def]
    live = most > 0
    weights = confine(0.98 * weights + 0.02 * live / max(live.sum(), 1), most)
    value, gradient = cost(weights)
    rate = 1.0 / max(float(np.abs(gradient - gradient @ weights).max()), 1e-12)
    for _ in range(STEPS):
        trial = np.where(live, weights * np.exp(-rate * (gradient - gradient @ weights)), 0.0)
        trial = confine(trial / trial.sum(), most)
        after, slope = cost(trial)
        if after < value - 1e-12:
            weights, value, gradient, rate = trial, after, slope, rate * 1.3
        else:
            rate /= 2
            if rate * np.abs(gradient - gradient @ weights).max() < 1e-6:
                break
    return weights, value


def confine(weights: Array, most: Array) -> Array:
    """The nearest mixture (to scale, as water-filling does) with no share above ``most`` (k,).

    Sources without a share get one only if the others can't hold all of it.
    """
    weights = np.minimum(weights, 1.0) * (most > 0)
    if np.minimum(most, 1.0)[weights > 0].sum() < 1 and most.sum() > 0:
        weights = np.maximum(weights, 1e-9 * (most > 0))
    if weights.sum() <= 0 or np.minimum(most, 1.0).sum() < 1:
        return np.asarray(most / most.sum()) if most.sum() > 0 else weights
    for _ in range(len(weights)):
        full = weights >= most
        room = 1 - most[full].sum()
        free = weights[~full].sum()
        if free <= 0:
            break
        scaled = np.where(full, most, weights * room / free)
        if np.allclose(scaled, weights, atol=1e-15) and not (scaled > most + 1e-12).any():
            break
        weights = np.minimum(scaled, most)
    total = weights.sum()
    return np.asarray(weights / total) if total > 0 else weights
