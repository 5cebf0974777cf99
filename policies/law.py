"""``law``: fits mixing laws to the run so far and plans the rest of the budget by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from . import law_data, law_fit, law_plan, law_weigh
from .law_data import Array, Course
from .law_models import LAWS, Ahead
from .mixtures import in_force, total_variation
from .observation import Observation
from .protocol import Hold, OptionsModel, Proposal

TURN = 1.8  # of max_change, Euclidean: what the decay's few decisions can still turn
SAME = 1e-3  # total variation not worth an order
AHEAD = 2  # evaluations that the next mixture is planned for, so that a decision comes before

Share = Annotated[float, Field(ge=0, le=1)]


class LawOptions(OptionsModel):
    """``explore``: the part of the budget that may be explored in. ``draws``: posterior draws per
    law. ``significance``: how surprising the evidence that mixtures matter must be. ``use_standby``
    lets the plan bring sources in that stand by. ``decay``: the part of the budget in which the
    learning rate decays, where the run has phases."""

    explore: Share = 0.5
    draws: Annotated[int, Field(ge=2, le=64)] = 8
    temper: Share = 0.5
    significance: Annotated[float, Field(gt=0)] = 3.0
    use_standby: bool = False
    decay: Share = 0.1


@dataclass(frozen=True)
class _Situation:
    """An observation as the planner needs it, over the course's sources."""

    seen: Observation
    course: Course
    ahead: Ahead
    room: law_plan.Room
    now: Array
    start: Array
    live: Array


class Law:
    """Fits, weighs, plans, explores."""

    Options = LawOptions

    def __init__(self, options: LawOptions | None = None) -> None:
        self.options = options or LawOptions()

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The plan's next stretch, an exploring one, or hold."""
        found = self._situation(observation)
        if isinstance(found, Hold):
            return found
        return self._decide(found)

    def _situation(self, seen: Observation) -> _Situation | Hold:
        rest = seen.budget - seen.tokens
        allowed = [n for n, s in seen.sources.items() if self.options.use_standby or not s.standby]
        if rest <= 0 or len(allowed) < 2:
            return Hold("law: nothing is left to decide", {"rule": "law"})
        course = law_data.course(seen, least=1)
        if course is None:
            return Hold("law: no benchmark is scored yet", {"rule": "law"}, "inconclusive")
        return _situation(seen, course, set(allowed), self.options.decay)

    def _decide(self, at: _Situation) -> Proposal | Hold:
        if len(at.course.total) < 4:
            return self._explore(at, at.start, 1.0, {"rule": "law", "fitted": False})
        ends = law_weigh.ends(len(at.course.total))
        fits = law_fit.fit_with_null(at.course, LAWS, ends)
        weights, evidence = law_weigh.weigh(at.course, fits, ends, self.options.temper)
        group = law_plan.members(fits[:-1], weights, self.options.draws, at.seen.seed)
        stakes = _stakes(at.course)
        even = np.tile(at.now, (len(at.ahead.stretches), 1))
        target, value = law_plan.plan(group, at.ahead, stakes, at.room, [even])
        held = law_plan.worth(group, at.ahead, stakes, law_plan.fill(even, at.room, at.ahead))[0]
        gain = held - value
        evidence |= {"rule": "law", "gain": gain}
        done = at.seen.tokens / at.seen.budget
        if evidence["surprise"] < self.options.significance:
            if done < self.options.explore:
                return self._explore(at, at.start, 1.0, evidence)
            return self._back(at, evidence)
        left = max(0.0, 1 - done / max(self.options.explore, 1e-9))
        return self._explore(at, target[0], 0.75 * left, evidence, target)

    def _explore(
        self,
        at: _Situation,
        centre: Array,
        size: float,
        evidence: dict[str, Any],
        target: Array | None = None,
    ) -> Proposal | Hold:
        wanted = centre
        if size > 0:
            reach = at.seen.limits.max_change * size
            wanted = _swung(centre, at.live, _direction(at), reach)
        later = target if target is not None else _lasting(at, at.start)
        rows = np.vstack([wanted, later])
        return _proposal(at, rows, evidence, "law: exploring" if size > 0 else "law: as planned")

    def _back(self, at: _Situation, evidence: dict[str, Any]) -> Proposal | Hold:
        if float(np.abs(at.now - at.start).sum()) / 2 < 1e-3:
            reason = "law: no mixture is seen to do better than the start's"
            return Hold(reason, evidence, "inconclusive")
        return _proposal(
            at, np.vstack([at.start, _lasting(at, at.start)]), evidence, "law: back to the start"
        )


