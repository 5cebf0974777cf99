"""Where the run stands, as the law's planner needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.interface import Observation
from mixloop.policies.mixture import Array, confine, first_mixture

from .law_data import LawData
from .models import Ahead
from .plan import ObjectiveTerms, TokenLimits

ENDLESS = 1e4  # budgets' worth of unique tokens: as good as unlimited
TURN = 1.8  # of max_change, Euclidean: what the decay's few decisions can still turn


@dataclass(frozen=True)
class Situation:
    """An observation over the data's sources (k).

    What lies ahead, the limits for it, what the losses at the end are worth, the mixture in force,
    that of the start, and which sources may be drawn from.
    """

    observation: Observation
    data: LawData
    ahead: Ahead
    limits: TokenLimits
    terms: ObjectiveTerms
    now: Array
    start: Array
    live: NDArray[np.bool_]

    @property
    def done(self) -> float:
        """The part of the budget that is spent."""
        return self.observation.tokens / self.observation.budget

    @property
    def start_within(self) -> Array:
        """The mixture nearest to the start's that can last to the end of the budget, (k,)."""
        rest = sum(length for length, _ in self.ahead.stretches)
        most = np.minimum(self.limits.highest.min(axis=0), self.limits.left / max(rest, 1e-12))
        return confine(self.start, most)

    def row(self, weights: Mapping[str, float]) -> Array:
        """A mixture over the data's live sources, (k,)."""
        return _row(weights, self.data, self.live)

    def lasting(self, mixture: Array) -> Array:
        """A plan that keeps one mixture, (s, k)."""
        return np.tile(mixture, (len(self.ahead.stretches), 1))


def allowed_sources(observation: Observation, use_standby: bool) -> list[str]:
    """Sources a plan may draw from: one on standby only where it was brought in already."""
    return [
        name
        for name, source in observation.sources.items()
        if use_standby or not source.standby or observation.weights.get(name, 0.0) > 0
    ]


def situation(
    observation: Observation, data: LawData, allowed: list[str], decay: float
) -> Situation:
    """The run as it stands; ``allowed`` may be drawn from, ``decay`` is the decay's part of it."""
    live = np.array([name in allowed for name in data.names])
    stretches = _stretches(observation, decay)
    return Situation(
        observation=observation,
        data=data,
        ahead=Ahead(data.drawn[-1], data.unique, stretches),
        limits=_limits(observation, data, live, stretches),
        terms=_terms(data),
        now=_row(observation.weights, data, live),
        start=_row(first_mixture(observation), data, live),
        live=live,
    )


def _row(weights: Mapping[str, float], data: LawData, live: NDArray[np.bool_]) -> Array:
    """A mixture over the data's sources; what isn't live leaves its share to the others."""
    row = np.array([weights.get(name, 0.0) for name in data.names])
    row = np.where(live & np.isfinite(row) & (row > 0), row, 0.0)
    return np.asarray(row / row.sum() if row.sum() > 0 else live / live.sum())


def _stretches(observation: Observation, decay: float) -> tuple[tuple[float, bool], ...]:
    """The rest of the budget; in two where the learning rate is still to decay."""
    rest = 1 - observation.tokens / observation.budget
    if observation.phase in (None, "decay") or not 0 < decay < rest:
        return ((rest, observation.phase == "decay"),)
    return ((rest - decay, False), (decay, True))


def _limits(
    observation: Observation,
    data: LawData,
    live: NDArray[np.bool_],
    stretches: tuple[tuple[float, bool], ...],
) -> TokenLimits:
    limits = observation.limits
    left = np.full(len(live), math.inf)
    if limits.max_epochs is not None:
        left = np.maximum(limits.max_epochs * data.unique - data.drawn[-1], 0.0)
        left = np.where(data.unique > ENDLESS, math.inf, left)
    lengths = np.array([length for length, _ in stretches])[:, None]
    highest = np.minimum(np.where(live, limits.cap, 0.0), left / lengths)
    lowest = np.minimum(np.where(live, limits.floor, 0.0), highest)
    return TokenLimits(lowest, highest, left, TURN * limits.max_change)


def _terms(data: LawData) -> ObjectiveTerms:
    weight = np.array([series.goal.weight for series in data.series])
    enough, bound = np.full(len(weight), -math.inf), np.full(len(weight), math.inf)
    for index, series in enumerate(data.series):
        goal = series.goal
        if goal.target is not None:
            enough[index] = goal.target * (-1 if series.negated else 1)
        if goal.max_drop is not None:
            bound[index] = float(np.nanmin(series.losses)) + goal.max_drop
    return ObjectiveTerms(weight / weight.sum(), enough, bound)
