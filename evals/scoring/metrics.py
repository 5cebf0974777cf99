"""Metrics from per-item outcomes: values, cluster-robust standard errors, intervals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mixloop.common.estimates import (
    degrees_of_freedom,
    mean,
    proportion_interval,
    ratio_of_totals,
    t_interval,
)
from mixloop.evals import Metric, Outcomes

Cluster = Callable[[str], str]
"""Item id to the cluster it was drawn with."""


def cluster_of(benchmark: str, item: str) -> str:
    """The subject of an MMLU item (its id is `subject/hash`); any other item is its own cluster."""
    return item.partition("/")[0] if benchmark == "mmlu" else item


def ratio_metric(outcomes: Outcomes, asked: int, cluster: Cluster = str) -> Metric:
    """Bits per byte over the items of `outcomes`, of which `asked` were wanted.

    The interval is Student's with clusters - 1 degrees of freedom.
    """
    weights = [outcome["bytes"] for outcome in outcomes.values()]
    totals = [outcome["bits_per_byte"] * outcome["bytes"] for outcome in outcomes.values()]
    clusters = [cluster(item) for item in outcomes]
    estimate = ratio_of_totals(totals, weights, clusters)
    return _metric(estimate, _t_interval(*estimate, clusters), len(totals), asked, higher=False)


def mean_metrics(
    outcomes: Outcomes,
    asked: int,
    cluster: Cluster = str,
    better: Mapping[str, bool] | None = None,
) -> dict[str, Metric]:
    """The mean of every outcome named in `outcomes`; each counts the items that have it.

    `better` says whether higher is better of a metric; it is where nothing is said.
    The interval is exact for 0/1 outcomes (at the effective number of items where they are
    clustered), else Student's.
    """
    higher = better or {}
    metrics = {}
    for name in dict.fromkeys(name for outcome in outcomes.values() for name in outcome):
        by_item = {item: outcome[name] for item, outcome in outcomes.items() if name in outcome}
        values, clusters = list(by_item.values()), [cluster(item) for item in by_item]
        estimate = mean(values, clusters)
        exact = set(values) <= {0.0, 1.0}
        interval = (
            proportion_interval(values, clusters) if exact else _t_interval(*estimate, clusters)
        )
        metrics[name] = _metric(
            estimate, interval, len(values), asked, higher=higher.get(name, True)
        )
    return metrics


def _metric(
    estimate: tuple[float, float | None],
    interval: tuple[float, float] | None,
    n: int,
    asked: int,
    *,
    higher: bool,
) -> Metric:
    value, stderr = estimate
    return Metric(
        value=value,
        stderr=stderr,
        interval=interval,
        n=n,
        higher_is_better=higher,
        asked=asked,
        excluded=asked - n,
    )


def _t_interval(
    value: float, stderr: float | None, clusters: Sequence[str]
) -> tuple[float, float] | None:
    if stderr is None:
        return None
    return t_interval(value, stderr, degrees_of_freedom(len(clusters), clusters))
