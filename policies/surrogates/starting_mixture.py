"""A starting mixture from proxy runs: by posterior mean of a fitted surrogate, never best observed.

What was observed best among noisy runs is mostly the luckiest (the winner's curse); a surrogate
fitted to all of them is asked instead, and says how sure it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mixloop.policies.mixture import Array, best_static, confine

from .surrogates import KINDS, choose_kind, fit_objective

CLEAR = 1.645  # standard errors of the gain: one-sided 95%
CANDIDATES = 600
DRAWS = 200
KL = 0.02
"""Price of leaving the start, in bits per byte per nat of Kullback-Leibler divergence.

A law's optimum lies at a corner, far from any proxy, where it is least to be trusted; Olmix pays
0.05 for the same reason.
"""


@dataclass(frozen=True)
class Score:
    """A benchmark's loss, in bits per byte, and its standard error."""

    value: float
    stderr: float = 0.0


@dataclass(frozen=True)
class ProxyRun:
    """A proxy's mixture and its scores: rung (0 the earliest) to benchmark to score."""

    weights: Mapping[str, float]
    scores: Mapping[int, Mapping[str, Score]]
    number: int = 0

    @property
    def reached(self) -> int:
        """The last rung it was scored at; -1 when at none."""
        return max(self.scores, default=-1)


@dataclass(frozen=True)
class Point:
    """A mixture's scores at the proxies' full length; ``measured`` unless it was stopped before."""

    weights: Mapping[str, float]
    benchmarks: Mapping[str, Score]
    number: int = 0
    measured: bool = True

    def value(self, importance: Mapping[str, float]) -> Score:
        """The objective: the weighted mean over the benchmarks."""
        total = sum(importance.values())
        shares = {name: weight / total for name, weight in importance.items()}
        value = sum(share * self.benchmarks[name].value for name, share in shares.items())
        squares = sum((w * self.benchmarks[n].stderr) ** 2 for n, w in shares.items())
        return Score(value, squares**0.5)


@dataclass(frozen=True)
class Recommendation:
    """The mixture with the best predicted objective, and how sure that is.

    ``best`` is that mixture; ``uncertainty``, per source, the standard deviation of its share over
    draws from the posterior; ``gain`` how much better (in the objective) it is predicted to be
    than the mixture the search began from. ``verdict`` is ``better`` when that is clear, else
    ``inconclusive``: ``weights``, what to start with, are then those the search began from.
    """

    weights: dict[str, float]
    best: dict[str, float]
    uncertainty: dict[str, float]
    predicted: Score
    gain: Score
    verdict: str
    surrogate: str
    errors: dict[str, float] = field(default_factory=dict)


def points_of(runs: Sequence[ProxyRun], last: int) -> list[Point]:
    """Every run's scores at the last rung; those stopped earlier by what the others did after.

    A run stopped at rung r gets the mean change from r to the last rung of the runs that went all
    the way; the change's standard deviation is added to its error. With fewer than two of those it
    is left out, and so is a run without a score.
    """
    whole = [run for run in runs if run.reached == last]
    points = []
    for run in runs:
        if run.reached == last:
            points.append(Point(run.weights, run.scores[last], run.number))
        elif run.reached >= 0:
            scores = _extrapolated(run, whole, last)
            if scores:
                points.append(Point(run.weights, scores, run.number, measured=False))
    return points


def _extrapolated(run: ProxyRun, whole: Sequence[ProxyRun], last: int) -> dict[str, Score]:
    rung = run.reached
    scores = {}
    for name, score in run.scores[rung].items():
        changes = [
            other.scores[last][name].value - other.scores[rung][name].value
            for other in whole
            if name in other.scores.get(rung, {}) and name in other.scores[last]
        ]
        if len(changes) < 2:
            return {}
        stderr = float(np.hypot(score.stderr, np.std(changes, ddof=1)))
        scores[name] = Score(score.value + float(np.mean(changes)), stderr)
    return scores


