"""Which mixture to try next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixloop.policies.mixture import Array, confine, towards

from .forecast import Forecast
from .trial_data import TrialData

CANDIDATES = 256
SLACK = 1.5  # a trial lasts one segment: it may pass what the rest of the budget could hold


@dataclass(frozen=True)
class TrustRegion:
    """Where a trial may lie.

    Within ``change`` (total variation) of the mixture in force, ``radius`` of the centre, and the
    caps ``most``, all over sources (k,).
    """

    current: Array
    centre: Array
    most: Array
    change: float
    radius: float

    def candidates(self, drawing: np.random.Generator) -> Array:
        """Mixtures on the region's rim, (CANDIDATES, k)."""
        live = self.most > 0
        aims = np.zeros((CANDIDATES, len(live)))
        aims[:, live] = drawing.dirichlet(np.full(int(live.sum()), 0.3), CANDIDATES)
        return self.inside(aims)

    def inside(self, aims: Array) -> Array:
        """The aims (…, k) drawn into the region."""
        near = confine(towards(self.centre, aims, self.radius), SLACK * self.most)
        return towards(self.current, near, self.change)


def next_trial(
    drawing: np.random.Generator, region: TrustRegion, data: TrialData, forecast: Forecast | None
) -> Array:
    """The candidate whose score leaves the least uncertainty about all slopes together.

    (A-optimal Bayesian design, Chaloner & Verdinelli 1995, one trial ahead.) What a trial is
    expected to gain doesn't count: a bound on the gain goes on raising the few sources that look
    good and leaves others untried, whose worth is then a guess. Without a forecast, the candidate
    farthest from what was consumed so far.
    """
    candidates = region.candidates(drawing)
    total = float(data.drawn.sum())
    moved = candidates - data.drawn / max(total, 1e-9)
    if forecast is None:
        return np.asarray(candidates[np.argmax((moved**2).sum(axis=1))])
    moved = moved / (total + 1)  # by one segment more
    pull = moved @ forecast.slope_covariance
    # shares sum to 1: what all slopes have in common is of no matter
    apart = pull - pull.mean(axis=1, keepdims=True)
    variance = (pull * moved).sum(axis=1) + _noise(data)
    return np.asarray(candidates[np.argmax((apart**2).sum(axis=1) / variance)])


def _noise(data: TrialData) -> float:
    """Variance of the objective's difference between two evaluations."""
    parts = np.array([scores.weight for scores in data.scores])
    noise = np.array([np.mean(scores.noise**2) for scores in data.scores])
    return float(2 * (parts / parts.sum()) ** 2 @ noise)
