"""The objective: what the run wants of its benchmarks, as weights and one metric.

``watch`` benchmarks have no part in it: they may veto (see ``vetoes``), never steer.
"""

from __future__ import annotations

from math import fsum

from mixloop.policies.interface import BITS_PER_BYTE, Observation, find_metric


def objective_weights(observation: Observation) -> dict[str, float]:
    """Each steering benchmark's part in the objective; they sum to 1.

    A benchmark whose newest score is past its target counts for nothing. Where that leaves
    nothing (every target reached, or all weights 0), all are 0: there is nothing to steer by.
    """
    raw = {
        name: 0.0 if _target_reached(observation, name) else observation.goal(name).weight
        for name in observation.steering_benchmarks()
    }
    total = fsum(raw.values())
    return {name: weight / total for name, weight in raw.items()} if total > 0 else raw


def _target_reached(observation: Observation, benchmark: str) -> bool:
    """Whether the newest score in the steering metric is at its target or past it."""
    target = observation.goal(benchmark).target
    name = observation.metric_for(benchmark)
    scored = observation.scored(benchmark, name)
    if target is None or not scored:
        return False
    metric = find_metric(observation.evaluation(scored[-1]), benchmark, name)
    return metric.value >= target if metric.higher_is_better else metric.value <= target


def objective_metric(observation: Observation) -> str:
    """The metric that gains are added up in: what the benchmarks share, else bits per byte."""
    names = observation.steering_benchmarks()
    return observation.common_metric(names) if names else BITS_PER_BYTE
