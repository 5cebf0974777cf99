"""``law``: fits mixing laws to the run so far and plans the rest of the budget by them.

At every decision, from the observation alone:

1. Several laws (see ``models``: power laws in effective tokens weighed by a transfer row,
   exponential mixing laws on effective shares, both also with a memory that fades, is diluted by
   small shares and takes more in while the learning rate decays) are fitted to each benchmark's
   bits per byte, with Laplace's uncertainty (``fit``).
2. They are weighed by how well they predicted evaluations they had not seen (``averaging``).
   Against them stands the law by which mixtures don't matter: unless the others explain more than
   chance would, and predicted better, nothing is concluded.
3. The rest of the budget is planned under the cap on epochs for the ensemble and its posterior
   (``plan``). Where the laws' newest predictions were no better than the null's, the plan shrinks
   towards the start.
4. In the first part of the run the plan is tilted along balanced contrasts, so that looking around
   costs no drift, the less the nearer its end. An exploration that found nothing ends at the
   start's mixture.
5. Where the run may spend tokens on experiments they are asked for as policy ``experiment`` does.
   Once branches tell the sources apart, what they point at takes the place of the start, and a plan
   counts as far as the branches confirm it: not at all while they can't tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixloop.policies.experiment import (
    BranchAim,
    ask_for_branches,
    branch_aim,
    branches_made,
)
from mixloop.policies.interface import Hold, Observation, OptionsModel, Proposal, Reply, Share
from mixloop.policies.mixture import Array, confine, first_mixture, total_variation

from .averaging import Averaging, cut_points, weigh
from .fit import Fit, fit_with_null
from .law_data import law_data
from .models import LAWS
from .plan import best_plan, make_problem, weighted_fits
from .situation import Situation, allowed_sources, situation

Evidence = dict[str, Any]

MIN_CHANGE = 1e-3  # total variation below which an order isn't worth it
AHEAD = 2  # evaluations that the next mixture is planned for, so that a decision comes before
MIN_EVALUATIONS = 4  # that can be fitted
DECAY = 0.1  # of the budget, where nobody says how long the learning rate decays
MIN_SHARE = 0.02  # of all sources together, that a tilt starts from where the centre has none


class LawOptions(OptionsModel):
    """How much is explored, and how much evidence it takes.

    ``explore`` is the part of the budget that is explored in, ``swing`` how far at first, in parts
    of ``max_change``. ``significance`` is how many standard deviations more than by chance the
    laws must explain before the plan is followed, ``misfit`` the mean squared residual (in noise
    variances) above which no law is, ``least_gain`` the bits per byte at the end that a change
    must be expected to give once exploration is over, ``caution`` how many standard
    deviations of it are taken off. ``draws`` are taken from each law's posterior, ``temper`` is the
    power their predictive scores are weighed with. ``decay`` is the part of the budget, at its
    end, in which the learning rate decays, for runs with phases that don't say it themselves:
    the default is that of ``trainer.decay``, or a tenth. ``use_standby`` lets plans bring in
    sources that stand by. ``branches`` asks for experiments where the run may spend on them.
    """

    explore: Share = 0.5
    swing: Share = 0.75
    significance: Annotated[float, Field(ge=0)] = 3.0
    misfit: Annotated[float, Field(gt=0)] = 6.0
    least_gain: Annotated[float, Field(ge=0)] = 0.0002
    caution: Annotated[float, Field(ge=0)] = 0.25
    draws: Annotated[int, Field(ge=2, le=64)] = 32
    temper: Share = 0.5
    decay: Share | None = None
    use_standby: bool = False
    branches: bool = True


class LawPolicy:
    """Fits, weighs, plans and explores; see the module."""

    Options = LawOptions

    def __init__(self, options: LawOptions | None = None) -> None:
        self.options = options or LawOptions()

    def evaluations_needed(
        self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]
    ) -> dict[str, int]:
        """Those that can be fitted."""
        return {"law": MIN_EVALUATIONS}

    def decide(self, observation: Observation) -> Reply:
        """The plan's next mixture or an exploring one, with the plan; an experiment; or hold."""
        allowed = allowed_sources(observation, self.options.use_standby)
        if observation.tokens >= observation.budget or len(allowed) < 2:
            return Hold("law: nothing is left to decide", {"rule": "law"})
        if observation.phase == "warmup":
            return Hold("law: the learning rate is warming up", {"rule": "law"}, "inconclusive")
        data = law_data(observation)
        if data is None:
            return Hold("law: no bits per byte are scored yet", {"rule": "law"}, "inconclusive")
        asked = ask_for_branches(observation) if self.options.branches else None
        if asked is not None:
            return asked
        at = situation(observation, data, allowed, self._decay(observation))
        aim = branch_aim(observation) if self.options.branches else None
        if aim is not None:
            at = replace(at, start=at.row(aim.weights))
        if len(data.evaluations) < MIN_EVALUATIONS:
            return self._look_around(at, {"rule": "law", "evaluations": len(data.evaluations)})
        return self._fitted(at, aim)

    def _decay(self, observation: Observation) -> float:
        """The part of the budget in which the learning rate decays."""
        if self.options.decay is not None:
            return self.options.decay
        return DECAY if observation.decay is None else observation.decay / observation.budget

    def _fitted(self, at: Situation, aim: BranchAim | None) -> Proposal | Hold:
        options = self.options
        cuts = cut_points(len(at.data.evaluations))
        fits = fit_with_null(at.data, LAWS, cuts)
        averaging = weigh(at.data, fits, cuts, options.temper)
        evidence: Evidence = {"rule": "law", **averaging.evidence()}
        untested = not averaging.scores.shape[1]
        if untested or averaging.surprise < options.significance or averaging.ahead < 0:
            return self._look_around(at, evidence)
        if averaging.misfit > options.misfit:
            residual = f"mean squared residual {averaging.misfit:.2g} noise variances"
            return Hold(f"law: no law fits, {residual}", evidence, "inconclusive")
        if aim is None and self.options.branches and branches_made(at.observation):
            return self._look_around(at, evidence | {"confirmed": 0.0})
        return self._planned(at, fits[:-1], averaging, aim, evidence)

    def _planned(
        self,
        at: Situation,
        fits: list[Fit],
        averaging: Averaging,
        aim: BranchAim | None,
        evidence: Evidence,
    ) -> Proposal | Hold:
        options, start = self.options, at.lasting(at.start)
        ensemble = weighted_fits(fits, averaging.weights, options.draws, at.observation.seed)
        problem = make_problem(ensemble, at.ahead, at.terms, at.limits, start, options.caution)
        target, gain = best_plan(problem, at.lasting(at.now))
        trust = averaging.trust
        if aim is not None:
            confirmed = aim.confirms(_named(at, target[0]), first_mixture(at.observation))
            trust *= confirmed
            evidence |= {"confirmed": confirmed, "branches": aim.score}
        target = trust * target + (1 - trust) * at.lasting(at.start_within)
        evidence |= {"gain": gain, "trust": trust}
        why = f"law: {gain:.3g} less at the end than as it goes, by {averaging.leading()}"
        left = 1 - at.done / options.explore if options.explore > 0 else 0.0
        if left <= 0 and gain < options.least_gain:
            return Hold(f"{why}: too little to change anything for", evidence)
        return self._tilted(at, target, max(0.0, left), evidence, why)

    def _look_around(self, at: Situation, evidence: Evidence) -> Proposal | Hold:
        """Explore about the start; past the time for it, return there and stay."""
        start = at.lasting(at.start)
        if at.done < self.options.explore:
            return self._tilted(at, start, 1 / max(self.options.swing, 1e-9), evidence, "law")
        reason = "law: no mixture is seen to do better than the start's"
        if np.abs(at.now - at.start).sum() / 2 < MIN_CHANGE:
            return Hold(reason, evidence, "inconclusive")
        return _proposal(at, np.vstack([start[:1], start]), evidence, reason + ": back to it")

    def _tilted(
        self, at: Situation, rows: Array, size: float, evidence: Evidence, why: str
    ) -> Proposal | Hold:
        """A plan whose next mixture is tilted by ``size`` swings."""
        reach = at.observation.limits.max_change * self.options.swing * size
        if reach < MIN_CHANGE:
            return _proposal(at, np.vstack([rows[:1], rows]), evidence, why)
        turn = len(at.observation.interventions())
        direction = contrast(turn, at.live, at.observation.seed)
        wanted = tilted(rows[0], at.live, direction, reach)
        evidence |= {"exploring": reach}
        return _proposal(at, np.vstack([wanted, rows]), evidence, f"{why}; exploring {reach:.2g}")


