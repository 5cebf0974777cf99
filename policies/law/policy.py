"""``law``: fits mixing laws to the run so far and plans the rest of the budget by them.

At every decision, from the observation alone:

1. Several laws (``law_models``: power laws in effective tokens weighed by a transfer row,
   exponential mixing laws on effective shares, both also with a memory that fades, is diluted by
   small shares and takes more in while the learning rate decays) are fitted to each benchmark's
   bits per byte, with Laplace's uncertainty (``law_fit``).
2. They are weighed by how well they predicted evaluations they had not seen (``law_weigh``).
   Against them stands the law by which mixtures don't matter: unless the others explain more than
   chance would, and predicted better, nothing is concluded.
3. The rest of the budget is planned under the cap on epochs for the ensemble and its posterior
   (``law_plan``). Where the laws' newest predictions were no better than the null's, the plan
   shrinks towards the start.
4. In the first part of the run the plan is tilted along balanced contrasts (``law_explore``), the
   less the nearer its end. An exploration that found nothing ends at the start's mixture.


Exploring mixtures: balanced about a centre, so that looking around costs no drift.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal
from mixloop.policies.mixture import Array, run_arrays, scaled, total_variation

from . import averaging, fit, plan
from .models import LAWS
from .situation import Situation, allowed, situation

Share = Annotated[float, Field(ge=0, le=1)]
Evidence = dict[str, Any]

SAME = 1e-3  # total variation not worth an order
AHEAD = 2  # evaluations that the next mixture is planned for, so that a decision comes before
FEWEST = 4  # evaluations that can be fitted


class LawOptions(OptionsModel):
    """How much is explored, and how much evidence it takes.

    ``explore`` is the part of the budget that is explored in, ``swing`` how far at first, in parts
    of ``max_change``. ``significance`` is how many standard deviations more than by chance the
    laws must explain before the plan is followed, ``misfit`` the mean squared residual (in noise
    variances) above which no law is, ``least_gain`` the bits per byte at the end that a change
    must be expected to give once exploration is over, ``caution`` how many standard
    deviations of it are taken off. ``draws`` are taken from each law's posterior, ``temper`` is the
    power their predictive scores are weighed with. ``decay`` is the part of the budget, at its
    end, in which the learning rate decays, for runs with phases. ``use_standby`` lets plans bring
    in sources that stand by.
    """

    explore: Share = 0.5
    swing: Share = 0.75
    significance: Annotated[float, Field(ge=0)] = 3.0
    misfit: Annotated[float, Field(gt=0)] = 6.0
    least_gain: Annotated[float, Field(ge=0)] = 0.0002
    caution: Annotated[float, Field(ge=0)] = 0.25
    draws: Annotated[int, Field(ge=2, le=64)] = 32
    temper: Share = 0.5
    decay: Share = 0.1
    use_standby: bool = False


class LawPolicy:
    """Fits, weighs, plans and explores; see the module."""

    Options = LawOptions

    def __init__(self, options: LawOptions | None = None) -> None:
        self.options = options or LawOptions()

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The plan's next mixture or an exploring one, with the plan; or hold."""
        seen = observation
        names = allowed(seen, self.options.use_standby)
        if seen.tokens >= seen.budget or len(names) < 2:
            return Hold("law: nothing is left to decide", {"rule": "law"})
        if seen.phase == "warmup":
            return Hold("law: the learning rate is warming up", {"rule": "law"}, "inconclusive")
        course = run_arrays(seen)
        if course is None:
            return Hold("law: no bits per byte are scored yet", {"rule": "law"}, "inconclusive")
        at = situation(seen, course, names, self.options.decay)
        if len(course.total) < FEWEST:
            return self._look_around(at, {"rule": "law", "evaluations": len(course.total)})
        return self._fitted(at)

    def _fitted(self, at: Situation) -> Proposal | Hold:
        course, options = at.course, self.options
        cuts = averaging.ends(len(course.total))
        fits = fit.fit_with_null(course, LAWS, cuts)
        found = averaging.weigh(course, fits, cuts, options.temper)
        evidence: Evidence = {"rule": "law", **found.evidence()}
        if found.surprise < options.significance or found.ahead < 0:
            return self._look_around(at, evidence)
        if found.misfit > options.misfit:
            reason = f"law: no law fits, mean squared residual {found.misfit:.2g} noise variances"
            return Hold(reason, evidence, "inconclusive")
        return self._planned(at, fits[:-1], found, evidence)

    def _planned(
        self,
        at: Situation,
        fits: list[fit.Fit],
        found: averaging.Weighed,
        evidence: Evidence,
    ) -> Proposal | Hold:
        group = plan.members(fits, found.weights, self.options.draws, at.seen.seed)
        start = at.lasting(at.start)
        case = plan.make_problem(group, at.ahead, at.stakes, at.room, start, self.options.caution)
        target, gain = plan.plan(case, at.lasting(at.now))
        target = found.trust * target + (1 - found.trust) * start
        evidence |= {"gain": gain, "trust": found.trust}
        why = f"law: {gain:.3g} less at the end than as it goes, by {found.leading()}"
        left = 1 - at.done / self.options.explore if self.options.explore > 0 else 0.0
        if left <= 0 and gain < self.options.least_gain:
            return Hold(f"{why}: too little to change anything for", evidence)
        return self._tilted(at, target, max(0.0, left), evidence, why)

    def _look_around(self, at: Situation, evidence: Evidence) -> Proposal | Hold:
        """Explore about the start; past the time for it, return there and stay."""
        start = at.lasting(at.start)
        if at.done < self.options.explore:
            return self._tilted(at, start, 1 / max(self.options.swing, 1e-9), evidence, "law")
        reason = "law: no mixture is seen to do better than the start's"
        if np.abs(at.now - at.start).sum() / 2 < SAME:
            return Hold(reason, evidence, "inconclusive")
        return _proposal(at, np.vstack([start[:1], start]), evidence, reason + ": back to it")

    def _tilted(
        self, at: Situation, rows: Array, size: float, evidence: Evidence, why: str
    ) -> Proposal | Hold:
        """A plan whose next mixture is tilted by ``size`` swings."""
        reach = at.seen.limits.max_change * self.options.swing * size
        if reach < SAME:
            return _proposal(at, np.vstack([rows[:1], rows]), evidence, why)
        direction = contrast(len(at.course.total) - 1, at.live, at.seen.seed)
        wanted = tilted(rows[0], at.live, direction, reach)
        evidence |= {"exploring": reach}
        return _proposal(at, np.vstack([wanted, rows]), evidence, f"{why}; exploring {reach:.2g}")


