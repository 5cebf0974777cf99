"""The scores of one checkpoint as a policy sees them: metrics, items, and how to pool them.

``bits_per_byte`` is bits of the gold answer per UTF-8 byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mixloop.common.paired import Difference, WeightedItems, paired_difference, unpaired_difference

BITS_PER_BYTE = "bits_per_byte"
Phase = Literal["warmup", "stable", "decay"]

Items = dict[str, dict[str, float]]
"""Item id to its outcomes: one number per metric, and ``bytes``, the length of the gold answer."""


class MissingScore(LookupError):  # noqa: N818 (an everyday outcome, said as one)
    """A score that isn't there: no such evaluation, benchmark, metric or item. Never a zero."""


# NaN survives the trip through JSON: a policy must see a broken score as one
FROZEN = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class _Frozen(BaseModel):
    model_config = FROZEN


class Metric(_Frozen):
    """One number of one benchmark: its value, standard error and the number of items behind it."""

    value: float
    stderr: float | None = None
    n: int = 0
    higher_is_better: bool = True

    @property
    def loss(self) -> float:
        """The value, negated where higher is better: lower is better."""
        return -self.value if self.higher_is_better else self.value


class BenchmarkScore(_Frozen):
    """All metrics of one benchmark at one checkpoint, with the outcomes of each item."""

    metrics: dict[str, Metric]
    items: Items = {}


class Evaluation(_Frozen):
    """The scores of one checkpoint. A benchmark that is missing is absent.

    ``drawn`` are the training tokens consumed per source up to this checkpoint, ``losses`` the
    training loss per source around it; both empty where they weren't recorded.
    """

    step: int
    tokens: int
    phase: Phase | None = None
    generation: int = 0
    weights: dict[str, float] = {}
    drawn: dict[str, float] = {}
    losses: dict[str, float] = {}
    benchmarks: dict[str, BenchmarkScore] = {}


def find_metric(evaluation: Evaluation, benchmark: str, metric: str) -> Metric:
    """One metric of one evaluation.

    Raises:
        MissingScore: when the benchmark or the metric is absent, or its value isn't finite.
    """
    if benchmark not in evaluation.benchmarks:
        raise MissingScore(f"{benchmark} has no score at step {evaluation.step}")
    entry = finite_metric(evaluation, benchmark, metric)
    if entry is None:
        raise MissingScore(f"{benchmark} has no {metric} at step {evaluation.step}")
    return entry


def finite_metric(evaluation: Evaluation, benchmark: str, metric: str) -> Metric | None:
    """One metric of one evaluation; None where there is none, or its value isn't finite."""
    score = evaluation.benchmarks.get(benchmark)
    entry = score.metrics.get(metric) if score is not None else None
    return entry if entry is not None and math.isfinite(entry.value) else None


def weighted_items(
    items: Mapping[str, Mapping[str, float]], metric: str, prefix: str = ""
) -> WeightedItems:
    """Item id, after ``prefix``, to (value, weight): gold bytes for bits per byte, else equal."""
    weigh = metric == BITS_PER_BYTE
    return {
        prefix + item: (outcome[metric], float(outcome.get("bytes", 1)) if weigh else 1.0)
        for item, outcome in items.items()
        if metric in outcome and math.isfinite(outcome[metric])
    }


def pooled_items(evaluation: Evaluation, benchmarks: Sequence[str], metric: str) -> WeightedItems:
    """The items of several benchmarks of one evaluation, ids prefixed by the benchmark's name.

    Works across runs: feed two of them to ``paired_difference``.

    Raises:
        MissingScore: when a benchmark is absent, or has no outcome of the metric.
    """
    pooled: dict[str, tuple[float, float]] = {}
    for benchmark in benchmarks:
        find_metric(evaluation, benchmark, metric)
        before = len(pooled)
        items = weighted_items(evaluation.benchmarks[benchmark].items, metric, f"{benchmark}/")
        pooled.update(items)
        if len(pooled) == before:
            step = evaluation.step
            raise MissingScore(f"{benchmark} has no per-item {metric} at step {step}")
    return pooled


def score_difference(
    old: BenchmarkScore, new: BenchmarkScore, metric: str, benchmark: str = ""
) -> Difference:
    """How much better ``new`` is than ``old``, paired over their items.

    Without per-item outcomes on a side, the two standard errors are added instead.

    Raises:
        MissingScore: when a side lacks the metric, or no item is shared.
    """
    before, after = old.metrics.get(metric), new.metrics.get(metric)
    if before is None or after is None or not math.isfinite(before.value + after.value):
        raise MissingScore(f"{benchmark or 'a benchmark'} has no {metric} on both sides")
    items = [weighted_items(side.items, metric, f"{benchmark}/") for side in (old, new)]
    better = new.metrics[metric].higher_is_better
    if all(items):
        try:
            return paired_difference(items[0], items[1], better, metric=metric, benchmark=benchmark)
        except ValueError as error:
            raise MissingScore(str(error)) from None
    return unpaired_difference(
        (before.value, stated(before.stderr), before.n),
        (after.value, stated(after.stderr), after.n),
        better,
        metric=metric,
        benchmark=benchmark,
    )


def stated(stderr: float | None) -> float:
    """The standard error; infinite where none is stated: nothing can be concluded from it."""
    return math.inf if stderr is None or math.isnan(stderr) else stderr
