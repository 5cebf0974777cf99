"""Where the run stands, as the law's planner needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixloop.policies.interface import Evaluation, Observation
from mixloop.policies.mixture import Array, RunArrays

from .models import Ahead
from .plan import ObjectiveTerms, TokenLimits

ENDLESS = 1e4  # budgets' worth of unique tokens: as good as unlimited
TURN = 1.8  # of max_change, Euclidean: what the decay's few decisions can still turn


@dataclass(frozen=True)
class Situation:
    """An observation over the course's sources (k): what lies ahead, the room for it, the mixture
    in force, that of the start, and which sources may be drawn from."""

    seen: Observation
    course: RunArrays
    ahead: Ahead
    room: TokenLimits
    stakes: ObjectiveTerms
    now: Array
    start: Array
    live: Array

    @property
    def done(self) -> float:
        """The part of the budget that is spent."""
        return self.seen.tokens / self.seen.budget

    def lasting(self, mixture: Array) -> Array:
        """A plan that keeps one mixture, (s, k)."""
        return np.tile(mixture, (len(self.ahead.stretches), 1))


def allowed(seen: Observation, use_standby: bool) -> list[str]:
    """Sources a plan may draw from: one on standby only where it was brought in already."""
    return [
        name
        for name, source in seen.sources.items()
        if use_standby or not source.standby or seen.weights.get(name, 0.0) > 0
    ]


def situation(seen: Observation, course: RunArrays, names: list[str], decay: float) -> Situation:
    """The run as it stands; ``names`` may be drawn from, ``decay`` is the decay's part of it."""
    live = np.array([name in names for name in course.names])
    stretches = _stretches(seen, decay)
    first = next((e for e in seen.evaluations if _drawing(e)), None)
    now = _row(seen.weights, course, live)
    return Situation(
        seen=seen,
        course=course,
        ahead=Ahead(course.drawn[-1], course.unique, stretches),
        room=_room(seen, course, live, stretches),
        stakes=_stakes(course),
        now=now,
        start=now if first is None else _row(first.weights, course, live),
        live=live,
    )


def _drawing(evaluation: Evaluation) -> bool:
    return any(weight > 0 for weight in evaluation.weights.values())


def _row(weights: Mapping[str, float], course: RunArrays, live: Array) -> Array:
    """A mixture over the course's sources; what isn't live leaves its share to the others."""
    found = np.array([weights.get(name, 0.0) for name in course.names])
    found = np.where(live & np.isfinite(found) & (found > 0), found, 0.0)
    return np.asarray(found / found.sum() if found.sum() > 0 else live / live.sum())


def _stretches(seen: Observation, decay: float) -> tuple[tuple[float, bool], ...]:
    """The rest of the budget; in two where the learning rate is still to decay."""
    rest = 1 - seen.tokens / seen.budget
    if seen.phase in (None, "decay") or not 0 < decay < rest:
        return ((rest, seen.phase == "decay"),)
    return ((rest - decay, False), (decay, True))


def _room(
    seen: Observation, course: RunArrays, live: Array, stretches: tuple[tuple[float, bool], ...]
) -> TokenLimits:
    limits = seen.limits
    left = np.full(len(live), math.inf)
    if limits.max_epochs is not None:
        left = np.maximum(limits.max_epochs * course.unique - course.drawn[-1], 0.0)
        left = np.where(course.unique > ENDLESS, math.inf, left)
    lengths = np.array([length for length, _ in stretches])[:, None]
    highest = np.minimum(np.where(live, limits.cap, 0.0), left / lengths)
    lowest = np.minimum(np.where(live, limits.floor, 0.0), highest)
    return TokenLimits(lowest, highest, left, TURN * limits.max_change)


def _stakes(course: RunArrays) -> ObjectiveTerms:
    weight = np.array([goal.weight for goal in course.goals])
    enough, bound = np.full(len(weight), -math.inf), np.full(len(weight), math.inf)
    for index, goal in enumerate(course.goals):
        if goal.target is not None:
            enough[index] = goal.target * (-1 if course.higher[index] else 1)
        if goal.max_drop is not None:
            bound[index] = float(np.nanmin(course.losses[index])) + goal.max_drop
    return ObjectiveTerms(weight / weight.sum(), enough, bound)
