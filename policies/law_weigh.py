"""Weighing the laws by how well each predicted scores it had not seen.

A law is fitted to the evaluations before an end and predicts those up to the next end; the log
densities of what then came, under its parameters' uncertainty and the noise, add up to its
prequential score (Dawid 1984, *JRSS A* 147).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .law_data import Array, Course
from .law_fit import Fit


def ends(n: int) -> list[int]:
    """Prefixes to predict from, and the whole run last."""
    parts = sorted({max(4, round(n * part)) for part in (0.4, 0.7)} - {n})
    return [*[p for p in parts if p < n], n]


def scores(course: Course, fit: Fit, cuts: Sequence[int]) -> Array:
    """Log density of each block after a cut, (blocks,)."""
    found = []
    for index, (cut, until) in enumerate(zip(cuts, [*cuts[1:]], strict=False)):
        block = slice(cut, until)
        losses = course.losses[:, block]
        variance = course.noise[:, block] ** 2 + fit.spread[index][:, block] ** 2
        off = losses - fit.fitted[index][:, block]
        # a Student t of few degrees of freedom: one wild score is no refutation
        density = -2.5 * np.log1p(off**2 / variance / 4) - np.log(variance) / 2
        found.append(float(np.where(np.isfinite(losses), density, 0.0).sum()))
    return np.array(found)


def weigh(
    course: Course, fits: Sequence[Fit], cuts: Sequence[int], temper: float
) -> tuple[Array, dict[str, Any]]:
    """Weights of all fits but the last, the null, and the evidence for them."""
    table = np.array([scores(course, fit, cuts).sum() for fit in fits])
    logs = temper * table + np.log([fit.law.prior for fit in fits])
    laws = np.exp(logs[:-1] - logs[:-1].max())
    misfit = np.array([_misfit(course, fit) for fit in fits])
    return laws / laws.sum(), {
        "scores": {fit.law.name: float(s) for fit, s in zip(fits, table, strict=True)},
        "misfit": {fit.law.name: float(s) for fit, s in zip(fits, misfit, strict=True)},
        "weights": {f.law.name: float(w) for f, w in zip(fits, laws / laws.sum(), strict=False)},
        "surprise": _surprise(course, misfit),
    }


def _misfit(course: Course, fit: Fit) -> float:
    off = (course.losses - fit.fitted[-1]) / course.noise
    return float(np.where(np.isfinite(off), np.minimum(off**2, 9.0), 0.0).sum())


def _surprise(course: Course, misfit: Array) -> float:
    """How many standard deviations the mixing laws explain more than chance would."""
    free = len(course.benchmarks) * (len(course.names) - 1)
    explained = misfit[-1] - misfit[:-1].min()
    return float((explained - free) / np.sqrt(2 * free))
