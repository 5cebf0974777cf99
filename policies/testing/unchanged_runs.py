"""Runs whose mixture never changes: what every noise estimate has to be right on."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from mixloop.policies.interface import (
    BITS_PER_BYTE,
    BenchmarkScore,
    Evaluation,
    Metric,
    Observation,
    Source,
)

EVERY = 1_000_000  # tokens between two evaluations
ITEMS = 200
COMMON = 0.3  # part of the jitter's variance that all benchmarks share
DECAY = 0.2  # part of the budget, at its end, in which losses fall by themselves
MIXTURE = {"code": 0.5, "prose": 0.5}


@dataclass(frozen=True)
class UnchangedRun:
    """A run as policies see it, and the smooth course that its scores lie about.

    ``courses`` are bits per byte by benchmark, one for each evaluation.
    """

    observation: Observation
    courses: dict[str, list[float]]

    def scores(self, benchmark: str) -> list[float]:
        """What was measured, bits per byte."""
        seen = (
            e.benchmarks[benchmark].metrics[BITS_PER_BYTE] for e in self.observation.evaluations
        )
        return [metric.value for metric in seen]


def unchanged_run(
    evaluations: int,
    jitter: float,
    seed: int,
    *,
    autocorrelation: float = 0.0,
    items: float = 0.004,
    benchmarks: int = 4,
) -> UnchangedRun:
    """Power laws in tokens that fall a little more in the decay, with noise of two kinds.

    Args:
        evaluations: how many.
        jitter: standard deviation of the trajectory's noise, bits per byte, on average over the
            benchmarks (each has 0.7 to 1.3 of it). Of its variance three tenths are common to all.
        seed: of everything drawn.
        autocorrelation: of the jitter from one evaluation to the next (first order).
        items: standard deviation of the items' noise, which the scores state.
        benchmarks: how many.
    """
    drawing = random.Random(seed)
    together = _noise(drawing, evaluations, autocorrelation)
    courses, scores = {}, {}
    for index in range(benchmarks):
        name = f"bench-{index}"
        courses[name] = _course(drawing, evaluations)
        own = _noise(drawing, evaluations, autocorrelation)
        size = jitter * drawing.uniform(0.7, 1.3)
        scores[name] = [
            value
            + size * (math.sqrt(COMMON) * shared + math.sqrt(1 - COMMON) * alone)
            + drawing.gauss(0, items)
            for value, shared, alone in zip(courses[name], together, own, strict=True)
        ]
    seen = tuple(
        Evaluation(
            step=place + 1,
            tokens=EVERY * (place + 1),
            phase="decay" if place + 1 > (1 - DECAY) * evaluations else "stable",
            weights=MIXTURE,
            drawn={name: share * EVERY * (place + 1) for name, share in MIXTURE.items()},
            benchmarks={name: _score(values[place], items) for name, values in scores.items()},
        )
        for place in range(evaluations)
    )
    observation = Observation(
        step=evaluations,
        tokens=EVERY * evaluations,
        budget=EVERY * evaluations,
        sources={name: Source(unique_tokens=10**12) for name in MIXTURE},
        weights=MIXTURE,
        evaluations=seen,
    )
    return UnchangedRun(observation, courses)


def _course(drawing: random.Random, evaluations: int) -> list[float]:
    least, size = drawing.uniform(0.8, 1.8), 0.4 * drawing.uniform(0.4, 1)
    exponent, before = drawing.uniform(0.1, 0.5), drawing.uniform(0, 0.05)
    anneal = drawing.uniform(0.02, 0.08)
    done = [(place + 1) / evaluations for place in range(evaluations)]
    return [
        least + size * (part + before) ** -exponent - anneal * max(0.0, (part - 1) / DECAY + 1)
        for part in done
    ]


def _noise(drawing: random.Random, count: int, autocorrelation: float) -> list[float]:
    """Of unit variance."""
    values = [drawing.gauss(0, 1)]
    fresh = math.sqrt(1 - autocorrelation**2)
    for _ in range(count - 1):
        values.append(autocorrelation * values[-1] + fresh * drawing.gauss(0, 1))
    return values


def _score(value: float, stderr: float) -> BenchmarkScore:
    metric = Metric(value=value, stderr=stderr, n=ITEMS, higher_is_better=False)
    return BenchmarkScore(metrics={BITS_PER_BYTE: metric})
