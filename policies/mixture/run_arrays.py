"""The run so far as arrays, for the laws to be fitted to.

Amounts of data are in shares of the whole budget, losses in bits per byte (negated where higher is
better). n evaluations, k sources, m benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.interface import BITS_PER_BYTE, Evaluation, Goal, MissingScore, Observation

Array = NDArray[np.float64]
PAIRS = 3  # newest pairs of evaluations that the noise of a benchmark is taken from
UNKNOWN = 0.01  # bits per byte, the noise of a score that comes without any


@dataclass(frozen=True)
class RunArrays:
    """What the laws are fitted to.

    Attributes:
        names: sources, those that vanished included (last).
        unique: (k,) unique tokens.
        drawn: (n, k) drawn up to each evaluation.
        decay: (n,) how far each evaluation is into the learning rate's decay, 0 to 1.
        losses, noise: (m, n); NaN where there is no score, the noise's standard deviation.
        benchmarks: those scored often enough.
        goals: one per benchmark; ``higher`` says which losses are negated values.
    """

    names: tuple[str, ...]
    unique: Array
    drawn: Array
    decay: Array
    losses: Array
    noise: Array
    benchmarks: tuple[str, ...]
    goals: tuple[Goal, ...]
    higher: tuple[bool, ...]

    @property
    def total(self) -> Array:
        """Tokens up to each evaluation, (n,)."""
        return np.asarray(self.drawn.sum(axis=1))


def run_arrays(seen: Observation) -> RunArrays | None:
    """The run as arrays; None while no steering benchmark is scored.

    Where tokens were consumed since the newest evaluation, a last row without scores says so.
    """
    budget = float(max(seen.budget, seen.tokens, 1))
    evaluations = [e for e in seen.evaluations if e.tokens > 0]
    if evaluations and seen.tokens > evaluations[-1].tokens:
        drawn = {name: float(source.drawn) for name, source in seen.sources.items()}
        evaluations.append(
            Evaluation(
                step=seen.step,
                tokens=seen.tokens,
                phase=seen.phase,
                weights=seen.weights,
                drawn=evaluations[-1].drawn | drawn,
            )
        )
    names = _names(seen, evaluations)
    scored = [_scores(seen, evaluations, name) for name in _steering(seen)]
    kept = [entry for entry in scored if np.isfinite(entry[1]).any()]
    if not kept:
        return None
    unique = [seen.sources[n].unique_tokens if n in seen.sources else math.inf for n in names]
    return RunArrays(
        names=names,
        unique=np.maximum(np.array(unique, dtype=float), 1.0) / budget,
        drawn=_drawn(evaluations, names) / budget,
        decay=_decay(evaluations, budget),
        losses=np.array([entry[1] for entry in kept]),
        noise=np.array([entry[2] for entry in kept]),
        benchmarks=tuple(entry[0] for entry in kept),
        goals=tuple(seen.objective.get(entry[0], Goal()) for entry in kept),
        higher=tuple(entry[3] for entry in kept),
    )


def _steering(seen: Observation) -> list[str]:
    names = sorted(seen.steering or seen.benchmarks())
    goals = {name: seen.objective.get(name, Goal()) for name in names}
    return [n for n in names if n not in seen.watch and goals[n].weight > 0]


def _names(seen: Observation, evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """The sources of now, then those that were drawn from once and are gone."""
    gone = (n for e in evaluations for n in [*e.drawn, *e.weights])
    return tuple(dict.fromkeys([*seen.sources, *gone]))


def _drawn(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Array:
    """Tokens per source up to each evaluation; from its mixture where they weren't recorded."""
    rows, before = [np.zeros(len(names))], 0
    for evaluation in evaluations:
        known = _finite(evaluation.drawn)
        if sum(known.values()) > 0:
            row = np.array([known.get(name, 0.0) for name in names])
        else:
            weights = np.array([_finite(evaluation.weights).get(name, 0.0) for name in names])
            even = weights / weights.sum() if weights.sum() > 0 else np.full(len(names), 1.0)
            row = rows[-1] + even / even.sum() * max(0, evaluation.tokens - before)
        rows.append(np.maximum(row, rows[-1]))
        before = evaluation.tokens
    return np.array(rows[1:])


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: v for name, v in values.items() if math.isfinite(v) and v >= 0}


def _decay(evaluations: Sequence[Evaluation], budget: float) -> Array:
    tokens = np.array([e.tokens for e in evaluations], dtype=float)
    falling = [e.tokens for e in evaluations if e.phase == "decay"]
    begun = falling[0] if falling else budget
    steady = [e.tokens for e in evaluations if e.phase != "decay" and e.tokens < begun]
    begun = steady[-1] if steady else begun
    into = np.clip((tokens - begun) / max(budget - begun, 1.0), 0, 1)
    return np.asarray(into if falling else np.zeros(len(tokens)))


def _scores(
    seen: Observation, evaluations: Sequence[Evaluation], benchmark: str
) -> tuple[str, Array, Array, bool]:
    values, errors, higher = [], [], False
    for evaluation in evaluations:
        score = evaluation.benchmarks.get(benchmark)
        metric = score.metrics.get(BITS_PER_BYTE) if score else None
        usable = metric is not None and math.isfinite(metric.value)
        higher = metric.higher_is_better if metric is not None and usable else higher
        values.append(metric.value if metric is not None and usable else math.nan)
        errors.append(metric.stderr if metric is not None and usable else None)
    losses = np.array(values) * (-1 if higher else 1)
    return benchmark, losses, _noise(seen, evaluations, benchmark, losses, errors), higher


def _noise(
    seen: Observation,
    evaluations: Sequence[Evaluation],
    benchmark: str,
    losses: Array,
    errors: Sequence[float | None],
) -> Array:
    """Standard deviation of each score about a smooth course.

    A score's own standard error is mostly which items were asked, the same at every checkpoint:
    the paired one is taken where there is one, and both give way to what the scores' second
    differences show as they become many.
    """
    known = np.array([e if e is not None and 0 < e < math.inf else math.nan for e in errors])
    paired = _paired(seen, evaluations, benchmark)
    typical = float(np.nanmedian(known)) if np.isfinite(known).any() else math.nan
    stated = paired if paired else (typical if math.isfinite(typical) else UNKNOWN)
    relative = np.where(np.isfinite(known), known / typical, 1.0) if typical > 0 else 1.0
    finite = losses[np.isfinite(losses)]
    if len(finite) >= 8:
        rough = float(np.median(np.abs(np.diff(finite, 2)))) / (0.6745 * math.sqrt(6))
        part = 0.5 * len(finite) / (len(finite) + 20)
        stated *= float(np.clip(rough / stated, 0.2, 3.0)) ** part
    return np.maximum(stated * relative * np.ones(len(losses)), 1e-6)


def _paired(seen: Observation, evaluations: Sequence[Evaluation], benchmark: str) -> float | None:
    have = [e for e in evaluations if benchmark in e.benchmarks][-PAIRS - 1 :]
    if not have or not have[-1].benchmarks[benchmark].items:
        return None
    found = []
    for older, newer in pairwise(have):
        try:
            difference = seen.difference(benchmark, older, newer, BITS_PER_BYTE)
        except MissingScore:
            continue
        if difference.paired and 0 < difference.stderr < math.inf:
            found.append(difference.stderr / math.sqrt(2))
    return float(np.median(found)) if found else None
