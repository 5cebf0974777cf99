"""From a few small evaluations of one checkpoint to the plan of all that follow.

Pilots measure on this machine, with this model, what an item costs and how far apart items lie;
:mod:`.allocation` decides. Pure, but for the evaluations that :func:`measure` is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mixloop.evals import BenchmarkScore, EvalSettings, Scorecard

from .allocation import (
    MIN_ITEMS,
    WATCHED_WEIGHT,
    Candidate,
    Counts,
    Price,
    allocate,
    seconds,
)
from .eval_plan import SCHEMA, EvalPlan, PlannedBenchmark, at_most

BITS = "bits_per_byte"
# Items of the two pilot sizes. MMLU's are larger because few items share a subject's examples and
# the price of one would be taken for that of its examples; what is left of that overstates it.
_PILOT_ITEMS: Mapping[str, tuple[int, int]] = {"mmlu": (60, 180)}
_OTHER_PILOT_ITEMS = (8, 40)

TIMEOUT_PART = 0.5  # of evals.timeout may be planned: a slow hour must not cost a checkpoint
_MIN_PRICE = 1e-6  # seconds: no item is cheaper
_UNKNOWN = 100_000  # items of a benchmark that doesn't say how many it has; asking for more is fine


@dataclass(frozen=True)
class Pilot:
    """One small evaluation: its scorecard, and its wall seconds with the worker's start."""

    card: Scorecard
    seconds: float


def next_pilot(settings: EvalSettings, done: Sequence[Pilot]) -> EvalSettings | None:
    """What to ask in the next pilot; None when they tell enough.

    Three numbers are to be found per benchmark (fixed, per item read, per item generated), so the
    first pilot is small, the second reads more, and the third also generates more where anything
    is generated.
    """
    step = len(done)
    generating = [name for name in settings.asked if _generates(name, done)]
    if step > 2 or (step == 2 and not generating):
        return None
    benchmarks = {}
    for name in generating if step == 2 else settings.asked:
        asked = settings.of(name)
        small, large = _PILOT_ITEMS.get(name, _OTHER_PILOT_ITEMS)
        generate: int | None = at_most(large if step == 2 else small, asked.generate_items)
        if step and name not in generating:
            generate = None
        counts = {
            "items": at_most(large if step else small, asked.items),
            "generate_items": generate,
        }
        benchmarks[name] = asked.model_copy(update=counts)
    return settings.asking(benchmarks)


def measure(
    settings: EvalSettings,
    evaluate: Callable[[EvalSettings], Scorecard],
    clock: Callable[[], float],
) -> list[Pilot]:
    """Runs the pilots one after another; ``evaluate`` scores the checkpoint, ``clock`` times it."""
    done: list[Pilot] = []
    while (asked := next_pilot(settings, done)) is not None:
        began = clock()
        card = evaluate(asked)
        done.append(Pilot(card, clock() - began))
    return done


def _generates(name: str, done: Sequence[Pilot]) -> bool:
    """Whether a benchmark writes answers, as the first pilot showed."""
    score = done[0].card.benchmarks.get(name) if done else None
    return score is not None and score.max_new_tokens is not None


def make_plan(
    settings: EvalSettings,
    pilots: Sequence[Pilot],
    *,
    training_seconds: float,
    tokens_per_second: float,
) -> EvalPlan:
    """The plan that spends ``settings.budget`` of ``training_seconds`` best.

    Raises:
        ValueError: the pilots tell no costs; one line.
    """
    assert settings.budget is not None
    if not pilots or not any(pilot.card.cost for pilot in pilots):
        raise ValueError("the trial evaluations give no costs")
    scores = {
        name: score for name in settings.asked if (score := _largest(name, pilots)) is not None
    }
    candidates = {
        name: _candidate(name, settings, points, score)
        for name, score in scores.items()
        if (points := _points(name, pilots))
    }
    if not candidates:
        raise ValueError(f"the trial evaluations give no scores: {_first_reason(pilots)}")
    overhead = _overhead(pilots, settings, training_seconds)
    budget = min(settings.budget * training_seconds, TIMEOUT_PART * settings.timeout)
    allocation = allocate(candidates, budget - overhead)
    total = overhead + seconds(candidates, allocation)
    return EvalPlan(
        schema=SCHEMA,
        budget=settings.budget,
        training_seconds=training_seconds,
        tokens_per_second=tokens_per_second,
        overhead=overhead,
        seconds=total,
        device=settings.device,
        checkpoint=pilots[0].card.checkpoint,
        benchmarks={
            name: _planned(candidate, allocation[name], scores[name], training_seconds)
            for name, candidate in candidates.items()
        },
        notes=_notes(settings, candidates, allocation, total, training_seconds),
    )


# -- from pilots to prices -------------------------------------------------------------------


def find_price(points: Sequence[tuple[int, int, float]]) -> Price:
    """The price from pilots of (items read, items generated, seconds), at least one.

    A difference that noise has turned around is replaced by the whole pilot's seconds per item,
    which is too dear and never too cheap.
    """
    read, generate = 0.0, 0.0
    first, last = points[0], points[-1]
    if len(points) > 1:
        read = _slope(points[0][0], points[1][0], points[0][2], points[1][2])
    if len(points) > 2:
        generate = _slope(points[1][1], points[2][1], points[1][2], points[2][2])
    items, generated, took = last
    if read <= 0:
        rest = max(took - generate * generated, 0.0)
        read = rest / items if items else 0.0
    fixed = max(0.0, first[2] - read * first[0] - generate * first[1])
    return Price(fixed, max(read, _MIN_PRICE), max(generate, _MIN_PRICE) if generated else 0.0)


