"""``bayes``: Bayesian optimisation of the mixture inside the run, one trial per segment.

Every call rebuilds what is believed from the run's history: there is no state beside it. The first
few segments try mixtures around the centre from which a Gaussian process learns most (see
``posterior``); from then on the mixture with the best posterior mean for the rest of the budget is
approached, never the best one observed, and only as far as its gain is sure. Where the evidence
that mixtures matter is weak, the mixture goes back to the centre and the verdict is
``inconclusive``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixloop.policies.evidence import Contrasts
from mixloop.policies.experiment import BranchGuidance, branch_guidance
from mixloop.policies.interface import Experiment, Hold, Observation, Proposal, Reply
from mixloop.policies.mixture import (
    Array,
    check_names,
    confine,
    in_force,
    run_arrays,
    total_variation,
    towards,
)

from .forecast import Best, Forecast, best_mixture, shrunk
from .next_trial import TrustRegion, next_trial
from .options import BayesOptions, Point, Prior
from .posterior import fit
from .trial_data import TrialData, trial_data

MIN_CHANGE = 1e-3  # total variation below which an order isn't worth it
CLOSE = 0.01  # total variation that is gone back at once
EARLY = 0.3  # part of the budget in which mixtures are tried
SPREAD = 1.0  # standard deviation of the slopes before any point of the prior is seen


@dataclass(frozen=True)
class _Situation:
    """One decision: the run as arrays over ``data.names``, the mixture in force and centre."""

    observation: Observation
    data: TrialData
    current: Array
    centre: Array
    most: Array
    left: float
    guide: BranchGuidance

    def named(self, weights: Array) -> dict[str, float]:
        """The mixture by name, no live share under the floor."""
        least = np.minimum(self.observation.limits.floor * (self.most > 0), self.most)
        if 0 < least.sum() < 1 and (weights < least).any():
            # the part above the floors shrinks in proportion
            above = np.maximum(weights - least, 0)
            weights = least + above * ((1 - least.sum()) / above.sum())
        pairs = zip(self.data.names, map(float, weights), strict=True)
        return {name: weight for name, weight in pairs if name in self.observation.sources}


class BayesPolicy:
    """Tries mixtures in the run's first segments, then goes where the posterior mean is best."""

    Options = BayesOptions

    def __init__(self, options: BayesOptions | None = None) -> None:
        self.options = options or BayesOptions()

    def check(self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a source in the prior that the run doesn't have."""
        for weights in self.options.prior.mixtures():
            check_names("source", weights, sources, "policy.with.prior")

    def evaluations_needed(
        self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]
    ) -> dict[str, int]:
        """One for each trial, and that of the last one."""
        return {"bayes": self._trials(len(sources)) + 1}

    def decide(self, observation: Observation) -> Reply:
        """An experiment, a trial, a step towards the best mixture, or back to the centre."""
        data = trial_data(observation)
        sources = observation.sources.values()
        if sum(self.options.standby or not source.standby for source in sources) < 2:
            return Hold("bayes: fewer than two sources to choose between", _evidence("hold"))
        if not data.scores:
            reason = "bayes: no score in bits per byte yet"
            return Hold(reason, _evidence("hold"), verdict="inconclusive")
        guide = branch_guidance(observation, self.options.branches)
        if isinstance(guide, Experiment):
            return guide
        at = self._situation(observation, data, guide)
        if at.left <= 0:
            return Hold("bayes: nothing is left of the budget", _evidence("hold"))
        forecast = self._forecast(at)
        sure = forecast is not None and forecast.posterior.evidence >= self.options.evidence
        if guide.aim is None and self._exploring(at, sure) and self._learns(at):
            return self._explore(at, forecast)
        return self._exploit(at, forecast)

    def _situation(
        self, observation: Observation, data: TrialData, guide: BranchGuidance
    ) -> _Situation:
        weights = in_force(observation)
        current = np.array([weights.get(name, 0.0) for name in data.names])
        left = max(0.0, (observation.budget - observation.tokens) / data.unit)
        most = self._most(observation, data, max(left, 1.0))
        centre = confine(self._centre(guide, data.names), most)
        return _Situation(observation, data, current, centre, most, left, guide)

    def _most(self, observation: Observation, data: TrialData, left: float) -> Array:
        """The greatest share of each source that holds for the rest of the budget."""
        limits = observation.limits
        sources = [observation.sources.get(name) for name in data.names]
        live = [s is not None and (self.options.standby or not s.standby) for s in sources]
        room = np.full(len(sources), np.inf)
        if limits.max_epochs is not None:
            room = np.maximum(0.0, limits.max_epochs * data.unique - data.drawn) / left
        return np.where(live, np.minimum(room, min(limits.cap, 1.0)), 0.0)

    def _centre(self, guide: BranchGuidance, names: Sequence[str]) -> Array:
        """Where branches point; else the run's first mixture, drawn towards the prior's."""
        begin = np.array([max(0.0, guide.centre.get(name, 0.0)) for name in names])
        start = begin / begin.sum()
        prior = self.options.prior
        if prior.weights is None or guide.aim is not None:
            return np.asarray(start)
        aim = np.array([prior.weights.get(name, 0.0) for name in names])
        return np.asarray(start + prior.strength * (aim - start))

    def _exploring(self, at: _Situation, sure: bool) -> bool:
        """Whether to try something.

        A given number of times, and as often again as long as it isn't known that mixtures matter.
        """
        observation = at.observation
        limit = self._trials(len(observation.sources))
        if not sure:
            limit *= 2
        # a mixture that has to stay for longer is one trial all the same
        limit *= max(1, math.ceil(observation.limits.dwell / at.data.unit))
        early = observation.tokens <= EARLY * observation.budget and observation.phase != "decay"
        return early and len(observation.evaluations) < limit

    def _learns(self, at: _Situation) -> bool:
        """Whether the run is worth moving to see what its sources do: branches don't move it."""
        if at.guide.made or at.guide.coming:
            return False
        arrays = run_arrays(at.observation, at.data.unit)
        tried = Contrasts(at.observation, arrays, at.centre, at.most > 0)
        return tried.told(self.options.radius, EARLY) >= tried.needed

    def _trials(self, sources: int) -> int:
        """How many mixtures are tried at first."""
        explore = self.options.explore
        return min(14, sources + 2) if explore is None else explore

    def _forecast(self, at: _Situation) -> Forecast | None:
        data = at.data
        until = float(data.drawn.sum() + at.left)
        shares = data.shares[-1]
        benchmarks = [scores.name for scores in data.scores]
        expected = expected_slopes(self.options.prior, data.names, benchmarks)
        posterior = fit(data, shares, until, expected)
        if posterior is None:
            return None
        return Forecast(data, posterior, at.left, at.most, at.centre, shares)

    def _explore(self, at: _Situation, forecast: Forecast | None) -> Proposal:
        seed, change = at.observation.seed, at.observation.limits.max_change
        region = TrustRegion(at.current, at.centre, at.most, change, self.options.radius)
        if self.options.proposals == "optuna":
            from .optuna_trials import ask

            weights = region.inside(ask(at.data, at.most > 0, seed))
        else:
            drawing = np.random.default_rng([seed, at.data.trials])
            weights = next_trial(drawing, region, at.data, forecast)
        reason = f"bayes: trial {at.data.trials + 1}, where the model learns most"
        return Proposal(at.named(weights), reason, evidence=_evidence("explore"))

    def _exploit(self, at: _Situation, forecast: Forecast | None) -> Proposal | Hold:
        if forecast is None:
            return self._back(at, _evidence("exploit", log_bayes_factor=0.0))
        best = best_mixture(forecast, self.options.caution, self.options.trust, at.current)
        factor = forecast.posterior.evidence
        facts = _evidence("exploit", log_bayes_factor=factor, gain=best.gain, stderr=best.stderr)
        unconfirmed = at.guide.made and at.guide.aim is None
        if unconfirmed or factor < self.options.evidence or best.gain <= best.stderr:
            return self._back(at, facts)
        best = shrunk(forecast, best)
        plan = at.named(best.weights)
        part = at.guide.part(plan)
        best = replace(best, weights=part * best.weights + (1 - part) * at.centre)
        facts |= {"gain": best.gain, "stderr": best.stderr, **at.guide.facts(plan)}
        weights = towards(at.current, best.weights, at.observation.limits.max_change)
        if total_variation(at.named(weights), at.named(at.current)) <= MIN_CHANGE:
            return Hold(f"bayes: the best mixture is in force, {_worth(best)}", facts)
        reason = f"bayes: towards the best posterior mean, {_worth(best)}"
        facts |= {"aim": at.named(best.weights)}
        return Proposal(at.named(weights), reason, evidence=facts)

    def _back(self, at: _Situation, facts: dict[str, Any]) -> Proposal | Hold:
        """Weak evidence: to the centre, and there hold."""
        change = total_variation(at.named(at.current), at.named(at.centre))
        factor = facts["log_bayes_factor"]
        why = f"log Bayes factor {factor:.2g} that mixtures matter"
        if factor >= self.options.evidence:
            why = "no mixture is surely better"
        if change <= MIN_CHANGE:
            return Hold(f"bayes: inconclusive, {why}", facts, verdict="inconclusive")
        # half of the way at a time: the evidence is looked at again before the rest
        part = change / 2 if change > CLOSE else change
        weights = towards(at.current, at.centre, min(part, at.observation.limits.max_change))
        return Proposal(at.named(weights), f"bayes: back to the centre, {why}", evidence=facts)


