"""How far a checkpoint's score lies off the run's smooth course, told by the run itself.

The standard error over items says what other items would have shown. It can't see the optimiser:
the same run, saved a few steps later, is a little better here and worse there. That part is
estimated from the scores' second differences, which a smooth course leaves nearly at zero: each
score against the line through its two neighbours (Gasser, Sroka & Jennen-Steinmetz 1986,
*Biometrika* 73, eq. 2.2, for uneven spacing; Rice 1984, *Annals of Statistics* 12, for the idea).
The line is drawn over ``tokens^-1/4``, where a power law of any usual exponent is nearly straight
(its bend is a fifth of that over log tokens). Then

- a difference across a change of mixture or of learning rate phase, or where tokens multiply,
  weighs less: the course itself may bend there;
- squares are cut at a few robust deviations (Huber 1964, *Annals of Mathematical Statistics* 35);
- few differences are shrunk towards those of the other benchmarks in the same metric and, a
  little, towards twice the items' variance (Smyth 2004, *Statistical Applications in Genetics and
  Molecular Biology* 3, eq. 4);
- what the items explain is taken off, and the rest is raised for the mild autocorrelation that
  second differences don't show.

With fewer than three scored evaluations there is no difference, and nothing is added: the items'
standard error is then a lower bound, and ``n`` is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from mixloop.policies.interface import (
    BITS_PER_BYTE,
    Evaluation,
    Metric,
    MissingScore,
    Observation,
    find_metric,
    finite_metric,
    score_difference,
)
from mixloop.policies.mixture import total_variation

POWER = -0.25  # of tokens: the axis on which courses are nearly straight
BEND = 3.0  # a whole mixture's change, in the run's own pace: what it may do to the course
STEPS = 8  # of the likelihood's fixed point
PHASE = 0.05  # what a difference across two phases, or in the warm-up, counts
SPREAD = 1.0  # in log tokens, the span of a difference at which it counts half
RECENT = 60  # newest evaluations that it is taken from: it falls with the learning rate
NORMAL = 0.6745  # median size of a standard normal variable
PAIRS = 3  # newest pairs of evaluations that the items' noise is taken from
OVERLAP = 35 / 18  # neighbouring differences share scores: so many make one degree of freedom
BELIEVED = 1.0  # degrees of freedom of the belief that jitter is as large as the items' noise
POOLED = 4.0  # most degrees of freedom that other benchmarks count
TOGETHER = 0.5  # of theirs that count: one optimiser moves all benchmarks
AUTOCORRELATION = 0.08  # assumed between neighbours; second differences hide a part of it
SEEN = 1 - 4 / 3 * AUTOCORRELATION + AUTOCORRELATION**2 / 3


@dataclass(frozen=True)
class Jitter:
    """One checkpoint's score around the run's smooth course, in the metric's unit.

    Attributes:
        stderr: standard deviation, the items' part taken off; 0 when unknown, or not seen.
        n: second differences of this benchmark that it rests on; 0 when unknown.
        df: its degrees of freedom, with those of the other benchmarks and of the belief.
        total: standard deviation with the items' part; NaN when nothing is known of either.
    """

    stderr: float = 0.0
    n: int = 0
    df: float = 0.0
    total: float = math.nan


UNKNOWN_JITTER = Jitter()


@dataclass(frozen=True)
class _Roughness:
    """Variance about the course, the items' part of it, differences behind it, and the level."""

    variance: float
    items: float
    n: int
    df: float
    level: float


def trajectory_noise(observation: Observation, benchmark: str, metric: str | None = None) -> Jitter:
    """The jitter of one benchmark's score along the run so far."""
    name = metric or observation.metric_for(benchmark)
    course = _Course(observation)
    own = course.roughness(benchmark, name)
    if own is None:
        return UNKNOWN_JITTER
    if own.n == 0:
        return Jitter(total=math.sqrt(own.items) if own.items > 0 else math.nan)
    # what is watched has no say in what steers
    names = [other for other in observation.steering_benchmarks() if other != benchmark]
    others = (course.roughness(other, name) for other in names)
    variance, df = _shrunk(own, [other for other in others if other is not None and other.n])
    beyond = max(0.0, variance - own.items)
    stderr = math.sqrt(beyond / SEEN)
    return Jitter(stderr, own.n, df, math.sqrt(min(variance, own.items) + stderr**2))


def _shrunk(own: _Roughness, others: Sequence[_Roughness]) -> tuple[float, float]:
    """The variance drawn towards the others', relative to their level, and the df together."""
    lent = TOGETHER * math.fsum(other.df for other in others)
    believed = BELIEVED if own.items > 0 else 0.0
    parts = [(own.variance, own.df), (2 * own.items, believed)]
    if lent > 0:
        squares = math.fsum(o.df * o.variance * (own.level / o.level) ** 2 for o in others)
        lent, pooled = min(POOLED, lent), squares / (lent / TOGETHER)
        parts.append((pooled, lent))
    weight = math.fsum(df for _, df in parts)
    return math.fsum(variance * df for variance, df in parts) / weight, weight


