"""``bayes``: Bayesian optimisation of the mixture inside the run, one trial per segment.

Every call rebuilds what is believed from the run's history: there is no state beside it. The first
few segments try mixtures around the centre from which a Gaussian process learns most
(``bayes_fit``); from then on the mixture with the best posterior mean for the rest of the budget is
approached, never the best one observed, and only as far as its gain is sure. Where the evidence
that mixtures matter is weak, the mixture goes back to the centre and the verdict is
``inconclusive``.


What mixtures measured elsewhere let one expect of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixloop.policies.interface import Hold, Observation, Proposal
from mixloop.policies.mixture import check_names, confine, in_force, total_variation, towards

from .forecast import Best, Forecast, best_mixture, shrunk
from .next_trial import TrustRegion, next_trial
from .options import BayesOptions, Point, Prior
from .posterior import fit
from .run_arrays import History, read_history

Array = NDArray[np.float64]

SAME = 1e-3  # total variation that isn't worth an order
CLOSE = 0.01  # total variation that is gone back at once
EARLY = 0.3  # part of the budget in which mixtures are tried


@dataclass(frozen=True)
class _Situation:
    """One decision: the run as arrays over ``history.names``, the mixture in force and centre."""

    observation: Observation
    history: History
    current: Array
    centre: Array
    most: Array
    left: float

    def named(self, weights: Array) -> dict[str, float]:
        """The mixture by name, no live share under the floor."""
        least = np.minimum(self.observation.limits.floor * (self.most > 0), self.most)
        if 0 < least.sum() < 1 and (weights < least).any():
            # the part above the floors shrinks in proportion
            above = np.maximum(weights - least, 0)
            weights = least + above * ((1 - least.sum()) / above.sum())
        pairs = zip(self.history.names, map(float, weights), strict=True)
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

    def decide(self, observation: Observation) -> Proposal | Hold:
        """A trial, a step towards the best mixture, or back to the centre."""
        history = read_history(observation)
        sources = observation.sources.values()
        if sum(self.options.standby or not source.standby for source in sources) < 2:
            return Hold("bayes: fewer than two sources to choose between", _evidence("hold"))
        if not history.series:
            reason = "bayes: no score in bits per byte yet"
            return Hold(reason, _evidence("hold"), verdict="inconclusive")
        at = self._situation(observation, history)
        if at.left <= 0:
            return Hold("bayes: nothing is left of the budget", _evidence("hold"))
        outlook = self._outlook(at)
        known = outlook is not None and outlook.beliefs.evidence >= self.options.evidence
        if self._exploring(at, known):
            return self._explore(at, outlook)
        return self._exploit(at, outlook)

    def _situation(self, observation: Observation, history: History) -> _Situation:
        names = history.names
        weights = in_force(observation)
        current = np.array([weights.get(name, 0.0) for name in names])
        left = max(0.0, (observation.budget - observation.tokens) / history.unit)
        most = _most(observation, history, max(left, 1.0), self.options.standby)
        centre = confine(self._centre(observation, names), most)
        return _Situation(observation, history, current, centre, most, left)

    def _centre(self, observation: Observation, names: Sequence[str]) -> Array:
        """The run's first mixture, drawn towards the prior's."""
        first = observation.decisions[0].weights_before if observation.decisions else {}
        first = first or (observation.evaluations[0].weights if observation.evaluations else {})
        begin = np.array([max(0.0, first.get(name, 0.0)) for name in names])
        if begin.sum() <= 0:
            weights = in_force(observation)
            begin = np.array([weights.get(name, 0.0) for name in names])
        prior = self.options.prior
        if prior.weights is None:
            return np.asarray(begin / begin.sum())
        aim = np.array([prior.weights.get(name, 0.0) for name in names])
        start = begin / begin.sum()
        return np.asarray(start + prior.strength * (aim - start))

    def _exploring(self, at: _Situation, known: bool) -> bool:
        """Whether to try something: a given number of times, and as often again as long as it
        isn't known that mixtures matter."""
        seen = at.observation
        limit = self.options.explore
        if limit is None:
            limit = min(14, len(seen.sources) + 2)
        if not known:
            limit *= 2
        # a mixture that has to stay for longer is one trial all the same
        limit *= max(1, math.ceil(seen.limits.dwell / at.history.unit))
        early = seen.tokens <= EARLY * seen.budget and seen.phase != "decay"
        return early and len(seen.evaluations) < limit

    def _outlook(self, at: _Situation) -> Forecast | None:
        history = at.history
        until = float(history.drawn.sum() + at.left)
        shares = history.shares[-1]
        benchmarks = [series.name for series in history.series]
        expected = expected_slopes(self.options.prior, history.names, benchmarks)
        beliefs = fit(history, shares, until, expected)
        if beliefs is None:
            return None
        return Forecast(history, beliefs, at.left, at.most, at.centre, shares)

    def _explore(self, at: _Situation, outlook: Forecast | None) -> Proposal:
        weights = self._trial(at, outlook)
        reason = f"bayes: trial {at.history.trials + 1}, where the model learns most"
        return Proposal(at.named(weights), reason, evidence=_evidence("explore"))

    def _trial(self, at: _Situation, outlook: Forecast | None) -> Array:
        region = TrustRegion(
            at.current, at.centre, at.most, at.observation.limits.max_change, self.options.radius
        )
        if self.options.proposals == "optuna":
            from .optuna_trials import ask

            return region.inside(ask(at.history, at.most > 0, at.observation.seed))
        drawing = np.random.default_rng([at.observation.seed, at.history.trials])
        return next_trial(drawing, region, at.history, outlook)

    def _exploit(self, at: _Situation, outlook: Forecast | None) -> Proposal | Hold:
        if outlook is None:
            return self._back(at, _evidence("exploit", log_bayes_factor=0.0))
        best = best_mixture(outlook, self.options.caution, self.options.trust, at.current)
        found = outlook.beliefs.evidence
        facts = _evidence("exploit", log_bayes_factor=found, gain=best.gain, stderr=best.stderr)
        if found < self.options.evidence or best.gain <= best.stderr:
            return self._back(at, facts)
        best = shrunk(outlook, best)
        facts |= {"gain": best.gain, "stderr": best.stderr}
        weights = towards(at.current, best.weights, at.observation.limits.max_change)
        if total_variation(at.named(weights), at.named(at.current)) <= SAME:
            return Hold(f"bayes: the best mixture is in force, {_worth(best)}", facts)
        reason = f"bayes: towards the best posterior mean, {_worth(best)}"
        facts |= {"aim": at.named(best.weights)}
        return Proposal(at.named(weights), reason, evidence=facts)

    def _back(self, at: _Situation, facts: dict[str, Any]) -> Proposal | Hold:
        """Weak evidence: to the centre, and there hold."""
        change = total_variation(at.named(at.current), at.named(at.centre))
        found = facts["log_bayes_factor"]
        why = f"log Bayes factor {found:.2g} that mixtures matter"
        if found >= self.options.evidence:
            why = "no mixture is surely better"
        if change <= SAME:
            return Hold(f"bayes: inconclusive, {why}", facts, verdict="inconclusive")
        # half of the way at a time: the evidence is looked at again before the rest
        part = change / 2 if change > CLOSE else change
        weights = towards(at.current, at.centre, min(part, at.observation.limits.max_change))
        return Proposal(at.named(weights), f"bayes: back to the centre, {why}", evidence=facts)


def _most(observation: Observation, history: History, left: float, standby: bool) -> Array:
    """The greatest share of each source that holds for the rest of the budget."""
    limits, most = observation.limits, []
    for name, drawn, unique in zip(history.names, history.drawn, history.unique, strict=True):
        source = observation.sources.get(name)
        if source is None or (source.standby and not standby):
            most.append(0.0)
            continue
        epochs = limits.max_epochs
        room = np.inf if epochs is None else max(0.0, epochs * unique - drawn) / left
        most.append(min(limits.cap, float(room), 1.0))
    return np.array(most)


def _worth(best: Best) -> str:
    return f"worth {best.gain:.3g} ± {best.stderr:.2g} bits per byte at the end of the budget"


def _evidence(rule: str, **facts: float) -> dict[str, Any]:
    return {"rule": rule} | facts


SPREAD = 1.0  # standard deviation of the slopes before any point is seen


def expected_slopes(
    prior: Prior, names: Sequence[str], benchmarks: Sequence[str]
) -> dict[str, Array]:
    """Per benchmark, the slope (k,) of log loss by the shares of the sources ``names``.

    Bayesian linear regression on the points, times the prior's strength. Nothing with fewer than
    two points, or for losses that aren't positive: they have no logarithm.
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
