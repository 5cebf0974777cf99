"""What the posterior is worth: the mixture for the rest of the budget with the best mean.

The objective of a mixture w is the expected mean loss at the end of the budget if w is held from
now on, plus ``caution`` standard errors of its difference to holding the centre. It is minimised
over the simplex within the caps by exponentiated gradient (Kivinen & Warmuth 1997). The best of
many mixtures owes part of its gain to luck: the way there is shrunk by how little it is sure of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixloop.policies.mixture import Array, Cost, confine, effective, effective_slope, towards

from .posterior import Posterior
from .trial_data import TrialData

MAX_ITERATIONS = 100
TOLERANCE = 1e-7  # change of a share per step below which the descent has ended
LIMIT = 3.0  # no loss is expected to grow beyond a factor of exp(3)
BOUND = 0.5  # exponent of the power law that bounds what linear effects come to


@dataclass(frozen=True)
class Forecast:
    """The rest of the budget, ``left`` units at most ``most`` (k,) of each source.

    ``centre`` (k,) is the mixture that gains are counted from, ``shares`` (k,) the effective
    shares s0 that the posterior is about.
    """

    data: TrialData
    posterior: Posterior
    left: float
    most: Array
    centre: Array
    shares: Array

    @property
    def until(self) -> float:
        """The end of the budget, in units."""
        return float(self.data.drawn.sum() + self.left)

    def ahead(self, weights: Array) -> Array:
        """Effective shares at the end of the budget, from s0, if ``weights`` are held."""
        drawn = self.data.drawn + self.left * weights
        return np.asarray(effective(drawn, self.data.unique) / self.until - self.shares)

    def fresh(self, weights: Array) -> Array:
        """Derivative of ``ahead`` by the weights, (k,)."""
        drawn = self.data.drawn + self.left * weights
        return self.left / self.until * effective_slope(drawn, self.data.unique)

    def loss(self, moved: Array) -> tuple[float, Array]:
        """Expected objective at the end under the effective shares s0 + moved (k,); its gradient.

        Uncertainty costs: the mean of exp of a Gaussian is more than exp of its mean.
        """
        post = self.posterior
        risk = post.covariance @ moved
        shift, rate = _bounded(post.slope @ moved + 0.5 * risk @ moved)
        parts = post.weight * np.exp(post.level + np.minimum(shift, LIMIT))
        total = float(parts.sum() + post.weight @ post.floor)
        return total, (parts * rate * (shift < LIMIT)) @ (post.slope + risk)

    @cached_property
    def slope_covariance(self) -> Array:
        """Covariance (k, k) of the objective's slope at s0, benchmarks taken as independent."""
        post, k = self.posterior, len(self.centre)
        total = np.zeros((k, k))
        for index in np.unique(post.owner):
            mine = post.owner == index
            parts, slope = post.reducible[mine], post.slope[mine]
            chance = parts / parts.sum()
            off = slope - chance @ slope
            spread = np.tensordot(chance, post.covariance[mine], 1) + (chance * off.T) @ off
            total += parts.sum() ** 2 * spread
        return total


def _bounded(shift: Array) -> tuple[Array, Array]:
    """What a linear shift of a log loss comes to, and the derivative.

    ``-a log(1 - x/a)``: what a power law with exponent a in effective tokens makes of it. Gains
    flatten, starving a benchmark costs ever more; a line would lead to the simplex's corners.
    """
    steep = np.minimum(shift, 0.9 * BOUND)
    inside = 1 - steep / BOUND
    return -BOUND * np.log(inside) + (shift - steep) / inside, 1 / inside


@dataclass(frozen=True)
class Best:
    """A mixture for the rest of the budget, and its gain over holding the centre.

    The gain and its standard error are in the objective's unit.
    """

    weights: Array
    gain: float
    stderr: float


def best_mixture(forecast: Forecast, caution: float, trust: float, begin: Array) -> Best:
    """The mixture with the best posterior mean, less ``caution`` standard errors.

    Or as much of the way there as lies within total variation ``trust`` of the centre.
    """
    base = forecast.ahead(forecast.centre)

    def cost(weights: Array) -> tuple[float, Array]:
        moved = forecast.ahead(weights)
        value, gradient = forecast.loss(moved)
        error, pull = _error(forecast, moved - base)
        return value + caution * error, (gradient + caution * pull) * forecast.fresh(weights)

    weights = _descend(cost, begin, forecast.most)
    return _gain(forecast, towards(forecast.centre, weights, trust))


def shrunk(forecast: Forecast, best: Best) -> Best:
    """As much of the way from the centre as the gain is sure of: ``1 - (stderr / gain)^2``.

    None at a standard error or less. The positive part of a shrinkage estimator (James & Stein
    1961), with the gain for the signal.
    """
    part = 1 - (best.stderr / best.gain) ** 2 if best.gain > best.stderr else 0.0
    return _gain(forecast, forecast.centre + part * (best.weights - forecast.centre))


def _gain(forecast: Forecast, weights: Array) -> Best:
    base, moved = forecast.ahead(forecast.centre), forecast.ahead(weights)
    gain = forecast.loss(base)[0] - forecast.loss(moved)[0]
    return Best(weights, gain, _error(forecast, moved - base)[0])


def _error(forecast: Forecast, off: Array) -> tuple[float, Array]:
    """Standard error of the objective's difference, to first order, and its gradient."""
    pull = forecast.slope_covariance @ off
    error = float(np.sqrt(max(float(off @ pull), 1e-18)))
    return error, pull / error


def _descend(cost: Cost, begin: Array, most: Array) -> Array:
    live = most > 0
    # a share of exactly zero would stay there
    weights = confine(0.98 * begin + 0.02 * live / max(int(live.sum()), 1), most)
    value, gradient = cost(weights)
    slope = gradient - gradient @ weights
    rate = 1.0 / max(float(np.abs(slope).max()), 1e-12)
    for _ in range(MAX_ITERATIONS):
        trial = confine(weights * np.exp(np.clip(-rate * slope, -4, 4)), most)
        after, gradient = cost(trial)
        if after < value:
            moved = float(np.abs(trial - weights).max())
            weights, value, rate = trial, after, rate * 1.5
            slope = gradient - gradient @ weights
            if moved < TOLERANCE:
                break
        else:
            rate /= 3
            if rate * float(np.abs(slope).max()) < TOLERANCE:
                break
    return weights
