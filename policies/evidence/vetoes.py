"""Benchmarks that may forbid a change: those under ``watch``, and floors of the objective.

They never steer: nothing here says where to go, only that it gets worse this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixloop.common.paired import Difference
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    MissingScore,
    Observation,
    find_metric,
)
from mixloop.policies.mixture import total_variation

from .honest_difference import honest_difference
from .significance import holm


@dataclass(frozen=True)
class Veto:
    """What speaks against going on, and the mixture from before it began, if one is known."""

    why: str
    back_to: dict[str, float] | None = None

    def retreats(self, current: dict[str, float], proposed: dict[str, float]) -> bool:
        """Whether a proposal goes back towards that mixture: such a one is let through."""
        if not self.back_to:
            return False
        away, left = (total_variation(mixture, self.back_to) for mixture in (current, proposed))
        return left < away - 1e-9


def vetoes(observation: Observation, level: float) -> tuple[Veto, ...]:
    """Every veto now; ``level`` is the family-wise error over the benchmarks of a kind."""
    if len(observation.evaluations) < 2:
        return ()
    return (*_watched(observation, level), *_floors(observation, level))


def _watched(observation: Observation, level: float) -> list[Veto]:
    """Watched benchmarks that fell since the last intervention, corrected for their number."""
    interventions = observation.interventions()
    if not interventions:
        return []
    last = interventions[-1]
    falls: list[tuple[str, Difference]] = []
    for benchmark in observation.watch:
        metric = _metric(observation, benchmark)
        scored = observation.scored(benchmark, metric)
        before = [i for i in scored if observation.evaluations[i].tokens <= last.tokens]
        after = [i for i in scored if observation.evaluations[i].tokens > last.tokens]
        fall = _fall(observation, benchmark, before[-1:], after[-1:], metric)
        falls += [(benchmark, fall)] if fall is not None else []
    stand = holm([-fall.z for _, fall in falls], level, len(observation.watch))
    return [
        Veto(f"watched {benchmark} {_fell(fall)} since {last.id}", last.weights_before)
        for (benchmark, fall), stands in zip(falls, stand, strict=True)
        if stands
    ]


def _floors(observation: Observation, level: float) -> list[Veto]:
    """Benchmarks that fell below their best by more than ``max_drop``, and not by chance alone."""
    goals = {n: g for n, g in observation.objective.items() if g.max_drop is not None}
    broken = []
    for benchmark, goal in goals.items():
        metric = observation.metric_for(benchmark)
        *earlier, newest = observation.scored(benchmark, metric) or [0]
        if not earlier:
            continue
        losses = {
            i: find_metric(observation.evaluations[i], benchmark, metric).loss for i in earlier
        }
        best = min(losses, key=lambda i: losses[i])
        fall = _fall(observation, benchmark, [best], [newest], metric)
        limit = goal.max_drop or 0.0
        # the best of many is best by luck in part: the level is shared among them
        if fall is not None and -fall.gain > limit and all(
            holm([-fall.z], level, len(goals) * len(earlier))
        ):  # fmt: skip
            why = f"{benchmark} {_fell(fall)} from its best, max_drop is {limit:g}"
            broken.append(Veto(why, observation.evaluations[best].weights or None))
    return broken


def _fall(
    observation: Observation,
    benchmark: str,
    before: Sequence[int],
    after: Sequence[int],
    metric: str,
) -> Difference | None:
    if not before or not after:
        return None
    try:
        difference = honest_difference(observation, benchmark, before[0], after[0], metric)
    except MissingScore:
        return None
    return difference if math.isfinite(difference.stderr) else None


def _metric(observation: Observation, benchmark: str) -> str:
    """The steering metric, bits per byte, or what there is: lm-eval's own tasks have neither."""
    wanted = observation.steering.get(benchmark, BITS_PER_BYTE)
    if observation.scored(benchmark, wanted):
        return wanted
    scores = (e.benchmarks.get(benchmark) for e in reversed(observation.evaluations))
    newest = next((score for score in scores if score is not None), None)
    return min(newest.metrics, default=wanted) if newest is not None else wanted


def _fell(fall: Difference) -> str:
    return f"fell by {-fall.gain:.3g} {fall.spread} {fall.metric} (z {-fall.z:.2g})"
