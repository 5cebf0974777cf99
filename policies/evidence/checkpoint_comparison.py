"""Two checkpoints side by side on one metric, over the items that both were scored on. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixloop.common.paired import (
    Difference,
    WeightedItems,
    mcnemar,
    paired_difference,
    shared_items,
    weighted_mean,
)
from mixloop.policies.interface import BenchmarkScore, MissingScore, weighted_items

from .trajectory_noise import UNKNOWN_JITTER, Jitter


@dataclass(frozen=True)
class Comparison:
    """How ``b`` stands to ``a``: their values over the shared items, and the paired difference.

    ``items_a`` and ``items_b`` count what each side scored; ``difference.n`` of them are shared.
    ``mcnemar`` is the exact two-sided p-value where all outcomes are 0 or 1, else None.
    """

    a: float
    b: float
    items_a: int
    items_b: int
    difference: Difference
    mcnemar: float | None


def compare(
    benchmark: str,
    metric: str,
    a: BenchmarkScore,
    b: BenchmarkScore,
    jitter: Jitter = UNKNOWN_JITTER,
) -> Comparison:
    """One metric of one benchmark at two checkpoints.

    ``jitter`` is that of the run both are of; without it the items' error stands alone.

    Raises:
        MissingScore: when a side lacks the metric, or no item is scored on both.
    """
    old, new = (_items(benchmark, metric, side) for side in (a, b))
    higher = b.metrics[metric].higher_is_better
    try:
        difference = paired_difference(old, new, higher, metric=metric, benchmark=benchmark)
    except ValueError:
        raise MissingScore(f"{benchmark} {metric}: no item is scored on both sides") from None
    shared = shared_items(old, new).values()
    return Comparison(
        a=weighted_mean([(before, weight) for before, _, weight in shared])[0],
        b=weighted_mean([(after, weight) for _, after, weight in shared])[0],
        items_a=len(old),
        items_b=len(new),
        difference=difference.beside(math.sqrt(2) * jitter.stderr, jitter.df),
        mcnemar=mcnemar(old, new),
    )


def _items(benchmark: str, metric: str, score: BenchmarkScore) -> WeightedItems:
    if metric not in score.metrics:
        raise MissingScore(f"{benchmark} {metric}: not measured on both sides")
    return weighted_items(score.items, metric, f"{benchmark}/")
