"""The run so far as arrays, for what is fitted to it.

n evaluations, k sources, m benchmarks. Losses are in bits per byte, negated where higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixloop.policies.interface import (
    BITS_PER_BYTE,
    Evaluation,
    Goal,
    MissingScore,
    Observation,
    finite_metric,
)

from .arrays import Array


@dataclass(frozen=True)
class BenchmarkSeries:
    """One benchmark at every evaluation.

    Attributes:
        name: of the benchmark.
        goal: what the run wants of it.
        losses: (n,), NaN where there is no score.
        stderr: (n,), NaN where it isn't known.
        negated: whether the losses are negated values, of a metric where higher is better.
    """

    name: str
    goal: Goal
    losses: Array
    stderr: Array
    negated: bool

    @property
    def scored(self) -> list[int]:
        """Indices of the evaluations with a score."""
        return [int(index) for index in np.flatnonzero(np.isfinite(self.losses))]


@dataclass(frozen=True)
class RunArrays:
    """The run so far; amounts of data in units of ``unit`` tokens.

    Attributes:
        names: sources, those that vanished included (last): what they gave is still in the model.
        unit: tokens of one unit.
        unique: (k,) unique tokens, infinite of a source that vanished.
        evaluations: n of them; without tokens they don't count.
        drawn: (n, k) drawn up to each evaluation.
        series: of each benchmark that steers and was ever scored.
    """

    names: tuple[str, ...]
    unit: float
    unique: Array
    evaluations: tuple[Evaluation, ...]
    drawn: Array
    series: tuple[BenchmarkSeries, ...]

    @property
    def tokens(self) -> Array:
        """Tokens at each evaluation, (n,)."""
        return np.array([evaluation.tokens for evaluation in self.evaluations]) / self.unit


def run_arrays(observation: Observation, unit: float) -> RunArrays:
    """The run as arrays, up to now.

    Where tokens were consumed since the newest evaluation, a last one without scores says so.
    """
    evaluations = [e for e in observation.evaluations if e.tokens > 0]
    if evaluations and observation.tokens > evaluations[-1].tokens:
        evaluations.append(_present(observation, evaluations[-1]))
    names = _names(observation, evaluations)
    sources = [observation.sources.get(name) for name in names]
    unique = [float(max(s.unique_tokens, 1)) if s is not None else math.inf for s in sources]
    steering = sorted(observation.steering_benchmarks())
    series = [
        _series(observation, evaluations, name)
        for name in steering
        if observation.goal(name).weight > 0
    ]
    return RunArrays(
        names=names,
        unit=unit,
        unique=np.array(unique) / unit,
        evaluations=tuple(evaluations),
        drawn=drawn_tokens(evaluations, names) / unit,
        series=tuple(entry for entry in series if entry.scored),
    )


def _present(observation: Observation, newest: Evaluation) -> Evaluation:
    ledger = {name: float(source.drawn) for name, source in observation.sources.items()}
    return Evaluation(
        step=observation.step,
        tokens=observation.tokens,
        phase=observation.phase,
        weights=observation.weights,
        drawn=newest.drawn | ledger,
    )


def _names(observation: Observation, evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """The sources of now, then those that were drawn from once and are gone."""
    gone = (name for e in evaluations for name in (*e.drawn, *e.weights))
    return tuple(dict.fromkeys([*observation.sources, *gone]))


def drawn_tokens(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Array:
    """Tokens per source up to each evaluation, (n, k); from mixtures where none were recorded."""
    rows, before = [np.zeros(len(names))], 0
    for evaluation in evaluations:
        row = _vector(evaluation.drawn, names)
        if not row.any():
            weights = _vector(evaluation.weights, names)
            even = weights if weights.any() else np.ones(len(names))
            row = rows[-1] + even / even.sum() * max(0, evaluation.tokens - before)
        rows.append(np.maximum(row, rows[-1]))
        before = evaluation.tokens
    return np.array(rows[1:]).reshape(-1, len(names))


def _vector(amounts: Mapping[str, float], names: Sequence[str]) -> Array:
    values = (amounts.get(name, 0.0) for name in names)
    return np.array([value if math.isfinite(value) and value > 0 else 0.0 for value in values])


def _series(
    observation: Observation, evaluations: Sequence[Evaluation], benchmark: str
) -> BenchmarkSeries:
    metrics = [finite_metric(evaluation, benchmark, BITS_PER_BYTE) for evaluation in evaluations]
    stderr = [metric.stderr if metric is not None else None for metric in metrics]
    return BenchmarkSeries(
        name=benchmark,
        goal=observation.goal(benchmark),
        losses=np.array([metric.loss if metric is not None else math.nan for metric in metrics]),
        stderr=np.array([e if e is not None and 0 < e < math.inf else math.nan for e in stderr]),
        negated=any(metric is not None and metric.higher_is_better for metric in metrics),
    )


def paired_noise(
    observation: Observation, benchmark: str, older: Evaluation, newer: Evaluation
) -> float | None:
    """Standard deviation of one score beside the other: what their items share cancels out.

    None without paired items.
    """
    if not newer.benchmarks[benchmark].items:
        return None
    try:
        difference = observation.difference(benchmark, older, newer, BITS_PER_BYTE)
    except MissingScore:
        return None
    paired = difference.paired and math.isfinite(difference.stderr)
    return difference.stderr / math.sqrt(2) if paired else None
