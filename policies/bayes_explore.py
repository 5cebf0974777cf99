"""Which mixture to try next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bayes_history import History
from .bayes_plan import Outlook, confine, towards

Array = NDArray[np.float64]

CANDIDATES = 256
BOLD = 6.0  # standard errors added to what is expected of a trial: it is there to learn
SLACK = 1.5  # a trial lasts one segment: it may pass what the rest of the budget could hold


@dataclass(frozen=True)
class Region:
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
    drawing: np.random.Generator, region: Region, history: History, outlook: Outlook | None
) -> Array:
    """The candidate with the greatest upper confidence bound on the gain of one segment.

    (Srinivas et al. 2010, arXiv 0912.3995.) Without any beliefs, the one farthest from what was
    consumed so far.
    """
    candidates = region.candidates(drawing)
    consumed = history.drawn / max(float(history.drawn.sum()), 1e-9)
    moved = candidates - consumed
    if outlook is None:
        return np.asarray(candidates[np.argmax((moved**2).sum(axis=1))])
    error = np.sqrt(np.einsum("ni,ij,nj->n", moved, outlook.doubt, moved))
    return np.asarray(candidates[np.argmax(BOLD * error - moved @ outlook.slope)])
