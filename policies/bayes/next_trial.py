"""Which mixture to try next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.mixture import confine, towards

from .forecast import Forecast
from .run_arrays import History

Array = NDArray[np.float64]

CANDIDATES = 256
SLACK = 1.5  # a trial lasts one segment: it may pass what the rest of the budget could hold


@dataclass(frozen=True)
class TrustRegion:
    """Where a trial may lie: within ``change`` (total variation) of the mixture in force,
    ``radius`` of the centre, and the caps ``most``, all over sources (k,)."""

    current: Array
    centre: Array
    most: Array
    change: float
    radius: float

    def candidates(self, drawing: np.random.Generator, count: int = CANDIDATES) -> Array:
        """Mixtures on the region's rim, (count, k)."""
        live = self.most > 0
        aims = np.zeros((count, len(live)))
        aims[:, live] = drawing.dirichlet(np.full(int(live.sum()), 0.3), count)
        return np.array([self.inside(aim) for aim in aims])

    def inside(self, aim: Array) -> Array:
        """The aim drawn into the region."""
        near = confine(towards(self.centre, aim, self.radius), SLACK * self.most)
        return towards(self.current, near, self.change)


def next_trial(
    drawing: np.random.Generator, region: TrustRegion, history: History, outlook: Forecast | None
) -> Array:
    """The candidate whose score leaves the least doubt about all slopes together.

    (A-optimal Bayesian design, Chaloner & Verdinelli 1995, one trial ahead.) What a trial is
    expected to gain doesn't count: a bound on the gain goes on raising the few sources that look
    good and leaves others untried, whose worth is then a guess. Without any beliefs, the candidate
    farthest from what was consumed so far.
    """
    candidates = region.candidates(drawing)
    total = float(history.drawn.sum())
    moved = candidates - history.drawn / max(total, 1e-9)
    if outlook is None:
        return np.asarray(candidates[np.argmax((moved**2).sum(axis=1))])
    moved = moved / (total + 1)  # by one segment more
    pull = moved @ outlook.doubt
    # shares sum to 1: what all slopes have in common is of no matter
    apart = pull - pull.mean(axis=1, keepdims=True)
    variance = (pull * moved).sum(axis=1) + _noise(history)
    return np.asarray(candidates[np.argmax((apart**2).sum(axis=1) / variance)])


def _noise(history: History) -> float:
    """Variance of the objective's difference between two evaluations."""
    parts = np.array([series.weight for series in history.series])
    noise = np.array([np.mean(series.noise**2) for series in history.series])
    return float(2 * (parts / parts.sum()) ** 2 @ noise)
