"""``law``: fits mixing laws to the run so far and plans the rest of the budget by them.

At every decision, from the observation alone:

0. Moving the run to see what its sources do is worth it only where its scores can show it: the
   contrasts so far and to come are held against the run's own noise
   (:class:`~mixloop.policies.evidence.Contrasts`). Where they can't tell the sources apart, the
   run is left alone.
1. Several laws (see ``models``: power laws in effective tokens weighed by a transfer row,
   exponential mixing laws on effective shares, both also with a memory that fades, is diluted by
   small shares and takes more in while the learning rate decays) are fitted to each benchmark's
   bits per byte, with Laplace's uncertainty (``fit``).
2. They are weighed by how well they predicted evaluations they had not seen (``averaging``).
   Against them stands the law by which mixtures don't matter: unless the others explain more than
   chance would, and predicted better, nothing is concluded.
3. The rest of the budget is planned under the cap on epochs for the ensemble and its posterior
   (``plan``). It shrinks towards the start where the laws' newest predictions were no better than
   the null's, and where scores have told little of how the sources differ: a plan's corner is as
   far away for a small difference as for a large one.
4. In the first part of the run the plan is tilted along balanced contrasts, so that looking around
   costs no drift, the less the nearer its end. An exploration that found nothing ends at the
   start's mixture.
5. Where the run may spend tokens on experiments they are asked for first, as policy ``experiment``
   does, and nothing is tilted before. Once branches tell the sources apart, half of the way to what
   they point at takes the place of the start, more with every experiment, and a plan is followed
   half of the way as far as branches confirm it: not at all while they can't tell sources apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixloop.policies.evidence import Contrasts
from mixloop.policies.experiment import BranchGuidance, branch_guidance
from mixloop.policies.interface import (
    Experiment,
    Hold,
    Observation,
    OptionsModel,
    Proposal,
    Reply,
    Share,
)
from mixloop.policies.mixture import Array, confine, total_variation

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
SURE = 4.0  # standard deviations beyond chance: from here to twice it laws are followed for that
DECAY = 0.1  # of the budget, where nobody says how long the learning rate decays


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
        guide = branch_guidance(observation, self.options.branches)
        if isinstance(guide, Experiment):
            return guide
        at = situation(observation, data, allowed, self._decay(observation))
        at = replace(at, start=at.row(guide.centre))
        tilts = _contrasts(at)
        told = tilts.told(observation.limits.max_change, self.options.explore)
        evidence: Evidence = {"rule": "law", "told": round(told, 3)}
        still = _still(guide, told, tilts.needed)
        few = len(data.evaluations) < MIN_EVALUATIONS
        if few or (still and guide.aim is None):  # fitted to noise, laws would be right by chance
            return self._look_around(at, still, evidence)
        return self._fitted(at, guide, still, evidence)

    def _decay(self, observation: Observation) -> float:
        """The part of the budget in which the learning rate decays."""
        if self.options.decay is not None:
            return self.options.decay
        return DECAY if observation.decay is None else observation.decay / observation.budget

    def _fitted(
        self, at: Situation, guide: BranchGuidance, still: str, evidence: Evidence
    ) -> Proposal | Hold:
        options = self.options
        cuts = cut_points(len(at.data.evaluations))
        fits = fit_with_null(at.data, LAWS, cuts)
        averaging = weigh(at.data, fits, cuts, options.temper)
        evidence |= averaging.evidence()
        untested = not averaging.scores.shape[1]
        if untested or averaging.surprise < options.significance or averaging.ahead < 0:
            return self._look_around(at, still, evidence)
        if averaging.misfit > options.misfit:
            residual = f"mean squared residual {averaging.misfit:.2g} noise variances"
            return Hold(f"law: no law fits, {residual}", evidence, "inconclusive")
        return self._planned(at, fits[:-1], averaging, guide, still, evidence)

    def _planned(
        self,
        at: Situation,
        fits: list[Fit],
        averaging: Averaging,
        guide: BranchGuidance,
        still: str,
        evidence: Evidence,
    ) -> Proposal | Hold:
        options, start = self.options, at.lasting(at.start)
        ensemble = weighted_fits(fits, averaging.weights, options.draws, at.observation.seed)
        problem = make_problem(ensemble, at.ahead, at.terms, at.limits, start, options.caution)
        target, gain = best_plan(problem, at.lasting(at.now))
        plan = _named(at, target[0])
        part = guide.part(plan, _contrasts(at).told())
        if not guide.made:  # what scores explain so far beyond chance is no noise either
            part = max(part, min(1.0, averaging.surprise / SURE - 1))
        trust = averaging.trust * part
        target = trust * target + (1 - trust) * at.lasting(at.start_within)
        evidence |= {"gain": gain, "trust": trust, **guide.facts(plan)}
        why = f"law: {gain:.3g} less at the end than as it goes, by {averaging.leading()}"
        left = 1 - at.done / options.explore if options.explore > 0 else 0.0
        if left <= 0 and gain < options.least_gain:
            return Hold(f"{why}: too little to change anything for", evidence)
        return self._tilted(at, target, 0.0 if still else max(0.0, left), evidence, why)

    def _look_around(self, at: Situation, still: str, evidence: Evidence) -> Proposal | Hold:
        """Explore about the start; past the time for it, or where it is no use, stay there."""
        start = at.lasting(at.start)
        if at.done < self.options.explore and not still:
            return self._tilted(at, start, 1 / max(self.options.swing, 1e-9), evidence, "law")
        reason = "law: " + (still or "no mixture is seen to do better than the start's")
        if np.abs(at.now - at.start).sum() / 2 < MIN_CHANGE:
            return Hold(reason, evidence, "inconclusive")
        return _proposal(at, np.vstack([start[:1], start]), evidence, reason + "; back to it")

    def _tilted(
        self, at: Situation, rows: Array, size: float, evidence: Evidence, why: str
    ) -> Proposal | Hold:
        """A plan whose next mixture is tilted by ``size`` swings."""
        reach = at.observation.limits.max_change * self.options.swing * size
        if reach < MIN_CHANGE:
            return _proposal(at, np.vstack([rows[:1], rows]), evidence, why)
        wanted = _contrasts(at, rows[0]).tilted(reach)
        evidence |= {"exploring": reach}
        return _proposal(at, np.vstack([wanted, rows]), evidence, f"{why}; exploring {reach:.2g}")


def _still(guide: BranchGuidance, told: float, needed: float) -> str:
    """Why the run isn't moved to look around, or nothing."""
    if guide.aim is not None:
        return "no mixture is seen to do better than the one on the way to where branches point"
    if guide.made:
        return "branches can't tell the sources apart"
    if guide.coming:
        return "branches are to tell the sources apart first"
    if told < needed:
        seen = f"{told:.1%} of how they differ, {needed:.0%} needed"
        return f"the run's scores can't tell its sources apart ({seen})"
    return ""


def _contrasts(at: Situation, centre: Array | None = None) -> Contrasts:
    return Contrasts(at.observation, at.data, at.start if centre is None else centre, at.live)


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
