"""``olmix``: a mixture computed before the run from proxy runs, and moved to once.

The method of AI2's Olmix: per benchmark a log-linear law on bits per byte, fitted to proxy runs on
constant mixtures; then the mixture that minimises their mean plus ``kl`` times its divergence from
the starting mixture, with no source above its epochs over the whole budget.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from mixloop.policies.interface import Hold, Observation, OptionsModel, PolicyError, Proposal
from mixloop.policies.mixture import Mixture, check_names, first_mixture

from .one_target import move_once

if TYPE_CHECKING:
    from mixloop.policies.surrogates import LogLinear

MIN_PROXIES = 3
"""Proxy runs below which no law is fitted."""
RULE = "olmix"


class ProxyScore(BaseModel):
    """One benchmark of a proxy run, in bits per byte."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: float = Field(allow_inf_nan=False)
    stderr: float | None = None


class ProxyPoint(BaseModel):
    """A proxy run on one mixture, as a prior file of ``mixloop search`` lists it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weights: Mixture
    benchmarks: dict[str, ProxyScore]


class ProxyPrior(BaseModel):
    """A prior file of ``mixloop search``; only its points are used."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    points: tuple[ProxyPoint, ...]


class OlmixOptions(OptionsModel):
    """Proxy runs, either as ``points`` or as a whole ``prior`` file's content.

    ``kl`` weighs the divergence from ``start`` (without one: the mixture the run began with)
    against the mean loss in bits per byte. ``max_epochs`` of a source over the whole budget.
    """

    points: tuple[ProxyPoint, ...] = ()
    prior: ProxyPrior | None = None
    start: Mixture | None = None
    kl: float = Field(0.05, ge=0)
    max_epochs: float = Field(4.0, gt=0)

    def proxies(self) -> tuple[ProxyPoint, ...]:
        """All proxy runs that were given."""
        return self.points + (self.prior.points if self.prior is not None else ())


class Olmix:
    """Proposes the one mixture its proxies point to until it was in force once, then holds."""

    Options = OlmixOptions

    def __init__(self, options: OlmixOptions) -> None:
        self.options = options
        self.points = options.proxies()
        if len(self.points) < MIN_PROXIES:
            raise PolicyError(
                f"policy.with.points: {len(self.points)} proxy runs; olmix needs at least "
                f"{MIN_PROXIES}: give points, or prior: {{from: prior.json}} of a `mixloop search`"
            )

    def check(self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for proxies of other sources, or of none of the benchmarks."""
        for index, point in enumerate(self.points):
            check_names("source", point.weights, sources, f"policy.with.points.{index}.weights")
        check_names("source", self.options.start or {}, sources, "policy.with.start")
        scored = sorted({name for point in self.points for name in point.benchmarks})
        if benchmarks and not set(benchmarks) & set(scored):
            raise PolicyError(
                f"policy.with.points: they score {', '.join(scored)}, none of the run's "
                f"benchmarks ({', '.join(benchmarks)}); search again with those"
            )

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The mixture the law points to, until it is reached; else hold."""
        problem = _Problem(self, observation)
        if not problem.scored:
            return Hold("olmix: no proxy run scored one of the run's benchmarks", {"rule": RULE})
        if sum(problem.most.values()) < 1 - 1e-9:
            cap = f"{self.options.max_epochs:g} epochs"
            reason = f"olmix: the sources are too small for the budget at {cap}"
            return Hold(reason, {"rule": RULE})
        evidence = self._target(problem, observation)
        return move_once(
            observation,
            evidence["target"],
            RULE,
            moving=f"to the mixture that {len(self.points)} proxy runs point to",
            reached="the mixture it computed was reached",
            evidence=evidence,
        )

    def _target(self, problem: _Problem, observation: Observation) -> dict[str, Any]:
        """The target and what it rests on: as an earlier decision recorded it, else computed."""
        mark = problem.mark()
        for decision in reversed(observation.decisions):
            target = decision.evidence.get("target")
            if decision.evidence.get("problem") == mark and isinstance(target, dict):
                return {**decision.evidence, "target": {n: float(w) for n, w in target.items()}}
        target, predicted = problem.solve()
        proxies = len(self.points)
        return {"problem": mark, "target": target, "predicted": predicted, "proxies": proxies}


class _Problem:
    """The optimisation for one run: its sources, start, caps and benchmarks."""

    def __init__(self, policy: Olmix, observation: Observation) -> None:
        options = policy.options
        self.points, self.kl = policy.points, options.kl
        begun = options.start or first_mixture(observation)
        self.start = {name: begun.get(name, 0.0) for name in observation.sources}
        budget = max(1, observation.budget)
        # the divergence from a share of nothing is infinite: such a source stays out
        self.most = {
            name: min(1.0, options.max_epochs * source.unique_tokens / budget)
            for name, source in observation.sources.items()
            if self.start[name] > 0
        }
        asked = set(observation.steering) - set(observation.watch) or observation.benchmarks()
        scored = {name for point in self.points for name in point.benchmarks}
        self.scored = sorted(scored & asked)
        weights = [observation.goal(name).weight for name in self.scored]
        total = math.fsum(weights) or 1.0
        self.importance = [weight / total for weight in weights]

    def mark(self) -> str:
        """Identity of what is solved: with the same, an earlier answer is this one."""
        parts = (self.points, self.kl, self.start, self.most, self.scored, self.importance)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def solve(self) -> tuple[dict[str, float], dict[str, float]]:
        """The mixture, and the loss it is predicted to have per benchmark."""
        import numpy as np

        from .olmix_solver import best_mixture

        names = list(self.most)
        laws = [self._law(benchmark, names) for benchmark in self.scored]
        start = np.array([self.start[name] for name in names])
        best = best_mixture(
            np.array([law.coefficients for law in laws]),
            np.array(self.importance),
            start / start.sum(),
            np.array([self.most[name] for name in names]),
            self.kl,
        )
        target = dict.fromkeys(self.start, 0.0) | dict(zip(names, map(float, best), strict=True))
        predicted = [float(law.mean(best[None])[0]) for law in laws]
        return target, dict(zip(self.scored, predicted, strict=True))

    def _law(self, benchmark: str, names: Sequence[str]) -> LogLinear:
        import numpy as np

        from mixloop.policies.surrogates import fit_log_linear

        points = [point for point in self.points if benchmark in point.benchmarks]
        mixtures = np.array([[p.weights.get(name, 0.0) for name in names] for p in points])
        return fit_log_linear(mixtures, np.array([p.benchmarks[benchmark].value for p in points]))
