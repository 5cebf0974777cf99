"""How many items of each benchmark fit a share of training time, and tell the most. Pure.

The seconds of an evaluation are taken to be linear: a fixed part, a part per item that is read
(bits per byte, and the choices of multiple choice) and a part per item that is also generated. Of
all plans that stay under the budget, the one with the least sum of squared standard errors is
taken. Errors are relative to their metric's value, since bits per byte of different benchmarks lie
on different scales; a headline metric counts with :data:`HEADLINE_WEIGHT` of that, since it steers
later if at all, and with the spread of a coin, since at chance it shows none of its own.

With variance a_i / x_i and price c_i, the Lagrangian gives x_i proportional to sqrt(a_i / c_i):
Neyman's allocation with unequal costs (Cochran 1977, *Sampling Techniques*, section 5.5), here
between a least and a greatest number of items and with no item generated that isn't read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MIN_ITEMS = 20  # of each benchmark, or all there are: fewer can't give a standard error
HEADLINE_WEIGHT = 0.25  # of a headline's squared error against that of bits per byte
WATCHED_WEIGHT = 0.25  # of a benchmark that is reported and never steers
_TINY = 1e-9


@dataclass(frozen=True)
class Price:
    """Seconds one benchmark costs: fixed, per item read, per item generated."""

    fixed: float
    read: float
    generate: float = 0.0

    def of(self, counts: Counts) -> float:
        """Seconds of that many items."""
        return self.fixed + self.read * counts.items + self.generate * counts.generate


@dataclass(frozen=True)
class Counts:
    """Items read, and how many of them are generated as well."""

    items: int
    generate: int = 0


@dataclass(frozen=True)
class Candidate:
    """One benchmark to plan for.

    ``spread`` is the standard deviation of its bits per byte over items, as a part of their mean.
    ``available`` items can be read and ``generable`` of them generated (0: nothing is generated,
    the headline comes with reading). ``weight`` scales all its squared errors.
    """

    price: Price
    spread: float
    available: int
    generable: int = 0
    weight: float = 1.0

    @property
    def fewest(self) -> Counts:
        """The fewest items it is worth asking for."""
        return Counts(
            min(MIN_ITEMS, self.available), min(MIN_ITEMS, self.generable, self.available)
        )

    @property
    def most(self) -> Counts:
        """All there is."""
        return Counts(self.available, min(self.generable, self.available))

    @property
    def read_variance(self) -> float:
        """Squared relative error of one item read; the choices' headline comes with it."""
        headline = 0.0 if self.generable else HEADLINE_WEIGHT
        return self.weight * max(self.spread**2 + headline, _TINY)

    @property
    def generate_variance(self) -> float:
        """Squared relative error of one item generated."""
        return self.weight * HEADLINE_WEIGHT if self.generable else 0.0


Allocation = dict[str, Counts]


def seconds(candidates: Mapping[str, Candidate], allocation: Mapping[str, Counts]) -> float:
    """Predicted seconds of an allocation."""
    return math.fsum(candidate.price.of(allocation[name]) for name, candidate in candidates.items())


def allocate(candidates: Mapping[str, Candidate], budget: float) -> Allocation:
    """The allocation of least loss of those that take at most ``budget`` seconds.

    The loss is the sum of squared relative standard errors that an allocation leads to.

    Where not even the fewest items of every benchmark fit, they are what comes back: the caller
    compares :func:`seconds` with the budget. Integer counts are found by rounding the continuous
    optimum down and spending what is left where it tells most per second.
    """
    fewest = {name: candidate.fewest for name, candidate in candidates.items()}
    most = {name: candidate.most for name, candidate in candidates.items()}
    if seconds(candidates, fewest) >= budget:
        return fewest
    if seconds(candidates, most) <= budget:
        return most
    return _spend_rest(candidates, _rounded(candidates, budget), budget)


def _rounded(candidates: Mapping[str, Candidate], budget: float) -> Allocation:
    """The continuous optimum rounded down; a bisection on the multiplier, in logarithms."""

    def at(log_multiplier: float) -> Allocation:
        multiplier = math.exp(log_multiplier)
        return {name: _at(candidate, multiplier) for name, candidate in candidates.items()}

    low, high = -80.0, 80.0
    for _ in range(100):
        middle = (low + high) / 2
        if seconds(candidates, at(middle)) > budget:
            low = middle
        else:
            high = middle
    return at(high)


def _at(candidate: Candidate, multiplier: float) -> Counts:
    """The best counts of one benchmark when a second is worth ``multiplier``, rounded down."""
    fewest, most, price = candidate.fewest, candidate.most, candidate.price
    read_variance, generate_variance = candidate.read_variance, candidate.generate_variance
    read = _best(read_variance, price.read, multiplier, fewest.items, most.items)
    generate = _best(generate_variance, price.generate, multiplier, fewest.generate, most.generate)
    if generate > read:
        # generating an item means reading it: the two are bought together
        variance, both = read_variance + generate_variance, price.read + price.generate
        read = generate = _best(variance, both, multiplier, fewest.items, most.generate)
    return Counts(int(read), int(generate))


def _best(variance: float, price: float, multiplier: float, fewest: int, most: int) -> float:
    return min(max(math.sqrt(variance / (multiplier * max(price, _TINY))), fewest), most)


def _spend_rest(
    candidates: Mapping[str, Candidate], allocation: Allocation, budget: float
) -> Allocation:
    spent = seconds(candidates, allocation)
    while True:
        affordable = [
            (gain / cost, name, counts, cost)
            for name, candidate in candidates.items()
            for counts, gain, cost in _next(candidate, allocation[name])
            if spent + cost <= budget
        ]
        if not affordable:
            return allocation
        _, name, counts, cost = max(affordable, key=lambda step: step[:2])
        allocation = {**allocation, name: counts}
        spent += cost


def _next(candidate: Candidate, now: Counts) -> Iterator[tuple[Counts, float, float]]:
    """One more item read, generated, or both: the counts, the fall in loss, the seconds."""
    most, price = candidate.most, candidate.price
    read = _fall(candidate.read_variance, now.items)
    generate = _fall(candidate.generate_variance, now.generate) if now.generate else 0.0
    if now.items < most.items:
        yield Counts(now.items + 1, now.generate), read, max(price.read, _TINY)
    if now.generate < min(most.generate, now.items):
        yield Counts(now.items, now.generate + 1), generate, max(price.generate, _TINY)
    if now.items < most.items and now.generate < most.generate:
        more = Counts(now.items + 1, now.generate + 1)
        yield more, read + generate, max(price.read + price.generate, _TINY)


def _fall(variance: float, count: int) -> float:
    return variance / (count * (count + 1))