class _Course:
    """The run's evaluations; what each difference counts is worked out once for all benchmarks."""

    def __init__(self, observation: Observation) -> None:
        self._evaluations = observation.evaluations
        self._triples: dict[tuple[int, ...], list[_Triple]] = {}

    def roughness(self, benchmark: str, metric: str) -> _Roughness | None:
        """None where the benchmark has no score in this metric."""
        scored = _distinct(self._evaluations, benchmark, metric)
        if not scored:
            return None
        metrics = [find_metric(evaluation, benchmark, metric) for evaluation in scored]
        values = [entry.value for entry in metrics]
        # metrics other than bits per byte are on one scale, whatever the level
        level = median(map(abs, values)) if metric == BITS_PER_BYTE else 1.0
        items = _items_variance(scored, metrics, benchmark, metric)
        if len(scored) < 3:
            return _Roughness(0.0, items, 0, 0.0, level or 1.0)
        places = tuple(evaluation.tokens for evaluation in scored)
        if places not in self._triples:
            self._triples[places] = _triples(scored)
        variance, df = _second_differences(places, values, self._triples[places])
        return _Roughness(variance, items, len(scored) - 2, df, level or 1.0)


def _distinct(evaluations: Sequence[Evaluation], benchmark: str, metric: str) -> list[Evaluation]:
    """Those with a score, the newest of each amount of tokens."""
    scored = (e for e in evaluations if finite_metric(e, benchmark, metric) is not None)
    newest = {e.tokens: e for e in scored if e.tokens > 0}
    return [newest[tokens] for tokens in sorted(newest)][-RECENT:]


def _items_variance(
    scored: Sequence[Evaluation], metrics: Sequence[Metric], benchmark: str, metric: str
) -> float:
    """The items' noise variance of one score beside its neighbour; 0 where nothing is stated."""
    found = []
    for older, newer in pairwise(scored[-PAIRS - 1 :]):
        sides = (older.benchmarks[benchmark], newer.benchmarks[benchmark])
        if not all(side.items for side in sides):
            continue
        try:
            difference = score_difference(*sides, metric, benchmark)
        except MissingScore:
            continue
        if difference.paired and math.isfinite(difference.stderr):
            found.append(difference.stderr**2 / 2)
    if not found:
        stated = (entry.stderr for entry in metrics)
        found = [error**2 for error in stated if error is not None and 0 < error < math.inf]
    return median(found) if found else 0.0


def _second_differences(
    tokens: Sequence[int], values: Sequence[float], triples: Sequence[_Triple]
) -> tuple[float, float]:
    """The robust variance of one score about the line through its neighbours, and its df.

    A difference across a change of mixture is of variance ``s^2 + bend^2``, its bend as large as
    such changes may make it; ``s`` is where the score of that likelihood is zero.
    """
    places = [(count / tokens[-1]) ** POWER for count in tokens]
    pace = _slope(places, values)
    squares, bends = [], []
    for i, (value, triple) in enumerate(zip(values[1:-1], triples, strict=True)):
        before, after = places[i + 1] - places[i], places[i + 2] - places[i + 1]
        left = after / (before + after)
        norm = left**2 + (1 - left) ** 2 + 1
        squares.append((left * values[i] + (1 - left) * values[i + 2] - value) ** 2 / norm)
        bends.append((BEND * triple.moved * pace * left * before) ** 2 / norm)
    counts = [triple.counts for triple in triples]
    # of few, the median is no measure to cut by
    cut = (3 + 8 / max(math.fsum(counts), 1)) ** 2 * _weighted_median(squares, counts) / NORMAL**2
    kept = [min(square, cut) if cut > 0 else square for square in squares]
    variance = _mean(kept, counts)
    trust = counts
    for _ in range(STEPS):
        if variance <= 0:
            break
        known = [variance / (variance + bend) for bend in bends]
        trust = [count * part**2 for count, part in zip(counts, known, strict=True)]
        least = variance / 4  # that the bends explain all of it is never sure
        clear = [square - bend for square, bend in zip(kept, bends, strict=True)]
        variance = max(least, _mean(clear, trust))
    return variance, math.fsum(trust) / OVERLAP


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = math.fsum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / math.fsum(weights)


def _slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Of the course over the axis, by least squares."""
    centre = math.fsum(places) / len(places)
    off = [place - centre for place in places]
    rise = math.fsum(distance * value for distance, value in zip(off, values, strict=True))
    return rise / math.fsum(distance**2 for distance in off)


@dataclass(frozen=True)
class _Triple:
    """Three neighbouring evaluations: what their difference counts, how far the mixture moved."""

    counts: float
    moved: float


def _triples(scored: Sequence[Evaluation]) -> list[_Triple]:
    shares = [_shares(older, newer) for older, newer in pairwise(scored)]
    triples = []
    for i, (before, after) in enumerate(pairwise(shares)):
        three = scored[i : i + 3]
        wide = math.log(three[2].tokens / three[0].tokens)
        phases = {evaluation.phase for evaluation in three}
        steady = len(phases) == 1 and "warmup" not in phases
        counts = (1.0 if steady else PHASE) / (1 + (wide / SPREAD) ** 4)
        triples.append(_Triple(counts, total_variation(before, after)))
    return triples


def _shares(older: Evaluation, newer: Evaluation) -> dict[str, float]:
    """What the stretch between two evaluations was trained on."""
    drawn = {n: max(0.0, newer.drawn[n] - older.drawn.get(n, 0.0)) for n in newer.drawn}
    total = math.fsum(drawn.values())
    if older.drawn and total > 0:
        return {name: amount / total for name, amount in drawn.items()}
    return newer.weights


def _weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    half, below = math.fsum(weights) / 2, 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        below += weight
        if below >= half:
            return value
    return max(values)
