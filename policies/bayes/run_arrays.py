"""An observation as arrays: tokens, effective shares of every source, losses and their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.interface import (
    BITS_PER_BYTE,
    Evaluation,
    MissingScore,
    Observation,
    find_metric,
)

Array = NDArray[np.float64]

R_STAR = 15.39
"""Repetition's half-life in epochs (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5)."""
LEAST_NOISE = 1e-5


@dataclass(frozen=True)
class BenchmarkSeries:
    """One benchmark's losses (lower is better) with standard errors, each (rows,); ``rows`` index
    the history's."""

    name: str
    weight: float
    rows: NDArray[np.int64]
    loss: Array
    noise: Array


@dataclass(frozen=True)
class History:
    """The run so far, n evaluations of k sources; amounts of data in units of ``unit`` tokens.

    ``tokens`` (n,) at each evaluation; ``shares`` (n, k) the effective tokens of each source over
    all tokens; ``drawn`` and ``unique`` (k,) now.
    """

    names: tuple[str, ...]
    unit: float
    tokens: Array
    shares: Array
    drawn: Array
    unique: Array
    series: tuple[BenchmarkSeries, ...]

    @property
    def trials(self) -> int:
        """Evaluations with a score that counts."""
        return len(np.unique(np.concatenate([s.rows for s in self.series]))) if self.series else 0


def effective(drawn: Array, unique: Array) -> Array:
    """Unique-token worth of ``drawn`` tokens: ``U + U R* (1 - exp(-(D/U - 1)/R*))`` past an epoch.

    (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5.)
    """
    repeats = np.maximum(drawn / unique - 1, 0)
    return np.where(drawn <= unique, drawn, unique * (1 + R_STAR * -np.expm1(-repeats / R_STAR)))


def worth(drawn: Array, unique: Array) -> Array:
    """What one more token is worth after ``drawn``: the derivative of ``effective``."""
    return np.asarray(np.exp(-np.maximum(drawn / unique - 1, 0) / R_STAR))


def read_history(observation: Observation) -> History:
    """The evaluations that count: with tokens, in the learning rate's stable phase.

    Gains inside decay come from the learning rate, those of the warm-up likewise: no mixture gets
    credit for them.
    """
    names = _names(observation)
    unit = _unit(observation)
    kept = [e for e in observation.evaluations if e.tokens > 0]
    drawn = _drawn(kept, names) / unit
    unique = np.array([_unique(observation, name) for name in names]) / unit
    counted = [i for i, e in enumerate(kept) if e.phase in (None, "stable")]
    tokens = np.array([kept[i].tokens for i in counted], dtype=float) / unit
    worths = effective(drawn, unique)[counted].reshape(-1, len(names))
    shares = worths / np.maximum(tokens, 1e-9)[:, None]
    evaluations = [kept[i] for i in counted]
    series = tuple(s for s in _all_series(observation, evaluations) if len(s.rows))
    return History(names, unit, tokens, shares, _now(observation, names) / unit, unique, series)


def _names(observation: Observation) -> tuple[str, ...]:
    """The run's sources, and those that vanished: what they gave is still in the model."""
    gone = (name for e in observation.evaluations for name in (*e.drawn, *e.weights))
    return tuple(dict.fromkeys([*observation.sources, *gone]))


def _unit(observation: Observation) -> float:
    if observation.every > 0:
        return float(observation.every)
    scored = sorted({e.tokens for e in observation.evaluations if e.tokens > 0})
    gaps = np.diff([0, *scored])
    return float(np.median(gaps)) if len(gaps) else float(max(1, observation.budget // 40))


def _unique(observation: Observation, name: str) -> float:
    source = observation.sources.get(name)
    return float(max(source.unique_tokens, 1)) if source else math.inf


def _amount(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else 0.0


def _drawn(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Array:
    """Tokens per source at each evaluation, (n, k); from the weights where none were recorded."""
    rows = []
    total, tokens = np.zeros(len(names)), 0
    for evaluation in evaluations:
        if evaluation.drawn:
            total = _vector(evaluation.drawn, names)
        else:
            total = total + _vector(evaluation.weights, names) * (evaluation.tokens - tokens)
        tokens = evaluation.tokens
        rows.append(total)
    return np.array(rows).reshape(len(rows), len(names))


def _vector(amounts: Mapping[str, float], names: Sequence[str]) -> Array:
    return np.array([_amount(amounts.get(name, 0.0)) for name in names])


def _now(observation: Observation, names: Sequence[str]) -> Array:
    """Tokens per source by now: the ledger, or the last evaluation's where it says nothing."""
    ledger = {name: float(source.drawn) for name, source in observation.sources.items()}
    last = observation.evaluations[-1].drawn if observation.evaluations else {}
    return np.array([_amount(max(ledger.get(n, 0.0), last.get(n, 0.0))) for n in names])


def _all_series(
    observation: Observation, evaluations: Sequence[Evaluation]
) -> list[BenchmarkSeries]:
    watched = set(observation.watch)
    names = list(observation.steering) or sorted(observation.benchmarks())
    found = []
    for name in names:
        goal = observation.objective.get(name)
        weight = goal.weight if goal else 1.0
        if weight > 0 and name not in watched:
            found.append(_series(observation, evaluations, name, weight))
    return found


def _series(
    observation: Observation, evaluations: Sequence[Evaluation], name: str, weight: float
) -> BenchmarkSeries:
    rows, loss, noise = [], [], []
    for row, evaluation in enumerate(evaluations):
        try:
            found = find_metric(evaluation, name, BITS_PER_BYTE)
        except MissingScore:
            continue
        rows.append(row)
        loss.append(-found.value if found.higher_is_better else found.value)
        noise.append(_noise(observation, evaluations, name, (rows, found.stderr)))
    losses = np.array(loss)
    return BenchmarkSeries(
        name, weight, np.array(rows, dtype=int), losses, _known(losses, np.array(noise))
    )


def _noise(
    observation: Observation,
    evaluations: Sequence[Evaluation],
    name: str,
    at: tuple[Sequence[int], float | None],
) -> float:
    """Standard error of a score beside the one before: what their items share cancels out."""
    rows, stderr = at
    if len(rows) > 1 and evaluations[rows[-1]].benchmarks[name].items:
        older, newer = (evaluations[row] for row in rows[-2:])
        try:
            paired = observation.difference(name, older, newer, BITS_PER_BYTE)
        except MissingScore:
            paired = None
        if paired is not None and paired.paired and math.isfinite(paired.stderr):
            return paired.stderr / math.sqrt(2)
    return stderr if stderr is not None and stderr > 0 else math.nan


def _known(loss: Array, noise: Array) -> Array:
    """Unknown standard errors from the scatter about a straight line through three neighbours."""
    unknown = ~np.isfinite(noise)
    if unknown.any():
        bends = loss[2:] - 2 * loss[1:-1] + loss[:-2]
        scatter = np.median(np.abs(bends)) / 0.6745 / math.sqrt(6) if len(bends) else np.inf
        known = noise[~unknown]
        noise = np.where(unknown, np.median(known) if len(known) else scatter, noise)
    sound = np.isfinite(noise)
    return np.where(sound, np.maximum(noise, LEAST_NOISE), 1.0)
