"""Exploring: which mixtures are tried for what they tell, and whether they can tell anything.

Contrasts move half of the sources against the other half. What they tell is known before any is
tried: with effects ``s_i`` of the sources a score lies off the course by ``sum_i s_i x_i``, ``x``
the cumulative shares less the centre's, and scores jitter by what the run's own course shows. The
design so far and the one to come then say how much of the effects' variance will be explained
(Bayesian linear regression; the Bayesian D- and A-criteria rest on the same matrix, Chaloner &
Verdinelli 1995, *Statistical Science* 10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.interface import BITS_PER_BYTE, Observation
from mixloop.policies.mixture import Array, RunArrays

from .trajectory_noise import trajectory_noise

Flags = NDArray[np.bool_]

TOLD = 0.1  # of the effects' variance: below it what is estimated hardly goes with what is true
MIN_SHARE = 0.02  # of all sources together, that a tilt starts from where the centre has none
EFFECT = 0.1  # of the objective's level, per share: how far sources are taken to differ (sd)
JITTER = 3.0  # times its items' error, that a score is off until the run tells its own jitter
BELIEVED = 1.0  # degrees of freedom of that belief
COMMON = 0.3  # part of the noise's variance that all benchmarks share: one optimiser moves them
SEEN = 0.5  # of the budget: what is told later comes too late
COURSE = (0.0, -0.25, -0.5)  # powers of tokens that make up a smooth course


def contrast(turn: int, live: Flags, seed: int) -> Array:
    """The turn's contrast between the live sources, +1 or -1, and 0 for the others, (k,).

    Rows of a Hadamard matrix, two by two, each then with its opposite: h1, h2, -h1, -h2, h3, …
    Neighbours are orthogonal, so that a step between them is no longer than one from the centre,
    and every four of them cancel (a fold-over screening design, Plackett & Burman 1946).
    """
    from scipy.linalg import hadamard

    many = int(live.sum())
    size = 4
    while size <= many:
        size *= 2
    drawing = np.random.default_rng([seed % 2**32, many])
    columns = drawing.permutation(size)[:many]
    rows = 1 + drawing.permutation(size - 1)
    row = rows[(2 * (turn // 4) + turn % 2) % len(rows)]
    signs = np.zeros(len(live))
    signs[live] = hadamard(size)[row][columns] * (1 if turn % 4 < 2 else -1)
    return signs


def tilted(centre: Array, live: Flags, direction: Array, reach: float) -> Array:
    """``centre`` tilted along a contrast, in logarithms, by ``reach`` in total variation."""
    base = np.where(live, np.maximum(centre, MIN_SHARE / max(live.sum(), 1)), 0.0)

    def by(size: float) -> Array:
        shares = base * np.exp(size * direction)
        return np.asarray(shares / shares.sum())

    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        away = np.abs(by(middle) - centre).sum() / 2
        low, high = (middle, high) if away < reach else (low, middle)
    return by(low)


@dataclass(frozen=True)
class Contrasts:
    """A run that mixtures may be tried in, and the mixture that they are tried about.

    Attributes:
        observation: the run.
        arrays: the same as arrays.
        centre: (k,) the mixture that is tilted.
        live: (k,) which sources are.
    """

    observation: Observation
    arrays: RunArrays
    centre: Array
    live: Flags

    def tilted(self, reach: float, ahead: int = 0) -> Array:
        """The centre tilted by the contrast that is next, or ``ahead`` after it, (k,)."""
        turn = len(self.observation.interventions()) + ahead
        return tilted(
            self.centre, self.live, contrast(turn, self.live, self.observation.seed), reach
        )

    @property
    def needed(self) -> float:
        """What must be told for contrasts to be worth it; half a design that was begun is lost."""
        return TOLD / 2 if self.observation.interventions() else TOLD

    def told(self, reach: float = 0.0, until: float = 0.0) -> float:
        """The part of the effects' variance that scores will have explained, from 0 to 1.

        Args:
            reach: how far (total variation) contrasts go from the centre.
            until: the part of the budget up to which they are tried from now on; scores up to
                half of it count in any case.
        """
        design = self._design(reach, until)
        if len(design) <= len(COURSE) or self.live.sum() < 2 or not self.arrays.series:
            return 0.0
        total = design.sum(axis=1)
        off = (design - np.outer(total, self.centre)) / total[:, None]
        off = off[:, self.live] - off[:, self.live].mean(axis=1, keepdims=True)  # shares sum to 1
        course = np.linalg.qr(np.power.outer(total, COURSE))[0]
        off -= course @ (course.T @ off)
        ratio = np.square(np.linalg.svd(off, compute_uv=False)) * self._signal()
        return float((ratio / (1 + ratio)).sum() / (self.live.sum() - 1))

    def _design(self, reach: float, until: float) -> Array:
        """What is drawn of each source up to each score, those to come included, (n, k)."""
        arrays, observation = self.arrays, self.observation
        scored = np.isfinite([series.losses for series in arrays.series]).any(axis=0)
        rows, drawn = list(arrays.drawn[scored]), arrays.drawn[-1]
        every = observation.every / arrays.unit
        if every <= 0:
            every = float(np.median(np.diff(arrays.tokens, prepend=0.0)))
        counts = [
            int(max(0.0, part * observation.budget - observation.tokens) / arrays.unit / every)
            for part in (until, max(until, SEEN if until else 0.0))
            if every > 0
        ]
        for ahead in range(counts[-1] if counts else 0):
            drawn = drawn + every * (
                self.tilted(reach, ahead) if ahead < counts[0] else self.centre
            )
            rows.append(drawn)
        return np.array(rows)

    def _signal(self) -> float:
        """The variance of the sources' effects on the objective per share, in that of its noise.

        Few scores tell the noise badly, and what tilts did to the course passes for it or hides it.
        """
        weights = np.array([series.goal.weight for series in self.arrays.series])
        level, noise = 0.0, []
        for part, series in zip(weights / weights.sum(), self.arrays.series, strict=True):
            jitter = trajectory_noise(self.observation, series.name, BITS_PER_BYTE)
            items = max(0.0, jitter.total**2 - jitter.stderr**2)
            both = [jitter.total**2, JITTER**2 * items]
            known = max(0.0, jitter.df - BELIEVED)  # its own degrees of freedom hold a belief
            noise.append(part * np.sqrt(np.average(both, weights=[known, BELIEVED])))
            level += part * abs(float(series.losses[series.scored[-1]]))
        together = COMMON * np.sum(noise) ** 2 + (1 - COMMON) * np.square(noise).sum()
        return float((EFFECT * level) ** 2 / max(together, 1e-12)) if np.isfinite(together) else 0.0