def _slope(before: int, after: int, seconds_before: float, seconds_after: float) -> float:
    if after <= before:
        return 0.0
    slope = (seconds_after - seconds_before) / (after - before)
    return slope if slope > 0 else seconds_after / after


def _in_units(price: Price, unit_items: int) -> Price:
    """The price when items are scored in units: what is fixed recurs with each, but at most so.

    A pilot is one unit or two; n items are at most 1 + n / unit_items of them.
    """
    return Price(price.fixed, price.read + price.fixed / unit_items, price.generate)


def _points(name: str, pilots: Sequence[Pilot]) -> list[tuple[int, int, float]]:
    """(items read, items generated, seconds) of each pilot that scored the benchmark."""
    points = []
    for pilot in pilots:
        score, cost = pilot.card.benchmarks.get(name), pilot.card.cost.get(name)
        if score is not None and cost is not None and score.status == "ok":
            generated = 0
            if score.max_new_tokens is not None:
                generated = sum(_answered(item) for item in score.items.values())
            points.append((len(score.items), generated, cost.seconds))
    return points


def _answered(item: Mapping[str, float]) -> bool:
    return any(metric not in (BITS, "bytes") for metric in item)


def _candidate(
    name: str,
    settings: EvalSettings,
    points: Sequence[tuple[int, int, float]],
    score: BenchmarkScore,
) -> Candidate:
    """What there is to choose for one benchmark that a pilot scored."""
    asked = settings.of(name)
    available = at_most(_available(score) or _UNKNOWN, asked.items)
    generable = 0
    if score.max_new_tokens is not None:
        # answers that could not be scored in the pilot have no known price: no more than a few
        limit = available if points[-1][1] else MIN_ITEMS
        generable = min(available, at_most(limit, asked.generate_items))
    return Candidate(
        price=_in_units(find_price(points), settings.unit_items),
        spread=_spread(score),
        available=available,
        generable=generable,
        weight=1.0 if name in settings.benchmarks else WATCHED_WEIGHT,
    )


def _largest(name: str, pilots: Sequence[Pilot]) -> BenchmarkScore | None:
    """The benchmark's score over the most items; None where no pilot scored it."""
    scores = [pilot.card.benchmarks.get(name) for pilot in pilots]
    usable = [score for score in scores if score is not None and score.status == "ok"]
    return max(usable, key=lambda score: len(score.items), default=None)


def _available(score: BenchmarkScore) -> int | None:
    """How many items there are: `packages: 100 of 281 items (…)`."""
    match = re.search(r"\d+ of (\d+) items", score.data)
    return int(match[1]) if match else None


def _deviation(score: BenchmarkScore) -> float | None:
    """Standard deviation of one item's bits per byte, from the standard error of their mean."""
    metric = score.metrics.get(BITS)
    if metric is None or metric.stderr is None or not math.isfinite(metric.stderr):
        return None
    return metric.stderr * math.sqrt(metric.n)


def _spread(score: BenchmarkScore) -> float:
    deviation = _deviation(score)
    value = score.metrics[BITS].value if deviation is not None else 0.0
    return deviation / value if deviation is not None and value > 0 else 1.0


def _overhead(pilots: Sequence[Pilot], settings: EvalSettings, training_seconds: float) -> float:
    """Seconds outside the benchmarks: loading, and the worker's start where it ends in between."""
    loading = [p.card.seconds - sum(c.seconds for c in p.card.cost.values()) for p in pilots]
    starting = [p.seconds - p.card.seconds for p in pilots]
    restarts = training_seconds > settings.idle_seconds
    # the median: the first pilot reads model and libraries from a cold disk
    return max(0.0, median(loading)) + (max(0.0, median(starting)) if restarts else 0.0)


def _planned(
    candidate: Candidate, counts: Counts, score: BenchmarkScore, training_seconds: float
) -> PlannedBenchmark:
    deviation, took = _deviation(score), candidate.price.of(counts)
    return PlannedBenchmark(
        items=counts.items,
        generate_items=counts.generate if score.max_new_tokens is not None else None,
        available=_available(score),
        data_kind=score.data_kind,
        seconds=took,
        share=took / training_seconds,
        stderr=None if deviation is None else deviation / math.sqrt(counts.items),
    )


def _notes(
    settings: EvalSettings,
    candidates: Mapping[str, Candidate],
    allocation: Mapping[str, Counts],
    total: float,
    training_seconds: float,
) -> tuple[str, ...]:
    assert settings.budget is not None
    notes = [
        f"{name} was not scored in the trials, so its cost is not in the plan"
        for name in settings.asked
        if name not in candidates
    ]
    share = total / training_seconds
    if share > settings.budget:
        asked = f"{100 * settings.budget:.3g}%"
        notes.append(
            f"even {MIN_ITEMS} items of each benchmark take {total:.3g} s, {share:.1%} of training "
            f"time and more than evals.budget {asked}: they are asked all the same; "
            "raise evals.every or evals.budget, or ask fewer benchmarks"
        )
    bounded_by_timeout = settings.budget * training_seconds > TIMEOUT_PART * settings.timeout
    if bounded_by_timeout and any(allocation[n] != c.most for n, c in candidates.items()):
        notes.append(
            f"no more than half of evals.timeout {settings.timeout:.6g} s is planned, less than "
            "evals.budget allows: raise evals.timeout to score more items"
        )
    return tuple(notes)


def _first_reason(pilots: Sequence[Pilot]) -> str:
    reasons = [s.reason for p in pilots for s in p.card.benchmarks.values() if s.reason]
    return reasons[0] if reasons else "no benchmark was asked"
