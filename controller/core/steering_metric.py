"""Which metric steers each benchmark: the one that separates checkpoints best. Pure.

Bits per byte of the gold answer moves long before a headline metric leaves chance, so it steers
from the start. The headline takes over at the first evaluation where all of this holds:

- it and the evaluation before it lie more than ``CLEAR`` standard errors above chance, and
- over the last ``WINDOW`` pairs of consecutive evaluations, its median |paired z| is above that
  of bits per byte.

Once taken over, it stays: a metric that changed back and forth would let a policy compare what
can't be compared. The answer is a fold over the evaluations, oldest first, with no other state:
more evaluations never change what was true at an earlier one, so a restart, a replay and a
back-test agree. Evaluations that lack one of the two metrics are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from mixloop.policies.interface import BITS_PER_BYTE, Evaluation, Metric, Observation

Rule = Literal["auto", "bits_per_byte"]

WINDOW = 4  # pairs: one pair's z is mostly noise, and what it decides is for good
CLEAR = 2.0  # standard errors above chance
HEADLINES = {
    "mmlu": "accuracy",
    "gsm8k": "exact_match",
    "math": "exact_match",
    "humaneval": "pass_at_1",
}
CHANCE = {"mmlu": 0.25}  # of four letters; text that is written freely is right by chance at 0

_NO_RUN = Observation(sources={}, weights={})


@dataclass(frozen=True)
class Steering:
    """The metric that steers one benchmark, since which step (None: from the start), and why."""

    metric: str
    since: int | None
    why: str


def steer(benchmark: str, evaluations: Sequence[Evaluation], rule: Rule = "auto") -> Steering:
    """The metric that steers ``benchmark`` after these evaluations, oldest first.

    A benchmark that has never given bits per byte is steered by its headline, or else by the
    first metric it has; the rule begins with the first bits per byte.
    """
    if (only := _without_bits(benchmark, evaluations)) is not None:
        return Steering(only, None, "it gives no bits per byte")
    headline = HEADLINES.get(benchmark)
    if rule != "auto":
        return Steering(BITS_PER_BYTE, None, f"evals.steering is {rule}")
    if headline is None:
        return Steering(BITS_PER_BYTE, None, "it has no headline metric")
    both = [e for e in evaluations if all(_has(e, benchmark, m) for m in (BITS_PER_BYTE, headline))]
    for end in range(WINDOW + 1, len(both) + 1):
        window = both[end - WINDOW - 1 : end]
        newest = [e.benchmarks[benchmark].metrics[headline] for e in window[-2:]]
        if all(above_chance(benchmark, metric) for metric in newest):
            taken = _takes_over(benchmark, headline, window)
            if taken is not None:
                return taken
    return Steering(BITS_PER_BYTE, None, f"{headline} does not separate checkpoints better")


def steer_all(
    benchmarks: Iterable[str], evaluations: Sequence[Evaluation], rule: Rule = "auto"
) -> dict[str, Steering]:
    """:func:`steer` for each of these benchmarks."""
    return {benchmark: steer(benchmark, evaluations, rule) for benchmark in benchmarks}


def above_chance(benchmark: str, metric: Metric) -> bool:
    """Whether a headline lies more than ``CLEAR`` standard errors above guessing."""
    if metric.stderr is None or not math.isfinite(metric.stderr):
        return False
    return metric.value - CLEAR * metric.stderr > CHANCE.get(benchmark, 0.0)


def _takes_over(benchmark: str, headline: str, window: Sequence[Evaluation]) -> Steering | None:
    ours = _separation(benchmark, headline, window)
    bits = _separation(benchmark, BITS_PER_BYTE, window)
    if ours is None or bits is None or ours <= bits:
        return None
    why = (
        f"above chance twice, and over the last {WINDOW} pairs its median |z| is {ours:.2g} "
        f"against {bits:.2g} of {BITS_PER_BYTE}"
    )
    return Steering(headline, window[-1].step, why)


def _separation(benchmark: str, metric: str, window: Sequence[Evaluation]) -> float | None:
    """Median |paired z| over consecutive evaluations; None where a pair shares no item."""
    try:
        pairs = [_NO_RUN.difference(benchmark, old, new, metric) for old, new in pairwise(window)]
    except LookupError:
        return None
    return median(abs(difference.z) for difference in pairs)


def _without_bits(benchmark: str, evaluations: Sequence[Evaluation]) -> str | None:
    """What steers a benchmark that was scored, but never in bits per byte."""
    scored = (e.benchmarks[benchmark] for e in evaluations if benchmark in e.benchmarks)
    names = {name for score in scored for name in score.metrics}
    if not names or BITS_PER_BYTE in names:
        return None
    headline = HEADLINES.get(benchmark)
    return headline if headline in names else min(names)


def _has(evaluation: Evaluation, benchmark: str, metric: str) -> bool:
    score = evaluation.benchmarks.get(benchmark)
    kept = score.metrics.get(metric) if score is not None else None
    return kept is not None and math.isfinite(kept.value)