def _proposal(at: Situation, rows: Array, evidence: Evidence, reason: str) -> Proposal | Hold:
    """Rows: the mixture from now on, then those of the plan's stretches."""
    named = [_named(at, row) for row in rows]
    if total_variation(named[0], at.observation.weights) < MIN_CHANGE:
        return Hold(f"{reason}: it goes on", evidence)
    return Proposal(named[0], reason, _stretches(at, named), evidence)


def _named(at: Situation, row: Array) -> dict[str, float]:
    pairs = zip(at.data.names, confine(row, np.where(at.live, 1.0, 0.0)), strict=True)
    return {name: float(weight) for name, weight in pairs if name in at.observation.sources}


def _stretches(at: Situation, named: list[dict[str, float]]) -> list[tuple[int, dict[str, float]]]:
    """The plan as the trainer would carry it out by itself, in steps as short as a decision's."""
    observation, lengths = at.observation, [length for length, _ in at.ahead.stretches]
    budget, every = observation.budget, observation.every
    first = observation.tokens + AHEAD * every if every else budget
    ends = [budget - round(sum(lengths[i + 1 :]) * budget) for i in range(len(lengths))]
    stretches = [(min(first, budget), named[0])]
    for end, weights in zip(ends, named[1:], strict=True):
        until, before = stretches[-1]
        distance = max(total_variation(weights, before), 1e-9)
        part = min(1.0, observation.limits.max_change / distance)
        if end > until:
            near = {name: (1 - part) * before[name] + part * w for name, w in weights.items()}
            stretches.append((end, near))
    return stretches


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
    signs = np.zeros(len(live))
    signs[live] = hadamard(size)[row][columns] * (1 if turn % 4 < 2 else -1)
    return signs


def tilted(centre: Array, live: Array, direction: Array, reach: float) -> Array:
    """``centre`` tilted along a contrast, in logarithms, by ``reach`` in total variation."""
    base = np.where(live, np.maximum(centre, MIN_SHARE / max(live.sum(), 1)), 0.0)

    def by(size: float) -> Array:
        shares = base * np.exp(size * direction)
        return np.asarray(shares / shares.sum())

    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        away = np.abs(by(middle) - centre).sum() / 2
        low, high = (middle, high) if away < reach else (low, middle)
    return by(low)