def _proposal(at: Situation, rows: Array, evidence: Evidence, reason: str) -> Proposal | Hold:
    """Rows: the mixture from now on, then those of the plan's stretches."""
    named = [_named(at, row) for row in rows]
    if total_variation(named[0], at.seen.weights) < SAME:
        return Hold(f"{reason}: it goes on", evidence)
    return Proposal(named[0], reason, _stretches(at, named), evidence)


def _named(at: Situation, row: Array) -> dict[str, float]:
    sound = scaled(row, np.zeros(len(row)), np.where(at.live, 1.0, 0.0))
    pairs = zip(at.course.names, sound / sound.sum(), strict=True)
    return {name: float(weight) for name, weight in pairs if name in at.seen.sources}


def _stretches(at: Situation, named: list[dict[str, float]]) -> list[tuple[int, dict[str, float]]]:
    """The plan as the trainer would carry it out by itself, in steps as short as a decision's."""
    seen, lengths = at.seen, [length for length, _ in at.ahead.stretches]
    first = seen.tokens + AHEAD * seen.every if seen.every else seen.budget
    ends = [seen.budget - round(sum(lengths[i + 1 :]) * seen.budget) for i in range(len(lengths))]
    found = [(min(first, seen.budget), named[0])]
    for end, weights in zip(ends, named[1:], strict=True):
        before = found[-1][1]
        part = min(1.0, seen.limits.max_change / max(total_variation(weights, before), 1e-9))
        near = {name: (1 - part) * before[name] + part * w for name, w in weights.items()}
        if end > found[-1][0]:
            found.append((end, near))
    return found


LEAST = 0.02  # share, of all sources together, that a tilt starts from where the centre has none


def contrast(turn: int, live: Array, seed: int) -> Array:
    """The turn's contrast between the live sources, +1 or -1, and 0 for the others, (k,).

    Rows of a Hadamard matrix, two by two, each then with its opposite: h1, h2, -h1, -h2, h3, …
    Neighbours are orthogonal, so that a step between them is no longer than one from the centre,
    and every four of them cancel (a fold-over screening design, Plackett & Burman 1946).
    """
    from scipy.linalg import hadamard

    many = int(live.sum())
    size = 4
    while size <= many:
        size *= 2
    drawing = np.random.default_rng([seed % 2**32, many])
    columns = drawing.permutation(size)[:many]
    rows = 1 + drawing.permutation(size - 1)
    row = rows[(2 * (turn // 4) + turn % 2) % len(rows)]
    found = np.zeros(len(live))
    found[live] = hadamard(size)[row][columns] * (1 if turn % 4 < 2 else -1)
    return found


def tilted(centre: Array, live: Array, direction: Array, reach: float) -> Array:
    """``centre`` tilted along a contrast, in logarithms, by ``reach`` in total variation."""
    base = np.where(live, np.maximum(centre, LEAST / max(live.sum(), 1)), 0.0)
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        away = np.abs(_tilt(base, direction, middle) - centre).sum() / 2
        low, high = (middle, high) if away < reach else (low, middle)
    return _tilt(base, direction, low)


def _tilt(base: Array, direction: Array, much: float) -> Array:
    found = base * np.exp(much * direction)
    return np.asarray(found / found.sum())
