"""Differences between two evaluations of a run with all of their noise: items' and trajectory's.

Whatever decides on a difference takes it from here: the paired standard error over items alone
makes three checkpoints in four of an unchanged run look different.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mixloop.common.paired import Difference
from mixloop.policies.interface import BITS_PER_BYTE, Evaluation, Observation

from .trajectory_noise import Jitter, trajectory_noise


def honest_difference(
    observation: Observation,
    benchmark: str | Sequence[str],
    older: int | Evaluation,
    newer: int | Evaluation,
    metric: str | None = None,
) -> Difference:
    """How much better ``newer`` is, with the run's jitter in the standard error.

    Args:
        observation: the run that both evaluations are of.
        benchmark: one, or several whose items are pooled. What jitter these have in common isn't
            known: theirs are added up as if it were all, which bounds it.
        older, newer: evaluations or their indices.
        metric: the steering one (that they share, else bits per byte) unless it is named.

    Returns:
        The paired difference; ``trajectory`` is the jitter's part of its standard error, 0 where
        there are fewer than three evaluations to tell it from.

    Raises:
        MissingScore: when a side lacks the benchmark or metric, or no item is shared.
    """
    names = [benchmark] if isinstance(benchmark, str) else list(benchmark)
    name = metric or observation.common_metric(names)
    if len(names) == 1:
        difference = observation.difference(names[0], older, newer, name)
    else:
        difference = observation.pooled_difference(names, older, newer, name)
    jitter = pooled_noise(observation, names, observation.evaluation(newer), name)
    # both ends are off the course, each by its own
    return difference.beside(math.sqrt(2) * jitter.stderr, jitter.df)


def pooled_noise(
    observation: Observation, benchmarks: Sequence[str], evaluation: Evaluation, metric: str
) -> Jitter:
    """The jitter of several benchmarks' items together, if it is the same in all; of one, its own.

    ``evaluation`` tells how much each of them counts.
    """
    each = [trajectory_noise(observation, name, metric) for name in benchmarks]
    if len(each) == 1:
        return each[0]
    sizes = [_size(evaluation, name, metric) for name in benchmarks]
    parts = [size / math.fsum(sizes) for size in sizes]
    return Jitter(
        stderr=math.fsum(part * jitter.stderr for part, jitter in zip(parts, each, strict=True)),
        n=min(jitter.n for jitter in each),
        df=min(jitter.df for jitter in each),
        total=math.fsum(part * jitter.total for part, jitter in zip(parts, each, strict=True)),
    )


def _size(evaluation: Evaluation, benchmark: str, metric: str) -> float:
    """What a benchmark counts among others: bytes of its gold answers, or items."""
    score = evaluation.benchmarks.get(benchmark)
    if score is None:
        return 1.0
    if metric == BITS_PER_BYTE and score.items:
        return math.fsum(outcome.get("bytes", 1.0) for outcome in score.items.values()) or 1.0
    return float(max(1, len(score.items)))
