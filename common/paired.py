"""Differences between two evaluations with their standard errors.

Both evaluations score the same items, so the difference is *paired*: what makes an item hard is
in both and cancels. The estimator is the ratio of :mod:`~mixloop.common.estimates`; with equal
weights it gives the mean difference and the standard error of the paired t test. Items of one MMLU
subject move together, so the standard error is robust to clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .estimates import Clusters, degrees_of_freedom, ratio_of_totals, t_quantile

WeightedItems = Mapping[str, tuple[float, float]]
"""Item id to (value, weight): bits per byte and gold bytes, or an outcome and 1."""


@dataclass(frozen=True)
class Difference:
    """How much better ``newer`` is than ``older``, in the metric's own unit.

    ``gain`` is positive when newer is better, whatever the metric's direction. ``df`` are the
    degrees of freedom of its t statistic (clusters - 1), ``n`` the items behind it. With one item
    the standard error is infinite: nothing can be concluded. ``paired`` is false when per-item
    outcomes were missing and the two standard errors had to be added. ``trajectory`` is the part
    of ``stderr`` (in squares) that no item shows, see :meth:`beside`.
    """

    gain: float
    stderr: float
    df: float
    n: int
    metric: str = ""
    benchmark: str = ""
    paired: bool = True
    trajectory: float = 0.0

    @property
    def items(self) -> float:
        """The part of the standard error that the items show."""
        if not math.isfinite(self.stderr):
            return self.stderr
        return math.sqrt(max(0.0, self.stderr**2 - self.trajectory**2))

    @property
    def spread(self) -> str:
        """The standard error for people: its parts, where it has two."""
        if self.trajectory <= 0:
            return f"±{self.stderr:.2g}"
        return f"±{self.items:.2g} items, ±{self.trajectory:.2g} trajectory"

    def times(self, factor: float) -> Difference:
        """The same in another unit, a positive ``factor`` times larger."""
        gain, stderr, trajectory = self.gain, self.stderr, self.trajectory
        sizes = {"stderr": stderr * factor, "trajectory": trajectory * factor}
        return replace(self, gain=gain * factor, **sizes)

    def beside(self, trajectory: float, df: float) -> Difference:
        """The same, its standard error raised by an independent part that rests on ``df``."""
        if trajectory <= 0 or df <= 0 or not math.isfinite(self.stderr):
            return self
        variances = (self.stderr**2, trajectory**2)
        together = welch(variances, (max(self.df, 1), df))
        stderr = math.sqrt(math.fsum(variances))
        return replace(self, stderr=stderr, df=together, trajectory=trajectory)

    @property
    def t(self) -> float:
        """Gain in standard errors."""
        if self.gain == 0 or math.isinf(self.stderr):
            return 0.0
        return self.gain / self.stderr if self.stderr > 0 else math.copysign(math.inf, self.gain)

    @property
    def z(self) -> float:
        """The normal score with the same tail probability as ``t`` at ``df``.

        Two standard errors over eight items are weaker evidence than over eight hundred; on this
        scale one threshold serves both.
        """
        return normal_score(self.t, self.df)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The t confidence interval of the gain."""
        half = t_quantile(0.5 + confidence / 2, self.df) * self.stderr if self.stderr else 0.0
        return self.gain - half, self.gain + half


def z_of(gain: float, stderr: float, df: float) -> float:
    """What z means everywhere: the normal score of an estimate whose error has ``df``."""
    return Difference(gain, stderr, df, 0).z


def normal_score(t: float, df: float) -> float:
    """The standard normal quantile at the probability that Student's t with ``df`` gives ``t``.

    Without degrees of freedom nothing can be concluded: 0.
    """
    if df <= 0 or not math.isfinite(t):
        return t if df > 0 else 0.0
    from scipy.special import ndtri, stdtr

    tail = float(stdtr(df, -abs(t)))
    # past 1e-300 the tail underflows; t itself is then as good a number as any
    score = -float(ndtri(tail)) if tail > 0 else abs(t)
    return math.copysign(score, t)