def _situation(seen: Observation, course: Course, allowed: set[str], decay: float) -> _Situation:
    budget = float(seen.budget)
    now, first = in_force(seen), law_data.start_mixture(seen)
    drawn = {n: float(s.drawn) for n, s in seen.sources.items()}
    last = dict(zip(course.names, course.drawn[-1] * budget, strict=True))
    ledger = np.array([max(drawn.get(n, 0.0), last[n]) for n in course.names]) / budget
    limits = seen.limits
    live = np.array([n in allowed for n in course.names])
    most = np.where(live, limits.cap, 0.0)
    left = np.full(len(live), np.inf)
    if limits.max_epochs is not None:
        left = np.maximum(limits.max_epochs * course.unique - ledger, 0.0)
        left = np.where(course.unique > 1e4, np.inf, left)
    rest = 1 - seen.tokens / budget
    stretches: tuple[tuple[float, bool], ...] = ((rest, seen.phase == "decay"),)
    if seen.phase not in (None, "decay") and rest > decay > 0:
        stretches = ((rest - decay, False), (decay, True))
    low = np.where(live, limits.floor, 0.0)
    shape = (len(stretches), 1)
    lengths = np.array([length for length, _ in stretches])[:, None]
    high = np.minimum(np.tile(most, shape), left / lengths)
    room = law_plan.Room(
        np.minimum(np.tile(low, shape), high), high, left, TURN * limits.max_change
    )
    ahead = Ahead(ledger, course.unique, stretches)
    mixes = [np.array([w.get(n, 0.0) for n in course.names]) for w in (now, first)]
    return _Situation(seen, course, ahead, room, mixes[0], mixes[1], live)


def _stakes(course: Course) -> law_plan.Stakes:
    weight = np.array([goal.weight for goal in course.goals])
    enough, bound = np.full(len(weight), -np.inf), np.full(len(weight), np.inf)
    for i, goal in enumerate(course.goals):
        sign = -1 if course.higher[i] else 1
        if goal.target is not None:
            enough[i] = sign * goal.target
        if goal.max_drop is not None:
            bound[i] = float(np.nanmin(course.losses[i])) + goal.max_drop
    return law_plan.Stakes(weight / weight.sum(), enough, bound)


def _lasting(at: _Situation, mixture: Array) -> Array:
    return np.tile(mixture, (len(at.ahead.stretches), 1))


def _direction(at: _Situation) -> Array:
    """The turn's contrast: rows of a Hadamard matrix, two by two, each then with its opposite.

    Neighbours are orthogonal, so that a step between them is no longer than one from the start,
    and every four of them cancel.
    """
    from scipy.linalg import hadamard

    live = int(at.live.sum())
    size = 4
    while size <= live:
        size *= 2
    drawing = np.random.default_rng([at.seen.seed, live])
    columns = drawing.permutation(size)[:live]
    rows = 1 + drawing.permutation(size - 1)
    turn = len(at.course.total) - 1
    row = rows[(2 * (turn // 4) + turn % 2) % len(rows)]
    found = np.zeros(len(at.live))
    found[at.live] = hadamard(size)[row][columns] * (1 if turn % 4 < 2 else -1)
    return found


def _swung(centre: Array, live: Array, direction: Array, reach: float) -> Array:
    """``centre`` tilted along ``direction`` until ``reach`` in total variation away."""
    base = np.where(live, np.maximum(centre, 0.02 / max(live.sum(), 1)), 0.0)
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        tilted = base * np.exp(middle * direction)
        tilted /= tilted.sum()
        near = np.abs(tilted - centre).sum() / 2 < reach
        low, high = (middle, high) if near else (low, middle)
    tilted = base * np.exp(low * direction)
    return np.asarray(tilted / tilted.sum())


def _proposal(
    at: _Situation, rows: Array, evidence: dict[str, Any], reason: str
) -> Proposal | Hold:
    """Rows: the mixture from now on, then those of the plan's stretches."""
    seen = at.seen
    named = [_named(at, row) for row in rows]
    if total_variation(named[0], in_force(seen)) < SAME:
        return Hold(reason + ", which is what goes on", evidence)
    return Proposal(named[0], reason, _stretches(at, named), evidence)


def _named(at: _Situation, row: Array) -> dict[str, float]:
    sound = law_plan.scaled(row, np.zeros(len(row)), np.where(at.live, 1.0, 0.0))
    pairs = zip(at.course.names, sound, strict=True)
    return {name: float(w) for name, w in pairs if name in at.seen.sources}


def _stretches(at: _Situation, named: list[dict[str, float]]) -> list[tuple[int, dict[str, float]]]:
    """The plan as the trainer would carry it out by itself, in steps as short as a decision's."""
    seen, most = at.seen, at.seen.limits.max_change
    rest = seen.budget - seen.tokens
    ends = [seen.tokens + min(AHEAD * seen.every, rest) if seen.every else seen.budget]
    lengths = [length for length, _ in at.ahead.stretches]
    later = [sum(lengths[index + 1 :]) for index in range(len(lengths))]
    ends += [seen.budget - round(part * seen.budget) for part in later]
    found = [(ends[0], named[0])]
    for end, weights in zip(ends[1:], named[1:], strict=True):
        before = found[-1][1]
        far = total_variation(weights, before)
        part = min(1.0, most / far) if far > 0 else 1.0
        near = {n: (1 - part) * before[n] + part * w for n, w in weights.items()}
        if end > found[-1][0]:
            found.append((end, near))
    return found
