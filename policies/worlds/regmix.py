"""An oracle over real runs on constant mixtures, such as RegMix's (Liu et al., arXiv 2407.01492).

The tables say how models ended; between their mixtures a Gaussian process interpolates, and only
inside their convex hull: a mixture outside is answered for where the line to it from the middle of
the runs leaves the hull, and counted in ``outside``. How a loss falls on the way to the end is not
in such tables: it is assumed to follow a power law in tokens that every mixture shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array
from mixloop.policies.surrogates import Process, fit_process

from .world_protocol import WorldSource

UNLIMITED = 10**15  # the tables don't tell sizes
EARLY = 0.02  # of the budget: keeps the assumed power law finite at the start
ITERATIONS = 25  # for the hyperparameters; more change the interpolation by less than its error


class RunTable:
    """A world whose losses (in the table's unit) are those of real runs.

    Args:
        sources, domains: names of the columns; the domains are the benchmarks.
        mixtures: (n, k), each row on the simplex.
        losses: (n, m) at the end of each run.
        segments, unit: evaluations in the budget, and tokens of one.
        sigma: standard deviation of an evaluation's noise.
        trend: exponent of the assumed power law in tokens.
    """

    def __init__(
        self,
        sources: Sequence[str],
        domains: Sequence[str],
        mixtures: Array,
        losses: Array,
        segments: int = 40,
        unit: int = 10**9,
        sigma: float = 0.01,
        trend: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.sources = {name: WorldSource(UNLIMITED) for name in sources}
        self.benchmarks = tuple(domains)
        self.mixtures, self.losses = mixtures, losses
        self.segments, self.budget, self.unit = segments, segments * unit, unit
        self.sigma, self.trend = sigma, trend
        self.max_epochs: float | None = None
        self._laws: list[Process] = []
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Back to the start; only the noise is drawn from the seed, the runs are what they are."""
        self._noise = np.random.default_rng([seed, len(self.mixtures)])
        self.drawn = np.zeros(len(self.sources))
        self.outside = 0

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        """Consume ``tokens`` of the mixture."""
        self.drawn += tokens * np.array([weights.get(name, 0.0) for name in self.sources])

    def truth(self) -> dict[str, float]:
        """Every domain's loss now, without noise."""
        total = self.drawn.sum()
        share = self.drawn / total if total > 0 else self.mixtures.mean(axis=0)
        inside, whole = nearest_inside(share, self.mixtures)
        self.outside += not whole
        part = min(1.0, total / self.budget)
        grown = ((part + EARLY) / (1 + EARLY)) ** -self.trend
        values = self.final(inside[None])[0] * grown
        return dict(zip(self.benchmarks, map(float, values), strict=True))

    def evaluate(self) -> dict[str, tuple[float, float]]:
        """Every domain's loss with fresh noise, and the noise's standard deviation."""
        noise = self._noise.normal(0, self.sigma, len(self.benchmarks))
        truth = self.truth().items()
        return {n: (v + float(e), self.sigma) for (n, v), e in zip(truth, noise, strict=True)}

    def final(self, mixtures: Array) -> Array:
        """Losses (n, m) at the end of the budget of mixtures (n, k) inside the hull."""
        if not self._laws:
            columns = self.losses.T
            self._laws = [fit_process(self.mixtures, y, None, ITERATIONS) for y in columns]
        return np.stack([law.predict(mixtures)[0] for law in self._laws], axis=1)

    def optimum(self) -> dict[str, float]:
        """The mixture with the lowest mean loss among the runs and blends of them, interpolated.

        Blends lie inside the hull by construction; those of many runs lie far from each.
        """
        drawing = np.random.default_rng(0)
        shares = [drawing.dirichlet(np.full(len(self.mixtures), a), 700) for a in (0.003, 0.02, 1)]
        blends = np.concatenate(shares) @ self.mixtures
        rows = np.concatenate([self.mixtures, self.mixtures.mean(axis=0)[None], blends])
        best = rows[int(self.final(rows).mean(axis=1).argmin())]
        return dict(zip(self.sources, map(float, best), strict=True))


def nearest_inside(mixture: Array, runs: Array) -> tuple[Array, bool]:
    """The mixture (k,) if it lies in the hull of the runs (n, k), else where the hull is left.

    The point on the line from the runs' mean, by one linear program; and whether it was inside.
    """
    from scipy import optimize

    solve: Any = optimize.linprog
    centre = runs.mean(axis=0)
    ahead = mixture - centre
    # weights of the runs, and how far to go: runs' sum - s ahead = centre
    equal = np.concatenate([runs.T, -ahead[:, None]], axis=1)
    sums = np.append(np.ones(len(runs)), 0.0)[None]
    solution = solve(
        np.append(np.zeros(len(runs)), -1.0),
        A_eq=np.concatenate([equal, sums]),
        b_eq=np.append(centre, 1.0),
        bounds=[(0, None)] * len(runs) + [(0, 1)],
        method="highs",
    )
    far = float(solution.x[-1]) if solution.status == 0 else 0.0
    return (mixture, True) if far >= 1 - 1e-6 else (centre + far * ahead, False)
