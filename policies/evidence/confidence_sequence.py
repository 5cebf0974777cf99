"""A receipt: what an intervention did, against a twin that went on without it, at any time.

Run and twin are scored on the same items at the same amounts of tokens: a stream of paired
differences, each with two errors. That over *items* is the same at every point, as the items are;
that of the two *trajectories* is new at each, but for an autocorrelation. So the mean of the first
n differences is ``Normal(effect, s^2 + J_n)``: s the items' part, J_n the jitter's.

Whoever looks at such a stream after every point, and stops when it says something, is wrong far
more often than one interval in twenty. The normal mixture (Robbins 1970, *Annals of Mathematical
Statistics* 41; Howard, Ramdas, McAuliffe & Sekhon 2021, arXiv 1810.08240, section 3.2) holds at
all points at once: under ``effect = 0`` the ratio of the likelihoods with ``effect ~ Normal(0, r)``
and without is a martingale that starts at 1, so by Ville's inequality it ever reaches 1 / a with
probability a at most. With ``v = s^2 + J_n`` the ratio reaches it where
``|mean| >= sqrt(v (v + r) / r (log((v + r) / v) - 2 log a))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from mixloop.common.estimates import t_quantile

from .trajectory_noise import AUTOCORRELATION, Jitter

CONFIDENCE = 0.95
NORMAL = 1.959964  # the normal quantile of it
TUNED = 3  # the number of points that the sequence is narrowest at
SURPRISE = -2 * math.log(1 - CONFIDENCE)
# r over the variance of the mean that it is best for, to first order (Howard et al., eq. 24)
MIXING = SURPRISE + math.log1p(SURPRISE)


@dataclass(frozen=True)
class ReceiptPoint:
    """How much better the run was than its twin at one amount of tokens, paired over items.

    ``stderr`` is the items' error; ``step`` the run's.
    """

    gain: float
    stderr: float
    step: int = 0
    metric: str = ""


@dataclass(frozen=True)
class Receipt:
    """The effect of an intervention against its twin; positive is better.

    ``low`` and ``high`` hold at every point at once (95%): they may be looked at as often as one
    likes. ``stderr`` is that of ``effect`` at this point alone; an interval made of it covers 95%
    only where the number of points was fixed beforehand.
    """

    effect: float
    stderr: float
    low: float
    high: float
    n: int
    metric: str = ""

    @property
    def conclusive(self) -> bool:
        """Whether the intervention did something, one way or the other."""
        return self.low > 0 or self.high < 0

    def interval(self) -> tuple[float, float]:
        """The 95% interval for a number of points that was fixed beforehand."""
        half = NORMAL * self.stderr
        return self.effect - half, self.effect + half


def receipt(
    points: Sequence[ReceiptPoint], jitter: Jitter, correlation: float = AUTOCORRELATION
) -> Receipt:
    """What the points so far say, oldest first.

    Args:
        points: at least one.
        jitter: of one trajectory; that of a difference is the square root of two larger. Where it
            rests on few degrees of freedom, the interval is as much wider as Student's t is; where
            it isn't known, nothing is.
        correlation: of neighbouring differences' jitter (an autoregression of first order).

    Raises:
        ValueError: without points.
    """
    if not points:
        raise ValueError("a receipt needs at least one point")
    n = len(points)
    effect = fsum(point.gain for point in points) / n
    jitters = 2 * jitter.stderr**2
    items = max(point.stderr for point in points) ** 2
    variance = items + jitters * mean_variance(n, correlation)
    mixing = MIXING * (items + jitters * mean_variance(TUNED, correlation))
    half = _half_width(variance, mixing) * _widened(jitter)
    return Receipt(effect, math.sqrt(variance), effect - half, effect + half, n, points[-1].metric)


def receipts(
    points: Sequence[ReceiptPoint], jitter: Jitter, correlation: float = AUTOCORRELATION
) -> list[Receipt]:
    """:func:`receipt` after each of the points."""
    return [receipt(points[:n], jitter, correlation) for n in range(1, len(points) + 1)]


def _half_width(variance: float, mixing: float) -> float:
    if not 0 < variance < math.inf:
        return variance  # 0: exact; infinite: nothing is known
    whole = variance + mixing
    return math.sqrt(variance * whole / mixing * (math.log(whole / variance) + SURPRISE))


def mean_variance(n: int, correlation: float) -> float:
    """The variance of the mean of n values of variance 1, ``correlation**lag`` between them."""
    lags = fsum(2 * (n - lag) * correlation**lag for lag in range(1, n))
    return (n + lags) / n**2


def _widened(jitter: Jitter) -> float:
    """How much wider than the normal interval Student's is; infinite for an unknown jitter."""
    return t_quantile(0.5 + CONFIDENCE / 2, jitter.df) / NORMAL if jitter.n else math.inf
