"""Weighing the laws by how well each predicted scores it had not seen.

A law is fitted to the evaluations before an end and predicts those up to the next end; the log
densities of what then came, under its parameters' uncertainty and the noise, add up to its
prequential score (Dawid 1984, *JRSS A* 147).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mixloop.policies.mixture import Array

from .fit import Fit
from .law_data import LawData

PARTS = (0.4, 0.7)  # of the evaluations, what predictions are made from
MIN_EVALUATIONS = 4
TAIL = 4.0  # degrees of freedom of the density: one wild score is no refutation


@dataclass(frozen=True)
class Averaging:
    """The laws' standing.

    Attributes:
        names, weights: of the laws, the null left out.
        scores: (laws + 1, blocks) prequential, the null's last.
        surprise: how many standard deviations the best law explains more than chance would.
        ahead: the ensemble's predictive score less the null's.
        trust: from 0 to 1, whether the newest block was predicted better than by the null.
        misfit: the best law's squared residuals in noise variances, by their degrees of freedom.
    """

    names: tuple[str, ...]
    weights: Array
    scores: Array
    surprise: float
    ahead: float
    trust: float
    misfit: float

    def leading(self) -> str:
        """The laws that count, heaviest first."""
        ranked = sorted(zip(self.weights, self.names, strict=True), reverse=True)
        return ", ".join(f"{name} {weight:.0%}" for weight, name in ranked if weight >= 0.1)

    def evidence(self) -> dict[str, Any]:
        """For the decision's record."""
        return {
            "laws": {n: round(float(w), 4) for n, w in zip(self.names, self.weights, strict=True)},
            "predicted": [round(float(score), 2) for score in self.scores.sum(axis=1)],
            "surprise": round(self.surprise, 3),
            "misfit": round(self.misfit, 3),
        }


def cut_points(n: int) -> list[int]:
    """How many evaluations to predict from, and all of them last."""
    return [*sorted({c for part in PARTS if MIN_EVALUATIONS <= (c := round(n * part)) < n}), n]


def weigh(data: LawData, fits: Sequence[Fit], cuts: Sequence[int], temper: float) -> Averaging:
    """The standing of all fits; the last one is the null."""
    scores = np.array([_scores(data, fit, cuts) for fit in fits])
    logs = temper * scores[:-1].sum(axis=1) + np.log([fit.law.prior for fit in fits[:-1]])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    together = weights @ scores[:-1] - scores[-1]
    misfit = np.array([_misfit(data, fit) for fit in fits])
    level = float((misfit / np.array([_free(data, fit) for fit in fits]))[:-1].min())
    last = float(together[-1]) if together.size else np.inf
    return Averaging(
        names=tuple(fit.law.name for fit in fits[:-1]),
        weights=weights,
        scores=scores,
        surprise=_surprise(data, misfit, max(1.0, level)),
        ahead=float(together.sum()),
        trust=float(1 / (1 + np.exp(-np.clip(last, -30, 30)))),
        misfit=level,
    )


def _scores(data: LawData, fit: Fit, cuts: Sequence[int]) -> Array:
    """Log density of each block after a cut but the last, (blocks,)."""
    scores = []
    for index, (cut, until) in enumerate(pairwise(cuts)):
        block = slice(cut, until)
        losses = data.losses[:, block]
        variance = data.noise[:, block] ** 2 + fit.spread[index][:, block] ** 2
        off = losses - fit.fitted[index][:, block]
        density = -(TAIL + 1) / 2 * np.log1p(off**2 / variance / TAIL) - np.log(variance) / 2
        scores.append(float(np.where(np.isfinite(losses), density, 0.0).sum()))
    return np.array(scores)


def _misfit(data: LawData, fit: Fit) -> float:
    off = (data.losses - fit.fitted[-1]) / data.noise
    return float(np.where(np.isfinite(off), np.minimum(off**2, 9.0), 0.0).sum())


def _free(data: LawData, fit: Fit) -> float:
    """Scores, less the parameters that they came to determine (the trace of the fit's hat)."""
    scored = np.isfinite(data.losses)
    taken = np.where(scored, (fit.spread[-1] / np.where(scored, data.noise, 1.0)) ** 2, 0.0)
    return float(max(1.0, scored.sum() - np.minimum(taken, 1.0).sum()))


def _surprise(data: LawData, misfit: Array, level: float) -> float:
    """What the best law explains beyond the null, against the chi-squared of its parameters.

    In units of what it leaves (``level``): noise that was taken for too small explains nothing.
    """
    free = len(data.series) * max(1, len(data.names) - 1)
    return float(((misfit[-1] - misfit[:-1].min()) / level - free) / np.sqrt(2 * free))