def _worth(best: Best) -> str:
    return f"worth {best.gain:.3g} ± {best.stderr:.2g} bits per byte at the end of the budget"


def _evidence(rule: str, **facts: float) -> dict[str, Any]:
    return {"rule": rule} | facts


def expected_slopes(
    prior: Prior, names: Sequence[str], benchmarks: Sequence[str]
) -> dict[str, Array]:
    """Per benchmark, the slope (k,) of log loss that mixtures measured elsewhere let one expect.

    By the shares of the sources ``names``. Bayesian linear regression on the points, times the
    prior's strength. Nothing with fewer than two points, or for losses that aren't positive: they
    have no logarithm.
    """
    if len(prior.points) < 2:
        return {}
    mixtures = np.array([[p.weights.get(name, 0.0) for name in names] for p in prior.points])
    slopes = {name: _slope(mixtures, prior.points, name) for name in benchmarks}
    return {name: prior.strength * slope for name, slope in slopes.items() if slope is not None}


def _slope(mixtures: Array, points: Sequence[Point], benchmark: str) -> Array | None:
    scores = [point.score(benchmark) for point in points]
    value = np.array([score.value for score in scores])
    if (value <= 0).any():
        return None
    noise = np.array([score.stderr for score in scores]) / value
    precision = 1 / noise**2
    share = precision / precision.sum()
    moved, rest = mixtures - share @ mixtures, np.log(value) - share @ np.log(value)
    kernel = SPREAD**2 * moved @ moved.T + np.diag(noise**2)
    return np.asarray(SPREAD**2 * moved.T @ np.linalg.solve(kernel, rest))
