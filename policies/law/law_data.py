"""The run as the laws are fitted to it: amounts in shares of the whole budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixloop.policies.evidence import trajectory_noise
from mixloop.policies.interface import BITS_PER_BYTE, Evaluation, Observation
from mixloop.policies.mixture import Array, BenchmarkSeries, RunArrays, run_arrays

UNKNOWN = 0.01  # bits per byte, the noise of a score that comes without any


@dataclass(frozen=True)
class LawData(RunArrays):
    """The run, with what the laws need beside it.

    Attributes:
        decay: (n,) how far each evaluation is into the learning rate's decay, 0 to 1.
        losses, noise: (m, n); NaN where there is no score, the noise's standard deviation.
    """

    decay: Array
    losses: Array
    noise: Array

    @property
    def total(self) -> Array:
        """Everything drawn up to each evaluation, (n,)."""
        return np.asarray(self.drawn.sum(axis=1))


def law_data(observation: Observation) -> LawData | None:
    """The run as arrays; None while no steering benchmark is scored."""
    budget = float(max(observation.budget, observation.tokens, 1))
    arrays = run_arrays(observation, budget)
    if not arrays.series:
        return None
    return LawData(
        **vars(arrays),
        decay=_decay(arrays.evaluations, budget),
        losses=np.array([series.losses for series in arrays.series]),
        noise=np.array([_noise(observation, series) for series in arrays.series]),
    )


def _decay(evaluations: Sequence[Evaluation], budget: float) -> Array:
    tokens = np.array([e.tokens for e in evaluations], dtype=float)
    falling = [e.tokens for e in evaluations if e.phase == "decay"]
    if not falling:
        return np.zeros(len(tokens))
    steady = [e.tokens for e in evaluations if e.phase != "decay" and e.tokens < falling[0]]
    begun = steady[-1] if steady else falling[0]
    return np.asarray(np.clip((tokens - begun) / max(budget - begun, 1.0), 0, 1))


def _noise(observation: Observation, series: BenchmarkSeries) -> Array:
    """Standard deviation of each score about a smooth course, (n,).

    A score's own standard error is mostly which items were asked, the same at every checkpoint:
    it only says how scores compare. What they scatter by, items' part included, is told by the
    run (:func:`~mixloop.policies.evidence.trajectory_noise`).
    """
    total = trajectory_noise(observation, series.name, BITS_PER_BYTE).total
    stderr = series.stderr
    typical = float(np.nanmedian(stderr)) if np.isfinite(stderr).any() else math.nan
    relative = np.where(np.isfinite(stderr), stderr / typical, 1.0)
    return np.maximum((total if total > 0 else UNKNOWN) * relative, 1e-6)
