"""The run as the laws are fitted to it: amounts in shares of the whole budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mixloop.policies.interface import Evaluation, Observation
from mixloop.policies.mixture import Array, BenchmarkSeries, RunArrays, paired_noise, run_arrays

PAIRS = 3  # newest pairs of evaluations that the noise of a benchmark is taken from
UNKNOWN = 0.01  # bits per byte, the noise of a score that comes without any
SCATTER = 0.6745 * math.sqrt(6)  # median size of a second difference, in the noise of one score


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
        noise=np.array([_noise(observation, arrays, series) for series in arrays.series]),
    )


def _decay(evaluations: Sequence[Evaluation], budget: float) -> Array:
    tokens = np.array([e.tokens for e in evaluations], dtype=float)
    falling = [e.tokens for e in evaluations if e.phase == "decay"]
    if not falling:
        return np.zeros(len(tokens))
    steady = [e.tokens for e in evaluations if e.phase != "decay" and e.tokens < falling[0]]
    begun = steady[-1] if steady else falling[0]
    return np.asarray(np.clip((tokens - begun) / max(budget - begun, 1.0), 0, 1))


def _noise(observation: Observation, arrays: RunArrays, series: BenchmarkSeries) -> Array:
    """Standard deviation of each score about a smooth course, (n,).

    A score's own standard error is mostly which items were asked, the same at every checkpoint:
    the paired one is taken where there is one, and both give way to what the scores' second
    differences show as they become many.
    """
    stderr = series.stderr
    paired = _paired(observation, arrays.evaluations, series.name)
    typical = float(np.nanmedian(stderr)) if np.isfinite(stderr).any() else math.nan
    stated = paired if paired else (typical if math.isfinite(typical) else UNKNOWN)
    relative = np.where(np.isfinite(stderr), stderr / typical, 1.0)
    losses = series.losses[series.scored]
    if len(losses) >= 8:
        rough = float(np.median(np.abs(np.diff(losses, 2)))) / SCATTER
        part = 0.5 * len(losses) / (len(losses) + 20)
        stated *= float(np.clip(rough / stated, 0.2, 3.0)) ** part
    return np.maximum(stated * relative, 1e-6)


def _paired(
    observation: Observation, evaluations: Sequence[Evaluation], benchmark: str
) -> float | None:
    """Typical noise of one score beside the next, of the newest pairs."""
    scored = [e for e in evaluations if benchmark in e.benchmarks][-PAIRS - 1 :]
    pairs = (paired_noise(observation, benchmark, *pair) for pair in pairwise(scored))
    noise = [entry for entry in pairs if entry]
    return float(np.median(noise)) if noise else None
