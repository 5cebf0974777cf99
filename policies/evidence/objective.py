"""The objective: what the run wants of its benchmarks, as weights, gains and floors.

``watch`` benchmarks have no part in it: they may veto (see ``vetoes``), never steer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import fsum

from mixloop.policies.interface import BITS_PER_BYTE, Goal, MissingScore, Observation, find_metric


@dataclass(frozen=True)
class Gain:
    """A gain of the whole objective, positive is better, in the unit of ``metric``.

    ``weights`` are those it was made with, over the benchmarks that both evaluations scored.
    """

    gain: float
    stderr: float
    metric: str
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def z(self) -> float:
        """Gain in standard errors; 0 where they are infinite or there is neither."""
        if math.isinf(self.stderr) or self.gain == 0:
            return 0.0
        return self.gain / self.stderr if self.stderr > 0 else math.copysign(math.inf, self.gain)


def steering_benchmarks(observation: Observation) -> list[str]:
    """The benchmarks that steer: configured ones, else every one scored, without ``watch``."""
    names = list(observation.steering) or sorted(observation.benchmarks())
    return [name for name in names if name not in observation.watch]


def goal_of(observation: Observation, benchmark: str) -> Goal:
    """The goal set for a benchmark; weight 1 without target and floor where none is."""
    return observation.objective.get(benchmark) or Goal()


def objective_weights(observation: Observation) -> dict[str, float]:
    """Each steering benchmark's part in the objective; they sum to 1.

    A benchmark whose newest score is past its target counts for nothing. Where that leaves
    nothing (every target reached, or all weights 0), all are 0: there is nothing to steer by.
    """
    raw = {
        name: 0.0 if target_reached(observation, name) else goal_of(observation, name).weight
        for name in steering_benchmarks(observation)
    }
    total = fsum(raw.values())
    return {name: weight / total for name, weight in raw.items()} if total > 0 else raw


def target_reached(observation: Observation, benchmark: str) -> bool:
    """Whether the newest score in the steering metric is at its target or past it."""
    target = goal_of(observation, benchmark).target
    metric = observation.metric_for(benchmark)
    scored = observation.scored(benchmark, metric)
    if target is None or not scored:
        return False
    found = find_metric(observation.evaluation(scored[-1]), benchmark, metric)
    return found.value >= target if found.higher_is_better else found.value <= target


def objective_metric(observation: Observation) -> str:
    """The one metric that gains are added up in: what all steering benchmarks share, else bits
    per byte."""
    names = steering_benchmarks(observation)
    return observation.common_metric(names) if names else BITS_PER_BYTE


def weighted_gain(
    observation: Observation,
    older: int,
    newer: int,
    weights: Mapping[str, float] | None = None,
    metric: str | None = None,
) -> Gain:
    """The objective's gain between two evaluations (indices), with its standard error.

    Benchmarks are independent samples of items, so their variances add. One that is missing on a
    side is left out, the others' weights scaled up.

    Raises:
        MissingScore: when no benchmark with weight was scored on both sides.
    """
    parts = dict(objective_weights(observation) if weights is None else weights)
    name = metric or objective_metric(observation)
    found = {}
    for benchmark, weight in parts.items():
        try:
            if weight > 0:
                found[benchmark] = observation.difference(benchmark, older, newer, name)
        except MissingScore:
            continue
    total = fsum(parts[benchmark] for benchmark in found)
    if total <= 0:
        raise MissingScore(f"no benchmark of the objective has {name} in both evaluations")
    used = {benchmark: parts[benchmark] / total for benchmark in found}
    gain = fsum(used[benchmark] * found[benchmark].gain for benchmark in found)
    spread = math.hypot(*(used[benchmark] * found[benchmark].stderr for benchmark in found))
    return Gain(gain, spread, name, used)