def recommend(
    points: Sequence[Point],
    importance: Mapping[str, float],
    most: Mapping[str, float],
    start: Mapping[str, float],
    seed: int,
) -> Recommendation:
    """The starting mixture that these proxies point to.

    Args:
        points: at least three; those that lack a benchmark of ``importance`` are left out.
        importance: benchmark to its weight in the objective.
        most: source to its greatest share; only these sources get any.
        start: the mixture the run would begin with otherwise.
        seed: of candidates and draws.

    Raises:
        ValueError: with fewer than three usable points.
    """
    usable = [point for point in points if set(importance) <= set(point.benchmarks)]
    if len(usable) < 3:
        raise ValueError(f"{len(usable)} usable proxy runs; a surrogate needs at least 3")
    names = list(most)
    mixtures = np.array([[point.weights.get(name, 0.0) for name in names] for point in usable])
    scores = [[point.benchmarks[name] for name in importance] for point in usable]
    values = np.array([[score.value for score in row] for row in scores])
    stderr = np.array([[score.stderr for score in row] for row in scores])
    weights = [weight / sum(importance.values()) for weight in importance.values()]
    kind, errors = choose_kind(mixtures, values, weights, stderr, seed=seed)
    surrogate = fit_objective(KINDS[kind], mixtures, values, weights, stderr)
    begun = np.array([[start.get(name, 0.0) for name in names]])
    drawing = np.random.default_rng(seed)
    caps = np.array([most[name] for name in names])
    candidates = np.concatenate([begun, _candidates(mixtures, caps, drawing)])

    def cost(rows: Array) -> Array:
        return surrogate.predict(rows)[0] + KL * _divergence(rows, begun[0])

    # the cheaper of the best candidate and what gradients lead to
    ends = np.stack([candidates[int(cost(candidates).argmin())], best_static(cost, caps, starts=4)])
    best = ends[int(cost(ends).argmin())]
    rows = np.concatenate([begun, best[None], candidates])
    draws = surrogate.sample(rows, DRAWS, drawing)
    chosen = rows[(draws + KL * _divergence(rows, begun[0])).argmin(axis=1)]
    mean, spread = surrogate.predict(rows[:2])
    gain = Score(float(mean[0] - mean[1]), float((draws[:, 0] - draws[:, 1]).std()))
    clear = gain.value > CLEAR * gain.stderr
    chosen_start = best if clear else begun[0]
    return Recommendation(
        weights=dict(zip(names, map(float, chosen_start), strict=True)),
        best=dict(zip(names, map(float, best), strict=True)),
        uncertainty=dict(zip(names, map(float, chosen.std(axis=0)), strict=True)),
        predicted=Score(float(mean[1]), float(spread[1])),
        gain=gain,
        verdict="better" if clear else "inconclusive",
        surrogate=kind,
        errors=errors,
    )


def _divergence(mixtures: Array, start: Array) -> Array:
    """Kullback-Leibler divergence (n,) of mixtures from the start, which gets a little of all."""
    base = 0.99 * start + 0.01 / len(start)
    ratio = np.log(np.maximum(mixtures, 1e-12) / base)
    return np.asarray((mixtures * ratio).sum(axis=1))


def _candidates(mixtures: Array, most: Array, drawing: np.random.Generator) -> Array:
    """Mixtures everywhere on the capped simplex, those that ran, and between those that ran."""
    k = mixtures.shape[1]
    broad = np.concatenate([drawing.dirichlet(np.full(k, a), CANDIDATES // 3) for a in (0.4, 1.0)])
    pairs = drawing.integers(0, len(mixtures), (CANDIDATES // 3, 2))
    share = drawing.random((len(pairs), 1))
    between = share * mixtures[pairs[:, 0]] + (1 - share) * mixtures[pairs[:, 1]]
    return confine(np.concatenate([mixtures, broad, between]), most)
