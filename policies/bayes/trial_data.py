"""The run so far as trials: what each segment did to the data, and the scores after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.evidence import trajectory_noise
from mixloop.policies.interface import BITS_PER_BYTE, Observation
from mixloop.policies.mixture import (
    Array,
    BenchmarkSeries,
    RunArrays,
    effective,
    paired_noise,
    run_arrays,
)

MIN_NOISE = 1e-5


@dataclass(frozen=True)
class TrialScores:
    """One benchmark's losses (lower is better) at the trials ``rows``.

    ``noise`` is the standard deviation of each about the run's course: items' and trajectory's.
    """

    name: str
    weight: float
    rows: NDArray[np.int64]
    loss: Array
    noise: Array


@dataclass(frozen=True)
class TrialData:
    """The evaluations that count, n of them over k sources; amounts in units of ``unit`` tokens.

    ``tokens`` (n,) at each evaluation; ``shares`` (n, k) the effective tokens of each source over
    all tokens; ``drawn`` and ``unique`` (k,) now.
    """

    names: tuple[str, ...]
    unit: float
    tokens: Array
    shares: Array
    drawn: Array
    unique: Array
    scores: tuple[TrialScores, ...]

    @property
    def trials(self) -> int:
        """Evaluations with a score that counts."""
        return len({int(row) for scores in self.scores for row in scores.rows})


def trial_data(observation: Observation) -> TrialData:
    """The evaluations in the learning rate's stable phase.

    Gains inside decay come from the learning rate, those of the warm-up likewise: no mixture gets
    credit for them.
    """
    arrays = run_arrays(observation, _unit(observation))
    evaluated = sum(evaluation.tokens > 0 for evaluation in observation.evaluations)
    evaluations = enumerate(arrays.evaluations[:evaluated])
    stable = [i for i, evaluation in evaluations if evaluation.phase in (None, "stable")]
    tokens = arrays.tokens[stable]
    worth = effective(arrays.drawn, arrays.unique)[stable].reshape(-1, len(arrays.names))
    scores = (_scores(observation, arrays, series, stable) for series in arrays.series)
    return TrialData(
        names=arrays.names,
        unit=arrays.unit,
        tokens=tokens,
        shares=worth / np.maximum(tokens, 1e-9)[:, None],
        drawn=arrays.drawn[-1] if len(arrays.drawn) else np.zeros(len(arrays.names)),
        unique=arrays.unique,
        scores=tuple(entry for entry in scores if len(entry.rows)),
    )


def _unit(observation: Observation) -> float:
    """Tokens of one segment."""
    if observation.every > 0:
        return float(observation.every)
    scored = sorted({e.tokens for e in observation.evaluations if e.tokens > 0})
    gaps = np.diff([0, *scored])
    return float(np.median(gaps)) if len(gaps) else float(max(1, observation.budget // 40))


def _scores(
    observation: Observation, arrays: RunArrays, series: BenchmarkSeries, stable: list[int]
) -> TrialScores:
    scored = [(row, i) for row, i in enumerate(stable) if math.isfinite(series.losses[i])]
    rows, indices = [row for row, _ in scored], [i for _, i in scored]
    noise = series.stderr[indices]
    for place in range(1, len(indices)):
        # beside the one before: what their items share cancels out
        older, newer = (arrays.evaluations[i] for i in indices[place - 1 : place + 1])
        paired = paired_noise(observation, series.name, older, newer)
        noise[place] = noise[place] if paired is None else paired
    noise = np.hypot(noise, trajectory_noise(observation, series.name, BITS_PER_BYTE).stderr)
    loss = series.losses[indices]
    weight = series.goal.weight
    return TrialScores(series.name, weight, np.array(rows, dtype=int), loss, _known(loss, noise))


def _known(loss: Array, noise: Array) -> Array:
    """Unknown standard errors from the scatter about a straight line through three neighbours."""
    unknown = ~np.isfinite(noise)
    if unknown.any():
        bends = loss[2:] - 2 * loss[1:-1] + loss[:-2]
        scatter = np.median(np.abs(bends)) / 0.6745 / math.sqrt(6) if len(bends) else np.inf
        stated = noise[~unknown]
        noise = np.where(unknown, np.median(stated) if len(stated) else scatter, noise)
    return np.where(np.isfinite(noise), np.maximum(noise, MIN_NOISE), 1.0)