def pooled_cluster(item: str) -> str:
    """The cluster of an item of ``pooled_items``: its MMLU subject, elsewhere the item itself.

    >>> pooled_cluster("mmlu/anatomy/1f0c"), pooled_cluster("gsm8k/1f0c")
    ('mmlu/anatomy', 'gsm8k/1f0c')
    """
    benchmark, _, rest = item.partition("/")
    return f"{benchmark}/{rest.partition('/')[0]}" if benchmark == "mmlu" else item


def paired_difference(
    items_old: WeightedItems,
    items_new: WeightedItems,
    higher_is_better: bool,
    *,
    metric: str = "",
    benchmark: str = "",
) -> Difference:
    """The weighted mean difference over the items both sides have.

    ``D = sum(w d) / sum(w)`` with ``d = new - old``, and, over G clusters of items,
    ``SE = sqrt(G / (G - 1) * sum_g (sum_{i in g} w (d - D))^2) / sum(w)`` with G - 1 degrees of
    freedom (:mod:`~mixloop.common.estimates`). An item counts when both sides have it with a finite
    value and the same positive weight (another weight is another text).

    Raises:
        ValueError: when no item is shared.
    """
    pairs = shared_items(items_old, items_new)
    if not pairs:
        raise ValueError(f"{benchmark or 'the evaluations'}: no item is scored on both sides")
    clusters = [pooled_cluster(item) for item in pairs]
    changes = [(new - old, weight) for old, new, weight in pairs.values()]
    mean, stderr = weighted_mean(changes, clusters)
    # no change is no change: never a negative zero
    gain = mean if higher_is_better else 0.0 - mean
    df = degrees_of_freedom(len(pairs), clusters)
    return Difference(gain, stderr, df, len(pairs), metric, benchmark)


def mcnemar(items_old: WeightedItems, items_new: WeightedItems) -> float | None:
    """The exact two-sided p-value of McNemar's test on 0/1 outcomes; None for any other.

    Of the items that changed, as many should have got better as worse when nothing changed: a
    binomial test of one half (McNemar 1947, *Psychometrika* 12). It counts items as independent.
    """
    pairs = shared_items(items_old, items_new).values()
    if not all({old, new} <= {0.0, 1.0} for old, new, _ in pairs):
        return None
    up = sum(new > old for old, new, _ in pairs)
    down = sum(new < old for old, new, _ in pairs)
    tail = sum(math.comb(up + down, k) for k in range(min(up, down) + 1))
    return min(1.0, 2 * tail / (1 << up + down))


def unpaired_difference(
    old: tuple[float, float, int],
    new: tuple[float, float, int],
    higher_is_better: bool,
    *,
    metric: str = "",
    benchmark: str = "",
) -> Difference:
    """The same from two (value, standard error, n), independent; Welch-Satterthwaite df."""
    variances = (old[1] ** 2, new[1] ** 2)
    total = sum(variances)
    change = new[0] - old[0]
    return Difference(
        gain=change if higher_is_better else 0.0 - change,
        stderr=math.sqrt(total),
        df=welch(variances, [max(n - 1, 1) for n in (old[2], new[2])]),
        n=min(old[2], new[2]),
        metric=metric,
        benchmark=benchmark,
        paired=False,
    )


def welch(variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent terms (Welch-Satterthwaite); 0 without bounds.

    Args:
        variances: of each term.
        dfs: what each variance rests on, above 0.
    """
    total = math.fsum(variances)
    if not math.isfinite(total):
        return 0.0
    parts = math.fsum(v**2 / df for v, df in zip(variances, dfs, strict=True))
    return total**2 / parts if parts > 0 else math.fsum(dfs)


def weighted_mean(
    values: Sequence[tuple[float, float]], clusters: Clusters = None
) -> tuple[float, float]:
    """Mean of (value, weight) pairs and its standard error (infinite for one item)."""
    weights = [weight for _, weight in values]
    mean, stderr = ratio_of_totals([value * weight for value, weight in values], weights, clusters)
    return mean, math.inf if stderr is None else stderr


def shared_items(old: WeightedItems, new: WeightedItems) -> dict[str, tuple[float, float, float]]:
    """(old value, new value, weight) of each usable shared item, in ``new``'s order."""
    pairs = {}
    for item, (after, weight) in new.items():
        before, same = old.get(item, (math.nan, math.nan))
        if math.isfinite(before) and math.isfinite(after) and weight == same and weight > 0:
            pairs[item] = (before, after, weight)
    return pairs
