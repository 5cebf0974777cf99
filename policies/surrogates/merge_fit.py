"""The mixture whose merged model scores best, by exponentiated gradient inside the caps.

Exponentiated gradient (Kivinen and Warmuth 1997) is mirror descent with the entropy: each step
multiplies shares by ``exp(-rate * gradient)``, so they stay positive and sum to 1. The pull to a
prior and the caps are part of each step's minimisation, not put on afterwards: a capped source that
is clipped after the fit leaves its excess where nobody fitted it. MergeMix (2601.17858) fits the
weights of merged experts in place of training on mixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixloop.policies.mixture import Array, confine, fill

LossAndGradient = Callable[[Array], tuple[float, Array]]
"""A mixture (k,) to its loss, in bits per byte, and the loss's gradient (k,)."""

FIRST_STEP = 1.0  # nats by which the first step may change the odds of two sources
LONGER, SHORTER = 1.5, 0.4  # what the rate is multiplied with after a step that held, or didn't
SETTLED = 1e-6  # bits per byte that the next step promises: not worth a pass over the items
MIXED_IN = 0.01  # of the prior, where a source begins without a share: nothing multiplies zero
_DEEPEST = 600.0  # nats below the largest share: the smallest that floats tell from zero


@dataclass(frozen=True)
class FitStep:
    """One mixture (k,) that was tried, its loss, and the loss with the pull to the prior."""

    weights: Array
    loss: float
    objective: float


def fit_merge(
    loss_and_gradient: LossAndGradient,
    start: Array,
    prior: Array,
    most: Array,
    strength: float,
    steps: int,
) -> tuple[Array, tuple[FitStep, ...]]:
    """The mixture with the least ``loss + strength * KL(mixture || prior)`` that was found.

    Each step goes to the minimum of the linearised loss, the pull and ``KL(new || old) / rate``
    within the caps, which is closed in form but for one scale. A step is taken only where the loss
    lies below that model, so that the objective never rises; the rate adapts to it (Beck and
    Teboulle 2009, section 4, with the entropy for a distance).

    Args:
        loss_and_gradient: the merge's; called at most ``steps + 2`` times.
        start: a mixture (k,); confined to the caps first.
        prior: a mixture (k,). With a strength above 0 a source without a share in it gets none.
        most: greatest share (k,) of each source; scaled up where they hold less than 1 together.
        strength: of the pull to the prior, in bits per byte per nat.
        steps: most steps to try, from the start on.

    Returns:
        The mixture (k,), and what was tried, the start first.

    Raises:
        ValueError: arguments of unlike lengths, no source with room, or a loss that isn't finite
            at the start.
    """
    if not len(start) == len(prior) == len(most):
        raise ValueError(f"{len(start)} shares, {len(prior)} of the prior, {len(most)} caps")
    caps = np.where((prior > 0) | (strength == 0), np.clip(most, 0.0, 1.0), 0.0)
    if caps.sum() <= 0 or prior.sum() <= 0:
        raise ValueError("no source has room")
    problem = _Problem(loss_and_gradient, prior / prior.sum(), caps, strength)
    point = problem.at(confine(start, caps))
    if not np.isfinite(point.objective):
        raise ValueError(f"the loss at the start is {point.loss}")
    tried = [point.step]
    if caps.sum() > 1:
        begin = problem.interior(point)
        if begin is not point:
            tried.append(begin.step)
        tried += _descend(problem, begin, steps)
    best = min(tried, key=lambda step: step.objective)
    return best.weights, tuple(tried)


def _descend(problem: _Problem, point: _Point, steps: int) -> list[FitStep]:
    spread = float(np.ptp(point.gradient[problem.caps > 0]))
    rate = FIRST_STEP / max(spread, SETTLED)
    tried = []
    for _ in range(steps):
        aim, promised, room = problem.step(point, rate)
        if promised < SETTLED:
            break
        there = problem.at(aim)
        tried.append(there.step)
        linear = point.loss + float(point.gradient @ (aim - point.weights))
        if there.loss <= linear + room / rate:
            point, rate = there, rate * LONGER
        else:  # not finite lands here too
            rate *= SHORTER
    return tried


@dataclass(frozen=True)
class _Point:
    weights: Array
    loss: float
    gradient: Array
    objective: float

    @property
    def step(self) -> FitStep:
        objective = self.objective if np.isfinite(self.objective) else np.inf
        return FitStep(self.weights, self.loss, objective)


@dataclass(frozen=True)
class _Problem:
    call: LossAndGradient
    prior: Array
    caps: Array
    strength: float

    def at(self, weights: Array) -> _Point:
        loss, gradient = self.call(weights)
        pull = self.strength * divergence(weights, self.prior) if self.strength else 0.0
        gradient = np.asarray(gradient, dtype=np.float64)
        finite = np.isfinite(loss) and np.isfinite(gradient).all()
        return _Point(weights, float(loss) if finite else np.inf, gradient, float(loss) + pull)

    def interior(self, point: _Point) -> _Point:
        """A point near this one where every source with room has a share."""
        if (point.weights[self.caps > 0] > 0).all():
            return point
        even = np.where(self.caps > 0, 1.0, 0.0) / (self.caps > 0).sum()
        belief = (self.prior + even) / 2 if self.strength == 0 else self.prior
        mixed = confine((1 - MIXED_IN) * point.weights + MIXED_IN * belief, self.caps)
        return self.at(mixed)

    def step(self, point: _Point, rate: float) -> tuple[Array, float, float]:
        """Where a step leads, what it promises at least, and its divergence from the old point."""
        with np.errstate(divide="ignore"):
            old, belief = np.log(point.weights), np.log(self.prior)
        pulled = self.strength * belief if self.strength else 0.0
        logs = (old / rate + pulled - point.gradient) / (1 / rate + self.strength)
        logs = np.where(self.caps > 0, logs, -np.inf)
        logs = np.maximum(logs, logs.max() - _DEEPEST)
        aim = fill(logs, np.zeros(len(logs)), self.caps)
        room = divergence(aim, point.weights)
        promised = float(point.gradient @ (point.weights - aim)) - room / rate
        if self.strength:
            before, after = (divergence(w, self.prior) for w in (point.weights, aim))
            promised += self.strength * (before - after)
        return aim, promised, room


def divergence(weights: Array, base: Array) -> float:
    """Kullback-Leibler divergence of one mixture (k,) from another, in nats; may be infinite."""
    live = weights > 0
    if (base[live] <= 0).any():
        return float("inf")
    return float((weights[live] * np.log(weights[live] / base[live])).sum())
