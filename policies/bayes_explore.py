"""Which mixture to try next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .bayes_options import BayesOptions
from .bayes_plan import Outlook, confine
from .observation import Observation

Array = NDArray[np.float64]

CANDIDATES = 256


def next_trial(
    outlook: Outlook,
    current: Array,
    observation: Observation,
    options: BayesOptions,
    trials: int,
) -> Array:
    """The candidate inside the trust region with the greatest upper confidence bound.

    Candidates lie within ``max_change`` of the mixture in force and ``radius`` of the centre.
    """
    drawing = np.random.default_rng([observation.seed, trials])
    candidates = _candidates(drawing, outlook, current, observation, options.radius)
    shares = outlook.history.drawn / max(outlook.history.drawn.sum(), 1e-9)
    moved = candidates - shares
    if not outlook.effects:
        return np.asarray(candidates[np.argmax((moved**2).sum(axis=1))])
    doubt = np.sqrt(np.einsum("ni,ij,nj->n", moved, outlook.doubt(), moved))
    return np.asarray(candidates[np.argmax(BOLD * doubt - moved @ outlook.slope())])


BOLD = 2.0


def _candidates(
    drawing: np.random.Generator,
    outlook: Outlook,
    current: Array,
    observation: Observation,
    radius: float,
) -> Array:
    k = len(current)
    live = outlook.most > 0
    heavy = drawing.dirichlet(np.full(k, 0.3), CANDIDATES) * live
    heavy /= np.maximum(heavy.sum(axis=1, keepdims=True), 1e-300)
    found = []
    for aim in heavy:
        near = _step(outlook.centre, aim, radius)
        near = confine(near, np.minimum(1.0, outlook.most * 1.5))
        found.append(_step(current, near, observation.limits.max_change))
    return np.array(found)


def _step(start: Array, aim: Array, limit: float) -> Array:
    change = float(np.abs(aim - start).sum()) / 2
    return aim if change <= limit else np.asarray(start + (aim - start) * (limit / change))
